"""The rationale as a second task beside the label: distilling step by step.

Example:
    >>> divided("2 and 3 make 5. So the answer is 5."), divided("It is 5.")
    (('2 and 3 make 5.', '5'), None)
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kd.augmentation import Expected, Resources
from kd.augmentation.generation import Generating, quota
from kd.augmentation.ratings import asked, checked_template
from kd.types import Record, Response

_ANSWER = re.compile(
    r"(?:\b(?:so|thus|therefore|hence),?\s+)?(?:\bthe\s+)?(?:\bfinal\s+)?\banswer\s*(?:is\b|[:=])", re.IGNORECASE
)


def divided(text: str) -> tuple[str, str] | None:
    """The rationale and the answer of a chain of thought that ends with "The answer is …"; None without either."""
    if not (found := [*_ANSWER.finditer(text)]):
        return None
    rationale, answer = text[: found[-1].start()].strip(), text[found[-1].end() :].strip(" \t\r\n.:*")
    return (rationale, answer) if rationale and answer else None


@dataclass(kw_only=True, eq=False)
class RationaleTask(Generating):
    """Of each record two, one with its label and one with the teacher's rationale: distilling step-by-step.

    Hsieh et al. (arXiv 2305.02301), section 3: the teacher generates rationale and label by chain of thought (3.1);
    the student learns both, distinguished by a prefix of the prompt, by L_label + lambda L_rationale (3.2, equation 3).
    A student that is evaluated generates the label alone. Here lambda is in the number of records: with
    `reduction=sequence` each counts the same, so that the share of rationales is their weight, and 0.5 is lambda = 1.

    Args:
        template: the prompt of the rationale with the field {question}; the reply has to end with "The answer is …".
        label: reference: the record's first response | teacher: the answer that the rationale ends with, for data
            without labels. Both are in the paper.
        label_prefix: before the question in the prompt of the label, with a space between. A prompt that begins with
            it is as it is, as those of skill=gsm_predict. Evaluated prompts are the skill's: they should have it, too.
        rationale_prefix: the same in the prompt of the rationale.
        rationales: the share of records with a rationale, from 0 and below 1; at less than 0.5 some rationales are left
            out, at more some labels, evenly over the records. At 0 the labels are alone: with label=teacher it is the
            paper's standard distillation, from the same chains of thought.
        max_new_tokens, temperature, top_p, batch_size, generator: see `kd.augmentation.generation.Generating`.

    A record of which the teacher's reply has no rationale or no answer is dropped.

    Raises:
        ValueError: the template lacks its field.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"teacher"})

    template: str
    label: Literal["reference", "teacher"] = "reference"
    label_prefix: str = ""
    rationale_prefix: str = "explain:"
    rationales: Annotated[float, Field(ge=0, lt=1)] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.text = checked_template("template", self.template, "question")

    def __call__(self, records: Iterable[Record], resources: Resources) -> Iterator[Record]:
        """The record with the label, and the one with the rationale after it."""
        records = [_prefixed(record, "", without=self.label_prefix) for record in records]
        replies = self.teacher_texts(resources, [asked(r, self.text) for r in records], "rationales")
        share = self.rationales
        with_label, with_rationale = (
            quota(min(1.0, (1 - share) / max(share, 0.5))),
            quota(min(1.0, share / (1 - share))),
        )
        for record, reply in zip(records, replies, strict=True):
            found = None if reply is None else divided(reply)
            label = self._label(record, found)
            if found is None or label is None:
                if reply is not None:
                    resources.dropped("no rationale or answer" if found is None else "no reference")
                continue
            passed = (*record.provenance, "rationale_task")
            if next(with_label):
                own = _prefixed(record, self.label_prefix)
                yield replace(own, id=f"{record.id}/label", responses=(label,), provenance=passed)
            if next(with_rationale):
                own = _prefixed(record, self.rationale_prefix)
                rationale = (Response(found[0], "teacher"),)
                yield replace(own, id=f"{record.id}/rationale", responses=rationale, provenance=passed)

    def _label(self, record: Record, found: tuple[str, str] | None) -> Response | None:
        if self.label == "reference":
            return record.responses[0] if record.responses else None
        return None if found is None else Response(found[1], "teacher")

    @staticmethod
    def outline(record: Record, settings: Mapping[str, Any]) -> Record:
        """See `kd.augmentation.Stage`."""
        return replace(record, responses=(Response("", "teacher"),))

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`."""
        share = settings["rationales"]
        made = int(records / max(share, 1 - share) + 1e-9)
        return Expected(made, records, records, records * settings["max_new_tokens"])


def _prefixed(record: Record, prefix: str, *, without: str = "") -> Record:
    """The record with a prefix before its last message, in place of the one that the message may begin with."""
    *before, last = record.prompt
    content = str(last["content"])
    content = content.removeprefix(f"{without} ") if without else content
    return replace(record, prompt=(*before, {**last, "content": f"{prefix} {content}" if prefix else content}))
