"""A run as W&B records it: begun with its config, ended with what its folder holds."""

import os
import re
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kd.reports.runs import Job, read_folder
from kd.reports.settings import axes_of
from kd.reports.sweep import near
from kd.reports.wandb.final import (
    POSITION,
    SCORES,
    answer_rows,
    answers_beside,
    by_position,
    final,
    headline,
    lengths,
    score_rows,
)
from kd.runs.results import read_results

STEP = "trainer/global_step"  # Lightning's name of the x axis
AXIS = "axis_"  # before the name of an axis, in the config of a W&B run
LONGEST_TAG = 64  # characters
WEIGHTS = ("student", "adapter", "objective.safetensors")
FILES = ("*.yaml", "*.json", "*.csv", "*.jsonl", "DONE")


def begin(
    folder: Path,
    identity: str,
    config: Mapping[str, Any],
    *,
    mode: str,
    project: str,
    entity: str | None = None,
    group: str | None = None,
    job_type: str = "train",
    tags: Sequence[str] = (),
    skill: str | None = None,
) -> Any:
    """Begin the W&B run of a run folder; a run of W&B that is open is ended first, so that two never share one.

    Args:
        folder: where its files are written, below `wandb/`; its config.yaml and overrides.yaml name the axes.
        identity: the id of the W&B run: the same one continues that run.
        config: as it is shown; values of the environment are not in it.
        mode: `online`, `offline` or `disabled`.
        tags: beside those of the axes.
        skill: the name of the trained skill; None: that of the results.
    """
    import wandb

    axes = axes_of(read_folder(folder), skill)
    run = _init(
        wandb,
        dir=folder,
        id=identity,
        name=folder.name,
        project=project,
        entity=entity,
        group=group,
        job_type=job_type,
        tags=[*tags, *tags_of(axes)],
        config={**config, **{f"{AXIS}{name}": value for name, value in axes.items()}},
        mode=mode,
        resume="allow",
        reinit="finish_previous",
        settings=wandb.Settings(silent=True),  # the run prints its own line
    )
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP, step_sync=True)
    return run


def _connect(wandb: Any) -> None:
    """Start W&B's service process, or connect to the one that the environment names.

    One that has ended since, as that of a parent process, is replaced.
    """
    try:
        wandb.setup()
    except Exception:
        if os.environ.pop("WANDB_SERVICE", None) is None:
            raise
        wandb.setup()


def _init(wandb: Any, **settings: Any) -> Any:
    """`wandb.init`; where the service of an earlier run of this process was killed since, with a new service."""
    from wandb.sdk.mailbox import MailboxClosedError

    _connect(wandb)
    before = set(records(settings["dir"]))
    try:
        return wandb.init(**settings)
    except (MailboxClosedError, ConnectionError):
        with suppress(Exception, SystemExit):  # it sends to the service that is gone, and exits with its code
            wandb.teardown()
        for folder in set(records(settings["dir"])) - before:
            shutil.rmtree(folder)  # logs of the failure; nothing is recorded in it
        _connect(wandb)
        return wandb.init(**settings)


def tags_of(axes: Mapping[str, str]) -> list[str]:
    """`objective:fkl` for each axis that a run uses, cut to what W&B takes."""
    return [f"{name}:{value}"[:LONGEST_TAG] for name, value in axes.items() if value not in ("none", "null", "–")]


def log_end(run: Any, folder: Path, beside: Path | None = None, *, answers: int = 32, artifact: str = "none") -> None:
    """Log what a finished run's folder holds: final numbers as summary, tables of scores and answers, curves by
    position, its files.

    Args:
        beside: the folder of the run beside (`compare`); its answers are shown, too.
        answers: rows of the table of answers.
        artifact: `none`, `files` (of the folder) or `weights` (these, too).

    Raises ValueError if a file is not as it was when the run ended.
    """
    import wandb

    results, texts = read_results(folder), answers_beside(folder, beside)
    run.summary.update({**final(results), **lengths(texts)})
    tables = {"scores": (list(SCORES), score_rows(results)), "answers": answer_rows(texts, answers)}
    for name, (columns, cells) in tables.items():
        if cells:
            run.log({f"tables/{name}": wandb.Table(columns=[*columns], data=[list(row) for row in cells])})
    rows = by_position(folder, headline(results)[0])
    for name in dict.fromkeys(name for row in rows for name in row if name != POSITION):
        run.define_metric(name, step_metric=POSITION)
    for row in rows:
        run.log(row)
    if artifact != "none":
        run.log_artifact(_artifact(folder, results["config_hash"], weights=artifact == "weights"))


def _artifact(folder: Path, identity: str, *, weights: bool) -> Any:
    import wandb

    found = wandb.Artifact(f"run-{identity}", type="run", metadata={"folder": folder.name})
    kept = [path for pattern in FILES for path in sorted(folder.glob(pattern))]
    for path in (folder / name for name in WEIGHTS if weights):
        kept += [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    for path in dict.fromkeys(kept):
        found.add_file(str(path), name=str(path.relative_to(folder)), policy="immutable", skip_cache=True)
    return found


def end(run: Any) -> str:
    """End a W&B run. Returns the sentence that names its page, or its folder and the command that uploads it."""
    page, folder, disabled = address(run), run.settings.sync_dir, run.disabled
    run.finish(exit_code=0)
    if disabled:
        return "W&B: disabled, so that nothing is recorded"
    shown = shlex.quote(near(Path(folder)))
    return f"W&B: {page}" if page else f"W&B: recorded offline in {shown}; to upload it: wandb sync {shown}"


def address(run: Any) -> str | None:
    """The page of a run that is uploaded."""
    return None if run.offline or run.disabled else run.url


def tolerated(action: Callable[[], Any], what: str) -> Any:
    """The value of `action`, or None, with a printed reason, where it fails: a run is not lost by a logger."""
    try:
        return action()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"caution: {what} failed ({reason}); the run and its folder do not depend on it")
        return None


def group_of(name: str, seed: int) -> str:
    """The group of a run that is in no sweep: its name without seed and hash."""
    return re.sub(rf"(-s{seed})?-[0-9a-f]{{12}}$", "", name)


def recorded(job: Job) -> bool:
    """Return whether W&B has a record of a run, in its folder."""
    return job.folder is not None and bool(records(job.folder))


def records(folder: Path) -> list[Path]:
    """The folders of W&B's records in a run folder."""
    return sorted((folder / "wandb").glob("*run-*"))
