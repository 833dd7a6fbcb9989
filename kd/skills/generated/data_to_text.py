"""Tables of facts about places that are to be put into sentences (as E2E, Novikova et al. 2017, arXiv 1706.09254)."""

from random import Random
from typing import Any

from kd.skills.generated.places import VALUES, Facts, Places, article, stated, states
from kd.types import Record

VERSION = 1
OPTIONAL = ("area", "price", "product", "founder", "stars")  # of which a table has two to four
INSTRUCTION = "Describe the place in full sentences. State all facts and no others."


class DataToText(Places):
    """Tables of a name, a kind and two to four further facts, with three references each.

    The score is 1 less the share of the table's facts that an answer lacks or adds: a value of another place counts as
    added. Values are compared as words, so a paraphrase of one is not found (as in the slot error rate).
    """

    name = "data_to_text"

    def written(self, rng: Random, facts: Facts) -> tuple[str, list[str], dict[str, Any]]:
        """The table, three texts of it, and its facts."""
        chosen = rng.sample(OPTIONAL, rng.randint(2, 4))
        keys = ["name", "kind", *chosen, *(["year"] if "founder" in chosen else [])]
        own = {key: facts[key] for key in keys}
        table = "\n".join(f"{key}: {value}" for key, value in own.items())
        texts = [form(own) for form in (_plainly, _by_place, _by_name)]
        rng.shuffle(texts)
        return f"{table}\n\n{INSTRUCTION}", texts, {"facts": own}

    def score(self, record: Record, text: str) -> float:
        """The share of the facts that are stated, less that of stated values which are none of them; at least 0."""
        own: Facts = record.meta["facts"]
        said = {key: stated(text, key) for key in VALUES}
        lacking = sum(value.lower() not in said[key] for key, value in own.items() if key in said)
        lacking += not states(text, own["name"])
        added = sum(bool(values - {own.get(key, "").lower()}) for key, values in said.items())
        return max(0.0, 1 - (lacking + added) / len(own))


def _plainly(own: Facts) -> str:
    """One sentence after another: kind, place, offer, founder, stars."""
    kind = article(f"{own['price']} {own['kind']}" if "price" in own else own["kind"])
    near = f" near the {own['area']}" if "area" in own else ""
    parts = [f"{own['name']} is {kind}{near}."]
    parts += [f"It serves {own['product']}."] if "product" in own else []
    parts += [f"{own['founder']} opened it in {own['year']}."] if "founder" in own else []
    parts += [f"It has {_stars(own)}."] if "stars" in own else []
    return " ".join(parts)


def _by_place(own: Facts) -> str:
    """The place first, then the name."""
    kind = article(f"{own['price']} {own['kind']}" if "price" in own else own["kind"])
    there = f"Near the {own['area']} you find {own['name']}" if "area" in own else f"Visit {own['name']}"
    rated = f" with {_stars(own)}" if "stars" in own else ""
    sells = f" that sells {own['product']}" if "product" in own else ""
    made = f" It was opened in {own['year']} by {own['founder']}." if "founder" in own else ""
    return f"{there}, {kind}{rated}{sells}.{made}"


def _by_name(own: Facts) -> str:
    """The founder beside the name, then the rest."""
    made = f", opened by {own['founder']} in {own['year']}," if "founder" in own else ""
    parts = [f"{own['name']}{made} is {article(own['kind'])}."]
    parts += [f"On offer: {own['product']}."] if "product" in own else []
    parts += [f"It is {own['price']}."] if "price" in own else []
    parts += [f"Guests give it {_stars(own)}."] if "stars" in own else []
    parts += [f"You reach it from the {own['area']}."] if "area" in own else []
    return " ".join(parts)


def _stars(own: Facts) -> str:
    return f"{own['stars']} star{'' if own['stars'] == 'one' else 's'}"
