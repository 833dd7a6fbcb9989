"""Training with sharded models: Lightning's strategy, and a training loop whose models are sharded while it fits."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from kd.models.language_model import WHOLE_ROWS, LanguageModel
from kd.models.sharding import Sharding, gathered, is_sharded, parted_as, shard, twin, whole
from kd.rewards import Reward
from kd.rollouts import Rollout
from kd.rollouts.wrapping import Wrapping
from kd.training.run_state import RunState
from kd.training.shards import SHARDS, Place, Shards, joined, split, write
from kd.types import Batch, Idle

NAME = "fsdp2"  # trainer.strategy


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 whose checkpoints are atomic and verified, and which any number of ranks resumes (`kd.training.shards`).

    Lightning's own distributed checkpoint is a folder that the ranks write at once: it is neither.
    """

    @property
    def lightning_restore_optimizer(self) -> bool:
        """True: from the optimizer's own state, see `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights, each rank's part of sharded ones."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The optimizer's state, likewise."""
        return super(ModelParallelStrategy, self).optimizer_state(optimizer)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Each rank writes its parts; then the first one the file that names them, with all that is not sharded."""
        state, sharded = split(checkpoint)
        if sharded:
            state[SHARDS] = write(Path(filepath), sharded, checkpoint["global_step"])
        super(ModelParallelStrategy, self).save_checkpoint(state, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The content. Each rank reads its parts of sharded tensors, of weights and averages in place."""
        path = Path(checkpoint_path)
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        shards = Shards.of(path, state)
        if shards is None:  # one file, with whole tensors
            return state
        tensors = self._own() | self._of_optimizers(state, shards)
        shards.read_into(tensors)
        return joined(state, {place: tensors[place] for place in shards.places.values()})

    def _own(self) -> dict[Place, Tensor]:
        """The sharded tensors of this run's own state, without those of the optimizers."""
        module: Any = self.lightning_module
        teacher = {} if module.models.teacher is None else module.models.teacher.carried_state()
        return split({"state_dict": module.state_dict(), "distillation": {"teacher": teacher}})[1]

    def _of_optimizers(self, state: Mapping[str, Any], shards: Shards) -> dict[Place, Tensor]:
        """Tensors for those that the shards hold of the optimizers, each sharded as its parameter is."""
        trained = [
            dict(zip(_numbers(saved), _parameters(optimizer), strict=True))
            for saved, optimizer in zip(state.get("optimizer_states", []), self.optimizers, strict=True)
        ]
        found: dict[Place, Tensor] = {}
        for place in shards.places.values():
            if place[0] == "optimizer_states":
                _, which, _, number, _ = place
                found[place] = torch.zeros_like(trained[which][number].detach())  # type: ignore[index]
        return found

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Each rank takes its part."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {n: parted_as(value, own[n]) if n in own else value for n, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Each rank takes its part."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            saved = [
                {**group, "fused": own["fused"]}
                for group, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
            ]
            by_number = dict(zip(_numbers(state), _parameters(optimizer), strict=True))
            parts = {n: _parts_of(values, by_number[n]) for n, values in state["state"].items()}
            optimizer.load_state_dict({"state": parts, "param_groups": saved})


def _numbers(state: Mapping[str, Any]) -> list[int]:
    """The numbers of the parameters in an optimizer's saved state."""
    return [number for group in state["param_groups"] for number in group["params"]]


def _parameters(optimizer: Any) -> list[Tensor]:
    """The parameters of an optimizer, in the same order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _parts_of(values: Mapping[str, Any], parameter: Tensor) -> dict[str, Any]:
    """An optimizer's state of a parameter: this rank's part of each tensor of the parameter's shape."""
    shaped = {n for n, value in values.items() if isinstance(value, Tensor) and value.shape == parameter.shape}
    return {n: parted_as(value, parameter) if n in shaped else value for n, value in values.items()}


class Sharded(RunState):
    """A training loop whose student, teacher and reference are each sharded while it fits, if it has a `sharding`.

    Models and terms are made whole, as for one process. When ranks are there, each `LanguageModel` is replaced by a
    sharded twin; the first rank keeps the whole models in host memory, and at the end its student gets the weights.
    Terms' own parameters, and a reward's network, are whole on every rank.
    """

    student: LanguageModel
    sharding: Sharding | None = None

    def __init__(self, log_every: int):
        super().__init__(log_every)
        self._kept: list[tuple[nn.Module, str, LanguageModel]] = []  # parent, name, and what a twin replaces there

    @property
    @abstractmethod
    def student_fields(self) -> frozenset[str]:
        """The student's outputs that any stream reads."""

    def configure_model(self) -> None:
        """Replace the models by sharded twins."""
        if self.sharding is None or self._kept:
            return
        frozen = [part for part in (self.models.teacher, self.models.reference) if isinstance(part, nn.Module)]
        self._kept = [(self, "student", self.student)]
        self._kept += [place for model in frozen for place in _language_models(model)]
        settings = self.sharding
        inside = bool(self.student_fields & WHOLE_ROWS)  # a gradient that enters a block there finds it freed
        for parent, name, model in self._kept:
            own = model is self.student
            sharded = twin(model.cpu())
            shard(
                sharded,
                self.device_mesh["data_parallel"],  # type: ignore[index]
                reshard_after_forward=not own or (settings.reshard_after_forward and not inside),
                offload=settings.offload_teacher and not own,
                gathered_as=torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None,
            )
            if not self.trainer.is_global_zero:
                model.to("meta")
            setattr(parent, name, sharded)
        self.models = self.models._replace(student=self.student)
        if self.models.teacher is not None:
            self.models.teacher.bind(self.student)

    def on_fit_end(self) -> None:
        """Put the whole models back, the student with its trained weights on the first rank."""
        super().on_fit_end()
        trained = self.student.state_dict() if self._kept else {}
        for parent, name, model in self._kept:
            setattr(parent, name, model)
        own = self.student.state_dict()
        for name, value in trained.items():
            full = whole(value)
            if self.trainer.is_global_zero:
                own[name].copy_(full)
        if self._kept and self.trainer.is_global_zero:
            self.student.recheck_packing()
        self._kept, self.models = [], self.models._replace(student=self.student)

    # ---- a step ------------------------------------------------------------------------------------------------------

    def gathered_for(self, rollout: Rollout) -> AbstractContextManager:
        """A context in which the models that a rollout and its reward read are whole: ranks generate as long as they
        have to, and read as many micro-batches as they have."""
        if self.sharding is None:
            return nullcontext()
        return gathered(*(getattr(self.models, role) for role in read_whole(rollout, self.models.reward)))

    def synchronised(self, last: bool) -> AbstractContextManager:
        """Gradients are summed over ranks once per window, in its last backward pass; sharded ones in each."""
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return nullcontext() if last or block is None or self.trainer.world_size == 1 else block()

    def evened(self, streams: Mapping[str, Sequence[Batch]]) -> dict[str, list[Batch]]:
        """The micro-batches of each stream, as many on each rank where models are sharded: a rank with fewer reads its
        smallest again, as `Idle`.

        Raises ValueError, on all ranks, where one has none at all.
        """
        found = {name: list(batches) for name, batches in streams.items()}
        if self.sharding is None:
            return found
        numbers = self.by_rank(torch.tensor([len(batches) for batches in found.values()]))
        for (name, batches), most, least in zip(found.items(), numbers.amax(0), numbers.amin(0), strict=True):
            if most and not least:
                raise ValueError(
                    f"a rank has no response of the stream {name} at step {self.step_count + 1} and another has some, "
                    "but sharded models are read by all ranks together; raise optim.window, or take trainer=ddp"
                )
            spare = int(most) - len(batches)
            if spare:
                smallest = min(batches, key=lambda batch: batch.student.tokens.numel())
                batches[:0] = [Idle(**vars(smallest))] * spare
        return found

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """A context that leaves the means as they were."""
        before = self.means, self.this_step
        self.means, self.this_step = dict(self.means), dict(self.this_step)
        try:
            yield
        finally:
            self.means, self.this_step = before

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average over ranks the gradients of whole parameters beside sharded ones, which no wrapper does."""
        for parameter in parameters if self.sharding is not None else ():
            if parameter.grad is not None and not is_sharded(parameter):
                parameter.grad = self.trainer.strategy.reduce(parameter.grad, reduce_op="mean")  # type: ignore[assignment]


def read_whole(rollout: Rollout, reward: Reward | None) -> list[str]:
    """The roles of the models that are whole while a rollout generates and its reward scores."""
    names = frozenset[str]() if reward is None else frozenset(reward.requires)
    generates, part = not rollout.keeps_responses, rollout
    while isinstance(part, Wrapping):
        names, part = names | part.requires, part.writer
    names |= part.requires
    frozen = [role for role in ("teacher", "reference") if any(role in name for name in names)]
    return ["student"] * (generates or bool(names)) + frozen


def sharded_strategy(ranks: int) -> ShardedStrategy:
    """The strategy of `ranks` processes."""
    return ShardedStrategy(data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False)


def _language_models(teacher: nn.Module) -> list[tuple[nn.Module, str, LanguageModel]]:
    """The places of a teacher's models: parent, name, model."""
    children = ((parent, *child) for parent in teacher.modules() for child in parent.named_children())
    return [(parent, name, child) for parent, name, child in children if isinstance(child, LanguageModel)]
