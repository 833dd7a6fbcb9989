"""The final table of one run: systems down, metrics across, the gap closed as the last row."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kd.metrics.table import ON_TEACHER, Metric, of_results
from kd.reports.grid import Cell, Grid, share, with_interval, with_interval_and_n
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
COSTS = {  # of running a model, and their units
    "parameters": "parameters",
    "weights_bytes": "bytes of weights",
    "flops_per_token": "FLOPs a generated token",
    "tokens_per_second": "tokens/s",
}
NOTHING = "Nothing was evaluated (evaluation=none)."
NEAR_WORST = 0.05  # of the way from a metric's worst value to its best


def run_grid(
    results: Mapping[str, Any], title: str = "Held-out scores", config: Mapping[str, Any] | None = None
) -> Grid:
    """Rows: the systems that were measured. Columns: bits per byte, agreement, skill metrics.

    Where nothing was measured there are notes alone.

    config: the composed config of the run by section, by which the trained student is named.
    """
    columns = _columns(results)
    if not columns:
        return Grid(title, [], [], [NOTHING, *_facts(results)])
    names = NAMES | {"after": student_name(config or {})}
    rows = [
        [names.get(system, f"{system}, equal steps"), *(_cell(c.get(system)) for _, c, *_ in columns)]
        for system in systems_in([column for _, column, *_ in columns])
    ]
    rows.append(["gap closed", *(gap for _, _, gap, _ in columns)])
    if results.get("judges"):
        rows.append(["judge's agreement with labels", *(trust for *_, trust in columns)])
    notes = ["Intervals are over the n items or tokens of this run, not over seeds.", *_near_zero(results)]
    return Grid(title, ["", *(name for name, *_ in columns)], rows, [*notes, *_facts(results)])


def _facts(results: Mapping[str, Any]) -> list[str]:
    """The sentences on a run that are under its table."""
    notes = [*lost_records(results.get("records")), *lacking("The method", results.get("omits", ()))]
    notes += [*_leaks(results.get("contamination")), *_cost(results.get("efficiency") or {})]
    notes += _skipped(results.get("skipped_rows") or {})
    notes += judge_notes(results)
    notes += _undecided(results.get("undecided") or {})
    return [*notes, *(f"Caution: {caution}." for caution in results.get("cautions", ()))]


def student_name(config: Mapping[str, Any]) -> str:
    """The words for the trained student: `student, distilled`, or the objective where no teacher took part.

    That is so in a run on the references alone (`sft`), as the one beside a run, and in one without a teacher.
    """
    terms = list(config.get("objective") or ())
    stages = (config.get("augmentation") or {}).get("stages")
    rollout = str((config.get("rollout") or {}).get("_target_") or "")
    references = terms == ["sft"] and not stages and rollout.endswith(".Offline")
    alone = bool(terms) and not (config.get("teacher") or {}).get("_target_")
    return f"student, {'+'.join(terms)}" if references or alone else NAMES["after"]


def rounds_grid(rounds: Sequence[Mapping[str, Any]]) -> Grid:
    """Rows: the student after each round of a loop, from the results of these runs. Columns: as in `run_grid`."""
    tables = [_columns(results) for results in rounds]
    rows = [
        [
            f"{i}",
            f"{results['records']['train']['given']}",
            *(_cell(c.get("after")) for _, c, *_ in columns),
        ]
        for i, (results, columns) in enumerate(zip(rounds, tables, strict=True), start=1)
    ]
    header = ["round", "training\nrecords", *(name for name, *_ in tables[-1])]
    return Grid(
        "The student after each round", header, rows, ["Each round is a run of its own; intervals are over items."]
    )


def lost_records(records: Mapping[str, Mapping[str, int]] | None) -> list[str]:
    """Sentences on the splits of which data.max_length leaves out or truncates records (`kd.runs.results.Records`)."""
    sentences = []
    for split, counts in (records or {}).items():
        given, left_out, truncated = (counts.get(key, 0) for key in ("given", "left_out", "truncated"))
        why = WHY.get(split, "do not fit whole and are not scored")
        parts = [f"{left_out} of {given} records {why}"] if left_out else []
        parts += [f"{truncated} of {given} have a truncated response"] if truncated else []
        sentences += [f"data.max_length, {split}: {', '.join(parts)}."] if parts else []
    return sentences


def _skipped(found: Mapping[str, Any]) -> list[str]:
    """A sentence for each skill of which rows were skipped."""
    more = {name: one["count"] - len(one["first"]) for name, one in found.items()}
    return [
        f"Skipped rows of {name}: {one['count']}, {'; '.join(one['first'])}{' …' if more[name] else ''}."
        for name, one in found.items()
    ]


def _leaks(found: Mapping[str, Any] | None) -> list[str]:
    """A sentence on the items that share text with training records, for all splits in use."""
    if not found or not found["splits"]:
        return []
    parts = [f"{len(one['overlapping'])} of {one['items']} {split}" for split, one in found["splits"].items()]
    shared = f"{found['words']} words in a row, or all of a shorter prompt"
    return [f"Contamination: {' and '.join(parts)} items share {shared}, with a training record."]


def _undecided(found: Mapping[str, Mapping[str, Mapping[str, int]]]) -> list[str]:
    """Sentences on the answers whose evaluation reached a limit of the sandbox."""
    counts = [
        (f"{skill}: {metric}", ", ".join(f"{count} of {NAMES.get(name, name)}" for name, count in systems.items()))
        for skill, metrics in found.items()
        for metric, systems in metrics.items()
    ]
    return [
        f"{name} has no verdict on answers ({parts}): a limit of the sandbox; they count as wrong."
        for name, parts in counts
    ]


def _cost(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence on the student's size and speed, relative to the teacher's where both are known."""
    if "student" not in found:
        return []
    student, teacher = found["student"], found.get("teacher")
    parts = [f"{student[key]:.3g} {unit}{_of(student, teacher, key)}" for key, unit in COSTS.items() if student[key]]
    return [f"The student: {', '.join(parts)}."]


def _of(student: Mapping[str, Any], teacher: Mapping[str, Any] | None, key: str) -> str:
    return f" ({student[key] / teacher[key]:.2g} × the teacher's)" if teacher and teacher[key] else ""


def lacking(name: str, omits: Sequence[str]) -> list[str]:
    """One sentence on the parts of its paper that `name` omits; none where nothing is omitted."""
    return [f"{name} omits of its paper: {'; '.join(omits)}."] if omits else []


def _cell(estimate: Mapping[str, Any] | None) -> Cell:
    found = Cell.of(estimate)
    return Cell(with_interval_and_n(estimate), found.value, found.low, found.high, found.n)


def systems_in(columns: Sequence[Mapping[str, Any]]) -> list[str]:
    """The systems that were measured, in the order of SYSTEMS; students under other objectives follow sft."""
    measured = dict.fromkeys(name for column in columns for name, estimate in column.items() if estimate)
    others = [name for name in measured if name not in SYSTEMS]
    place = SYSTEMS.index("after")
    return [name for name in (*SYSTEMS[:place], *others, *SYSTEMS[place:]) if name in measured]


def judge_notes(results: Mapping[str, Any]) -> list[str]:
    """A sentence on each judge: its agreement with labels, its position bias, and what it gave no verdict on."""
    return [f"Judge {name}: {'; '.join(_trust(judge))}." for name, judge in (results.get("judges") or {}).items()]


def _trust(judge: Mapping[str, Any]) -> list[str]:
    if judge["agreement"] is None:
        parts = ["its agreement with labels is not measured"]
    else:
        n, of = judge["agreement"]["n"], judge["labelled"]
        agreed = f"agrees with {with_interval(judge['agreement'])} of the {n} labels of {of}"
        parts = [f"{agreed}, Cohen's kappa {with_interval(judge['kappa'])}"]
    shares = {
        "position_bias": "of the pairs another answer wins in the other order",
        "shown_first": "of decided verdicts are for the answer that is shown first",
        "longer": "of decided pairs are won by the longer answer",
        "between": "of the verdicts of two of its judges are the same",
        "unparsable": "of the items have no verdict that can be read",
    }
    parts += [f"{with_interval(judge[key])} {words}" for key, words in shares.items() if judge[key] is not None]
    parts += [f"{with_interval(judge['voting'])} judges have a verdict on an item"] if judge.get("voting") else []
    if (cost := judge.get("cost")) is not None:
        parts.append(f"its verdicts cost {cost['tokens']:,} tokens and {cost['seconds']:.1f} s")
    lost = {"left_out": "items do not fit it", "labelled_left_out": "labelled pairs do not fit it"}
    return [*parts, *(f"{judge[key]} {words}" for key, words in lost.items() if judge.get(key))]


def _columns(results: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], str, str]]:
    """(header, estimates by system, gap closed, agreement of its judge): losses first, agreement with the teacher, then
    the skills' own metrics."""
    scores = [(skill, metric) for skill, metrics in results["scores"].items() for metric in metrics]
    scores = [pair for pair in scores if pair[1] not in ON_TEACHER]  # on other skills: results.json
    scores.sort(key=lambda pair: of_answers(results, pair[1]))
    several = len(results["scores"]) > 1

    trust = {
        metric: with_interval_and_n(judge["agreement"])
        for judge in (results.get("judges") or {}).values()
        for metric in judge["metrics"]
    }

    def column(skill: str, metric: str) -> tuple[str, Mapping[str, Any], str, str]:
        header = of_results(results, metric).title
        gap = results["gap_closed"].get(skill, {}).get(metric)
        named = f"{skill}\n{header}" if several else header
        return named, results["scores"][skill][metric], share(gap), trust.get(metric, "–")

    losses = [column(*pair) for pair in scores if not of_answers(results, pair[1])]
    gaps: Mapping[str, float | None] = next(iter(results["gap_closed"].values()), {})
    agreement = [
        (of_results(results, name).title, systems, share(gaps.get(name)), "–")
        for name, systems in (results["agreement"] or {}).items()
    ]
    return [*losses, *agreement, *(column(*pair) for pair in scores if of_answers(results, pair[1]))]


def of_answers(results: Mapping[str, Any], metric: str) -> bool:
    """Return whether it is a skill's own metric, which is shown after those that every run has."""
    return of_results(results, metric).of == "answers"


def headline(results: Mapping[str, Any], metrics: Mapping[str, Any]) -> str | None:
    """The first metric of answers; where nothing was answered, the first of all."""
    answered = [name for name in metrics if of_answers(results, name)]
    return next(iter([*answered, *metrics]), None)


def _near_zero(results: Mapping[str, Any]) -> list[str]:
    """Sentences about metrics of answers that rank no system here, one for those of a skill that are alike."""
    alike: dict[tuple[str, str], list[str]] = {}
    for skill, metrics in results["scores"].items():
        for name, systems in metrics.items():
            metric = of_results(results, name)
            if metric.of != "answers" or not math.isfinite(metric.best):
                continue
            if all(_value(systems, name) is None for name in systems):  # of a judge that gave no verdict
                continue
            if not any(_above(metric, _value(systems, student)) for student in ("before", "sft", "after")):
                alone = _above(metric, _value(systems, "teacher"))
                near = "every student (the teacher is not)" if alone else "every system"
                worst = "zero" if metric.worst == 0 else f"its worst value, {metric.worst:g},"
                alike.setdefault((skill, f"near {worst} for {near}"), []).append(name)
    return [_ranks_nothing(skill, names, near) for (skill, near), names in alike.items()]


def _ranks_nothing(skill: str, names: Sequence[str], near: str) -> str:
    *others, last = names
    several = f"{', '.join(others)} and {last} are {near}, so they do" if others else f"{last} is {near}, so it does"
    return f"{skill}: {several} not rank the students; bits per byte and the KLs do."


def _above(metric: Metric, value: float | None) -> bool:
    return value is not None and metric.share(value) > NEAR_WORST


def _value(systems: Mapping[str, Any], name: str) -> float | None:
    estimate = systems.get(name)
    return None if estimate is None else estimate["value"]
