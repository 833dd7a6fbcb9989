"""One experiment: check, prepare, train, evaluate, report. The last place that sees the whole config."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from kd.artifacts import remove, store
from kd.components.instantiation import instantiate
from kd.composition.cautions import cautions
from kd.composition.check import check as check_config
from kd.composition.check import describe
from kd.composition.machine import check_machine, check_parts
from kd.composition.sections import learning_processes
from kd.composition.targets import asks_teacher, same_rows
from kd.experiment.compatibility import check_models
from kd.experiment.identity import check_unchanged, code_of, family, identity
from kd.experiment.preparation import choice, prepared, unprepared, variant
from kd.kernels.allocation import keep_freed_memory
from kd.reports.table import lost_records
from kd.runs.folder import RunFolder, is_rank_zero, ranks_started
from kd.runs.metrics_log import last_value
from kd.runs.results import Budget as Cost
from kd.runs.results import validated
from kd.sandbox import calls, mechanism
from kd.secrets import unrevealed
from kd.skills.records import load
from kd.sweeps.jobs import Job
from kd.versions import code_digest

ON_TEACHER = ("top1", "forward_kl", "reverse_kl")
LOWER_IS_BETTER = ("bits_per_byte", "forward_kl", "reverse_kl")


def check(cfg: DictConfig) -> RunFolder | None:
    """Raise ValueError, in one sentence, for what cannot run; else the folder that would hold the results.

    Called for every job of a sweep before the first one starts. No weight is loaded.
    """
    check_config(cfg, models=check_models)
    check_machine(_plain(cfg))
    check_parts(cfg)
    check_models(cfg)
    return None if cfg.run.force else folder_of(named(cfg))


def named(cfg: DictConfig) -> DictConfig:
    """With a name, if the user gave none; a run that is its own baseline compares itself with nothing."""
    cfg = cfg.copy()
    with open_dict(cfg):
        if cfg.name is None:
            skill = cfg.skill.get("task") or cfg.skill._target_.rpartition(".")[2].lower()
            cfg.name = "-".join([skill, "+".join(cfg.objective), f"s{cfg.seed}"])
        if cfg.compare is not None and identity(baseline(cfg)) == identity(_alone(cfg)):
            cfg.compare = None
    return cfg


def baseline(cfg: DictConfig) -> DictConfig:
    """The run of equal steps, or budget, on the references themselves whose objective is `cfg.compare`.

    What only its neighbour needs is put back to the default, so that a sweep shares one baseline.
    """
    nothing = {"augmentation": "none", "generator": "torch", "reward": "none", "corpus": "none"}
    other = variant(cfg, objective=cfg.compare, rollout="offline", **nothing)
    with open_dict(other):
        other.name, other.logger, other.omits = None, {}, []
        other.trainer.update({"devices": 1, "strategy": "auto"})
        if not cfg.targets.cached or not asks_teacher(_plain(other)):  # else it reads what was kept for its neighbour
            _free_of_targets(other)
            other.temperature, other.temperature_squared = 1.0, False
    return _alone(other)


def _free_of_targets(other: DictConfig) -> None:
    """A cached run's teacher is not loaded beside it either, but silenced: a student may still be cut out of its files.

    Where the teacher's tokens are others, the cache is opened for them: records have to fit in both.
    """
    if other.targets.cached and not same_rows(_plain(other)):
        other.targets.audit = None
        return
    if other.targets.cached:
        other.teacher._target_ = None
    other.targets = choice("targets", "full")


def _plain(cfg: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def _alone(cfg: DictConfig) -> DictConfig:
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.compare = None
    return cfg


def folder_of(cfg: DictConfig) -> RunFolder:
    """Where this config's results are, or will be."""
    return RunFolder.of(cfg.run.root, cfg.name, identity(cfg))


def run(cfg: DictConfig, job: Job) -> float | None:
    """The whole of it; returns the monitored validation metric (lower is better), for sweepers that optimise."""
    check_config(cfg, models=check_models)
    check_machine(_plain(cfg))
    check_parts(cfg)
    check_models(cfg)
    if cfg.trainer.accelerator == "cpu":
        keep_freed_memory()
    cfg = named(cfg)
    if is_rank_zero():
        print(describe(cfg), flush=True)
        for caution in cautions(_plain(cfg)):
            print(f"caution: {caution}", flush=True)
    if cfg.run.prerequisites_only:
        _ = cfg.compare is None or baseline_results(cfg)
        prepared(cfg, train_only)
        return None
    check_launch(cfg)
    folder = folder_of(cfg)
    job.run(
        folder,
        lambda folder: work(cfg, folder),
        config_yaml=_yaml(cfg),
        omits=list(cfg.omits),
        force=cfg.run.force,
    )
    return last_value(folder.path, cfg.checkpoint.monitor)


def check_launch(cfg: DictConfig) -> None:
    """Raises ValueError where somebody else started several ranks before what comes before ranks was made."""
    ranks = ranks_started()
    _check_ranks(cfg, ranks)
    missing = [f"the preparation of the {role}" for role in unprepared(cfg)]
    if cfg.compare is not None and not folder_of(named(baseline(cfg))).done:
        missing.append(f"the run beside it (compare={cfg.compare})")
    if ranks > 1 and missing:
        raise ValueError(
            f"{ranks} ranks were started from outside (torchrun, Slurm), but {' and '.join(missing)} must be made by "
            "one process before; give the same command to one process first, with run.prerequisites_only=true"
        )


def _check_ranks(cfg: DictConfig, ranks: int) -> None:
    """Raises ValueError where each of several processes would train a whole run, or the only one writes nothing."""
    learning = learning_processes(_plain(cfg)["trainer"])
    if ranks > 1 and learning not in (None, ranks):
        raise ValueError(
            f"{ranks} ranks were started from outside (WORLD_SIZE or SLURM_NTASKS), but trainer.devices="
            f"{cfg.trainer.devices} makes a run of {learning}, so that the same would be trained several times; take "
            f"trainer.devices={ranks} trainer.strategy=ddp, or start one process without these variables"
        )
    if ranks == 1 and not is_rank_zero():
        raise ValueError(
            "the environment (RANK, LOCAL_RANK or SLURM_PROCID) makes this process another rank than the first, and "
            "only one was started, so that no results would be written; unset the variable"
        )


def work(cfg: DictConfig, folder: RunFolder) -> Mapping[str, Any]:
    """Prerequisites, training, evaluation, export; the content of results.json."""
    from kd.experiment.build import build, fit, place
    from kd.experiment.checks import check_run
    from kd.experiment.export import export_objective
    from kd.training.trainer import summarise

    beside = None if cfg.compare is None else baseline_results(cfg)
    parts = build(prepared(cfg, train_only))  # and nothing else: what is told of the run is the config as composed
    check_run(cfg, parts)
    if not is_rank_zero():
        fit(cfg, parts, folder)
        raise SystemExit(0)  # evaluation and reports belong to the first rank
    _rehearse(cfg, parts, folder)
    evaluation = Evaluated(cfg, parts, folder)
    check_unchanged(cfg, folder.config_hash)  # all is loaded now
    print_lost(evaluation.records)
    evaluation.measure("before")
    fit(cfg, parts, folder)
    place(cfg, parts)  # Lightning leaves the student on the CPU
    evaluation.measure("after")
    results = evaluation.results(beside)
    validated({"config_hash": "0" * 12, **results})  # before what it could be made of again is deleted
    store(folder.path / "student", lambda partial: _export(cfg, parts, results, partial), kind="student")
    summarise(parts.module.trainer.loggers, results)
    export_objective(parts.module.stateful, folder.path / "objective.safetensors")
    remove(folder.checkpoints / "last.ckpt")  # nothing goes on from a run that is DONE
    return results


def baseline_results(cfg: DictConfig) -> Mapping[str, Any]:
    """Results of `baseline(cfg)`, made now if there are none yet.

    Raises ValueError where that run fails or its results cannot be read; names it, so that it is not taken for `cfg`.
    """
    other = named(baseline(cfg))
    if is_rank_zero():
        limited = any(limit is not None for limit in cfg.budget.values())
        equal = "an equal budget, the same data" if limited else "equal steps, data"
        print(f"beside it, {cfg.compare} with {equal} and initial weights:", flush=True)
    job, folder = Job(overrides=[f"objective={cfg.compare}", "compare=null"]), folder_of(other)
    try:
        return job.run(folder, lambda folder: work(other, folder), config_yaml=_yaml(other), wait=True)
    except ValueError as error:
        raise ValueError(
            f"the baseline, which compare={cfg.compare} runs beside this one in {folder.path}, failed: {error}; or "
            "leave it out, compare=null"
        ) from error


class Evaluated:
    """The systems of one run, measured on its skill."""

    def __init__(self, cfg: DictConfig, parts: Any, folder: RunFolder):
        from kd.teachers.digests import model_digest

        self.cfg, self.parts, self.folder, self.digest = cfg, parts, folder, model_digest
        teacher = parts.teacher
        self.teacher_identity = None if teacher is None else model_digest(teacher)
        self.session = instantiate(cfg.evaluation).session(
            skill=parts.skill,
            train=load(parts.skill, "train"),  # not what an augmentation made of it: one floor for all jobs
            test=load(parts.skill, "test"),
            encoder=parts.encoder,
            teacher=teacher,
            teacher_identity=self.teacher_identity,
        )
        if teacher is not None and parts.encoder.teacher is not None:
            told = ", ".join(ON_TEACHER)
            print(f"not measured, for the teacher writes other tokens than the student: {told}", flush=True)
        self.measured: dict[str, Any] = {}
        self.calls, self.family = calls(), family(cfg)
        self.initial = model_digest(parts.module.student)

    @cached_property
    def records(self) -> dict[str, dict[str, int]]:
        """What data.max_length does to the records of each split (`kd.runs.results.Records`)."""
        session = self.session
        lost = {"test": (session.items, session.left_out), "answers": (session.prompts, session.prompts_left_out)}
        counts = {split: {"given": len(kept) + left, "left_out": left} for split, (kept, left) in lost.items()}
        return {**self.parts.data.counts(), **counts}

    def measure(self, system: str) -> None:
        """Score the student as it is now."""
        student = self.parts.module.student
        self.measured[system] = self.session.measure(student, identity=self.digest(student))

    def results(self, baseline: Mapping[str, Any] | None) -> dict[str, Any]:
        """The content of results.json; writes samples.jsonl."""
        if self.parts.teacher is not None:
            self.measured["teacher"] = self.session.measure(self.parts.teacher, identity=self.teacher_identity)
        if (floor := self.session.floor()) is not None:
            self.measured |= {"floor": floor, "uniform": self.session.uniform()}
        self.folder.write_samples(
            {"system": name, **row} for name, measured in self.measured.items() for row in measured.samples
        )
        skill = self.parts.skill
        table = self._by_metric()
        if baseline is not None:
            _add_baseline(table, baseline, skill.name, self.cfg.compare)
        gaps = {name: _gap(systems, name) for name, systems in table.items()}
        agreement = {name: table.pop(name) for name in ON_TEACHER if name in table}
        return {
            "seed": self.cfg.seed,
            "family": self.family,
            "scores": {skill.name: table},
            "gap_closed": {skill.name: gaps},
            "agreement": agreement or None,
            "budget": self._budget(),
            "digests": self._digests(),
            "omits": list(self.cfg.omits),
            "code": code_digest(),
            "versions": code_of(_plain(self.cfg)),
            "records": self.records,
            "sandbox": mechanism() if calls() > self.calls else None,
            "verifier_errors": self._verifier_errors(),
            "cautions": cautions(_plain(self.cfg)),
        }

    def _verifier_errors(self) -> dict[str, int]:
        found = {name: measured.verifier_errors for name, measured in self.measured.items() if measured.verifier_errors}
        for name, count in found.items():
            print(f"{count} answers of {name} got no verdict and count as wrong; samples.jsonl has the reasons")
        return found

    def _by_metric(self) -> dict[str, dict[str, Any]]:
        table: dict[str, dict[str, Any]] = {}
        for system, measured in self.measured.items():
            for metric, score in measured.scores.items():
                table.setdefault(metric, {})[system] = score._asdict()
        return table

    def _budget(self) -> dict[str, Any]:
        spent = asdict(self.parts.module.budget)
        return {name: value for name, value in spent.items() if name in Cost.model_fields}

    def _digests(self) -> dict[str, str]:
        order = self.parts.data.order_digest()
        return {
            "initial_weights": self.initial,
            "data_order": order,
            "evaluation_items": self.session.items_digest,
        }


def _add_baseline(table: dict[str, dict[str, Any]], baseline: Mapping[str, Any], skill: str, name: str) -> None:
    metrics = dict(baseline["scores"].get(skill, {})) | dict(baseline.get("agreement") or {})
    for metric, systems in metrics.items():
        if metric in table and systems.get("after") is not None:
            table[metric][name] = systems["after"]


def _gap(systems: Mapping[str, Any], metric: str) -> float | None:
    """Share of the way from the floor to the teacher. A floor that does not answer gives way to the student before."""
    from kd.evaluation.measured import gap_closed

    value = {name: score["value"] for name, score in systems.items() if score is not None}
    start = value.get("floor", value.get("before"))
    higher = metric not in LOWER_IS_BETTER
    return gap_closed(start, value.get("teacher"), value.get("after"), higher_is_better=higher)


def train_only(cfg: DictConfig, folder: RunFolder, export_to: Path) -> None:
    """A run without evaluation, for what is prepared: the student goes to `export_to`."""
    from kd.experiment.build import build, fit
    from kd.experiment.checks import check_run

    parts = build(cfg)
    check_run(cfg, parts)
    _rehearse(cfg, parts, folder)
    print_lost(parts.data.counts())
    fit(cfg, parts, folder)
    _export(cfg, parts, {}, export_to)


def print_lost(records: Mapping[str, Mapping[str, int]]) -> None:
    """Print what data.max_length leaves out or truncates, if anything."""
    for sentence in lost_records(records) if is_rank_zero() else ():
        print(sentence, flush=True)


def _rehearse(cfg: DictConfig, parts: Any, folder: RunFolder) -> None:
    """Raises ValueError before the first step for what would be lost after the last (`export.rehearse`)."""
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
        print(f"export: {sentence}", flush=True)


def _yaml(cfg: DictConfig) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(unrevealed(cfg)), resolve=False)
