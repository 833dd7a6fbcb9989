"""One experiment: plan, prepare, elicit, train, evaluate. The last module that reads the whole config."""

import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kd.artifacts import store
from kd.components.axes import sections
from kd.composition.cautions import cautions
from kd.composition.check import describe
from kd.experiment.identity import check_unchanged
from kd.experiment.launch import check_launch
from kd.experiment.monitor import objective
from kd.experiment.plan import Plan, group_in_wandb, plain, valid
from kd.experiment.preparation import prepared
from kd.experiment.rounds import after_round, round_before
from kd.kernels.allocation import keep_freed_memory
from kd.program import is_rank_zero
from kd.progress import part, remark
from kd.reports.grid import console
from kd.reports.render import print_grid
from kd.reports.runs import read_folder
from kd.reports.table import lost_records, rounds_grid
from kd.runs.folder import RunFolder
from kd.runs.results import validated
from kd.secrets import unrevealed
from kd.sweeps.jobs import Job


def run(cfg: DictConfig, job: Job) -> float | None:
    """Plan, prepare, elicit, train, evaluate. Returns the value of `checkpoint.monitor` (`kd.experiment.monitor`)."""
    valid(cfg)
    if cfg.trainer.accelerator == "cpu":
        keep_freed_memory()
    plan = Plan.of(cfg)
    group_in_wandb(plan, None if job.sweep is None else job.sweep.name)
    cfg = plan.cfg
    if is_rank_zero():
        remark(describe(cfg))
        for caution in cautions(plain(cfg)):
            remark(f"caution: {caution}")
    if cfg.run.prerequisites_only:
        prerequisites(plan)
        return None
    check_launch(plan)
    run_in(plan, job, omits=list(cfg.omits), force=cfg.run.force)
    if plan.before is not None and is_rank_zero():
        print_grid(rounds_grid([one.folder.results() for one in plan]), console())
    if cfg.run.page and job.sweep is None and is_rank_zero():
        from kd.reports.page.document import end_with_page

        end_with_page(plan.folder.path, open_it=cfg.run.open)
    return objective(cfg, plan.folder)


def run_in(plan: Plan, job: Job, **options: Any) -> Mapping[str, Any]:
    """The results of a plan, made now if there are none yet (`Job.run`); then its W&B run, if one is open, is ended."""
    results = job.run(plan.folder, lambda folder: work(plan), config_yaml=_yaml(plan.cfg), **options)
    end_in_wandb(plan)
    return results


def end_in_wandb(plan: Plan) -> None:
    """Log the end of a finished run to its open W&B run, if there is one, and end that; a failure is printed."""
    wandb = sys.modules.get("wandb")
    if plan.wandb is None or wandb is None or wandb.run is None:
        return
    from kd.reports.wandb.record import end, log_end, tolerated

    run, beside = wandb.run, None if plan.beside is None else plan.beside.folder.path
    shown = {name: plan.wandb[name] for name in ("answers", "artifact")}
    tolerated(lambda: log_end(run, plan.folder.path, beside, **shown), "logging the final scores to W&B")
    sentence = tolerated(lambda: end(run), "ending the run of W&B")
    if sentence is not None:
        print(sentence, flush=True)


def prerequisites(plan: Plan) -> tuple[DictConfig, Mapping[str, Any] | None]:
    """Make what is missing of all that comes before ranks and before the first step.

    Returns the config as the run reads it, with every preparation's checkpoint in place, and the baseline's results.
    """
    from kd.experiment.elicitation import elicit

    beside = None if plan.beside is None else baseline_results(plan)
    cfg = as_read(plan.cfg, plan.before)
    elicit(cfg)
    return cfg, beside


def as_read(cfg: DictConfig, before: Plan | None = None) -> DictConfig:
    """The config as its stages read it: models are prepared and earlier rounds finished, now or before.

    before: the plan of the round before, where it is made already.
    """
    if before is None and (earlier := round_before(cfg)) is not None:
        before = Plan.of(earlier)
    cfg = prepared(cfg, train_only)
    if before is None:
        return cfg
    finish_round(before)
    return after_round(cfg, before.folder)


def work(plan: Plan) -> Mapping[str, Any]:
    """Prerequisites, training, evaluation, export; the content of results.json."""
    from kd.experiment.build import build, fit, place
    from kd.experiment.checks import check_run
    from kd.experiment.disclosure import disclosed
    from kd.experiment.export import export_objective
    from kd.experiment.judges import load_judges
    from kd.experiment.scores import Evaluated
    from kd.experiment.task_scores import task_scores
    from kd.training.callbacks import remove_checkpoint
    from kd.training.trainer import summarise

    cfg, folder = plan.cfg, plan.folder  # results and card are of the config as composed
    read, beside = prerequisites(plan)
    parts = build(read)
    check_run(cfg, parts)
    if not is_rank_zero():
        fit(cfg, parts, folder, task_scores(cfg, parts))
        raise SystemExit(0)  # evaluation and reports belong to the first rank
    _rehearse(cfg, parts, folder)
    with closing(Evaluated(cfg, parts, folder, read)) as evaluation:
        check_unchanged(cfg, folder.config_hash)  # all is loaded now
        print_lost(evaluation.records)
        place(cfg, parts)
        evaluation.measure("before")
        evaluation.close()  # training has the machine
        fit(cfg, parts, folder, task_scores(cfg, parts))
        place(cfg, parts)  # Lightning leaves the student on the CPU
        evaluation.measure("after")
        judges = load_judges(read, **evaluation.session.interval)
        found = evaluation.results(beside, judges, None if plan.beside is None else plan.beside.folder)
    results = {**found, **disclosed(unrevealed(cfg), parts, evaluation.sessions)}
    validated({"config_hash": "0" * 12, **results})  # before the checkpoint is deleted
    store(folder.path / "student", lambda partial: _export(cfg, parts, results, partial), kind="student")
    _export_adapter(plan, read, parts, results)
    summarise(parts.module.trainer.loggers, results, parts.module.step_count)
    export_objective(parts.module.stateful, folder.path / "objective.safetensors")
    remove_checkpoint(folder.checkpoints / "last.ckpt")  # a run that is DONE is not resumed
    return results


def baseline_results(plan: Plan) -> Mapping[str, Any]:
    """Results of the run beside this one, made now if there are none yet.

    Raises ValueError, which names that run, where it fails or its results cannot be read.
    """
    cfg, other = plan.cfg, plan.beside
    assert other is not None
    limited = any(limit is not None for limit in cfg.budget.values())
    job = Job(overrides=[*_chosen_for_both(plan), f"objective={cfg.compare}", "compare=null"])
    equal = "an equal budget" if limited else "equal steps"
    role = f"the baseline: {cfg.compare} with {equal}, data and initial weights"
    try:
        with part(f"baseline {cfg.compare}"):
            return run_in(other, job, wait=True, role=role)
    except ValueError as error:
        raise ValueError(
            f"the baseline, which compare={cfg.compare} runs beside this one in {other.folder.path}, failed: {error}; "
            "or leave it out, compare=null"
        ) from error


def _chosen_for_both(plan: Plan) -> list[str]:
    """The overrides of a run that choose a section which the run beside it has, too, as in `teacher=tiny`."""
    assert plan.beside is not None
    words, other = read_folder(plan.folder.path).overrides, plan.beside.cfg
    return [f"{axis}={words[axis]}" for axis in sections() if axis in words and plan.cfg[axis] == other[axis]]


def finish_round(plan: Plan) -> None:
    """Run an earlier round of the loop, if it is not DONE.

    Raises ValueError, which names its folder, where it fails or its results cannot be read.
    """
    rounds = plan.cfg.loop.rounds
    job, role = Job(overrides=[f"loop.rounds={rounds}"]), f"round {rounds} of the loop"
    try:
        with part(f"round {rounds}"):
            run_in(plan, job, wait=True, role=role)
    except ValueError as error:
        raise ValueError(f"round {rounds} of the loop, in {plan.folder.path}, failed: {error}") from error


def train_only(cfg: DictConfig, folder: RunFolder, export_to: Path) -> None:
    """A run without evaluation, for preparations: the student is exported to `export_to`."""
    from kd.experiment.build import build, fit
    from kd.experiment.checks import check_run

    parts = build(cfg)
    check_run(cfg, parts)
    _rehearse(cfg, parts, folder)
    print_lost(parts.data.counts())
    fit(cfg, parts, folder)
    _export(cfg, parts, {}, export_to)


def print_lost(records: Mapping[str, Mapping[str, int]]) -> None:
    """Print how many records data.max_length leaves out or truncates, if any."""
    for sentence in lost_records(records) if is_rank_zero() else ():
        remark(sentence)


def _rehearse(cfg: DictConfig, parts: Any, folder: RunFolder) -> None:
    """Raises ValueError before the first step where the export after the last would fail (`export.rehearse`)."""
    from kd.experiment.export import rehearse

    if is_rank_zero():
        folder.path.mkdir(parents=True, exist_ok=True)
        trained = sum(p.numel() * p.element_size() for p in parts.module.parameters() if p.requires_grad)
        # `last` has two moments beside each weight, `best` none; each is written beside the one that it replaces
        rehearse(parts.module.student, folder.path, _card(cfg, parts, {}), checkpoints=2 * (3 + 1) * trained)


def _card(cfg: DictConfig, parts: Any, results: Mapping[str, Any]) -> str:
    from kd.experiment.export import card

    return card(unrevealed(cfg), results, skill_licence=parts.skill.licence, data=parts.skill.name)


def _export(cfg: DictConfig, parts: Any, results: Mapping[str, Any], folder: Path) -> None:
    from kd.experiment.export import export

    for sentence in export(parts.module.student, folder, _card(cfg, parts, results)):
        remark(f"export: {sentence}")


def _export_adapter(plan: Plan, read: DictConfig, parts: Any, results: Mapping[str, Any]) -> None:
    """Where the student learnt with LoRA, store the adapter alone, too (its base is in `read`), or print why not."""
    from kd.experiment.export import adapter_lack, export_adapter

    model: Any = OmegaConf.to_container(read.student.model, resolve=True)
    if not model.get("lora"):
        return
    found = [lack] if (lack := adapter_lack(model)) else []
    if not found:
        text, student = _card(plan.cfg, parts, results), parts.module.student

        def write(partial: Path) -> None:
            found.extend(export_adapter(student, partial, model["source"], text))

        store(plan.folder.path / "adapter", write, kind="adapter")
    for sentence in found:
        remark(f"export: {sentence}")


def _yaml(cfg: DictConfig) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(unrevealed(cfg)), resolve=False)
