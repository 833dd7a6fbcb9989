"""The systems of a run measured on its skill, and the content of results.json."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

from omegaconf import DictConfig

from kd.components.instantiation import instantiate
from kd.composition.cautions import cautions
from kd.experiment.identity import code_of, family
from kd.experiment.plan import plain
from kd.metrics.table import METRICS, ON_TEACHER, Metric
from kd.runs.folder import RunFolder
from kd.runs.results import Budget as Cost
from kd.sandbox import calls, mechanism
from kd.skills.records import load
from kd.versions import code_digest


class Evaluated:
    """The systems of one run, measured on its skill."""

    def __init__(self, cfg: DictConfig, parts: Any, folder: RunFolder):
        from kd.models.digests import model_digest

        self.cfg, self.parts, self.folder, self.digest = cfg, parts, folder, model_digest
        teacher = parts.teacher
        self.teacher_identity = None if teacher is None else model_digest(teacher)
        self.session = instantiate(cfg.evaluation).session(
            skill=parts.skill,
            train=load(parts.skill, "train"),  # without the augmentation: one floor for all jobs
            test=load(parts.skill, "test"),
            encoder=parts.encoder,
            teacher=teacher,
            teacher_identity=self.teacher_identity,
        )
        if teacher is not None and parts.encoder.teacher is not None:
            names = ", ".join(ON_TEACHER)
            print(f"not measured, for the teacher has other tokens than the student: {names}", flush=True)
        self.measured: dict[str, Any] = {}
        self.calls, self.family = calls(), family(cfg)
        self.initial = model_digest(parts.module.student)

    @cached_property
    def records(self) -> dict[str, dict[str, int]]:
        """The numbers of given and left-out records of each split (`kd.runs.results.Records`)."""
        session = self.session
        lost = {"test": (session.items, session.left_out), "answers": (session.prompts, session.prompts_left_out)}
        counts = {split: {"given": len(kept) + left, "left_out": left} for split, (kept, left) in lost.items()}
        return {**self.parts.data.counts(), **counts}

    def measure(self, system: str) -> None:
        """Measure the student as it is now, under the name `system`."""
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
        metrics = {name: METRICS.get(name) or self.session.metric for name in table}
        gaps = {name: _gap(systems, metrics[name]) for name, systems in table.items()}
        agreement = {name: table.pop(name) for name in ON_TEACHER if name in table}
        return {
            "seed": self.cfg.seed,
            "family": self.family,
            "scores": {skill.name: table},
            "gap_closed": {skill.name: gaps},
            "metrics": {name: metric.facts() for name, metric in metrics.items()},
            "agreement": agreement or None,
            "budget": self._budget(),
            "digests": self._digests(),
            "omits": list(self.cfg.omits),
            "code": code_digest(),
            "versions": code_of(plain(self.cfg)),
            "records": self.records,
            "sandbox": mechanism() if calls() > self.calls else None,
            "verifier_errors": self._verifier_errors(),
            "cautions": cautions(plain(self.cfg)),
        }

    def _verifier_errors(self) -> dict[str, int]:
        found = {name: measured.verifier_errors for name, measured in self.measured.items() if measured.verifier_errors}
        for name, count in found.items():
            print(f"{count} answers of {name} got no score and count as wrong; samples.jsonl has the reasons")
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


def _gap(systems: Mapping[str, Any], metric: Metric) -> float | None:
    """Share of the way from the floor to the teacher. Where the floor has no answers, from the student before."""
    from kd.evaluation.measured import gap_closed

    value = {name: score["value"] for name, score in systems.items() if score is not None}
    start = value.get("floor", value.get("before"))
    return gap_closed(start, value.get("teacher"), value.get("after"), higher_is_better=metric.higher_is_better)
