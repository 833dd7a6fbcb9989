"""`python -m kd.reports wandb PATH…`: the comparison dashboard of W&B, made of run folders.

With an account (`wandb login`, WANDB_API_KEY) a workspace view for each skill and a report are saved in the project.
Without one, or with --offline, it is written to a file. --log-runs also records finished runs that were not logged.
"""

import argparse
import importlib.util
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from kd.artifacts import write_atomically
from kd.errors import in_one_sentence
from kd.reports.frame import Frame, frame_of
from kd.reports.runs import problems, read_jobs
from kd.reports.sweep import Choices
from kd.reports.wandb.account import logged_in

SPEC = Path("wandb-dashboard.json")


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    found = argparse.ArgumentParser(
        prog="python -m kd.reports wandb", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("paths", nargs="+", metavar="PATH", help="run, sweep or outputs folder")
    found.add_argument("--entity", help="the team or user; default: that of the account")
    found.add_argument("--project", default="kd", help="default: kd, as in conf/logger/wandb.yaml")
    found.add_argument("--offline", type=Path, metavar="FILE", help=f"write the dashboard here (no account: {SPEC})")
    found.add_argument("--log-runs", action="store_true", help="record finished runs that were not logged")
    found.add_argument("--pivot", metavar="ROWS,COLUMNS", help="of the table of scores, as objective,skill")
    found.add_argument("--metric", help="of the table of scores; default: each skill's own")
    return found


def main(arguments: Sequence[str]) -> int:
    """Make the dashboard. Returns the exit code: 1 where a run could not be read."""
    options = parser().parse_args(arguments)
    with in_one_sentence():
        if importlib.util.find_spec("wandb_workspaces") is None:
            raise ValueError(
                "kd.reports wandb needs wandb-workspaces, which is not installed; pip install -e '.[reports]'"
            )
        jobs = [job for path in options.paths for job in read_jobs(path)]
        frame = frame_of(jobs)
        if not frame.arms:
            raise ValueError(f"{' '.join(options.paths)}: no run is finished, so that there is nothing to compare")
        choices = Choices(paths=options.paths, pivot=options.pivot, metric=options.metric)
        online = options.offline is None and logged_in()
        if options.log_runs:
            _log_runs(frame, options, "online" if online else "offline")
        if online:
            _publish(frame, choices, options)
        else:
            _write(frame, choices, options)
        for problem in problems(jobs):
            print(problem)
    return 1 if problems(jobs) else 0


def _log_runs(frame: Frame, options: argparse.Namespace, mode: str) -> None:
    from kd.reports.wandb.upload import record, unrecorded

    jobs = unrecorded(frame)
    for sentence in record(frame, jobs, mode=mode, entity=options.entity, project=options.project):
        print(sentence, flush=True)
    print(f"{len(jobs)} runs recorded; the others were logged before")


def _publish(frame: Frame, choices: Choices, options: argparse.Namespace) -> None:
    import wandb

    from kd.reports.wandb.dashboard import publish

    entity: str = options.entity or wandb.Api().default_entity or ""
    for address in publish(frame, choices, entity=entity, project=options.project):
        print(address)


def _write(frame: Frame, choices: Choices, options: argparse.Namespace) -> None:
    """Write the dashboard to a file, and print how it is published."""
    from kd.reports.wandb.dashboard import spec

    file = options.offline or SPEC
    found = spec(frame, choices, entity=options.entity or "", project=options.project)
    write_atomically(file, json.dumps(found, indent=1) + "\n")
    place = ["--entity", options.entity] if options.entity else []
    again = ["python", "-m", "kd.reports", "wandb", *options.paths, *place, "--project", options.project]
    print(f"Written to {file}: {len(found['workspaces'])} workspace views and a report, of {len(frame.arms)} arms.")
    print("To publish it, with an account:")
    print("  wandb login")
    for pattern in dict.fromkeys(f"{shlex.quote(str(root))}/*/wandb/offline-run-*" for root in _roots(frame)):
        print(f"  wandb sync {pattern}")
    print(f"  {shlex.join(again)}")


def _roots(frame: Frame) -> list[Path]:
    """The folders that hold runs with an offline record."""
    folders = [job.folder for arm in frame.arms for job in arm.runs.values() if job.folder is not None]
    return [folder.parent for folder in folders if any((folder / "wandb").glob("offline-run-*"))]
