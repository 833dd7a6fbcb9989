"""The comparison table of a sweep: one row per job, then means over seeds where there are several."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Group

from kd.artifacts import write_atomically
from kd.intervals import over_seeds
from kd.metrics.table import METRICS, Metric, of_results
from kd.reports.grid import Grid, number, share, with_interval
from kd.reports.runs import Job, problems, read_jobs
from kd.reports.table import lacking
from kd.reports.transfer import transfer_grid

DIGESTS = ("initial_weights", "data_order", "evaluation_items")
APART = ("family", "versions")  # facts that, beside overrides, separate rows of means
LOOK_ALIKE = (
    "Rows of means with the same overrides are of runs that differ in more than their seed: in settings that are no "
    "overrides, data, models or code."
)
ITEM_INTERVALS = "Brackets in the rows of jobs are intervals over items, not over seeds."
SEED_INTERVALS = (
    "Brackets are 95 % t intervals over seeds, on a scale that stays within the metric's bounds; they leave out the "
    "variation over problems."
)
ONE_SEED = "One seed: there is no interval over seeds."
OF_TRAINING = "Costs are of training: seconds are wall clock, without validation and evaluation."
LOST = "left out\n+ truncated"
OF_LOST = (
    "Left out + truncated: records that do not fit data.max_length. Training leaves out those whose prompt leaves no "
    "room and truncates responses; answers leave out such prompts, validation and test every reference that does not "
    "fit whole."
)
COSTS = {  # of a run's budget, in the order of the columns
    "student_flops": "student\nFLOPs",
    "tokens": "tokens",
    "teacher_tokens": "teacher\ntokens",
    "generated_tokens": "generated\ntokens",
    "judge_flops": "judge\nFLOPs",
    "seconds": "training\nseconds",
}


def sweep_table(path: str | PathLike[str]) -> Group:
    """The tables of a sweep folder (or of the runs that `path` stands for), for the terminal."""
    return Group(*(grid.rich() for grid in sweep_grids(path)))


def write_sweep(sweep: Path) -> None:
    """Write sweep.csv (numbers) and sweep.md (the tables) into the sweep folder, each atomically."""
    jobs = read_jobs(sweep)
    write_atomically(sweep / "sweep.csv", sweep_frame(jobs).to_csv(index=False))
    write_atomically(sweep / "sweep.md", "\n".join(grid.markdown() for grid in grids_of(jobs)))


def sweep_grids(path: str | PathLike[str]) -> list[Grid]:
    """The table of jobs and, where overrides were run with several seeds, the table of means."""
    return grids_of(read_jobs(path))


def sweep_frame(jobs: Sequence[Job]) -> pd.DataFrame:
    """One row per job; columns are named as in results.json, of the distilled student (`after`)."""
    return pd.DataFrame([_flat(job) for job in jobs], dtype=object)  # else a failed job makes floats of counts


def _flat(job: Job) -> dict[str, Any]:
    row: dict[str, Any] = {"job": job.label, **job.overrides, "status": job.status, "reason": job.reason or job.problem}
    row |= {"seconds": job.seconds, "run": job.folder.name if job.folder else None}
    if job.results is None:
        return row
    row["seed"] = job.results["seed"]
    for name, estimate in _estimates(job.results):
        row |= {f"{name}.after.{key}": value for key, value in estimate.items()}
    for skill, gaps in job.results["gap_closed"].items():
        row |= {f"gap_closed.{skill}.{metric}": gap for metric, gap in gaps.items()}
    for page in ("budget", "digests"):
        row |= {f"{page}.{key}": value for key, value in job.results[page].items()}
    for split, counts in (job.results.get("records") or {}).items():
        row |= {f"records.{split}.{key}": value for key, value in counts.items()}
    return row | {"omits": "; ".join(job.results.get("omits", ()))}


def _estimates(results: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    for skill, metrics in results["scores"].items():
        for metric, systems in metrics.items():
            yield f"scores.{skill}.{metric}", systems["after"]
    for metric, systems in (results["agreement"] or {}).items():
        yield f"agreement.{metric}", systems["after"]


def grids_of(jobs: Sequence[Job]) -> list[Grid]:
    """The tables of jobs that were read; what could not be read is named under the last one."""
    seeds = _seeds_grid(jobs)
    notes = [] if seeds else [ONE_SEED] if _finished(jobs) else []
    costs = [OF_TRAINING] if _finished(jobs) else []
    alike = [*_same_digests(jobs), *_mixed_code(jobs)]
    grids = [_jobs_grid(jobs, [ITEM_INTERVALS, *costs, *alike, *notes, *_omissions(jobs)])]
    grids += [grid for grid in (seeds, transfer_grid(jobs)) if grid]
    last = grids[-1]
    return [*grids[:-1], replace(last, notes=[*last.notes, *problems(jobs)])]


def _finished(jobs: Sequence[Job]) -> list[Job]:
    return [job for job in jobs if job.results is not None]


def _jobs_grid(jobs: Sequence[Job], notes: Sequence[str]) -> Grid:
    keys, metrics, costs = _varying(jobs), _metrics(jobs), _costs(jobs)
    header = ["job", *keys, "status", "skill"]
    for metric in metrics:
        header += [_facts(jobs, metric).title, "gap closed"]
    header += [METRICS["forward_kl"].title, *(COSTS[name] for name in costs), "weights/order/items"]
    losing = any(map(_lost, jobs))
    header += [LOST] if losing else []
    rows = []
    for job in jobs:
        status = job.status if job.reason is None else f"{job.status}: {job.reason}"
        chosen = [job.overrides.get(key, "") for key in keys]
        lost = ["\n".join(_lost(job))] if losing else []
        rows.append([job.label, *chosen, status, *_result_cells(job, metrics, costs), *lost])
    return Grid(f"{len(jobs)} jobs", header, rows, [*notes, *([OF_LOST] if losing else [])])


def _lost(job: Job) -> list[str]:
    """Numbers of records that data.max_length left out or truncated, by split: "train 57 + 3 of 64"."""
    records = (job.results or {}).get("records") or {}
    counts = {split: (n["left_out"], n["truncated"], n["given"]) for split, n in records.items()}
    return [f"{split} {left} + {cut} of {given}" for split, (left, cut, given) in counts.items() if left or cut]


def _result_cells(job: Job, metrics: Sequence[str], costs: Sequence[str]) -> list[str]:
    """One line per skill inside the cells that depend on the skill."""
    if job.results is None:
        return [""] * (2 * len(metrics) + 3 + len(costs))
    results, skills = job.results, list(job.results["scores"])
    cells = ["\n".join(skills)]
    for metric in metrics:
        systems = [results["scores"][skill].get(metric, {}) for skill in skills]
        gaps = [results["gap_closed"].get(skill, {}).get(metric) for skill in skills]
        cells += ["\n".join(with_interval(s.get("after")) for s in systems), "\n".join(map(share, gaps))]
    digests = results["digests"]
    cells.append(with_interval(results["agreement"] and results["agreement"]["forward_kl"]["after"]))
    cells += [_cost(name, _spent(job, name)) for name in costs]
    return [*cells, "/".join(digests[name][:6] for name in DIGESTS)]


def _costs(jobs: Sequence[Job]) -> list[str]:
    """The costs to be shown: a judge's where there is one."""
    return [name for name in COSTS if name != "judge_flops" or any(_spent(job, name) for job in _finished(jobs))]


def _spent(job: Job, name: str) -> float | int:
    return (job.results or {})["budget"].get(name, 0)  # runs from before a judge was counted have no judge_flops


def _cost(name: str, value: float | int) -> str:
    if name.endswith("flops"):
        return f"{value:.2e}"
    return f"{value:.1f}" if name == "seconds" else f"{value:,.0f}"


def _omissions(jobs: Sequence[Job]) -> list[str]:
    """Sentences on the omissions of methods from their papers, and on the cautions of their runs."""
    named = {}
    for job in _finished(jobs):
        name = f"method={job.overrides['method']}" if "method" in job.overrides else f"Job {job.label}"
        results = job.results or {}
        named[name] = lacking(name, results.get("omits", ())) + [f"{name}: {c}." for c in results.get("cautions", ())]
    return [sentence for sentences in named.values() for sentence in sentences]


def _varying(jobs: Sequence[Job]) -> list[str]:
    """Override keys in which jobs differ, and the method in any case; all keys where there are none."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.overrides))
    apart = [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]
    return [key for key in keys if key in apart or key == "method"] if apart else keys


def _metrics(jobs: Sequence[Job]) -> list[str]:
    pages = [page for job in _finished(jobs) for page in (job.results or {})["scores"].values()]
    names = dict.fromkeys(metric for page in pages for metric in page)
    return sorted(names, key=lambda name: _facts(jobs, name).of == "answers")


def _facts(jobs: Sequence[Job], metric: str) -> Metric:
    """The facts of a metric in the first run that has it."""
    having = (job for job in _finished(jobs) if metric in ((job.results or {}).get("metrics") or {}))
    return of_results((job.results if (job := next(having, None)) else None) or {}, metric)


def _mixed_code(jobs: Sequence[Job]) -> list[str]:
    """A note where runs were made by several states of kd's code."""
    by_code: dict[str, list[str]] = {}
    for job in _finished(jobs):
        by_code.setdefault((job.results or {}).get("code") or "not recorded", []).append(job.label)
    if len(by_code) < 2:
        return []
    states = "; ".join(f"{code}: job {', '.join(labels)}" for code, labels in by_code.items())
    return [f"MIXED CODE: the runs were made by {len(by_code)} states of kd's code ({states})."]


def _same_digests(jobs: Sequence[Job]) -> list[str]:
    """A note: whether the jobs of a seed and skill share weights, data and evaluated items, and those that differ."""
    alike: dict[tuple, list[Job]] = {}
    for job in _finished(jobs):
        results = job.results or {}
        alike.setdefault((results["seed"], *sorted(results["scores"])), []).append(job)
    if all(len(group) < 2 for group in alike.values()):
        return []
    words = []
    for name in DIGESTS:
        others = [job.label for group in alike.values() for job in _unlike_most(group, name)]
        words.append(f"{name.replace('_', ' ')} " + (f"DIFFERENT (job {', '.join(others)})" if others else "identical"))
    return [f"Over the jobs of the same seed and skill: {', '.join(words)}."]


def _unlike_most(jobs: Sequence[Job], name: str) -> list[Job]:
    found = [(job.results or {})["digests"][name] for job in jobs]
    ((usual, _),) = Counter(found).most_common(1)
    return [job for job, digest in zip(jobs, found, strict=True) if digest != usual]


def _is_seed(key: str) -> bool:
    return key == "seed"  # and not skill.seed, which draws other problems


def _seeds_grid(jobs: Sequence[Job]) -> Grid | None:
    """Mean and 95 % interval over the seeds of otherwise equal overrides, and mean costs; None with one seed each.

    Runs that differ in more than their seed (settings, data, models, versions of components) are other rows.
    """
    groups: dict[tuple[tuple[str, str], ...], dict[int, Job]] = {}
    for job in _finished(jobs):
        rest = tuple((key, value) for key, value in job.overrides.items() if not _is_seed(key))
        rest += tuple((key, json.dumps((job.results or {}).get(key), sort_keys=True)) for key in APART)
        groups.setdefault(rest, {})[(job.results or {})["seed"]] = job
    if all(len(group) < 2 for group in groups.values()):
        return None
    keys = [key for key in _varying(jobs) if not _is_seed(key)]
    names = list(dict.fromkeys(name for job in _finished(jobs) for name, _ in _estimates(job.results or {})))
    costs, rows = _costs(jobs), []
    for rest, group in groups.items():
        means = [
            _mean_cell(_facts(jobs, name.rpartition(".")[2]), [_after(job, name) for job in group.values()])
            for name in names
        ]
        spent = [_cost(name, float(np.mean([_spent(job, name) for job in group.values()]))) for name in costs]
        rows.append([*(dict(rest).get(key, "") for key in keys), str(len(group)), *means, *spent])
    header = [*keys, "seeds", *(name.partition(".")[2] for name in names), *(COSTS[name] for name in costs)]
    alike = len({tuple(row[: len(keys)]) for row in rows}) < len(rows)
    return Grid("Means over seeds", header, rows, [SEED_INTERVALS, OF_TRAINING, *([LOOK_ALIKE] if alike else [])])


def _after(job: Job, name: str) -> Mapping[str, Any]:
    return dict(_estimates(job.results or {})).get(name, {})


def _mean_cell(metric: Metric, estimates: Sequence[Mapping[str, Any]]) -> str:
    known = [estimate for estimate in estimates if estimate.get("value") is not None]
    if not known:
        return "–"
    values, counts = [estimate["value"] for estimate in known], [estimate["n"] for estimate in known]
    mean, low, high = over_seeds(values, counts, metric.bounds)
    return f"{number(mean)} (one seed)" if len(known) == 1 else f"{number(mean)} [{number(low)}, {number(high)}]"
