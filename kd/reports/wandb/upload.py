"""Finished run folders as W&B runs: recorded from their files, for runs that were not logged while they ran."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kd.reports.comparisons.curves import logged
from kd.reports.frame import Frame
from kd.reports.runs import Job
from kd.reports.wandb.record import STEP, begin, end, group_of, log_end, recorded


def unrecorded(frame: Frame) -> list[Job]:
    """The finished runs, and those beside them, that have no record of W&B in their folders."""
    jobs = [job for arm in frame.arms for job in arm.runs.values() if job.folder is not None]
    return [job for job in jobs if not recorded(job)]


def record(frame: Frame, jobs: Sequence[Job], *, mode: str, entity: str | None, project: str) -> list[str]:
    """Record finished runs, each in the group of its name. Returns the sentences that name what was recorded.

    mode: `online` uploads at once; `offline` writes `<run>/wandb/`, which `wandb sync` uploads.
    """
    known = {job.results["config_hash"]: job for arm in frame.arms for job in arm.runs.values() if job.results}
    beside = {job.results["baseline"] for job in known.values() if job.results}
    return [_record(job, known, beside, mode=mode, entity=entity, project=project) for job in jobs]


def _record(job: Job, known: dict[str, Job], beside: set[str | None], **place: Any) -> str:
    assert job.folder is not None
    assert job.results is not None
    other = known.get(job.results["baseline"])
    logger = (job.config.get("logger") or {}).get("wandb") or {}
    run = begin(
        job.folder,
        job.results["config_hash"] + _again(job.folder),
        job.config,
        group=logger.get("group") or group_of(job.folder.name, job.results["seed"]),
        job_type="baseline" if job.results["config_hash"] in beside else "train",
        tags=logger.get("tags") or (),
        **place,
    )
    for step, values in by_step(job):
        run.log({**values, STEP: step})
    log_end(run, job.folder, None if other is None else other.folder)
    return end(run)


def by_step(job: Job) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, `split/name` -> value) of each step that a run logged, in the order of steps.

    Raises ValueError if metrics.csv is torn, or the run is DONE and it is not as it was then.
    """
    rows: dict[int, dict[str, float]] = {}
    for name, values in logged(job).items():
        for step, value in values.items():
            rows.setdefault(step, {})[name] = value
    yield from sorted(rows.items())


def _again(folder: Path) -> str:
    """The end of the id of a run that was set aside and run again: `-1` of the second."""
    before = len([one for one in folder.parent.glob(f"{folder.name}.old-*") if re.search(r"\.old-\d+$", one.name)])
    return f"-{before}" if before else ""
