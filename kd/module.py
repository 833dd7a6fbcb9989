"""The training loop of every method: roll out, count, observe, reduce once, step."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from kd.budget import Budget, training_flops
from kd.data import Window
from kd.kernels import over_chunks
from kd.kernels.chunks import CHUNK, slices
from kd.kernels.logits import Logits, label_logprobs
from kd.models.language_model import LanguageModel
from kd.objectives.divergence import forward_kl
from kd.objectives.reduction import Counts, Reduction, count, reduce, row_weights
from kd.optimization import Optimization
from kd.seeding import seed_all
from kd.sequences import Encoder
from kd.signals import ROW, domain, is_row_wise, of_role, requires
from kd.types import Batch, Models, Progress


@dataclass
class Term:
    """One summand of the objective; `weight` is absolute. `lr` gives the term's own parameters an optimizer apart."""

    loss: Any
    weight: float = 1.0
    kind: str = "divergence"
    lr: float | None = None

    def __post_init__(self) -> None:
        self.wanted = requires(self.loss)
        self.domain = domain(self.loss)
        self.row_wise = is_row_wise(self.loss)


class Distillation(lightning.LightningModule):
    """A student, perhaps a teacher, and what is compared between them.

    The teacher is not a submodule: it is in no checkpoint, in no optimizer and wrapped by no strategy.
    """

    def __init__(
        self,
        student: LanguageModel,
        teacher: nn.Module | None,
        objective: Mapping[str, Term],
        rollout: Any,
        alignment: Any,
        encoder: Encoder,
        optimization: Optimization,
        *,
        seed: int,
        reduction: Reduction = "token",
        log_every: int = 10,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.student = student
        self.models = Models(student, teacher)
        self.objective, self.rollout, self.alignment, self.encoder = objective, rollout, alignment, encoder
        self.optimization, self.seed, self.reduction, self.log_every = optimization, seed, reduction, log_every
        self.stateful = nn.ModuleDict({n: t.loss for n, t in objective.items() if isinstance(t.loss, nn.Module)})
        self.step_count, self.budget, self.means = 0, Budget(), dict[str, Tensor]()
        self.strict_loading = all(parameter.requires_grad for parameter in self.parameters())
        wanted = frozenset[str]().union(*(term.wanted for term in objective.values()))
        self.teacher_fields = of_role("teacher", wanted) | of_role("native_teacher", wanted)
        self.student_fields = frozenset[str]().union(*map(_student_fields, objective.values()))

    @property
    def progress(self) -> Progress:
        """Where the run stands."""
        return Progress(self.step_count, self.optimization.steps)

    # ---- one optimizer step ------------------------------------------------------------------------------------------

    def on_train_batch_start(self, window: Window, _: int) -> int | None:
        """A run that was told to stop, stops here, between two steps (-1 says so to Lightning)."""
        return -1 if self.trainer.should_stop else None

    def training_step(self, window: Window, _: int) -> None:
        """Learn from one window."""
        started = time.perf_counter()
        seed_all(self.seed, "step", window.step, self.global_rank)
        batches = self.rollout(window.batches, self.models, self.progress, self.encoder)
        counts = self.count(batches)
        for i, batch in enumerate(batches):
            batch = _to(batch, self.device)
            with self.synchronised(i == len(batches) - 1):
                self.manual_backward(self.loss(batch, self.observe(batch), counts) * self.trainer.world_size)
        self.step()
        self.budget.seconds += time.perf_counter() - started
        if self.step_count % self.log_every == 0 or self.step_count == self.optimization.steps:
            self.flush()

    def count(self, batches: Sequence[Batch]) -> Counts:
        """What this step's averages are divided by, over all ranks; also what it costs."""
        local = count(batches)
        teacher = sum(int(b.teacher.lengths.sum()) for b in batches) if self.teacher_fields else 0
        flops = sum(training_flops(self.student, b.student) for b in batches)
        real = sum(int(b.student.lengths.sum()) for b in batches)
        padded = sum(b.student.tokens.numel() for b in batches) - real
        written = getattr(self.rollout, "generated_tokens", 0) - getattr(self, "_written", 0)
        self._written = getattr(self.rollout, "generated_tokens", 0)
        costs = torch.tensor([real, padded, teacher, written, flops], dtype=torch.float64)
        totals = self.sum_over_ranks(torch.cat([local, costs])).tolist()
        spent = self.budget
        spent.rows += int(totals[0])
        for name, value in zip(("tokens", "padded", "teacher_tokens", "generated_tokens"), totals[3:7], strict=True):
            setattr(spent, name, getattr(spent, name) + int(value))
        spent.student_flops += int(totals[7])
        return Counts(*totals[:3])

    def observe(self, batch: Batch) -> dict[str, Any]:
        """Every signal that a term asked for; no model speaks that was not asked."""
        signals: dict[str, Any] = {
            "labels": batch.student.labels,
            "mask": batch.student.mask,
            "teacher_labels": batch.teacher.labels,
            "teacher_mask": batch.teacher.mask,
            "group_size": batch.group_size,
            "rewards": batch.rewards,
            "behaviour_logprobs": batch.behaviour_logprobs,
            "progress": self.progress,
        }
        said = {"student": self.student(batch.student, self.student_fields)}
        if self.teacher_fields:
            with torch.no_grad():
                said["native_teacher"] = self.models.teacher(batch.teacher, self.teacher_fields)
                said["teacher"] = self.alignment(said["native_teacher"])
        return signals | {f"{role}_{name}": value for role, out in said.items() for name, value in vars(out).items()}

    def loss(self, batch: Batch, signals: Mapping[str, Any], counts: Counts) -> Tensor:
        """This micro-batch's share of the step's loss. Row-wise terms share one chunked pass through the head."""
        mask = batch.student.mask
        weights = row_weights(mask, counts, self.reduction)
        row_terms = {name: term for name, term in self.objective.items() if term.row_wise}
        total = torch.zeros((), device=self.device)
        if row_terms:
            total, values = over_chunks(
                {name: term.loss for name, term in row_terms.items()},
                signals["student_logits"],
                {name: _rows(signal, mask) for name, signal in signals.items()},
                {name: term.weight * weights for name, term in row_terms.items()},
                {name: term.wanted for name, term in row_terms.items()},
            )
            for name, value in values.items():
                self.accumulate(name, (value * weights).sum())
        for name, term in self.objective.items():
            if not term.row_wise:
                given = _dense_rows if term.domain == ROW else _whole
                value = term.loss(**{signal: given(signals[signal], mask) for signal in term.wanted})
                mean = reduce(value, mask, counts, domain=term.domain, reduction=self.reduction)
                self.accumulate(name, mean.detach())
                total = total + term.weight * mean
        self.accumulate("loss", total.detach())
        return total

    def step(self) -> None:
        """Clip, optimizers, schedules."""
        for optimizer, scheduler in zip(_listed(self.optimizers()), _listed(self.lr_schedulers()), strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            bound = self.optimization.clip or float("inf")
            norm = nn.utils.clip_grad_norm_(parameters, bound)
            self.means["grad_norm"] = norm.detach()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        self.step_count += 1

    def synchronised(self, last: bool) -> AbstractContextManager:
        """Gradients are summed over ranks once per window, in its last backward pass."""
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return nullcontext() if last or block is None or self.trainer.world_size == 1 else block()

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Sum of a small tensor; float64 where it is to be exact."""
        return self.trainer.strategy.reduce(values.to(self.device), reduce_op="sum")  # type: ignore[return-value]

    def by_rank(self, value: Tensor) -> Tensor:
        """`[ranks]`: every rank's own `value`, exactly."""
        own = value.new_zeros(self.trainer.world_size)
        own[self.global_rank] = value
        return self.sum_over_ranks(own)

    # ---- what is told ------------------------------------------------------------------------------------------------

    def accumulate(self, name: str, value: Tensor) -> None:
        """Add this rank's share of a mean; nothing leaves the device until `flush`."""
        self.means[name] = self.means.get(name, 0.0) + value

    def flush(self) -> None:
        """Log the means over the steps since the last call, over all ranks."""
        norm = float(self.means.pop("grad_norm"))
        names = sorted(self.means)
        totals = self.sum_over_ranks(torch.stack([self.means[name].double() for name in names]))
        told = dict(zip(names, (totals / self._steps_since_flush()).tolist(), strict=True))
        self.means = {}
        told["tokens_per_second"] = self.budget.tokens / max(self.budget.seconds, 1e-9)
        self.tell("train", told)
        self.tell("train", {"grad_norm": norm, "lr": _listed(self.optimizers())[0].param_groups[0]["lr"]}, bar=False)

    def tell(self, split: str, values: Mapping[str, float], bar: bool = True) -> None:
        """To the loggers, under the number of steps done; to the bar and to checkpoints through Lightning."""
        named = {f"{split}/{name}": value for name, value in values.items()}
        for logger in self.loggers:
            logger.log_metrics(named, step=self.step_count)
        self.log_dict(named, prog_bar=bar, logger=False)

    def _steps_since_flush(self) -> int:
        return self.step_count % self.log_every or self.log_every

    # ---- validation --------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Sums over the validation split: nll, divergence, rows, bytes."""
        self.sums = torch.zeros(4, dtype=torch.float64)

    @torch.no_grad()
    def validation_step(self, window: Window, _: int) -> None:
        """Likelihood of the references, and the distance to the teacher where there is one in the same tokens."""
        (batch,) = (_to(batch, self.device) for batch in window.batches)
        mask, labels = batch.student.mask, batch.student.labels[batch.student.mask]
        logits = self.student(batch.student, frozenset({"logits"})).logits
        teacher = self.models.teacher if "logits" in self.alignment.provides and self.models.teacher else None
        theirs = self.alignment(teacher(batch.teacher, frozenset({"logits"}))).logits if teacher else None
        for rows in slices(int(mask.sum()), CHUNK):
            own = logits.rows(rows)
            self.sums[0] -= label_logprobs(own, labels[rows]).sum().item()
            if theirs is not None:
                self.sums[1] += forward_kl(own, theirs.rows(rows)).sum().item()
        texts = (response.text for record in batch.records for response in record.responses)
        self.sums[2:] += torch.tensor([mask.sum().item(), sum(len(text.encode()) for text in texts)])

    def on_validation_epoch_end(self) -> None:
        """Log bits per byte, and KL(teacher || student) in nats per response token."""
        nll, kl, rows, size = self.sum_over_ranks(self.sums).tolist()
        told = {"bits_per_byte": nll / max(size, 1) / math.log(2)}
        if self.models.teacher is not None and "logits" in self.alignment.provides:
            told["forward_kl"] = kl / max(rows, 1)
        self.tell("validation", told)

    # ---- state -------------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> tuple[list, list]:
        """One optimizer for the student and the terms' parameters; one more for each term with its own `lr`."""
        apart = {name for name, term in self.objective.items() if name in self.stateful and term.lr is not None}
        main = [p for n, p in self.named_parameters() if not (n.startswith("stateful.") and n.split(".")[1] in apart)]
        built = [self.optimization.build(main)]
        built += [self.optimization.build(self.stateful[n].parameters(), self.objective[n].lr) for n in sorted(apart)]
        return [optimizer for optimizer, _ in built], [scheduler for _, scheduler in built]

    def on_fit_start(self) -> None:
        """`from_pretrained` returns eval mode and Lightning keeps it: a student would train without dropout."""
        self.student.train()
        if self.models.teacher is not None:
            self.models.teacher.to(self.device)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Without frozen parameters (a LoRA student's base): they are remade from their source."""
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name not in frozen}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Beside weights, optimizers and schedules: the step, the counters, and each rank's means, not logged yet."""
        means = {name: self.by_rank(value) for name, value in sorted(self.means.items())}
        checkpoint["distillation"] = {"step": self.step_count, "budget": asdict(self.budget), "means": means}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Everything that `on_save_checkpoint` wrote."""
        state = checkpoint["distillation"]
        self.step_count, self.budget = state["step"], Budget(**state["budget"])
        self.means = {name: ranks[self.global_rank] for name, ranks in state["means"].items()}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Micro-batches move one at a time, when their turn comes."""
        return batch


def _student_fields(term: Term) -> frozenset[str]:
    fields = of_role("student", term.wanted)
    return (fields - {"logprobs"}) | {"logits"} if term.row_wise else fields


def _listed(one_or_more: Any) -> list:
    return one_or_more if isinstance(one_or_more, list) else [one_or_more]


def _to(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    for sequences in {id(s): s for s in (batch.student, batch.teacher)}.values():
        for name in ("tokens", "labels", "mask", "lengths"):
            setattr(sequences, name, getattr(sequences, name).to(device, non_blocking=True))
    for name in ("rewards", "behaviour_logprobs"):
        if (value := getattr(batch, name)) is not None:
            setattr(batch, name, value.to(device, non_blocking=True))
    return batch


def _rows(signal: Any, mask: Tensor) -> Any:
    """`[B T]` tensors at the loss rows; anything else as it is."""
    return signal[mask] if isinstance(signal, Tensor) and signal.shape[:2] == mask.shape else signal


def _dense_rows(signal: Any, mask: Tensor) -> Any:
    """The same with lazy logits as `[n V]`, for terms over rows that cannot be chunked."""
    return signal.rows(slice(0, signal.n)) if hasattr(signal, "rows") else _rows(signal, mask)


def _whole(signal: Any, mask: Tensor) -> Any:
    """Lazy logits as `[B T V]`, for terms that are no sum over rows; zero where there is no loss."""
    if not hasattr(signal, "rows"):
        return signal
    logits: Logits = signal
    rows = logits.rows(slice(0, logits.n))
    whole = rows.new_zeros(*mask.shape, logits.size)
    whole[mask] = rows
    return whole
