"""The student as its own teacher: before training, as a moving average, or with its current weights."""

import copy
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kd.eval_mode import eval_mode
from kd.kernels.logits import HeadLogits
from kd.models.language_model import LanguageModel
from kd.models.sharding import is_sharded, part, parted_as, reshard
from kd.teachers.interface import NetworkTeacher
from kd.teachers.white_box import WhiteBox
from kd.types import Head, ModelOutput, Sequences

Mode = Literal["frozen", "ema", "live"]
Share = Annotated[float, Field(ge=0, lt=1)]


class Own(nn.Module, NetworkTeacher):
    """A teacher that is made of the student (`bind`) and never trained; no gradient reaches it.

    Weights that the student does not train (under LoRA, all but the adapters) are shared with the student, so that a
    copy takes the memory of the trained weights alone.

    Args:
        mode: frozen: the student before the first step (OPSD, arXiv 2601.18734); ema: the moving average
            phi <- decay phi + (1 - decay) theta of it after each step (SDFT, arXiv 2601.19897); live: the student with
            its current weights, without dropout.
        decay: of the average. 0 would be the student after the last step.
    """

    provides: ClassVar[frozenset[str]] = WhiteBox.provides
    follows_student: ClassVar[bool] = True

    def __init__(self, *, mode: Mode = "ema", decay: Share = 0.95):
        super().__init__()
        self.mode, self.decay = mode, decay
        self.copied: LanguageModel | None = None
        self._live: tuple[LanguageModel, ...] = ()  # no submodule: neither its mode nor its device is set from here
        self._trained = frozenset[str]()

    def bind(self, student: LanguageModel) -> None:
        """Makes the teacher of `student` with its current weights, before a checkpoint is loaded into it.

        The sharded twin of a student that was copied before is not copied again.

        Raises ValueError for an average in a precision in which its steps would be rounded away.
        """
        self._trained = frozenset(name for name, p in student.named_parameters() if p.requires_grad)
        if self.mode == "live":
            self._live = (student,)
            return
        if any(map(is_sharded, student.parameters())):
            return
        self.copied = _copy(student)
        self.train(False)
        if self.mode == "ema":
            _check_precision(self._averages())

    @property
    def model(self) -> LanguageModel:
        """The student, or the copy of it. Raises ValueError before `bind`."""
        for model in (*self._live, self.copied):
            if model is not None:
                return model
        raise ValueError("teacher Own has no student yet; call its bind(student) before it is used")

    @property
    def system(self) -> None:
        """None: there is no system but the student."""
        return None

    def train(self, mode: bool = True) -> "Own":
        """Refuses train mode, as every teacher."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, sequences: Sequences, wanted: frozenset[str]) -> ModelOutput:
        """See `LanguageModel`."""
        if self.copied is not None:
            return self.copied(sequences, wanted)
        with eval_mode([self.model]):
            here = sequences.to(self.model.network.device)  # a live teacher has no parameters that would give a device
            return _without_gradient(self.model(here, wanted))

    @torch.no_grad()
    def after_step(self, student: LanguageModel) -> None:
        """Updates the average by the student, once for each optimizer step."""
        if self.mode != "ema":
            return
        reshard(self.copied)
        parameters = dict(student.named_parameters())
        for name, average in self._averages().items():
            part(average).lerp_(part(parameters[name]).to(part(average)), 1 - self.decay)

    def carried_state(self) -> dict[str, Tensor]:
        """The averages, which cannot be restored from the student's source; each rank's parts of sharded ones."""
        if self.mode != "ema":
            return {}
        reshard(self.copied)
        return {name: average.detach().clone() for name, average in self._averages().items()}

    @torch.no_grad()
    def load_carried_state(self, state: dict[str, Tensor]) -> None:
        """Restores what `carried_state` returned. Raises ValueError for the state of another teacher or student."""
        averages = self._averages() if self.mode == "ema" else {}
        if odd := sorted(averages.keys() ^ state.keys()):
            raise ValueError(
                f"the checkpoint holds averages of {len(state)} weights and teacher.mode={self.mode} has "
                f"{len(averages)} (one that differs: {odd[0]}); resume with the teacher and student it was saved with"
            )
        for name, average in averages.items():
            average.copy_(parted_as(state[name], average))

    def _averages(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if name in self._trained}


def _copy(student: LanguageModel) -> LanguageModel:
    """A copy of the trained weights; the others are shared, and move with the student (`to` works in place)."""
    shared: list[object] = [p for p in student.parameters() if not p.requires_grad]
    shared.append(student.tokenizer)
    return copy.deepcopy(student, {id(each): each for each in shared}).requires_grad_(False)


def _check_precision(averages: dict[str, nn.Parameter]) -> None:
    for name, average in averages.items():
        if average.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"teacher.mode=ema, but the student's {name} is {str(average.dtype).removeprefix('torch.')}, in which "
                "the steps of an average are rounded away; take student.model.dtype=float32 with "
                "trainer.precision=bf16-mixed, or teacher.mode=frozen"
            )


def _without_gradient(output: ModelOutput) -> ModelOutput:
    """The output detached: views of a trained weight would train it, though they were made without gradient."""
    if output.embeddings is not None:
        output.embeddings = output.embeddings.detach()
    if output.head is not None:
        output.head = _constant(output.head)
    if output.logits is not None:
        output.logits = HeadLogits(output.logits.hidden, _constant(output.logits.head))
    return output


def _constant(head: Head) -> Head:
    return head._replace(weight=head.weight.detach(), bias=None if head.bias is None else head.bias.detach())
