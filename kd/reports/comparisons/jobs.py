"""One row for each run or job: its status, scores, costs, and whether it is fit to be compared with the others."""

from collections import Counter
from collections.abc import Mapping, Sequence

from kd.metrics.table import METRICS, Metric, of_results
from kd.reports.comparisons.costs import COSTS, OF_TRAINING, cost_cell, shown_costs, spent
from kd.reports.grid import Cell, Grid, share
from kd.reports.runs import Job
from kd.reports.settings import ABSENT, TRAINED_ON, settings_of
from kd.reports.table import headline, judge_notes, lacking

DIGESTS = ("initial_weights", "data_order", "evaluation_items")
ITEM_INTERVALS = "Brackets in the rows of jobs are intervals over items, not over seeds."
ONE_SEED = "One seed: there is no interval over seeds."
MOST_COLUMNS = 4  # skills with columns for all metrics; of more each is shown by its own
OWN_METRIC = "The score is that of each skill's own metric; --format csv has the others."
LOST = "left out\n+ truncated"
OF_LOST = (
    "Left out + truncated: records that do not fit data.max_length. Training leaves out those whose prompt leaves no "
    "room and truncates responses; answers leave out such prompts, validation and test every reference that does not "
    "fit whole."
)


def _finished(jobs: Sequence[Job]) -> list[Job]:
    return [job for job in jobs if job.results is not None]


def jobs_grid(jobs: Sequence[Job], *, seeds: bool = False) -> Grid:
    """One row per job; `seeds`: a table of means follows.

    Runs on more than MOST_COLUMNS skills are shown by their skill's own metric alone; its name has a column.
    """
    notes = [ITEM_INTERVALS, OF_TRAINING] if _finished(jobs) else []
    notes += [*_same_digests(jobs), *_mixed_code(jobs), *([ONE_SEED] if _finished(jobs) and not seeds else [])]
    settings = settings_of(jobs)
    keys = [key for key in settings.columns if key != TRAINED_ON]
    metrics, costs = _metrics(jobs), shown_costs(_finished(jobs))
    alone = len({skill for job in _finished(jobs) for skill in _skills(job)}) > MOST_COLUMNS
    named = alone and all(job.label.startswith(tuple(_skills(job))) for job in _finished(jobs))  # by the job's name
    several = len({_seed(job) for job in jobs} - {""}) > 1
    apart = bool(_unlike(jobs))
    losing = any(map(_lost, jobs))
    header = ["job", *keys, *(["seed"] if several else []), "status", *([] if named else ["skill"])]
    header += ["score", "gap closed", "metric"] if alone else []
    for metric in metrics if not alone else ():
        title = _facts(jobs, metric).title
        header += [title, "gap closed" if len(metrics) == 1 else f"gap closed,\n{title}"]
    header += [METRICS["forward_kl"].title, *(COSTS[name] for name in costs)]
    header += [*(["weights/order/items"] if apart else []), *([LOST] if losing else [])]
    rows = []
    for job, values in zip(jobs, settings.values, strict=True):
        names = [_setting(job, values, key) for key in keys]
        names += [_seed(job)] if several else []
        ends = [_digests(job)] if apart else []
        ends += ["\n".join(_lost(job))] if losing else []
        cells = _result_cells(job, None if alone else metrics, costs)
        rows.append([job.label, *names, job.status, *(cells[1:] if named else cells), *ends])
    reasons = [f"Job {job.label} {job.status}: {job.reason.rstrip('.')}." for job in jobs if job.reason]
    notes = [*reasons, *notes, *_omissions(jobs), *([OF_LOST] if losing else []), *([OWN_METRIC] if alone else [])]
    return Grid(f"{len(jobs)} jobs", header, rows, notes, labels=1 + len(keys) + several, folds=True, bands=2)


def _seed(job: Job) -> str:
    return str(job.results["seed"]) if job.results else job.overrides.get("seed", "")


def _setting(job: Job, values: Mapping[str, str], key: str) -> str:
    """The value of a column; of a job without a config, which was never made, that of its override."""
    found = values.get(key, ABSENT)
    return job.overrides.get(key, "") if found == ABSENT else found


def _lost(job: Job) -> list[str]:
    """Numbers of records that data.max_length left out or truncated, by split: "train 57 + 3 of 64"."""
    records = (job.results or {}).get("records") or {}
    counts = {split: (n["left_out"], n["truncated"], n["given"]) for split, n in records.items()}
    return [f"{split} {left} + {cut} of {given}" for split, (left, cut, given) in counts.items() if left or cut]


def _result_cells(job: Job, metrics: Sequence[str] | None, costs: Sequence[str]) -> list[str]:
    """One line per skill inside the cells that depend on the skill; `metrics` None: each skill's own."""
    if job.results is None:
        return [""] * ((3 if metrics is None else 2 * len(metrics)) + 2 + len(costs))
    results, skills = job.results, _skills(job)
    own = [headline(results, results["scores"][skill]) or "" for skill in skills]
    cells = ["\n".join(skills)]
    for names in [own] if metrics is None else [[name] * len(skills) for name in metrics]:
        pairs = list(zip(skills, names, strict=True))
        found = [results["scores"][skill].get(name, {}).get("after") for skill, name in pairs]
        gaps = [results["gap_closed"].get(skill, {}).get(name) for skill, name in pairs]
        cells.append(Cell.of(found[0]) if len(skills) == 1 else "\n".join(map(Cell.of, found)))
        cells.append(Cell.number(gaps[0], share(gaps[0])) if len(skills) == 1 else "\n".join(map(share, gaps)))
    cells += ["\n".join(of_results(results, name).title if name else "" for name in own)] if metrics is None else []
    cells.append(Cell.of(results["agreement"] and results["agreement"]["forward_kl"]["after"]))
    return [*cells, *(cost_cell(name, spent(job, name)) for name in costs)]


def _skills(job: Job) -> list[str]:
    """The skill of a run, or the parts of its mixture; those of `evaluation.skills` have the table of transfer."""
    skills = list((job.results or {}).get("scores", ()))
    return skills[:1] if (job.config.get("evaluation") or {}).get("skills") else skills


def _digests(job: Job) -> str:
    return "/".join((job.results or {})["digests"][name][:6] for name in DIGESTS) if job.results else ""


def _omissions(jobs: Sequence[Job]) -> list[str]:
    """Sentences on the omissions of methods from their papers, and on the cautions of their runs."""
    named = {}
    for job in _finished(jobs):
        name = f"method={job.overrides['method']}" if "method" in job.overrides else f"Job {job.label}"
        results = job.results or {}
        named[name] = lacking(name, results.get("omits", ())) + [f"{name}: {c}." for c in results.get("cautions", ())]
        named[name] += [f"{name}: {note}" for note in judge_notes(results)]
    return [sentence for sentences in named.values() for sentence in sentences]


def _metrics(jobs: Sequence[Job]) -> list[str]:
    pages = [(job.results or {})["scores"][skill] for job in _finished(jobs) for skill in _skills(job)]
    names = dict.fromkeys(metric for page in pages for metric in page)
    return sorted(names, key=lambda name: _facts(jobs, name).of != "answers")


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


def _alike(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs that share seed and skills, in groups."""
    groups: dict[tuple, list[Job]] = {}
    for job in _finished(jobs):
        results = job.results or {}
        groups.setdefault((results["seed"], *results["scores"]), []).append(job)  # the own skill comes first
    return list(groups.values())


def _unlike(jobs: Sequence[Job]) -> dict[str, list[str]]:
    """By digest the labels of jobs that differ from most others of their seed and skills."""
    found = {name: [job.label for group in _alike(jobs) for job in _unlike_most(group, name)] for name in DIGESTS}
    return {name: labels for name, labels in found.items() if labels}


def _same_digests(jobs: Sequence[Job]) -> list[str]:
    """A note: whether the jobs of a seed and skill share weights, data and evaluated items, and those that differ."""
    if all(len(group) < 2 for group in _alike(jobs)):
        return []
    unlike = _unlike(jobs)
    words = [
        f"{name.replace('_', ' ')} " + (f"DIFFERENT (job {', '.join(unlike[name])})" if name in unlike else "identical")
        for name in DIGESTS
    ]
    return [f"Over the jobs of the same seed and skill: {', '.join(words)}."]


def _unlike_most(jobs: Sequence[Job], name: str) -> list[Job]:
    found = [(job.results or {})["digests"][name] for job in jobs]
    ((usual, _),) = Counter(found).most_common(1)
    return [job for job, digest in zip(jobs, found, strict=True) if digest != usual]
