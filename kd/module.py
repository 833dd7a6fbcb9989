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

from kd.budget import Budget, forget_peak_memory, peak_memory_bytes
from kd.data import Window
from kd.kernels import over_chunks
from kd.kernels.chunks import CHUNK, slices
from kd.kernels.logits import label_logprobs
from kd.models.flops import training_flops
from kd.models.language_model import LanguageModel
from kd.models.teacher import ask
from kd.objectives.divergence import forward_kl
from kd.objectives.reduction import Counts, Reduction, count, reduce, row_weights
from kd.observation import dense_rows, mask_of, moved, rows, signals_of, whole
from kd.optimization import Optimization
from kd.seeding import seed_all
from kd.sequences import Encoder
from kd.signals import FROM_ALIGNMENT, ROW, domain, is_row_wise, of_role, requires
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
        self.on_teacher = bool(of_role("teacher", self.wanted))

    def weights(self, weights: Tensor, covered: Tensor | None) -> Tensor:
        """Of its rows: none where an alignment has no word of the teacher; what they are divided by stays the same."""
        return weights if covered is None or not self.on_teacher else weights * covered


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
        reference: nn.Module | None = None,
        seed: int,
        reduction: Reduction = "token",
        log_every: int = 10,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.student = student
        self.models = Models(student, teacher, reference)
        self.objective, self.rollout, self.alignment, self.encoder = objective, rollout, alignment, encoder
        self.optimization, self.seed, self.reduction, self.log_every = optimization, seed, reduction, log_every
        self.stateful = nn.ModuleDict({n: t.loss for n, t in objective.items() if isinstance(t.loss, nn.Module)})
        self.step_count, self.budget = 0, Budget()
        self._wrote = [0, 0]  # tokens and FLOP of the rollout's writing that are in the budget
        self.means, self.reports = dict[str, Tensor](), dict[str, Tensor]()  # since the last flush
        self.this_step = {n: torch.zeros(()) for n, t in objective.items() if hasattr(t.loss, "after_step")}
        self.strict_loading = all(parameter.requires_grad for parameter in self.parameters())
        wanted = frozenset[str]().union(*(term.wanted for term in objective.values()))
        self.teacher_fields = of_role("teacher", wanted) | of_role("native_teacher", wanted)
        self.reference_fields = of_role("reference", wanted)
        self.alignment_signals = FROM_ALIGNMENT & wanted
        self.student_fields = frozenset[str]().union(*map(_student_fields, objective.values()))

    @property
    def progress(self) -> Progress:
        """Where the run stands."""
        return Progress(self.step_count, self.optimization.steps)

    @property
    def readers(self) -> tuple[Any, Any]:
        """Who reads texts when training and when validating alike, and may have to tell about it."""
        return self.models.teacher, self.alignment

    @property
    def reaches_the_head(self) -> bool:
        """Whether a gradient goes through all of the student; features alone may end in its middle."""
        return bool(self.student_fields & {"logits", "logprobs"})

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
            batch = moved(batch, self.device)
            with self.synchronised(i == len(batches) - 1):
                self.manual_backward(self.loss(batch, self.observe(batch), counts) * self.trainer.world_size)
        self.step()
        self.budget.seconds += time.perf_counter() - started
        if self.step_count % self.log_every == 0 or self.step_count == self.optimization.steps:
            self.flush()

    def count(self, batches: Sequence[Batch]) -> Counts:
        """What this step's averages are divided by, over all ranks; also what it costs."""
        local = count(batches)
        readings = getattr(self.models.teacher, "readings", 1) if self.teacher_fields else 0
        teacher = readings * sum(int(b.teacher.lengths.sum()) for b in batches)
        flops = sum(training_flops(self.student, b.student) for b in batches)
        real = sum(int(b.student.lengths.sum()) for b in batches)
        padded = sum(b.student.tokens.numel() for b in batches) - real
        wrote = [getattr(self.rollout, name, 0) for name in ("generated_tokens", "decoding_flops")]
        written, decoding = (now - before for now, before in zip(wrote, self._wrote, strict=True))
        self._wrote = wrote
        costs = torch.tensor([real, padded, teacher, written, flops + decoding], dtype=torch.float64)
        totals = self.sum_over_ranks(torch.cat([local, costs])).tolist()
        spent = self.budget
        spent.rows += int(totals[0])
        for name, value in zip(("tokens", "padded", "teacher_tokens", "generated_tokens"), totals[3:7], strict=True):
            setattr(spent, name, getattr(spent, name) + int(value))
        spent.student_flops += int(totals[7])
        return Counts(*totals[:3])

    def observe(self, batch: Batch) -> dict[str, Any]:
        """Every signal that a term asked for; no model speaks that was not asked."""
        said = {"student": self.student(batch.student, self.student_fields)}
        with torch.no_grad():
            if self.teacher_fields:
                said["native_teacher"] = ask(self.models.teacher, batch, self.teacher_fields)
                said["teacher"] = self.alignment(said["native_teacher"], batch)
            if self.reference_fields:
                said["reference"] = self.models.reference(batch.student, self.reference_fields)
        aligned = {name: getattr(self.alignment, name)(batch) for name in self.alignment_signals}
        return signals_of(batch, said, self.progress) | aligned

    def loss(self, batch: Batch, signals: Mapping[str, Any], counts: Counts) -> Tensor:
        """This micro-batch's share of the step's loss. Row-wise terms share one chunked pass through the head."""
        mask, covered = batch.student.mask, signals.get("teacher_covered")
        row_terms = {name: term for name, term in self.objective.items() if term.row_wise}
        total = torch.zeros((), device=self.device)
        if row_terms:
            even = row_weights(mask, counts, self.reduction)
            weights = {name: term.weights(even, covered) for name, term in row_terms.items()}
            total, values = over_chunks(
                {name: term.loss for name, term in row_terms.items()},
                signals["student_logits"],
                {name: rows(signal, mask) for name, signal in signals.items()},
                {name: term.weight * weights[name] for name, term in row_terms.items()},
                {name: term.wanted for name, term in row_terms.items()},
            )
            for name, value in values.items():
                self.accumulate(name, (value * weights[name]).sum())
        for name, term in self.objective.items():
            if not term.row_wise:
                given = dense_rows if term.domain == ROW else whole
                value = term.loss(**{signal: given(signals[signal], mask_of(signal, batch)) for signal in term.wanted})
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
        for name in self.this_step:
            mean = self.sum_over_ranks(self.this_step[name].double())
            self.objective[name].loss.after_step(float(mean), self.progress)
            self.this_step[name] = torch.zeros(())
        for name, pair in _reports(*self.readers, self.rollout, *self.stateful.values()).items():
            self.reports[name] = self.reports.get(name, 0.0) + torch.tensor(pair, dtype=torch.float64)

    def synchronised(self, last: bool) -> AbstractContextManager:
        """Gradients are summed over ranks once per window, in its last backward pass."""
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return nullcontext() if last or block is None or self.trainer.world_size == 1 else block()

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Sum of a small tensor; float64 where it is to be exact."""
        return self.trainer.strategy.reduce(values.to(self.device), reduce_op="sum")  # type: ignore[return-value]

    def by_rank(self, value: Tensor) -> Tensor:
        """`[ranks ...]`: every rank's own `value`, exactly."""
        own = value.new_zeros(self.trainer.world_size, *value.shape)
        own[self.global_rank] = value
        return self.sum_over_ranks(own)

    # ---- what is told ------------------------------------------------------------------------------------------------

    def accumulate(self, name: str, value: Tensor) -> None:
        """Add this rank's share of a mean; nothing leaves the device until `flush`."""
        self.means[name] = self.means.get(name, 0.0) + value
        if name in self.this_step:
            self.this_step[name] = self.this_step[name].to(value.device) + value

    def flush(self) -> None:
        """Log the means over the steps since the last call, over all ranks."""
        norm = float(self.means.pop("grad_norm"))
        names = sorted(self.means)
        totals = self.sum_over_ranks(torch.stack([self.means[name].double() for name in names]))
        told = dict(zip(names, (totals / self._steps_since_flush()).tolist(), strict=True))
        self.means = {}
        for name in sorted(self.reports):
            total, times = self.sum_over_ranks(self.reports.pop(name)).tolist()
            told |= {name: total / times} if times else {}
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

    @property
    def whole_teacher(self) -> Any:
        """Who says all of its logits in the student's tokens, whatever targets are kept of them; None if nobody."""
        exact = getattr(self.models.teacher, "exact", self.models.teacher)
        return exact if "logits" in self.alignment.provides else None

    def on_validation_epoch_start(self) -> None:
        """Sums over the validation split: nll, divergence, rows, bytes."""
        self.sums = torch.zeros(4, dtype=torch.float64)

    @torch.no_grad()
    def validation_step(self, window: Window, _: int) -> None:
        """Likelihood of the references, and the distance to the teacher where there is one in the same tokens."""
        (batch,) = (moved(batch, self.device) for batch in window.batches)
        mask, labels = batch.student.mask, batch.student.labels[batch.student.mask]
        logits = self.student(batch.student, frozenset({"logits"})).logits
        teacher = self.whole_teacher
        theirs = self.alignment(ask(teacher, batch, frozenset({"logits"})), batch) if teacher else None
        covered = None if theirs is None else theirs.covered
        for piece in slices(int(mask.sum()), CHUNK):
            own = logits.rows(piece)
            self.sums[0] -= label_logprobs(own, labels[piece]).sum().item()
            if theirs is not None:
                kl = forward_kl(own, theirs.logits.rows(piece))
                self.sums[1] += (kl if covered is None else kl[covered[piece]]).sum().item()
        texts = (response.text for record in batch.records for response in record.responses)
        compared = mask.sum() if covered is None else covered.sum()
        self.sums[2:] += torch.tensor([compared.item(), sum(len(text.encode()) for text in texts)])

    def on_validation_epoch_end(self) -> None:
        """Log bits per byte, and KL(teacher || student) in nats per response token."""
        nll, kl, count, size = self.sum_over_ranks(self.sums).tolist()
        told = {"bits_per_byte": nll / max(size, 1) / math.log(2)}
        if self.whole_teacher is not None:
            told["forward_kl"] = kl / max(count, 1)
        for name, pair in sorted(_reports(*self.readers).items()):  # else they would count as training's
            total, times = self.sum_over_ranks(torch.tensor(pair, dtype=torch.float64)).tolist()
            told |= {name: total / times} if times else {}
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
        forget_peak_memory()
        for frozen in (self.models.teacher, self.models.reference):
            if frozen is not None:
                frozen.to(self.device)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Without frozen parameters (a LoRA student's base): they are remade from their source."""
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name not in frozen}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Beside weights, optimizers and schedules: the step, the counters, and each rank's means, not logged yet."""
        self.note_peak_memory()
        told = {
            kind: {name: self.by_rank(value) for name, value in sorted(values.items())}
            for kind, values in (("means", self.means), ("reports", self.reports))
        }
        checkpoint["distillation"] = {"step": self.step_count, "budget": asdict(self.budget), **told}

    def on_fit_end(self) -> None:
        """What training took of memory is known now."""
        self.note_peak_memory()

    def note_peak_memory(self) -> None:
        """The largest so far, over the parts of a run that was resumed."""
        self.budget.peak_memory_bytes = max(self.budget.peak_memory_bytes, peak_memory_bytes())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Everything that `on_save_checkpoint` wrote."""
        state = checkpoint["distillation"]
        self.step_count, self.budget = state["step"], Budget(**state["budget"])
        for kind in ("means", "reports"):
            setattr(self, kind, {name: ranks[self.global_rank] for name, ranks in state[kind].items()})

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Micro-batches move one at a time, when their turn comes."""
        return batch


def _reports(*parts: Any) -> dict[str, tuple[float, float]]:
    """What they have to tell since they were asked last (`kd.types.Reports`)."""
    return {n: pair for part in parts if hasattr(part, "take_report") for n, pair in part.take_report().items()}


def _student_fields(term: Term) -> frozenset[str]:
    fields = of_role("student", term.wanted)
    return (fields - {"logprobs"}) | {"logits"} if term.row_wise else fields


def _listed(one_or_more: Any) -> list:
    return one_or_more if isinstance(one_or_more, list) else [one_or_more]
