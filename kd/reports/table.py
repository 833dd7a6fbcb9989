"""The final table of one run: systems down, metrics across, the gap closed as the last row."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from kd.reports.grid import Grid, share, with_interval_and_n
from kd.runs.results import SYSTEMS

NAMES = {
    "uniform": "uniform",
    "floor": "unigram (floor)",
    "before": "student before",
    "sft": "sft, equal steps",
    "after": "student, distilled",
    "teacher": "teacher",
}
NO_ROOM = "leave no room for a response"
WHY = {"train": NO_ROOM, "answers": f"{NO_ROOM} and are not answered"}  # why records are left out, by split
LOSS_METRIC = "bits_per_byte"
HEADERS = {
    LOSS_METRIC: "bits per byte",
    "top1": "top-1 agreement",
    "forward_kl": "forward KL (nats)",
    "reverse_kl": "reverse KL (nats)",
}
NEAR_ZERO = 0.05  # of a skill metric, which lies between 0 and 1


def run_table(results: Mapping[str, Any]) -> Table:
    """For the terminal, from the content of a finished run's results.json."""
    return run_grid(results).rich()


def run_grid(results: Mapping[str, Any], title: str = "Held-out scores") -> Grid:
    """Rows: the systems that were measured. Columns: bits per byte, agreement, skill metrics."""
    columns = _columns(results)
    rows = [
        [NAMES.get(system, f"{system}, equal steps"), *(with_interval_and_n(c.get(system)) for _, c, _ in columns)]
        for system in _systems([column for _, column, _ in columns])
    ]
    rows.append(["gap closed", *(gap for _, _, gap in columns)])
    notes = ["Intervals are over the n items or tokens of this run, not over seeds.", *_near_zero(results)]
    notes += [*lost_records(results.get("records")), *lacking("The method", results.get("omits", ()))]
    notes += [f"Caution: {caution}." for caution in results.get("cautions", ())]
    return Grid(title, ["", *(name for name, _, _ in columns)], rows, notes)


def lost_records(records: Mapping[str, Mapping[str, int]] | None) -> list[str]:
    """Sentences: of which splits data.max_length leaves out or truncates records (`kd.runs.results.Records`)."""
    sentences = []
    for split, counts in (records or {}).items():
        given, left_out, truncated = (counts.get(key, 0) for key in ("given", "left_out", "truncated"))
        why = WHY.get(split, "do not fit whole and are not scored")
        parts = [f"{left_out} of {given} records {why}"] if left_out else []
        parts += [f"{truncated} of {given} have a truncated response"] if truncated else []
        sentences += [f"data.max_length, {split}: {', '.join(parts)}."] if parts else []
    return sentences


def lacking(who: str, omits: Sequence[str]) -> list[str]:
    """One sentence on what `who` leaves out of its paper; none where nothing is left out."""
    return [f"{who} omits of its paper: {'; '.join(omits)}."] if omits else []


def _systems(columns: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those that were measured, in the order of SYSTEMS; students under other objectives follow sft."""
    measured = dict.fromkeys(name for column in columns for name, estimate in column.items() if estimate)
    others = [name for name in measured if name not in SYSTEMS]
    place = SYSTEMS.index("after")
    return [name for name in (*SYSTEMS[:place], *others, *SYSTEMS[place:]) if name in measured]


def _columns(results: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], str]]:
    """(header, estimates by system, gap closed): losses first, agreement, then the skills' own metrics."""
    scores = [(skill, metric) for skill, metrics in results["scores"].items() for metric in metrics]
    scores.sort(key=lambda pair: pair[1] != LOSS_METRIC)
    several = len(results["scores"]) > 1

    def column(skill: str, metric: str) -> tuple[str, Mapping[str, Any], str]:
        header = HEADERS.get(metric, metric)
        gap = results["gap_closed"].get(skill, {}).get(metric)
        return (f"{skill}\n{header}" if several else header), results["scores"][skill][metric], share(gap)

    losses = [column(*pair) for pair in scores if pair[1] == LOSS_METRIC]
    gaps: Mapping[str, float | None] = next(iter(results["gap_closed"].values()), {})
    agreement = [
        (HEADERS[name], systems, share(gaps.get(name))) for name, systems in (results["agreement"] or {}).items()
    ]
    return [*losses, *agreement, *(column(*pair) for pair in scores if pair[1] != LOSS_METRIC)]


def _near_zero(results: Mapping[str, Any]) -> list[str]:
    """Sentences about skill metrics that cannot rank anybody here."""
    notes = []
    for skill, metrics in results["scores"].items():
        for metric, systems in metrics.items():
            if metric == LOSS_METRIC:
                continue
            students = [_value(systems, name) for name in ("before", "sft", "after")]
            if all(value is None or value <= NEAR_ZERO for value in students):
                teacher = _value(systems, "teacher")
                alone = teacher is not None and teacher > NEAR_ZERO
                who = "every student (the teacher is not)" if alone else "every system"
                notes.append(
                    f"{skill}: {metric} is near zero for {who}, so it does not rank the students; "
                    "bits per byte and the KLs do."
                )
    return notes


def _value(systems: Mapping[str, Any], name: str) -> float | None:
    estimate = systems.get(name)
    return None if estimate is None else estimate["value"]
