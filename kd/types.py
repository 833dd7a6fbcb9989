"""The data types that the packages exchange.

Dimensions: B sequences (prompts x samples; the samples of one prompt are adjacent), T positions,
V vocabulary, D width, n loss rows (the positions of a batch whose label belongs to a response).
"""

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kd.metrics.table import Metric

Split = Literal["train", "validation", "test"]
Message = Mapping[str, Any]  # {"role": "system" | "user" | "assistant" | "tool", "content": text, "tool_calls"?: […]}
QKV = tuple[Tensor, Tensor, Tensor]  # queries, keys, values of a layer, each [B h T d], h the query heads
Source = Literal["reference", "teacher", "student"]
WRITERS: tuple[Source, ...] = ("reference", "teacher", "student")  # `written_by` holds indices into it


@dataclass(frozen=True)
class Image:
    """An image as the bytes of a file that pillow reads; two are equal where these are."""

    data: bytes = field(repr=False)

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits of the content."""
        return hashlib.sha256(self.data).hexdigest()[:16]


@dataclass(frozen=True)
class Response:
    """One answer to a prompt. `source` is where it comes from; `score` is the skill's or a judge's, if any."""

    text: str
    source: Source = "reference"
    score: float | None = None


@dataclass(frozen=True)
class Record:
    """A prompt and its responses: one for supervised tuning, two for a preference, G for a group.

    control_tokens: whether strings such as `<|im_end|>` in its texts are control tokens; else they are text.
    images: those of its prompt, in order; the character U+FFFC stands for each in the messages' texts.
    """

    id: str
    skill: str
    prompt: tuple[Message, ...]
    responses: tuple[Response, ...] = ()
    provenance: tuple[str, ...] = ()  # augmentation stages passed, in order
    meta: Mapping[str, Any] = field(default_factory=dict)  # what the skill's `score` needs
    control_tokens: bool = False
    images: tuple[Image, ...] = ()


@runtime_checkable
class AnswerMetric(Protocol):
    """A metric of the answers to a skill's records; those of `conf/metric` are `kd.skills.answer_metrics`.

    node: its part of a config, `_target_` and arguments; it counts in a run's hash.
    """

    metric: Metric
    node: Mapping[str, Any] = MappingProxyType({})

    @property
    @abstractmethod
    def of_text(self) -> bool:
        """Whether the text of an answer is all that it requires beside the record, so that it has a `score`."""

    @abstractmethod
    def score(self, record: Record, text: str) -> float:
        """The value of one answer, within the metric's range. Raises ValueError where it is not `of_text`."""


@runtime_checkable
class Skill(Protocol):
    """A source of records, with the scoring of answers to them; one file each in `kd/skills`.

    metrics: further metrics of the same answers; one that is named as `metric` stands for `score`.
    parts: skills that it is made of, by name, each of which is evaluated apart; none but of a mixture.
    leaf: of the grid (docs/grid.md); None: of none.
    images: whether its prompts have images.
    commercial: whether the licence allows commercial use; None: not known.
    skipped_rows: a sentence on each row of its files that could not be read and was skipped, once they are loaded.
    """

    name: str
    licence: str
    group_key: str  # description of what train and test never share
    control_tokens: bool = False  # whether strings such as `<|im_end|>` in its texts are control tokens
    metrics: Sequence[AnswerMetric] = ()
    parts: "Mapping[str, Skill]" = MappingProxyType({})
    leaf: str | None = None
    commercial: bool | None = None
    skipped_rows: Sequence[str] = ()
    images: bool = False

    @property
    @abstractmethod
    def metric(self) -> str | Metric:
        """The quantity that `score` returns; a name alone, as "accuracy", is a share in [0, 1]. May be an attribute."""

    @abstractmethod
    def load(self, split: Split) -> Sequence[Record]:
        """Records of one split, the same on every call and machine."""

    @abstractmethod
    def score(self, record: Record, text: str) -> float:
        """The score of an answer, within the metric's range, as between 0 (wrong) and 1 (right). A text on which it
        raises has the worst value and is counted; one that is to be evaluated goes into `kd.sandbox`.
        """


Pixels = Mapping[str, Tensor]  # the inputs that a model's processor makes of a prompt's images, by name


@dataclass
class Sequences:
    """Prompts and responses in one tokenizer's tokens. The next-token shift is already made.

    `labels[b, t]` is the token predicted at position t; `mask[b, t]` is True where that label belongs to
    a response. All padding is on the side `padding_side`: with "right" (the default) causal attention
    never sees it, so no attention mask is needed. `pixels[b]` are the images of row b, {} where it has none;
    without any in the batch it is ().
    """

    tokens: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    lengths: Int[Tensor, " B"]  # real tokens of each row
    padding_side: Literal["right", "left"] = "right"
    pixels: tuple[Pixels, ...] = ()

    @cached_property
    def places(self) -> Int[Tensor, " n"]:
        """The loss rows in the flat batch: `x.flatten(0, 1)[places]` is `x[mask]`.

        Of a mask on a GPU they are found by a wait for it; `to` takes along those that were found before.
        """
        return self.mask.flatten().nonzero()[:, 0]

    @cached_property
    def known_lengths(self) -> tuple[int, ...]:
        """`lengths` as numbers, which `to` takes along too."""
        return tuple(self.lengths.tolist())

    @property
    def real(self) -> Bool[Tensor, "B T"]:
        """True where a token is, False where padding is."""
        width = self.tokens.shape[1]
        place = torch.arange(width, device=self.tokens.device)
        real, padding = self.lengths[:, None], width - self.lengths[:, None]
        return place < real if self.padding_side == "right" else place >= padding

    def at(self, rows: Int[Tensor, " b"] | Sequence[int] | slice) -> "Sequences":
        """The sequences `rows`, in that order, at the same width."""
        names = ("tokens", "labels", "mask", "lengths")
        found: dict[str, Any] = {name: getattr(self, name)[rows] for name in names}
        if self.pixels:
            found["pixels"] = tuple(self.pixels[i] for i in torch.arange(len(self.pixels))[rows].tolist())
        return replace(self, **found)

    def to(self, device: torch.device) -> "Sequences":
        """The sequences on `device`; places and lengths are found here, where nothing has to be waited for."""
        names = ("tokens", "labels", "mask", "lengths")
        there: dict[str, Any] = {name: sent(getattr(self, name), device) for name in names}
        made = replace(self, **there, pixels=_moved(self.pixels, device))
        made.__dict__ |= {"places": sent(self.places, device), "known_lengths": self.known_lengths}
        return made


def sent(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device`. To a GPU it goes from page-locked memory, so that the host does not wait until it is there."""
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=device.type != "cpu")  # there, what is read next could be read too early


def _moved(pixels: tuple[Pixels, ...], device: torch.device) -> tuple[Pixels, ...]:
    """The images on `device`; those of several rows, as of the samples of one prompt, once."""
    different = {id(row): row for row in pixels}
    there = {key: {name: sent(x, device) for name, x in row.items()} for key, row in different.items()}
    return tuple(there[id(row)] for row in pixels)


@dataclass(frozen=True)
class Written:
    """A response as the ids that were generated: text that is encoded again may give other ids.

    Each tensor is `[L]`, one number for each id; None where it was not computed. A dialogue is one response: the
    writer's turns, and between them what an environment returned (`kd.rollouts.dialogue`).
    """

    ids: tuple[int, ...]  # the end token included where one was generated
    source: Source = "student"
    behaviour_logprobs: Float[Tensor, " L"] | None = None  # under the distribution that each id was drawn from
    old_logprobs: Float[Tensor, " L"] | None = None  # the student's own at that time, at temperature 1, of all ids
    truncated: bool = False  # by a bound, before an end token
    observed: tuple[tuple[int, int], ...] = ()  # begin and end of ids that an environment wrote: read, and not learnt

    @property
    def last_turn(self) -> tuple[int, ...]:
        """The ids after the last that an environment wrote: all of a response that is no dialogue."""
        return self.ids[self.observed[-1][1] :] if self.observed else self.ids

    def learnt(self, values: Float[Tensor, " L"]) -> Float[Tensor, " l"]:
        """The numbers of the ids that are learnt."""
        if not self.observed:
            return values
        kept = torch.ones(len(self.ids), dtype=torch.bool)
        for begin, end in self.observed:
            kept[begin:end] = False
        return values[kept]


@dataclass
class Batch:
    """One micro-batch: the same texts in the student's and in the teacher's tokens.

    The samples of one prompt are adjacent rows, `group_size` of them, and a group is never divided. What is `[B T]`
    here is 0 where no label counts.
    """

    student: Sequences
    teacher: Sequences  # the same object when the tokenizers are the same
    records: tuple[Record, ...] = ()
    group_size: int = 1
    written_by: Int[Tensor, " B"] | None = None  # indices into WRITERS
    rewards: Float[Tensor, " B"] | None = None
    advantages: Float[Tensor, "B T"] | None = None
    behaviour_logprobs: Float[Tensor, "B T"] | None = None  # under the distribution that the labels were drawn from
    old_logprobs: Float[Tensor, "B T"] | None = None  # the student's own when it generated
    importance_weights: Float[Tensor, "B T"] | None = None  # of the loss at each label; None: 1


class Idle(Batch):
    """A micro-batch that a rank reads because another one reads one more; it is learnt from and counted nowhere."""


class Head(NamedTuple):
    """The output projection of last hidden states h: soft_cap * tanh(z / soft_cap), z = scale * (h W^T + b)."""

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None = None
    scale: float = 1.0
    soft_cap: float | None = None


class Shape(NamedTuple):
    """The sizes of a model by which a term, before training, makes its parameters or refuses."""

    width: int  # of hidden states
    layers: int  # blocks; hidden states are one more
    heads: int | None = None  # query heads of each layer; None: not the same in all, or not known
    head_width: int | None = None  # of queries, keys and values alike; None as for heads


@dataclass
class ModelOutput:
    """The outputs of a model for sequences; the same type for student, teacher and reference.

    A model is called with the set of wanted fields and fills no more.
    """

    logits: Any = None  # a kd.kernels.logits.Logits: lazy, over the n loss rows
    logprobs: Float[Tensor, "B T"] | None = None  # of the labels, 0 where no label counts
    mean_logprobs: Float[Tensor, " B"] | None = None  # of each response's labels, without gradient; for row-wise terms
    hidden: tuple[Float[Tensor, "B T D"], ...] | None = None  # embeddings first, last layer last; at padding, anything
    attentions: tuple[Float[Tensor, "B h T T"], ...] | None = None  # probabilities, one tensor per layer
    qkv: tuple[QKV, ...] | None = None  # one for each layer
    embeddings: Float[Tensor, "V D"] | None = None  # the input embedding matrix
    head: Head | None = None  # the output projection
    aligned_mask: Bool[Tensor, " n"] | None = None  # the loss rows that an alignment covers; None: all


class Spans(NamedTuple):
    """S ranges of response text, in order, that student and teacher both write in whole tokens.

    Each field is `[S]`: the loss rows of the student and of the teacher, ends exclusive, and the sequence they are of.
    """

    start: Int[Tensor, " S"]
    end: Int[Tensor, " S"]
    teacher_start: Int[Tensor, " S"]
    teacher_end: Int[Tensor, " S"]
    sequence: Int[Tensor, " S"]


class Pairs(NamedTuple):
    """P pairs of loss rows whose next-token distributions are comparable by an alignment; each field is `[P]`."""

    student: Int[Tensor, " P"]
    teacher: Int[Tensor, " P"]
    sequence: Int[Tensor, " P"]
    ends: Bool[Tensor, " P"] | None = None  # True where either label is an end token; None: unknown


class Boundaries(NamedTuple):
    """Ids before which a tokenizer cuts, whatever was before: special ones, and those that begin with white space."""

    student: Bool[Tensor, " V"]
    teacher: Bool[Tensor, " U"]


@dataclass(frozen=True)
class Progress:
    """The position of a run. `step` counts optimizer steps that are done.

    `spent` is the largest share of a limit on its budget that is used up; 0 where there is none.
    """

    step: int
    total: int
    spent: float = 0.0

    @property
    def fraction(self) -> float:
        """Between 0 and 1: what ends the run first, steps or budget, sets the pace."""
        return min(max(self.step / max(self.total, 1), self.spent), 1.0)


@runtime_checkable
class Reports(Protocol):
    """The metrics of an alignment, rollout, teacher or stateful term beside the loss."""

    def take_report(self) -> dict[str, tuple[float, float]]:
        """name -> (sum, count) on this rank since the last call; logged as sum / count over all ranks."""


class Models(NamedTuple):
    """The models of a rollout; None for one that is not required. `reference` is the student's starting point."""

    student: Any
    teacher: Any = None
    reference: Any = None
    reward: Any = None  # a kd.rewards.Reward
