"""The systems of a run measured on its skill, and the content of results.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

from omegaconf import DictConfig

from kd.components.instantiation import instantiate
from kd.composition.cautions import cautions
from kd.evaluation.drafting import with_drafting
from kd.evaluation.excess_error import with_excess_error
from kd.evaluation.measurable import check_names
from kd.evaluation.variants.robustness import Pair, Robustness
from kd.experiment.identity import code_of, family, load_skill, skill_node
from kd.experiment.plan import plain
from kd.intervals import Score
from kd.judges.judging import Answered, Judging
from kd.judges.panel import Panel, panels
from kd.metrics.table import METRICS, ON_REQUEST, ON_TEACHER, Metric
from kd.models.language_model import LanguageModel
from kd.progress import part, remark
from kd.runs.folder import RunFolder
from kd.runs.metrics_log import csv_text
from kd.runs.positions import positions_csv
from kd.runs.results import Budget as Cost
from kd.runs.results import check_page
from kd.sandbox import calls, mechanism
from kd.skills.records import load
from kd.types import Skill
from kd.versions import code_digest

ITEMS = ("skill", "system", "metric", "id", "group", "value", "statistics", "variant")  # columns of items.csv


class Evaluated:
    """The systems of one run, measured on its skill and on those of `evaluation.skills`."""

    def __init__(self, cfg: DictConfig, parts: Any, folder: RunFolder, read: DictConfig | None = None):
        """read: the config of which everything is prepared; None: `cfg` is."""
        from kd.experiment.loading import copies_of
        from kd.models.digests import model_digest

        self.cfg, self.parts, self.folder, self.digest = cfg, parts, folder, model_digest
        teacher = parts.teacher
        self.teacher_identity = None if teacher is None else model_digest(teacher)
        evaluation = instantiate(cfg.evaluation)
        others = [*parts.skill.parts.values(), *(load_skill(skill_node(name)) for name in evaluation.skills)]
        skills = dict[str, Skill]()  # the run's own first, by which reports go, also where `evaluation.skills` names it
        for skill in [parts.skill, *others]:
            skills.setdefault(skill.name, skill)
        self.sessions = {name: self._session(evaluation, skill) for name, skill in skills.items()}
        self.session = self.sessions[parts.skill.name]
        if teacher is not None and parts.encoder.teacher is not None:
            names = ", ".join(ON_TEACHER)
            remark(f"not measured, for the teacher has other tokens than the student: {names}")
        if not evaluation.engine.serves(parts.module.student, teacher):
            remark("the evaluation's engine holds models of the student's shape; kd generates the teacher's answers")
        self.measured: dict[str, dict[str, Any]] = {name: {} for name in self.sessions}  # by skill and system
        self.robustness = {name: Robustness(session) for name, session in self.sessions.items()}
        self.varied: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in self.sessions}
        self.evaluation, self.outside = evaluation, dict[str, dict[str, Any]]()  # lm-eval's scores, by task and system
        self.judged, self.judged_items = dict[str, Metric](), list[Any]()  # metrics and items of judges
        self.calls, self.family = calls(), family(cfg)
        self.initial = model_digest(parts.module.student)
        evaluation.copies = copies_of(cfg if read is None else read, self.initial, self.teacher_identity)

    def close(self) -> None:
        """End the processes that evaluate in place of this one, if there are any; a measurement starts others."""
        if self.evaluation.copies is not None:
            self.evaluation.copies.close()

    def _session(self, evaluation: Any, skill: Skill) -> Any:
        return evaluation.session(
            skill=skill,
            train=load(skill, "train"),  # without the augmentation: one floor for all jobs
            test=load(skill, "test"),
            encoder=self.parts.encoder,
            teacher=self.parts.teacher,
            teacher_identity=self.teacher_identity,
        )

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
        digest = self.digest(student)
        with part(f"student {system}"):
            self._measure(system, student, digest)
            self._measure_outside(system, student, digest)

    def _measure(self, system: str, model: Any, identity: str) -> None:
        for skill, session in self.sessions.items():
            found = session.measure(model, identity=identity)
            if system != "teacher":
                found = with_excess_error(session, model, found, identity=identity)
                found = with_drafting(session, model, found, identity=identity)
            self.measured[skill][system] = found
            self.varied[skill][system] = self.robustness[skill].measure(model, found, identity=identity)

    def _measure_outside(self, system: str, model: Any, identity: str | None) -> None:
        """The tasks of `evaluation.lm_eval`, which generate and read as lm-eval does."""
        if not self.evaluation.lm_eval.tasks or not isinstance(model, LanguageModel):
            return
        size, longest = self.evaluation.decoding.batch_size, self.cfg.data.max_length
        found = self.evaluation.lm_eval.measure(model, identity=identity, batch_size=size, max_length=longest)
        check_names(found, self.sessions)  # those of groups and tags are known after their data were read
        for task, scores in found.items():
            for metric, score in scores.items():
                self.outside.setdefault(task, {}).setdefault(metric, {})[system] = score._asdict()

    def results(
        self, baseline: Mapping[str, Any] | None, judges: Sequence[Judging] = (), beside: RunFolder | None = None
    ) -> dict[str, Any]:
        """The content of results.json; writes samples.jsonl, items.csv, positions.csv and, of judges, verdicts.jsonl.

        beside: the folder of the baseline.
        """
        if self.parts.teacher is not None and self.teacher_identity is not None:
            with part("teacher"):
                self._measure("teacher", self.parts.teacher, self.teacher_identity)
        for skill, session in self.sessions.items():
            if (floor := session.floor()) is not None:
                self.measured[skill] |= {"floor": floor, "uniform": session.uniform()}
        with part("teacher"):
            self._measure_outside("teacher", self.parts.teacher, self.teacher_identity)
        judged = self._judge(judges, beside)
        self._write_items()
        tables, own = {name: _by_metric(systems) for name, systems in self.measured.items()}, self.parts.skill.name
        tables |= self.outside
        for one in judged:
            for name, scores in one.found.scores.items():
                tables[name] |= {metric: _as_dicts(systems) for metric, systems in scores.items()}
        for name, table in tables.items():
            if baseline is not None:
                _add_baseline(table, baseline, name, self.cfg.compare, own=name == own)
        metrics = {name: self._metric(name, skill) for skill, table in tables.items() for name in table}
        gaps = {skill: _gaps(table, metrics) for skill, table in tables.items()}
        agreement = {name: tables[own].pop(name) for name in ON_TEACHER if name in tables[own]}
        return {
            "seed": self.cfg.seed,
            "family": self.family,
            "baseline": None if baseline is None else baseline["config_hash"],
            "scores": tables,
            "gap_closed": gaps,
            "robustness": self._robustness(baseline),
            "metrics": {name: metric.facts() for name, metric in metrics.items()},
            "agreement": agreement or None,
            "budget": self._budget(),
            "elicitation": self.parts.elicited.facts(),
            "digests": self._digests(),
            "omits": list(self.cfg.omits),
            "code": code_digest(),
            "versions": code_of(plain(self.cfg)),
            "records": self.records,
            "sandbox": mechanism() if calls() > self.calls else None,
            "verifier_errors": self._verifier_errors(),
            "undecided": self._undecided(),
            "cautions": cautions(plain(self.cfg)),
            "judges": {one.name: one.facts() for one in judged},
        }

    def _judge(self, judges: Sequence[Judging], beside: RunFolder | None) -> list[Judging | Panel]:
        """Have the answers of all systems judged, those of the baseline among them; the judges, and their panel."""
        name = self.cfg.compare
        systems: dict[Any, str] = {"teacher": "teacher", **({"baseline": name} if beside else {})}
        read = answers_of(beside) if judges and beside else {}
        for skill, session in self.sessions.items() if judges else ():
            texts = {system: _texts(one.samples) for system, one in self.measured[skill].items()}
            texts = {**texts, **({name: read[skill]} if skill in read else {})}
            texts = {system: texts[system] for system in ("before", name, "after", "teacher") if texts.get(system)}
            groups = session.groups(session.prompts)
            for judging in judges if texts else ():
                judging.measure(Answered(skill, session.prompts, groups, texts, systems))
        judged: list[Judging | Panel] = [*judges, *panels(judges, **self.session.interval)]
        for one in judged:
            self.judged |= one.found.metrics
            self.judged_items += one.found.rows
        if judged:
            self.folder.write_verdicts(row for one in judged for row in one.found.replies)
        return judged

    def _robustness(self, baseline: Mapping[str, Any] | None) -> dict[str, Any]:
        """By skill and variant the counts of items and, by metric and system, the pairs."""
        table: dict[str, Any] = {}
        for skill, found in self.robustness.items():
            for variant in found.sessions:
                systems = {name: one[variant].pairs for name, one in self.varied[skill].items()}
                pairs = _turned({name: {m: _asdict(pair) for m, pair in one.items()} for name, one in systems.items()})
                if baseline is not None:
                    known = (baseline.get("robustness") or {}).get(skill, {}).get(variant, {})
                    for metric, theirs in known.get("metrics", {}).items():
                        pairs.get(metric, {})[self.cfg.compare] = theirs.get("after")
                table.setdefault(skill, {})[variant] = {**found.counts(variant), "metrics": pairs}
        return table

    def _metric(self, name: str, skill: str) -> Metric:
        if skill in self.outside:
            return self.evaluation.lm_eval.metric(name)
        session = self.sessions[skill]
        known = {metric.name: metric for metric in (session.metric, *(one.metric for one in session.metrics))}
        standing = {**METRICS, **ON_REQUEST, **self.judged}
        return standing.get(name) or known[name]

    def _write_items(self) -> None:
        """Write samples.jsonl (a row for each answer), items.csv (for each item, system and metric), positions.csv."""
        every: list[tuple[str, str, str | None, Any]]
        every = [(s, name, None, one) for s, systems in self.measured.items() for name, one in systems.items()]
        every += [
            (s, name, variant, one.measured)
            for s, systems in self.varied.items()
            for name, by_variant in systems.items()
            for variant, one in by_variant.items()
        ]
        self.folder.write_samples(
            {"system": name, "skill": s, "variant": variant, **row}
            for s, name, variant, one in every
            for row in one.samples
        )
        tables = [one.items.assign(skill=s, system=name, variant=v)[list(ITEMS)] for s, name, v, one in every]
        tables += [rows.assign(variant=None)[list(ITEMS)] for rows in self.judged_items]
        rows = [row for table in tables for row in table.itertuples(index=False)]
        self.folder.write_items(csv_text([ITEMS, *rows]))
        self.folder.write_positions(
            positions_csv(
                {"skill": s, "system": name, "responses": responses, **one_bin}
                for s, name, variant, one in every
                for responses, bins in one.positions.items()
                for one_bin in bins
                if variant is None
            )
        )

    def _verifier_errors(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for systems in self.measured.values():
            for name, measured in systems.items():
                if measured.verifier_errors:
                    found[name] = found.get(name, 0) + measured.verifier_errors
        for name, count in found.items():
            remark(f"{count} answers of {name} got no score and count as wrong; samples.jsonl has the reasons")
        return found

    def _undecided(self) -> dict[str, dict[str, dict[str, int]]]:
        """By skill, metric and system, the answers on which a sandbox reached a limit."""
        tables = {
            skill: _turned({n: m.undecided for n, m in systems.items()}) for skill, systems in self.measured.items()
        }
        return {skill: table for skill, table in tables.items() if table}

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


def answers_of(folder: RunFolder) -> dict[str, dict[str, str]]:
    """By skill and record, the first answer of a finished run's student. Raises ValueError for a changed file."""
    check_page(folder.path, "samples.jsonl")
    found: dict[str, dict[str, str]] = {}
    with (folder.path / "samples.jsonl").open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            if row["system"] == "after" and row["sample"] == 0 and row.get("variant") is None:
                found.setdefault(row["skill"], {})[row["id"]] = row["response"]
    return found


def _texts(samples: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The first answer to each prompt."""
    return {row["id"]: row["response"] for row in samples if row["sample"] == 0}


def _as_dicts(systems: Mapping[str, Score]) -> dict[str, Any]:
    return {system: score._asdict() for system, score in systems.items()}


def _by_metric(measured: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return _turned(
        {system: {m: score._asdict() for m, score in one.scores.items()} for system, one in measured.items()}
    )


def _turned(by_system: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By metric and system what is given by system and metric."""
    table: dict[str, dict[str, Any]] = {}
    for system, metrics in by_system.items():
        for metric, found in metrics.items():
            table.setdefault(metric, {})[system] = found
    return table


def _asdict(pair: Pair) -> dict[str, Any]:
    return {name: score._asdict() for name, score in pair._asdict().items()}


def _add_baseline(
    table: dict[str, dict[str, Any]], baseline: Mapping[str, Any], skill: str, name: str, *, own: bool
) -> None:
    agreement = dict(baseline.get("agreement") or {}) if own else {}
    for metric, systems in (dict(baseline["scores"].get(skill, {})) | agreement).items():
        if metric in table and systems.get("after") is not None:
            table[metric][name] = systems["after"]


def _gaps(table: Mapping[str, Any], metrics: Mapping[str, Metric]) -> dict[str, float | None]:
    return {name: _gap(systems, metrics[name]) for name, systems in table.items()}


def _gap(systems: Mapping[str, Any], metric: Metric) -> float | None:
    """Share of the way from the floor to the teacher. Where the floor has no answers, from the student before."""
    from kd.evaluation.measured import gap_closed

    value = {name: score["value"] for name, score in systems.items() if score is not None}
    start = value.get("floor", value.get("before"))
    return gap_closed(start, value.get("teacher"), value.get("after"), higher_is_better=metric.higher_is_better)
