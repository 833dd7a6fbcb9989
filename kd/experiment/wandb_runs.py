"""The W&B runs of one job: in one group, each ended before the next begins."""

import re
import sys
from collections.abc import Mapping
from typing import Any

from omegaconf import open_dict

from kd.experiment.plan import Plan


def group_in_wandb(plan: Plan, sweep: str | None) -> None:
    """Give the run, the run beside it and the earlier rounds of its loop one group, unless the config names one.

    sweep: the name of the sweep's folder; None: a run by itself, whose group is its name without the seed.
    """
    group = sweep or re.sub(rf"-s{plan.cfg.seed}$", "", plan.cfg.name)
    for one in plan:
        for member, job_type in ((one, None), (one.beside, "baseline")):
            settings = None if member is None else _settings(member)
            if settings is not None:
                with open_dict(settings):
                    settings.group = settings.group or group
                    settings.job_type = job_type or settings.job_type


def end_in_wandb(plan: Plan) -> None:
    """Log the end of a finished run to its open W&B run, if there is one, and end that; a failure is printed."""
    wandb, settings = sys.modules.get("wandb"), _settings(plan)
    if settings is None or wandb is None or wandb.run is None:
        return
    from kd.reports.wandb.record import end, log_end, tolerated

    run, beside = wandb.run, None if plan.beside is None else plan.beside.folder.path
    shown = {"answers": settings.answers, "artifact": settings.artifact}
    tolerated(lambda: log_end(run, plan.folder.path, beside, **shown), "logging the final scores to W&B")
    sentence = tolerated(lambda: end(run), "ending the run of W&B")
    if sentence is not None:
        print(sentence, flush=True)


def _settings(plan: Plan) -> Any:
    """The section `logger.wandb`; None where there is none, or where it is a logger by itself."""
    found = plan.cfg.logger.get("wandb")
    return None if not isinstance(found, Mapping) or "_target_" in found else found
