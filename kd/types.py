"""The nouns that flow between the rooms.

Dimensions: B sequences (prompts x samples; the samples of one prompt are adjacent), T positions,
V vocabulary, D width, n loss rows (the positions of a batch whose label belongs to a response).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

Split = Literal["train", "validation", "test"]
Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


@dataclass(frozen=True)
class Response:
    """One answer to a prompt. `source` says who wrote it; `score` is the skill's or a judge's, if any."""

    text: str
    source: Literal["reference", "teacher", "student"] = "reference"
    score: float | None = None


@dataclass(frozen=True)
class Record:
    """A prompt and its responses: one for supervised tuning, two for a preference, G for a group."""

    id: str
    skill: str
    prompt: tuple[Message, ...]
    responses: tuple[Response, ...] = ()
    provenance: tuple[str, ...] = ()  # augmentation stages passed, in order
    meta: Mapping[str, Any] = field(default_factory=dict)  # what the skill's `score` needs


@runtime_checkable
class Skill(Protocol):
    """Where records come from and how an answer is judged; one file each in `kd/skills`."""

    name: str
    metric: str  # name of the quantity that `score` returns, e.g. "accuracy"
    licence: str
    group_key: str  # what train and test never share, in words

    def load(self, split: Split) -> Sequence[Record]:
        """Records of one split, the same on every call and machine."""

    def score(self, record: Record, text: str) -> float:
        """Between 0 (wrong) and 1 (right)."""


@dataclass
class Sequences:
    """Prompts and responses in one tokenizer's tokens. The next-token shift is already made.

    `labels[b, t]` is the token predicted at position t; `mask[b, t]` is True where that label belongs to
    a response. Padding is on one side only, and says which: with "right" (the default) causal attention
    never sees it, so no attention mask is needed.
    """

    tokens: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    lengths: Int[Tensor, " B"]  # real tokens of each row
    padding_side: Literal["right", "left"] = "right"


@dataclass
class Batch:
    """One micro-batch: the same texts in the student's and in the teacher's tokens."""

    student: Sequences
    teacher: Sequences  # the same object when the tokenizers are the same
    records: tuple[Record, ...] = ()
    group_size: int = 1
    rewards: Float[Tensor, " B"] | None = None
    behaviour_logprobs: Float[Tensor, "B T"] | None = None


class Head(NamedTuple):
    """What turns last hidden states into logits: soft_cap * tanh(z / soft_cap), z = scale * (h W^T + b)."""

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None = None
    scale: float = 1.0
    soft_cap: float | None = None


@dataclass
class ModelOutput:
    """What a model says about sequences; the same type for student, teacher and reference.

    A model is called with the set of fields wanted and fills no more.
    """

    logits: Any = None  # a kd.kernels.logits.Logits: lazy, over the n loss rows
    logprobs: Float[Tensor, "B T"] | None = None  # of the labels, 0 where no label counts
    hidden: tuple[Float[Tensor, "B T D"], ...] | None = None  # embeddings first, last layer last


@dataclass(frozen=True)
class Progress:
    """Where the run stands. `step` counts optimizer steps that are done."""

    step: int
    total: int

    @property
    def fraction(self) -> float:
        """Between 0 and 1."""
        return self.step / max(self.total, 1)


class Models(NamedTuple):
    """Who may be asked during a rollout; None where nobody asked. `reference` is the student's starting point."""

    student: Any
    teacher: Any = None
    reference: Any = None
