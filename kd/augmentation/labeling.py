"""Labeling: the teacher writes the responses, once, and the disk remembers them."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from kd.artifacts import Cost, cache_root, key, once
from kd.augmentation import Stage
from kd.generators import Generator
from kd.generators.settings import Decoding
from kd.generators.torch import Torch
from kd.progress import progress_bar
from kd.seeding import seeded
from kd.teachers.interface import Answers, Teacher
from kd.types import Record, Response
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

    `teacher_tokens` counts what the teacher read and wrote for this, now or when the disk was told.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"teacher"})

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
        self.teacher_tokens = 0

    def __call__(
        self, records: Iterable[Record], *, teacher: Teacher | None, teacher_id: str, seed: int
    ) -> Iterator[Record]:
        """The records with the teacher's responses, from disk where the same was asked before."""
        records = list(records)
        rows = self._rows(records, teacher, teacher_id, seed)
        self.teacher_tokens += sum(row["teacher_tokens"] for row in rows)
        self._report_unfinished(rows)
        for record, row in zip(records, rows, strict=True):
            if all(row["finished"]) or not self.drop_unfinished:
                written = tuple(Response(text, "teacher") for text in row["responses"])
                kept = record.responses if self.keep_reference else ()
                yield replace(record, responses=kept + written, provenance=(*record.provenance, "labeling"))

    @staticmethod
    def outline(record: Record, settings: Mapping[str, Any]) -> Record:
        """See `kd.augmentation.Stage`."""
        written = (Response("", "teacher"),) * settings["samples"]
        return replace(record, responses=(*(record.responses if settings["keep_reference"] else ()), *written))

    def path(self, records: Sequence[Record], *, teacher_id: str, seed: int) -> Path:
        """Where the responses lie, or will. Greedy text does not depend on the seed: all seeds share it."""
        asked = {
            "code": versions(__name__, type(self.generator).__module__),
            "samples": self.decoding.samples,
            "max_new_tokens": self.decoding.max_new_tokens,
            "temperature": self.decoding.temperature,
            "top_p": self.decoding.top_p,
            "teacher": teacher_id,
            "seed": seed if self.decoding.temperature else None,
            "records": [[r.skill, r.id, [dict(message) for message in r.prompt], r.control_tokens] for r in records],
        }
        if self.generator.settings:
            asked["generator"] = dict(self.generator.settings)
        return cache_root() / "augmentation" / f"{key(asked)}.jsonl"

    def _rows(
        self, records: Sequence[Record], teacher: Teacher | None, teacher_id: str, seed: int
    ) -> list[dict[str, Any]]:
        path = self.path(records, teacher_id=teacher_id, seed=seed)

        def write(partial: Path) -> Cost:
            if teacher is None or "text" not in teacher.provides:
                raise ValueError(
                    "augmentation=labeling needs a teacher that generates the responses, but there is none; "
                    "choose one whose weights are here (teacher=smollm2_135m), or augmentation=none"
                )
            rows = self._write(records, teacher, seed)
            partial.write_text(_lines(rows), encoding="utf-8")
            return {"teacher_tokens": sum(row["teacher_tokens"] for row in rows)}

        once(path, write, kind="labeling")
        with path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def _write(self, records: Sequence[Record], teacher: Teacher, seed: int) -> list[dict[str, Any]]:
        log.info("the teacher generates %d x %d responses", len(records), self.decoding.samples)
        searches = 1 if self.decoding.temperature == 0 else self.decoding.samples  # one search ends in several
        with progress_bar("labeling", searches * len(records)) as advance, seeded(seed, "augmentation", "labeling"):
            answers = teacher.respond(records, decoding=self.decoding, engine=self.generator, progress=advance)
        return [_row(record, answer) for record, answer in zip(records, answers, strict=True)]

    def _report_unfinished(self, rows: Sequence[dict[str, Any]]) -> None:
        cut = sum(not finished for row in rows for finished in row["finished"])
        if cut:
            log.warning(
                "%d of %d responses of the teacher reached max_new_tokens=%d and %s; raise it",
                cut,
                len(rows) * self.decoding.samples,
                self.decoding.max_new_tokens,
                "their records are left out" if self.drop_unfinished else "teach the student to stop early",
            )


def _row(record: Record, answers: Answers) -> dict[str, Any]:
    return {
        "id": record.id,
        "responses": list(answers.texts),
        "finished": list(answers.finished),
        "teacher_tokens": answers.tokens,
    }


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
