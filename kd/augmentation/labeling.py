"""Labeling: a model generates the responses, once; they are kept on disk."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from kd.artifacts import Cost, cache_root, key, once
from kd.augmentation import Resources, Stage
from kd.data.images import digest
from kd.generators import Generator
from kd.generators.account import Meter, Spent, charge, metered
from kd.generators.settings import Decoding
from kd.generators.torch import Torch
from kd.progress import phase
from kd.seeding import seeded
from kd.teachers.interface import Answers, Teacher
from kd.types import Record, Response, Source
from kd.versions import versions

log = logging.getLogger(__name__)

VERSION = 4  # part of every hash: raise it when the same settings are to give other texts


class Labeling(Stage):
    """The teacher's responses in place of the references: sequence-level KD (arXiv 1606.07947; 2402.13116, 3.1).

    Args:
        samples: responses to each prompt.
        max_new_tokens: a response that long is cut off there, without an end token.
        temperature: 0 takes the likeliest token each time, or searches with the generator's beams, as the paper does,
            and keeps the best `samples`; above 0 samples.
        top_p: see `kd.generators.generation.generate`.
        keep_reference: whether the record's own responses stay, before the teacher's.
        drop_unfinished: leave out records with a response that was cut off. Text does not show where it was cut,
            so a student that learns on it learns to stop there.
        batch_size: responses decoded together, beams counted.
        generator: the engine that writes (`kd.generators`), in this process; None: our own.

    Responses that are read from disk are charged as they were when they were generated.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"teacher"})
    source: ClassVar[Source] = "teacher"  # of the responses
    name: ClassVar[str] = "labeling"  # in a record's provenance

    def __init__(
        self,
        *,
        samples: int = 1,
        max_new_tokens: int,
        temperature: float,
        top_p: float = 1.0,
        keep_reference: bool = False,
        drop_unfinished: bool = False,
        batch_size: int = 16,
        generator: Generator | None = None,
    ):
        self.generator: Generator = Torch() if generator is None else generator
        self.decoding = Decoding(max_new_tokens, samples, temperature, top_p, batch_size)
        self.generator.check(self.decoding)
        self.keep_reference, self.drop_unfinished = keep_reference, drop_unfinished

    def __call__(self, records: Iterable[Record], resources: Resources) -> Iterator[Record]:
        """The records with the model's responses, from disk where they were generated before."""
        records = list(records)
        model, named = self._model(resources)
        rows = self._rows(records, model, named, resources.seed)
        self._report_unfinished(rows)
        for record, row in zip(records, rows, strict=True):
            if all(row["finished"]) or not self.drop_unfinished:
                written = tuple(Response(text, self.source) for text in row["responses"])
                kept = record.responses if self.keep_reference else ()
                yield replace(record, responses=kept + written, provenance=(*record.provenance, self.name))

    def _model(self, resources: Resources) -> tuple[Teacher | None, str]:
        return resources.teacher, resources.teacher_id

    @staticmethod
    def outline(record: Record, settings: Mapping[str, Any]) -> Record:
        """See `kd.augmentation.Stage`."""
        written = (Response("", "teacher"),) * settings["samples"]  # the number counts, not the source
        return replace(record, responses=(*(record.responses if settings["keep_reference"] else ()), *written))

    def path(self, records: Sequence[Record], *, model: str, seed: int) -> Path:
        """The file of the responses of the model of this name. Greedy text is the same for all seeds."""
        content = {
            "code": versions(__name__, type(self.generator).__module__),
            "samples": self.decoding.samples,
            "max_new_tokens": self.decoding.max_new_tokens,
            "temperature": self.decoding.temperature,
            "top_p": self.decoding.top_p,
            "teacher": model,
            "seed": seed if self.decoding.temperature else None,
            "records": [_key(record) for record in records],
        }
        if self.generator.settings:
            content["generator"] = dict(self.generator.settings)
        return cache_root() / "augmentation" / f"{key(content)}.jsonl"

    def _rows(self, records: Sequence[Record], model: Teacher | None, named: str, seed: int) -> list[dict[str, Any]]:
        path, meter = self.path(records, model=named, seed=seed), Meter()

        def write(partial: Path) -> Cost:
            if model is None or "text" not in model.provides:
                raise ValueError(
                    "augmentation=labeling needs a teacher that generates the responses, but there is none; "
                    "choose one whose weights are here (teacher=smollm2_135m), or augmentation=none"
                )
            with metered(meter):
                rows = self._write(records, model, seed)
            partial.write_text(_lines(rows), encoding="utf-8")
            return meter.spent._asdict()

        manifest = once(path, write, kind="labeling")
        if meter.spent == Spent():  # generated before, by this process or another
            charge(Spent.of(manifest.cost))
        with path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def _write(self, records: Sequence[Record], model: Teacher, seed: int) -> list[dict[str, Any]]:
        log.info("the %s generates %d x %d responses", self.source, len(records), self.decoding.samples)
        stream = (seed, "augmentation", "labeling")
        searches = 1 if self.decoding.temperature == 0 else self.decoding.samples  # one search ends in several
        with phase(f"generate ({self.source})", searches * len(records), "responses") as shown, seeded(*stream):
            answers = model.respond(records, decoding=self.decoding, engine=self.generator, progress=shown.advance)
        return [_row(record, answer) for record, answer in zip(records, answers, strict=True)]

    def _report_unfinished(self, rows: Sequence[dict[str, Any]]) -> None:
        cut = sum(not finished for row in rows for finished in row["finished"])
        if cut:
            log.warning(
                "%d of %d responses of the %s reached max_new_tokens=%d and %s; raise it",
                cut,
                len(rows) * self.decoding.samples,
                self.source,
                self.decoding.max_new_tokens,
                "their records are left out" if self.drop_unfinished else "teach the student to stop early",
            )


class SelfLabeling(Labeling):
    """The student's own responses in place of the references (self-knowledge: arXiv 2402.13116, 3.1.5).

    They are those of the student before the first step: of the run's own, or, in a loop, of the one that the round
    before trained. `kd.augmentation.verification.Verified` keeps the right ones. The arguments are `Labeling`'s.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"student"})
    source: ClassVar[Source] = "student"
    name: ClassVar[str] = "self_labeling"

    def _model(self, resources: Resources) -> tuple[Teacher | None, str]:
        return resources.student, f"student {resources.student_id}"


def _key(record: Record) -> list[Any]:
    own = [record.skill, record.id, [dict(message) for message in record.prompt], record.control_tokens]
    return [*own, digest(record.images)] if record.images else own


def _row(record: Record, answers: Answers) -> dict[str, Any]:
    return {
        "id": record.id,
        "responses": list(answers.texts),
        "finished": list(answers.finished),
    }


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
