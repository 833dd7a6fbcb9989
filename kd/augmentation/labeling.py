"""Labeling: a model generates the responses, once; they are kept on disk."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from kd.augmentation import By, Expected, Resources
from kd.augmentation.answering import is_missing
from kd.augmentation.generation import Generating
from kd.generators.settings import Decoding, Samples
from kd.teachers.interface import Answers
from kd.types import Record, Response

log = logging.getLogger(__name__)

VERSION = 5  # part of every hash: raise it when the same settings are to give other texts


@dataclass(kw_only=True, eq=False)
class Labeling(Generating):
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
    source: ClassVar[By] = "teacher"  # of the responses
    name: ClassVar[str] = "labeling"  # in a record's provenance

    samples: Samples = 1
    keep_reference: bool = False
    drop_unfinished: bool = False

    @property
    def decoding(self) -> Decoding:
        """Of the responses."""
        return Decoding(self.max_new_tokens, self.samples, self.temperature, self.top_p, self.batch_size)

    def shown(self, records: Sequence[Record], resources: Resources) -> Sequence[Sequence[Record]]:
        """The prompts that the model reads for each record, each with `samples` responses; by default its own."""
        return [[record] for record in records]

    def learnt(self, record: Record, shown: Record) -> Record:
        """The record with the student's prompt, given the first that the model read for it; by default its own."""
        return record

    def __call__(self, records: Iterable[Record], resources: Resources) -> Iterator[Record]:
        """The records with the model's responses, from disk where they were generated before."""
        records = list(records)
        shown = self.shown(records, resources)
        prompts = [prompt for several in shown for prompt in several]
        found = resources.generate(self.source, prompts, self.decoding, what="labels", engine=self.engine)
        self._report_unfinished(found)
        every = iter(found)
        for record, several in zip(records, shown, strict=True):
            answers = [next(every) for _ in several]
            if any(map(is_missing, answers)):  # else the student would learn empty responses
                resources.dropped("no response")
                continue
            if self.drop_unfinished and not all(all(answer.finished) for answer in answers):
                resources.dropped("truncated response")
                continue
            written = tuple(Response(text, self.source) for answer in answers for text in answer.texts)
            kept = record.responses if self.keep_reference else ()
            made = self.learnt(record, several[0])
            yield replace(made, responses=kept + written, provenance=(*record.provenance, self.name))

    @staticmethod
    def outline(record: Record, settings: Mapping[str, Any]) -> Record:
        """See `kd.augmentation.Stage`."""
        written = (Response("", "teacher"),) * settings["samples"]  # the number counts, not the source
        return replace(record, responses=(*(record.responses if settings["keep_reference"] else ()), *written))

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`."""
        responses = records * settings["samples"]
        return Expected(records, records, responses, responses * settings["max_new_tokens"])

    def _report_unfinished(self, rows: Sequence[Answers]) -> None:
        cut = sum(not finished for row in rows for finished in row.finished)
        if cut:
            log.warning(
                "%d of %d responses of the %s reached max_new_tokens=%d and %s; raise it",
                cut,
                len(rows) * self.decoding.samples,
                self.source,
                self.decoding.max_new_tokens,
                "their records are left out" if self.drop_unfinished else "teach the student to stop early",
            )


@dataclass(kw_only=True, eq=False)
class SelfLabeling(Labeling):
    """The student's own responses in place of the references (self-knowledge: arXiv 2402.13116, 3.1.5).

    They are those of the student before the first step: of the run's own, or, in a loop, of the one that the round
    before trained. `kd.augmentation.verification.Verified` keeps the right ones. The arguments are `Labeling`'s.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"student"})
    source: ClassVar[By] = "student"
    name: ClassVar[str] = "self_labeling"
