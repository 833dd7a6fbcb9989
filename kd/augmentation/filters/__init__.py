"""Filters: stages that drop records, or some of their responses, and change nothing else."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from kd.augmentation import Expected, Resources, Stage
from kd.data.conversations import strings
from kd.types import Record

Scope = Literal["record", "response"]


class Filter(Stage):
    """A stage that keeps records in their order or drops them, each for a reason.

    name: in the provenance of the records that stay, which is otherwise as before.
    """

    requires: ClassVar[frozenset[str]] = frozenset()
    name: ClassVar[str]

    @staticmethod
    def outline(record: Record, settings: Mapping[str, Any]) -> Record | None:
        """See `kd.augmentation.Stage`: what stays is unchanged."""
        return record

    def __call__(self, records: Iterable[Record], resources: Resources) -> Iterator[Record]:
        """The records that stay."""
        for record, reason in self.judged(records, resources):
            if reason is None:
                yield replace(record, provenance=(*record.provenance, self.name))
            else:
                resources.dropped(reason)

    @abstractmethod
    def judged(self, records: Iterable[Record], resources: Resources) -> Iterator[tuple[Record, str | None]]:
        """Each record with the reason to drop it, a short noun phrase; None: it stays."""


class ResponseFilter(Filter):
    """A filter that judges each response for itself.

    Args:
        each: record: a record stays if all its responses pass, so that pairs and groups stay whole | response: the
            responses that pass stay, and the record if there is one; records may then differ in their number.

    A record without responses stays.
    """

    def __init__(self, *, each: Scope = "record"):
        self.each = each

    @staticmethod
    def outline(record: Record, settings: Mapping[str, Any]) -> Record | None:
        """See `kd.augmentation.Stage`; the number of responses that stay is not known before."""
        return record if settings["each"] == "record" else None

    @abstractmethod
    def fault(self, record: Record, text: str, resources: Resources) -> str | None:
        """The reason to drop a response with this text; None: it stays."""

    def judged(self, records: Iterable[Record], resources: Resources) -> Iterator[tuple[Record, str | None]]:
        """See `Filter`."""
        for record in records:
            faults = [self.fault(record, response.text, resources) for response in record.responses]
            first = next((fault for fault in faults if fault is not None), None)
            if first is None or self.each == "record":
                yield record, first
                continue
            passed = tuple(r for r, fault in zip(record.responses, faults, strict=True) if fault is None)
            yield (replace(record, responses=passed), None) if passed else (record, first)


class Selection(Filter):
    """A filter that keeps a share of the records.

    Args:
        share: of the records that stay (rounded, at least one).

    Raises:
        ValueError: `share` is not above 0 and at most 1.
    """

    def __init__(self, *, share: float):
        if not 0 < share <= 1:
            raise ValueError(f"share={share} is no share of the records; set it above 0 and at most 1")
        self.share = share

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`."""
        return Expected(number(settings["share"], records))


def number(share: float, records: int) -> int:
    """A share of so many records (rounded, at least one)."""
    return max(1, int(share * records + 0.5))


def instruction(record: Record) -> str:
    """The text of the last message, to which the responses are; empty where there is none."""
    return str(record.prompt[-1]["content"]) if record.prompt else ""


def conversation(record: Record) -> str:
    """All texts of the prompt with their roles, after the digests of its images: equal for equal prompts."""
    return "\n".join([*(image.digest for image in record.images), *strings(record.prompt)])


def highest(scores: Sequence[float], share: float) -> set[int]:
    """The places of the highest scores, a share of all (rounded, at least one); of equal ones the first."""
    return set(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[: number(share, len(scores))])
