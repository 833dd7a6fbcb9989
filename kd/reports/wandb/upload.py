"""Finished run folders as W&B runs: recorded from their files, for runs that were not logged while they ran."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd.reports.frame import Frame
from kd.reports.runs import Job
from kd.reports.wandb.history import logged
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
    for step, values in logged(job.folder):
        run.log({**values, STEP: step})
    log_end(run, job.folder, None if other is None else other.folder)
    return end(run)


def _again(folder: Path) -> str:
    """The end of the id of a run that was set aside and run again: `-1` of the second."""
    before = len([one for one in folder.parent.glob(f"{folder.name}.old-*") if re.search(r"\.old-\d+$", one.name)])
    return f"-{before}" if before else ""
