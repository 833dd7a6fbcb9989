"""The details of one run on the page: its score table, settings, curves and answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kd.reports.comparisons.changed_words import Piece, marked
from kd.reports.comparisons.costs import COSTS, cost_cell, shown_costs, spent
from kd.reports.comparisons.curves import FIRST, logged, of_task
from kd.reports.comparisons.samples import change, changed_first, side_by_side, summary, systems_of
from kd.reports.grid import number
from kd.reports.page.tables import curve, table
from kd.reports.robustness import robustness_grid
from kd.reports.runs import Job
from kd.reports.table import run_grid

LONGEST = 600  # characters of a text
METRICS = 16  # curves of a run
MARKS = "Struck out: words before training that are gone after it. Underlined: words which the student before lacks."


@dataclass
class Sections:
    """The sections of composed configs, each once: runs share most of them.

    Attributes:
        pages: of each, pairs of a dotted name and its value.
    """

    pages: list[list[tuple[str, str]]] = field(default_factory=list)
    places: dict[tuple[str, int], int] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)  # an id stays that of the section

    def of(self, config: Mapping[str, Any]) -> list[int]:
        """The places of a config's sections in `pages`."""
        return [self._place(name, section) for name, section in config.items()]

    def _place(self, name: str, section: Any) -> int:
        key = (name, id(section)) if isinstance(section, Mapping) else (f"{name}={section!r}", 0)
        if key not in self.places:
            self.places[key] = len(self.pages)
            self.pages.append(list(_flat(name, section)))
            self.kept.append(section)
        return self.places[key]


def _flat(name: str, node: Any) -> Sequence[tuple[str, str]]:
    if not isinstance(node, Mapping) or not node:
        return [(name, "null" if node is None else str(node).lower() if isinstance(node, bool) else str(node))]
    return [pair for key, value in node.items() for pair in _flat(f"{name}.{key}", value)]


def details(
    job: Job, other: Job | None, beside: str, sections: Sections, *, samples: int, points: int
) -> dict[str, Any]:
    """The run as its part of the page shows it.

    Args:
        job: the run, finished or not.
        other: the run beside it, of which answers are shown.
        beside: the words for that.
        sections: the settings of all runs, to which its own are added.
        samples: answers that are shown.
        points: of a curve.
    """
    found: dict[str, Any] = {"facts": _facts(job), "settings": sections.of(job.config), "problems": []}
    if job.reason:
        found["problems"].append(f"{job.status}: {job.reason}")
    if job.problem:
        found["problems"].append(f"Not read: {job.problem}.")
    if job.results is not None:
        grids = [run_grid(job.results, "Held-out scores", job.config), robustness_grid(job.results)]
        found["tables"] = [table(grid) for grid in grids if grid is not None]
    for name, made in (
        ("curves", lambda: _curves(job, points)),
        ("answers", lambda: _answers(job, other, beside, samples)),
    ):
        try:
            found[name] = made()
        except (ValueError, OSError) as error:  # torn, or not as it was when the run ended
            found["problems"].append(f"Not read: {error}.")
    return found


def _facts(job: Job) -> list[tuple[str, str]]:
    facts = [("status", job.status), ("folder", str(job.folder) if job.folder else "–")]
    if job.results is None:
        return [*facts, *job.overrides.items()]
    results = job.results
    costs = [(COSTS[name].replace("\n", " "), str(cost_cell(name, spent(job, name)))) for name in shown_costs([job])]
    versions = [f"{name} {version}" for name, version in (results.get("versions") or {}).items()]
    facts += [("seed", str(results["seed"])), ("hash", results["config_hash"]), ("code", results.get("code") or "–")]
    return [*facts, *costs, ("versions", ", ".join(versions) or "–")]


def ordered(names: Sequence[str]) -> list[str]:
    """Logged metrics: those of tasks, `FIRST`, then the others."""
    tasks = [name for name in names if of_task(name)]
    return list(dict.fromkeys([*tasks, *(name for name in FIRST if name in names), *names]))


def _curves(job: Job, points: int) -> dict[str, Any]:
    found = {name: values for name, values in logged(job).items() if len(values) > 1}
    return {
        name: curve(list(found[name]), list(found[name].values()), points) for name in ordered(list(found))[:METRICS]
    }


def _answers(job: Job, other: Job | None, beside: str, count: int) -> dict[str, Any] | None:
    skill = next(iter((job.results or {}).get("scores", ())), "")
    own = side_by_side(job, other, skill)
    if not own or job.folder is None:
        return None
    present = systems_of(own)
    named = {"before": "student before", "after": "student after", "sft": beside}
    return {
        "systems": [named.get(system, system) for system in present],
        "items": [_item(name, own[name], present) for name in changed_first(own)[:count]],
        "before": present.index("before") if "before" in present else None,
        "notes": [
            summary(own, job.folder.name, beside),
            *([MARKS] if "before" in present else []),
            f"Texts are cut at {LONGEST} characters.",
        ],
    }


def _item(name: str, systems: Mapping[str, Mapping[str, Any]], present: Sequence[str]) -> dict[str, Any]:
    one = systems["after"]
    moved, pieces = change(systems, "before"), marked(systems, LONGEST)
    words = "" if "before" not in systems else "gained" if moved > 0 else "lost" if moved < 0 else "as before"
    return {
        "id": name,
        "prompt": _short(one["prompt"]),
        "reference": _short(one.get("reference") or "–"),
        "answers": [_answer(systems.get(system), pieces.get(system, ())) for system in present],
        "change": words,
    }


def _answer(one: Mapping[str, Any] | None, pieces: Sequence[Piece]) -> list[Any] | None:
    """[pieces, score as text, score, further notes]; None without an answer. A changed piece is a list of one text."""
    if one is None:
        return None
    more = [*(["truncated"] if one.get("truncated") else []), *filter(None, [one.get("verifier_error")])]
    shown = [[text] if changed else text for text, changed in pieces if text]
    return [shown, number(one.get("score")), one.get("score"), "; ".join(map(_short, more))]


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
