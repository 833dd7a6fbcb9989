"""The interface of teachers: their abilities, text and outputs."""

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kd.data.chat_template import response_text
from kd.data.rows import tokenizer_digest
from kd.data.sequences import Encoder, prompt_ids
from kd.generators import Generator, Row
from kd.generators.account import Spent, charge, is_metered, metered
from kd.generators.settings import Decoding
from kd.models.language_model import LanguageModel
from kd.types import Batch, Head, ModelOutput, Record, Shape, Source, Written


class Answers(NamedTuple):
    """A teacher's responses to one prompt.

    finished: of each response, whether it ended before it was truncated.
    tokens: read and generated for them: the prompt, as often as it was read, and the responses but for their last
        token.
    """

    texts: tuple[str, ...]
    finished: tuple[bool, ...]
    tokens: int


@runtime_checkable
class Teacher(Protocol):
    """A model that is distilled from.

    A teacher that generates text and nothing else is a subclass with `provides = frozenset({"text"})`, `identity` and
    `generate`. One with outputs has `forward` or `__call__`, from sequences and wanted fields to a `ModelOutput`, as a
    `LanguageModel`; one with a network is a `NetworkTeacher`. All other members have defaults.

    provides: "text", and the fields of `ModelOutput` that it provides. A run that requires more is refused.
    follows_student: whether it is made of the student (`bind`) and changes with it (`after_step`), so that no two runs
        share it.
    has_weights: whether its `model` generates with an engine of `kd.generators`.
    charged_to: the model whose cost its responses are, a teacher or the student.
    lists_targets: whether its only logits are rows of some ids (`listed`), which `targets=topk` keeps.
    """

    provides: ClassVar[frozenset[str]]
    follows_student: ClassVar[bool] = False
    has_weights: ClassVar[bool] = False
    charged_to: ClassVar[Source] = "teacher"
    lists_targets: ClassVar[bool] = False

    # ---- settings ----------------------------------------------------------------------------------------------------

    @classmethod
    def provided(cls, settings: Mapping[str, Any]) -> frozenset[str]:
        """What it provides under its settings in the config: `provides`, unless a subclass reads them."""
        return cls.provides

    @classmethod
    def uncounted(cls, settings: Mapping[str, Any]) -> frozenset[str]:
        """The keys of its settings on which no number depends; they are not in the identity of a run."""
        return frozenset()

    # ---- text --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def identity(self) -> str:
        """A name for everything that its texts depend on (weights, tokenizer, template; or server, model and prompt),
        under which they are stored and reused."""

    def generate(
        self,
        records: Sequence[Record],
        *,
        decoding: Decoding,
        engine: Generator,
        progress: Callable[[int], None] | None = None,
    ) -> list[Answers]:
        """`decoding.samples` responses to each record's prompt.

        Args:
            decoding: number and length of responses, distribution, batch size.
            engine: generates with the weights of a teacher that has some; others leave it alone.
            progress: called with the number of responses just finished.

        Raises ValueError for a teacher that generates no text.
        """
        raise ValueError(f"teacher {type(self).__name__} generates no text; take one that provides text")

    def respond(self, records: Sequence[Record], **settings: Any) -> list[Answers]:
        """The answers of `generate`, whose cost is added to every open meter."""
        started = time.perf_counter()
        with metered() as inside:  # an engine charges for itself
            answers = self.generate(records, **settings)
        seconds = time.perf_counter() - started
        tokens = sum(answer.tokens for answer in answers) if self.charged_to == "teacher" else 0
        counted = inside.spent
        charge(Spent(teacher_tokens=tokens - counted.teacher_tokens, seconds=max(seconds - counted.seconds, 0.0)))
        return answers

    # ---- outputs -----------------------------------------------------------------------------------------------------

    def read(self, batch: Batch, wanted: frozenset[str], device: torch.device | None = None) -> ModelOutput:
        """The wanted fields at a batch, in the teacher's own tokens, whose number is added to every open meter.

        device: on which it reads; None: that of the batch.
        """
        if is_metered():
            charge(Spent(teacher_tokens=self.readings * sum(batch.teacher.known_lengths)))
        return self.output(batch if device is None else replace(batch, teacher=batch.teacher.to(device)), wanted)

    def output(self, batch: Batch, wanted: frozenset[str]) -> ModelOutput:
        """The output that `read` returns; overridden by a teacher that requires more of a batch than its sequences."""
        forward: Any = self
        return forward(batch.teacher, wanted)

    def listed(self, batch: Batch, labels: Sequence[Sequence[int]]) -> list[Any]:
        """The rows (`kd.teachers.listed.Row`) of each sequence of a batch, one for each of its `labels`.

        Raises ValueError for a teacher that lists none.
        """
        raise ValueError(f"teacher {type(self).__name__} lists no targets; take one with logits")

    def expect(self, batches: Sequence[Batch]) -> None:
        """Receives the micro-batches that a step will read, in their order, before the first is read: a teacher
        elsewhere begins to read them while the student learns from those before."""
        return None

    @property
    def reads_elsewhere(self) -> bool:
        """Whether what it lists comes from a server, on which this process would wait."""
        return False

    @property
    def readings(self) -> int:
        """The number of networks that read each sequence."""
        return 1

    @property
    def domains(self) -> Sequence[str]:
        """The names of the members of which each reads the records of its own domain; none where all read all."""
        return ()

    def owners(self, batch: Batch) -> Tensor:
        """The number of the domain that each sequence belongs to, `[B]`. Raises ValueError without `domains`."""
        raise ValueError(f"teacher {type(self).__name__} has no domains; take teacher=routed")

    @property
    def exact(self) -> Any:
        """The teacher with its full logits, whatever targets are kept of them; None where these are not available."""
        return self if "logits" in self.provides else None

    @property
    def model(self) -> Any:
        """The teacher's model; None where it has none in this process."""
        return None

    def projection(self) -> Head:
        """The head of its logits. Raises ValueError for a teacher without one."""
        if self.model is None:
            raise ValueError(f"teacher {type(self).__name__} has no head; take targets=topk")
        return self.model.head()

    @property
    def system(self) -> Any:
        """The model that is evaluated beside the student; None where there is none but the student."""
        return None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer of the ids that it reads; None for a teacher that provides text alone."""
        return None

    @property
    def vocabulary(self) -> int:
        """The number of ids that its logits are about; 0 where it has none."""
        return 0

    def reads_packed(self) -> bool:
        """Return whether it reads sequences without padding, or none at all."""
        return True

    @property
    def shape(self) -> Shape | None:
        """The sizes of its network, by which terms on its hidden states are sized; None where it has no network."""
        return None

    # ---- a run -------------------------------------------------------------------------------------------------------

    def to(self, device: torch.device) -> Any:
        """Moves its tensors to `device`."""
        return self

    def bind(self, student: LanguageModel) -> None:
        """Receives the student before the first step, and before a checkpoint is loaded into it."""
        return None

    def after_step(self, student: LanguageModel) -> None:
        """Receives the student after each optimizer step."""
        return None

    def carried_state(self) -> dict[str, Tensor]:
        """The state that cannot be restored from its source, for the checkpoint."""
        return {}

    def load_carried_state(self, state: dict[str, Tensor]) -> None:
        """Restores the state that `carried_state` returned."""
        return None

    def check(
        self, records: Sequence[Record], read: Sequence[Record], audited: Sequence[Record], encoder: Encoder
    ) -> None:
        """Raises ValueError, with the record's name, for a record on which the teacher has no output.

        Args:
            records: all records that a run trains on or validates with.
            read: the records on which terms read the teacher.
            audited: the records on which its targets are compared with its whole output.
        """
        return None

    def tokens(self, records: Sequence[Record], encoder: Encoder) -> int:
        """The tokens that the teacher read before the run, for its targets on these records."""
        return 0

    def take_report(self) -> dict[str, tuple[float, float]]:
        """See `kd.types.Reports`."""
        return {}


@runtime_checkable
class NetworkTeacher(Teacher, Protocol):
    """A teacher whose `model` is a network in this process, which is evaluated and generates with an engine."""

    has_weights: ClassVar[bool] = True

    def identity(self) -> str:
        """The digests of the weights and their configuration, and of the tokenizer and its template."""
        return f"{self.model.identity()} {tokenizer_digest(self.model.tokenizer)}"

    @property
    def system(self) -> Any:
        """The network."""
        return self.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The network's."""
        return self.model.tokenizer

    @property
    def vocabulary(self) -> int:
        """The network's."""
        return self.model.vocabulary

    def reads_packed(self) -> bool:
        """See `LanguageModel.packs`."""
        return self.model.packs

    @property
    def shape(self) -> Shape | None:
        """See `LanguageModel`."""
        return self.model.shape

    def generate(
        self,
        records: Sequence[Record],
        *,
        decoding: Decoding,
        engine: Generator,
        progress: Callable[[int], None] | None = None,
    ) -> list[Answers]:
        """See `Teacher`. Greedy responses come from one search for each prompt, which ends in several."""
        prompts = [prompt_ids(record, self.model.tokenizer) for record in records]
        each = decoding.samples if decoding.temperature == 0 else 1
        searches = decoding.samples // each
        repeated = [prompt for prompt in prompts for _ in range(searches)]
        groups = engine(
            self.model,
            repeated,
            decoding=replace(decoding, samples=each),
            source=self.charged_to,
            version=0,
            progress=progress,
        )
        read = engine.read([len(prompt) for prompt in repeated], [[len(one.ids) for one in group] for group in groups])
        return [
            _answers([*chain(*groups[i : i + searches])], [*chain(*read[i : i + searches])], self.model.tokenizer)
            for i in range(0, len(repeated), searches)
        ]


def _answers(written: Sequence[Written], read: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> Answers:
    texts = tuple(response_text(answer.ids, tokenizer) for answer in written)
    return Answers(texts, tuple(not answer.truncated for answer in written), sum(row.tokens for row in read))
