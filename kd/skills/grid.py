"""The grid of skills: the leaves of the surveys' taxonomies, and the files of `conf/skill` that belong to each.

The leaves are those of Xu et al. 2024 (arXiv 2402.13116), skills and verticals, with `education` of Yang et al. 2024
(arXiv 2407.01885).
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table

from kd.components.allowed import KEY
from kd.components.choices import choices, content, file_of
from kd.components.signatures import located
from kd.metrics.table import of_skill
from kd.skills.dataset import IMAGES

LEAVES = {
    "instruction_following": "Instruction following",
    "multi_turn": "Multi-turn dialogue",
    "rag": "Retrieval-augmented and grounded answers",
    "thinking": "Thinking pattern",
    "preference": "Preference",
    "value": "Value",
    "safety": "Safety",
    "tool_use": "Tool use",
    "planning": "Planning",
    "nlu": "Natural language understanding",
    "nlg": "Natural language generation",
    "ir": "Information retrieval",
    "recommendation": "Recommendation",
    "generation_evaluation": "Evaluation of generated text",
    "code": "Code",
    "multimodal": "Multimodality",
    "law": "Law",
    "medical": "Medicine",
    "finance": "Finance",
    "science": "Science",
    "education": "Education",
}
OWN = "Your own data and tasks"  # of no leaf
UNCHECKED = " (upstream, unchecked)"  # after licences that no archive states
HUB = "hub/"  # files that read the hub and were not tried offline
PROMPTS = "prompts/"  # prompts alone, which need a rollout that generates
WIDE = 100  # columns of a terminal from which a table has all columns
USE = {True: "yes", False: "no", None: "?"}


class Entry(NamedTuple):
    """A file of `conf/skill`: its facts as far as they can be read without its data."""

    name: str
    what: str
    leaf: str | None
    metrics: tuple[str, ...]
    licence: str
    commercial: bool | None
    group_key: str
    counts: str
    sources: tuple[str, ...]
    hub: str | None
    images: bool = False


def entries() -> list[Entry]:
    """The files of `conf/skill`, in the order of the leaves, within a leaf by name, those of the hub last."""
    found = [_entry(name) for name in choices("skill")]
    order = [*LEAVES, None]
    return sorted(found, key=lambda entry: (order.index(entry.leaf), entry.name.startswith(HUB), entry.name))


def _entry(name: str) -> Entry:
    config = content("skill", name)
    what = file_of("skill", name).read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    counts = "/".join(_count(config.get(split)) for split in ("train", "validation", "test"))
    sources = tuple(dict.fromkeys(_addresses(config.get("path"))))
    facts = {"what": what, "counts": counts, "sources": sources, "hub": config.get("hub")}
    try:
        kind: Any = located("skill", config["_target_"])
    except ValueError:  # nothing is read of a class that is not allowed
        remedy = f"{config['_target_']}: add {KEY}=[...] to import it"
        return Entry(name, leaf=None, metrics=(), licence=remedy, commercial=None, group_key="–", **facts)
    named = tuple(config.get("metrics") or ())
    metrics = named if named and "path" in config else (of_skill(kind.metric).name, *named)
    return Entry(
        name,
        leaf=config.get("leaf") or kind.leaf,
        metrics=tuple(str(metric) for metric in metrics),
        licence=config.get("licence") or kind.licence,
        commercial=config.get("commercial", kind.commercial),
        group_key=config.get("group_key") or kind.group_key,
        images=kind.images or bool(IMAGES & (config.get("columns") or {}).keys()),
        **facts,
    )


def _count(value: Any) -> str:
    return str(value) if isinstance(value, int) else "–"


def _addresses(path: Any) -> Iterator[str]:
    """The addresses that a `path` names, without members."""
    if isinstance(path, str) and path.partition(":")[0] in ("hub", "wheel", "sdist"):
        yield path
    elif isinstance(path, Mapping):
        for value in path.values() if "address" not in path else [path["address"]]:
            yield from _addresses(value)
    elif isinstance(path, list):
        for value in path:
            yield from _addresses(value)


def by_leaf(hub: bool = False) -> Iterator[tuple[str, list[Entry]]]:
    """The title of each leaf that has files, with them; then those of no leaf.

    hub: whether files that read the hub are among them.
    """
    found = [entry for entry in entries() if hub or not entry.name.startswith(HUB)]
    for leaf, title in [*LEAVES.items(), (None, OWN)]:
        if own := [entry for entry in found if entry.leaf == leaf]:
            yield title, own


def tables(width: int) -> Iterator[Table]:
    """The grid for a terminal, a table for each leaf. Wide ones have the group key and all metrics, too."""
    wide = width >= WIDE
    longest = max(len(entry.name) for _, own in by_leaf() for entry in own)
    for place, (title, own) in enumerate(by_leaf()):
        shown = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), width=width)
        shown.title_style, shown.show_header = "bold", place == 0
        shown.add_column("skill", width=longest, no_wrap=True)
        shown.add_column("metrics", ratio=3 if wide else 1, overflow="fold")
        shown.add_column("licence", ratio=2 if wide else 1)
        for column, least in (("use", 3), *((("group key", 16),) if wide else ()), ("train/val/test", 14)):
            shown.add_column(column, width=least, overflow="fold")
        for entry in own:
            metrics = ", ".join(entry.metrics) if wide else _short(entry.metrics)
            key = (entry.group_key,) if wide else ()
            licence = escape(entry.licence.replace(UNCHECKED, " *"))
            shown.add_row(entry.name, metrics, licence, USE[entry.commercial], *key, entry.counts)
        yield shown


def _short(metrics: tuple[str, ...]) -> str:
    return metrics[0] + (f" +{len(metrics) - 1}" if len(metrics) > 1 else "") if metrics else "–"


def notes() -> str:
    """The text below the tables."""
    hub = [entry.name for entry in entries() if entry.name.startswith(HUB)]
    return (
        "use: whether the licence allows commercial use; ? is not known, or was not checked.\n"
        "*: the licence that the data's authors state elsewhere; the archive states none. –: all that there are.\n"
        f"{len(hub)} more read the hub and were not tried offline: {', '.join(hub)}"
    )
