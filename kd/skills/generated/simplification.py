"""Long sentences about places that are to be said in short ones, in easy words."""

from collections.abc import Mapping
from random import Random
from typing import Any, NamedTuple

from kd.metrics.instructions.sentences import sentences
from kd.skills.generated.places import Facts, Places, states
from kd.types import Record

VERSION = 1
INSTRUCTION = "Say this in short sentences and easy words."
LONGEST = 12  # words of a sentence that counts as short
REFERENCES = 4


class Wording(NamedTuple):
    """The ways to state a fact: clauses of a long sentence with the hard words of each, and short sentences."""

    keys: tuple[str, ...]
    hard: Mapping[str, tuple[str, ...]]
    easy: tuple[str, ...]


WORDINGS = {
    "founder": Wording(
        ("founder", "year"),
        {
            "was established in {year} by {founder}": ("established",),
            "owes its foundation in {year} to {founder}": ("owes", "foundation"),
            "was inaugurated by {founder} in the course of {year}": ("inaugurated", "in the course of"),
        },
        ("{founder} opened it in {year}.", "It was opened in {year} by {founder}.", "In {year}, {founder} opened it."),
    ),
    "area": Wording(
        ("area",),
        {
            "is situated in the vicinity of the {area}": ("situated", "vicinity"),
            "can be found in close proximity to the {area}": ("proximity",),
            "is located at a negligible distance from the {area}": ("located", "negligible"),
        },
        ("It is near the {area}.", "It is close to the {area}.", "You find it near the {area}."),
    ),
    "product": Wording(
        ("product",),
        {
            "is renowned for its {product}": ("renowned",),
            "has attained considerable prominence owing to its {product}": ("attained", "prominence", "owing"),
            "specialises in the preparation of {product}": ("specialises", "preparation"),
        },
        ("It is known for its {product}.", "People come for its {product}.", "It is good at making {product}."),
    ),
}
LONG = (
    "{name}, {article} {kind} that {0} and {1}, {2}.",
    "{name}, which {0}, is {article} {kind} that {1} and {2}.",
)
OPENINGS = ("{name} is {article} {kind}.", "The {kind} is called {name}.")


class Simplification(Places):
    """Sentences with a subordinate clause and hard words, with four simplifications each.

    The score is 1 where an answer states all facts, has none of the sentence's hard words, and no sentence of more than
    twelve words; else 0. How near it is to the references is SARI's part.
    """

    name = "simplification"

    def written(self, rng: Random, facts: Facts) -> tuple[str, list[str], dict[str, Any]]:
        """The sentence, its simplifications in the order of its facts, and what an answer must keep and avoid."""
        order = rng.sample(list(WORDINGS), len(WORDINGS))
        clauses = [rng.choice(list(WORDINGS[key].hard)) for key in order]
        filled = {**facts, "article": "an" if facts["kind"][0] in "aeiou" else "a"}
        source = rng.choice(LONG).format(*(clause.format(**filled) for clause in clauses), **filled)
        texts: list[str] = []
        while len(texts) < REFERENCES:
            parts = [rng.choice(OPENINGS), *(rng.choice(WORDINGS[key].easy) for key in order)]
            text = " ".join(part.format(**filled) for part in parts)
            texts += [text] if text not in texts else []
        hard = [word for key, clause in zip(order, clauses, strict=True) for word in WORDINGS[key].hard[clause]]
        kept = [facts[key] for key in ("name", "kind", "founder", "year", "area", "product")]
        return f"{source}\n\n{INSTRUCTION}", texts, {"source": source, "kept": kept, "avoided": hard}

    def score(self, record: Record, text: str) -> float:
        """1 for an answer that keeps the facts, in easy words and short sentences, else 0."""
        kept = all(states(text, value) for value in record.meta["kept"])
        easy = not any(states(text, word) for word in record.meta["avoided"])
        short = all(len(sentence.split()) <= LONGEST for sentence in sentences(text))
        return float(kept and easy and short)
