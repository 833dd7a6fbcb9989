"""One experiment: check, prepare, train, evaluate, report. The last place that sees the whole config."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from kd.composition.check import check as check_config
from kd.composition.check import describe
from kd.jobs import Job
from kd.kernels.allocation import keep_freed_memory
from kd.preparation import identity, prepared, variant
from kd.run_folder import RunFolder, is_rank_zero

ON_TEACHER = ("top1", "forward_kl", "reverse_kl")


def check(cfg: DictConfig) -> RunFolder | None:
    """Raise ValueError, in one sentence, for what cannot run; else the folder that would hold the results.

    Called for every job of a sweep before the first one starts. No weight is loaded.
    """
    check_config(cfg)
    return None if cfg.run.force else folder_of(named(cfg))


def named(cfg: DictConfig) -> DictConfig:
    """With a name, if the user gave none, and without what was only for this call."""
    cfg = cfg.copy()
    with open_dict(cfg):
        if cfg.name is None:
            skill = cfg.skill.get("task") or cfg.skill._target_.rpartition(".")[2].lower()
            cfg.name = "-".join([skill, "+".join(cfg.objective), f"s{cfg.seed}"])
    return cfg


def folder_of(cfg: DictConfig) -> RunFolder:
    """Where this config's results are, or will be."""
    return RunFolder.of(cfg.run.root, cfg.name, identity(cfg))


def run(cfg: DictConfig, job: Job) -> float | None:
    """The whole of it; returns bits per byte of the distilled student, for sweepers that optimise."""
    check_config(cfg)
    if cfg.trainer.accelerator == "cpu":
        keep_freed_memory()
    cfg = named(cfg)
    print(describe(cfg), flush=True)
    results = job.run(folder_of(cfg), lambda folder: work(cfg, folder), config_yaml=_yaml(cfg), force=cfg.run.force)
    scores = [metrics["bits_per_byte"]["after"]["value"] for metrics in results["scores"].values() if metrics]
    return scores[0] if scores else None


def work(cfg: DictConfig, folder: RunFolder) -> Mapping[str, Any]:
    """Prerequisites, training, evaluation, export; the content of results.json."""
    cfg = prepared(cfg, _train_only)
    baseline = baseline_results(cfg, folder)
    from kd.training import build, fit

    parts = build(cfg)
    if not is_rank_zero():
        fit(cfg, parts, folder)
        raise SystemExit(0)  # evaluation and reports belong to the first rank
    evaluation = Evaluated(cfg, parts, folder)
    evaluation.measure("before")
    fit(cfg, parts, folder)
    evaluation.measure("after")
    results = evaluation.results(baseline)
    _export(cfg, parts, results, folder.path / "student")
    return results


def baseline_results(cfg: DictConfig, folder: RunFolder) -> Mapping[str, Any] | None:
    """Results of the run of equal steps whose objective is `cfg.compare`, made now if there is none yet."""
    if cfg.compare is None or list(cfg.objective) == [cfg.compare]:
        return None
    other = variant(cfg, objective=cfg.compare, rollout="offline")
    with open_dict(other):
        other.name, other.compare = None, None
        other.trainer.update({"devices": 1, "strategy": "auto"})
    other = named(other)
    print(f"beside it, {cfg.compare} with equal steps, data and initial weights:", flush=True)
    return Job(overrides=[f"objective={cfg.compare}", "compare=null"]).run(
        folder_of(other), lambda folder: work(other, folder), config_yaml=_yaml(other), wait=True
    )


class Evaluated:
    """The systems of one run, measured on its skill."""

    def __init__(self, cfg: DictConfig, parts: Any, folder: RunFolder):
        from kd.models.identity import model_digest

        self.cfg, self.parts, self.folder, self.digest = cfg, parts, folder, model_digest
        teacher = parts.teacher
        self.teacher_identity = None if teacher is None else model_digest(teacher)
        self.session = instantiate(cfg.evaluation).session(
            skill=parts.skill,
            train=parts.data.train,
            test=parts.skill.load("test"),
            encoder=parts.encoder,
            teacher=teacher,
            teacher_identity=self.teacher_identity,
        )
        self.measured: dict[str, Any] = {}
        self.initial = model_digest(parts.module.student)

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
        agreement = {name: table.pop(name) for name in ON_TEACHER if name in table}
        return {
            "seed": self.cfg.seed,
            "scores": {skill.name: table},
            "gap_closed": {skill.name: {name: _gap(systems, name) for name, systems in table.items()}},
            "agreement": agreement or None,
            "budget": self._budget(),
            "digests": self._digests(),
        }

    def _by_metric(self) -> dict[str, dict[str, Any]]:
        table: dict[str, dict[str, Any]] = {}
        for system, measured in self.measured.items():
            for metric, score in measured.scores.items():
                table.setdefault(metric, {})[system] = score._asdict()
        return table

    def _budget(self) -> dict[str, Any]:
        from kd.training import peak_memory_bytes

        spent = asdict(self.parts.module.budget)
        kept = ("student_flops", "tokens", "teacher_tokens", "generated_tokens", "seconds")
        return {name: spent[name] for name in kept} | {"peak_memory_bytes": peak_memory_bytes()}

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
    from kd.evaluation.measured import gap_closed

    value = {name: systems.get(name, {}).get("value") for name in ("floor", "teacher", "after", "before")}
    higher = metric != "bits_per_byte"
    start = value["before"] if higher else value["floor"]  # a floor does not answer: there the gap begins at the start
    return gap_closed(start, value["teacher"], value["after"], higher_is_better=higher)


def _train_only(cfg: DictConfig, folder: RunFolder, export_to: Path) -> None:
    from kd.training import build, fit

    parts = build(cfg)
    fit(cfg, parts, folder)
    _export(cfg, parts, {}, export_to)


def _export(cfg: DictConfig, parts: Any, results: Mapping[str, Any], folder: Path) -> None:
    from kd.export import card, export

    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    half = folder.with_name(folder.name + ".half")
    shutil.rmtree(half, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    text = card(config, results, skill_licence=parts.skill.licence, data=parts.skill.name)
    export(parts.module.student, half, text)
    half.rename(folder)


def _yaml(cfg: DictConfig) -> str:
    return OmegaConf.to_yaml(cfg, resolve=True)
