"""The training loop of every method: roll out, count, observe, reduce once, step."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kd.alignment import Alignment
from kd.data.sequences import Encoder
from kd.data.windows import Window
from kd.generators.account import Meter, Spent, metered
from kd.kernels import over_chunks
from kd.models.flops import reading_flops, scoring_flops, training_flops
from kd.models.language_model import LanguageModel
from kd.models.sharding import Sharding, clip_gradients
from kd.objectives.reduction import Counts, Reduction, count, reduce, row_weights
from kd.rewards import Reward
from kd.rollouts import Rollout
from kd.schedules import Schedule
from kd.seeding import seed_all
from kd.signals import POSITION, ROW, hook, separated
from kd.teachers.interface import Teacher
from kd.training import validation_metrics as validation
from kd.training.budget import Budget, Limits, forget_peak_memory, rolled_out
from kd.training.finiteness import Finiteness, check_validation, stop_if_not_finite
from kd.training.metric_logging import listed, reports_of, term_of
from kd.training.observation import announced, dense_rows, moved, rows, sequences_of, signals_of, whole
from kd.training.optimization import Optimization
from kd.training.sharding import Sharded
from kd.training.terms import Term, backward_passes, by_stream
from kd.types import Batch, Idle, Models, Progress

VERSION = 6  # the logged rate is its step's; 5: turns end as templates do; 4: hybrids' FLOP; 3: warm-up; 2: whole


class Distillation(Sharded):
    """A student, perhaps a teacher, and the objective that compares them.

    The teacher is not a submodule: it is in no checkpoint, in no optimizer and wrapped by no strategy.
    """

    def __init__(
        self,
        student: LanguageModel,
        teacher: Teacher | None,
        objective: Mapping[str, Term],
        rollout: Rollout,
        alignment: Alignment,
        encoder: Encoder,
        optimization: Optimization,
        *,
        reference: Teacher | None = None,
        reward: Reward | None = None,
        limits: Limits | None = None,
        sharding: Sharding | None = None,
        seed: int,
        reduction: Reduction = "token",
        log_every: int = 10,
    ):
        super().__init__(log_every)
        self.automatic_optimization, self.sharding, self.student = False, sharding, student
        self.models = Models(student, teacher, reference, reward)
        self.objective, self.rollout, self.alignment, self.encoder = objective, rollout, alignment, encoder
        self.optimization, self.seed, self.reduction = optimization, seed, reduction
        self.stateful = nn.ModuleDict({n: t.loss for n, t in objective.items() if isinstance(t.loss, nn.Module)})
        own = [rollout, reward, *(loss for loss in self.stateful.values() if hook(loss, "take_report"))]
        self.reporters = [part for part in (*self.readers, *own) if part is not None]
        self.step_count, self.budget, self.limits = 0, Budget(), limits or Limits()
        self.finiteness = Finiteness(objective)
        self.meter, self._counted = Meter(), Spent()  # of rollout and reward; of that, what is in the budget
        self.passes = Meter()  # of the step's passes: a server's price; the tokens that are read there are in `count`
        self.this_step = {n: torch.zeros(()) for n, t in objective.items() if hook(t.loss, "after_step")}
        self.strict_loading = all(parameter.requires_grad for parameter in self.parameters())
        self.demands = by_stream(objective)
        self.update_weights()

    def update_weights(self) -> None:
        """Fix the weights of the terms for the step to come, and the terms that are not silent in it."""
        progress = self.progress
        self.weights = {name: term.weight_at(progress) for name, term in self.objective.items()}
        self.active = by_stream({name: term for name, term in self.objective.items() if self.weights[name]})

    @property
    def progress(self) -> Progress:
        """The run's progress."""
        return Progress(self.step_count, self.optimization.steps, self.limits.share(self.budget))

    @property
    def finished(self) -> bool:
        """True if all steps are done, the budget is used up, or a callback ended the run."""
        return self.ended or self.progress.fraction >= 1.0

    @property
    def teacher_fields(self) -> frozenset[str]:
        """The teacher's outputs that any stream reads."""
        return frozenset[str]().union(*(demand.teacher for demand in self.demands.values()))

    @property
    def student_fields(self) -> frozenset[str]:
        """The student's outputs that any stream reads."""
        return frozenset[str]().union(*(demand.student for demand in self.demands.values()))

    @property
    def reference_fields(self) -> frozenset[str]:
        """The outputs of the student's starting point that any stream reads."""
        return frozenset[str]().union(*(demand.reference for demand in self.demands.values()))

    @property
    def readers(self) -> list[Any]:
        """The components that read texts in training and in validation alike, and may have reports about it."""
        return [part for part in (self.models.teacher, self.alignment) if part is not None]

    @property
    def reaches_everything(self) -> bool:
        """True if each step has a gradient for every parameter: features alone may end in the student's middle, and a
        silent term gives none to its own."""
        steady = [term for term in self.objective.values() if not term.may_be_silent]
        to_the_head = any(term.student_fields & {"logits", "logprobs"} for term in steady)
        return to_the_head and not any(
            parameter.requires_grad
            for name, loss in self.stateful.items()
            if self.objective[name].may_be_silent
            for parameter in loss.parameters()
        )

    # ---- one optimizer step ------------------------------------------------------------------------------------------

    def on_train_batch_start(self, window: Window, _: int) -> int | None:
        """Return -1, at which Lightning stops, for a run that is to stop or has spent its budget, between two steps."""
        return -1 if self.trainer.should_stop or self.finished else None

    def training_step(self, window: Window, _: int) -> None:
        """Learn from one window."""
        started, self.passes = time.perf_counter(), Meter()
        seed_all(self.seed, "step", window.step, self.global_rank)
        self.update_weights()
        arguments, before = (window.batches, self.models, self.progress, self.encoder), self._counted
        with self.gathered_for(self.rollout):
            written = rolled_out(self.rollout, arguments, self.meter, self.budget, window.coming)
        streams = {s: batches for s, batches in (("main", written), ("lm", window.plain)) if s in self.active}
        counts = self.count([(stream, batch) for stream, batches in streams.items() for batch in batches])
        passes = announced(backward_passes(self.evened(streams)), self.models.teacher, self.active)
        for together in passes:
            with self.synchronised(together is passes[-1]):
                self.manual_backward(self.loss_of(together, counts) * self.trainer.world_size)
        self.step()
        self.after_step(time.perf_counter() - started, self._counted.seconds - before.seconds)

    def loss_of(self, batches: Sequence[tuple[str, Batch]], counts: Mapping[str, Counts]) -> Tensor:
        """The share of a few micro-batches, each of its stream, in the step's loss."""
        total = torch.zeros((), device=self.device)
        for stream, batch in batches:
            batch = moved(batch, self.device)
            with self.unrecorded() if isinstance(batch, Idle) else metered(self.passes):
                share = self.loss(batch, self.observe(batch, stream), counts[stream], stream)
            total = total + (0.0 * share if isinstance(batch, Idle) else share)
        return total

    def count(self, batches: Sequence[tuple[str, Batch]]) -> dict[str, Counts]:
        """The divisors of each stream's averages in this step, over all ranks; adds the step's cost to the budget."""
        local = [count(batch for stream, batch in batches if stream == name) for name in self.active]
        texts = sum(int(b.teacher.lengths.sum()) for stream, b in batches if self.active[stream].teacher)
        teacher = texts * self.models.teacher.readings if texts else 0
        flops = sum(training_flops(self.student, b.student) for _, b in batches)
        flops += sum(reading_flops(self.student, b.student) for s, b in batches if self.active[s].reference)
        real = sum(int(b.student.lengths.sum()) for _, b in batches)
        padded = sum(b.student.tokens.numel() for _, b in batches) - real
        silent = sum(int((~b.student.mask.any(-1)).sum()) for _, b in batches)
        responses = sum(len(b.student.mask) for _, b in batches)
        before, self._counted = self._counted, self.meter.spent
        new = self._counted.less(before)
        judging = new.judge_flops + self._learning_to_judge(batches)
        own, read = (new.generated_tokens, flops + new.decoding_flops), teacher + new.teacher_tokens
        costs = torch.tensor([real, padded, responses, silent, read, *own, judging, new.money], dtype=torch.float64)
        totals = self.sum_over_hosts(torch.cat([*local, costs])).tolist()
        each = len(fields(Counts))
        spent, size = self.budget, each * len(local)
        spent.rows += int(sum(totals[:size:each]))
        names = ("tokens", "padded", "responses", "masked", "teacher_tokens", "generated_tokens", "student_flops")
        for name, value in zip((*names, "judge_flops", "money"), totals[size:], strict=True):
            setattr(spent, name, getattr(spent, name) + (value if name == "money" else int(value)))
        return {name: Counts(*totals[each * i : each * (i + 1)]) for i, name in enumerate(self.active)}

    def _learning_to_judge(self, batches: Sequence[tuple[str, Batch]]) -> int:
        """FLOP of terms that train a network of their own."""
        own = {s: [t.loss for t in d.terms.values() if hook(t.loss, "reading")] for s, d in self.active.items()}
        return sum(scoring_flops(*loss.reading(b.student), learning=True) for s, b in batches for loss in own[s])

    def observe(self, batch: Batch, stream: str = "main") -> dict[str, Any]:
        """Every signal that a term requires; a model without such signals is not read."""
        demand = self.active[stream]
        outputs = {"student": self.student(batch.student, demand.student)}
        with torch.no_grad():
            if demand.teacher:
                outputs["native_teacher"] = self.models.teacher.read(batch, demand.teacher)
                outputs["teacher"] = self.alignment(outputs["native_teacher"], batch)
            if demand.reference:
                outputs["reference"] = self.models.reference(batch.student, demand.reference)
        aligned = {name: getattr(self.alignment, name)(batch) for name in demand.alignment}
        return signals_of(batch, outputs, self.progress) | aligned

    def loss(self, batch: Batch, signals: Mapping[str, Any], counts: Counts, stream: str = "main") -> Tensor:
        """This micro-batch's share of the step's loss. Row-wise terms share one chunked pass through the head."""
        aligned_mask, mask, places = signals.get("teacher_aligned_mask"), batch.student.mask, batch.student.places
        terms = self.active[stream].terms
        row_terms = {name: term for name, term in terms.items() if term.row_wise}
        total = torch.zeros((), device=self.device)
        if row_terms:
            even = {
                whose: row_weights(mask, counts.among(whose), self.reduction, chosen=term.chosen(batch), places=places)
                for whose, term in {term.responses: term for term in row_terms.values()}.items()
            }
            weights = {n: term.row_weights(even[term.responses], aligned_mask, batch) for n, term in row_terms.items()}
            total, values = over_chunks(
                {name: term.loss for name, term in row_terms.items()},
                signals["student_logits"],
                {n: rows(signals[n], batch.student) for n in {"labels"}.union(*(t.wanted for t in row_terms.values()))},
                {name: self.weights[name] * weights[name] for name in row_terms},
                {name: term.wanted for name, term in row_terms.items()},
            )
            for name, value in values.items():
                self.accumulate(name, (value * weights[term_of(name)]).sum())
        for name, term in terms.items():
            if not term.row_wise:
                means = self.reduced(name, batch, signals, counts)
                total = total + self.weights[name] * means[name]
                for key, mean in means.items():
                    self.accumulate(key, mean.detach())
        self.accumulate("loss", total.detach())
        return total

    def reduced(self, name: str, batch: Batch, signals: Mapping[str, Any], counts: Counts) -> dict[str, Tensor]:
        """The means of a term that is no sum over rows and of its metrics, by the names under which they are logged."""
        term = self.objective[name]
        given = dense_rows if term.domain == ROW else whole
        values, metrics = separated(term.loss(**{n: given(signals[n], sequences_of(n, batch)) for n in term.wanted}))
        named = {name: values, **{f"{name}/{metric}": x for metric, x in metrics.items()}}
        return {key: self._mean(term, batch, counts, x) for key, x in named.items()}

    def _mean(self, term: Term, batch: Batch, counts: Counts, value: Tensor) -> Tensor:
        """This micro-batch's share of the mean over the rows or responses that the term learns on."""
        mask, chosen = batch.student.mask, term.chosen(batch)
        if (importance := term.importance(batch)) is not None and term.domain in (ROW, POSITION):
            value = value * rows(importance, batch.student) if term.domain == ROW else value * importance
        if chosen is not mask and term.domain == ROW:
            value = value[chosen[mask]]
        among, places = counts.among(term.responses), batch.student.places if chosen is mask else None
        return reduce(value, chosen, among, domain=term.domain, reduction=self.reduction, places=places)

    def step(self) -> None:
        """Clip the gradients (not scaled any more), step the optimizers and schedules."""
        self.means.pop("grad_norm", None)
        trained, rates = list[nn.Parameter](), list[float]()
        for optimizer, scheduler in zip(listed(self.optimizers()), listed(self.lr_schedulers()), strict=True):
            trained += (parameters := [p for group in optimizer.param_groups for p in group["params"]])
            self.average_gradients(parameters)
            self.unscale(optimizer)
            norm = clip_gradients(parameters, self.optimization.clip or float("inf"))
            self.means.setdefault("grad_norm", norm.detach())  # the student's, which comes first; of this step
            rates.append(optimizer.param_groups[0]["lr"])  # before the schedule moves on to the next step's
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        self.learning_rate = rates[0]  # the student's
        self.step_count += 1
        self.finiteness.note(self.step_count, self.means, trained, skips=self.grad_scaler is not None)
        for name in (name for name in self.this_step if self.weights[name]):
            mean = self.sum_over_ranks(self.this_step[name].double())
            self.objective[name].loss.after_step(float(mean), self.progress)
            self.this_step[name] = torch.zeros(())
        if self.models.teacher is not None:
            self.models.teacher.after_step(self.student)

    def after_step(self, seconds: float, writing: float) -> None:
        """Record the step's cost and reports; log at the interval, stop if the budget is used up."""
        reports = reports_of(self.reporters)
        if not self.rollout.keeps_responses:
            reports["generation_share"] = (writing, seconds)
        for name in (name for name, term in self.objective.items() if isinstance(term.weight, Schedule)):
            reports[f"{name}_weight"] = (self.weights[name], 1.0)
            self.active_steps[name] = self.active_steps.get(name, 0) + bool(self.weights[name])
        self.record(reports)
        self.unlogged += 1
        self.add_cost(seconds, self.passes.spent.money)
        if self.step_count % self.log_every == 0 or self.finished:
            stop_if_not_finite(self)
            self.flush()
        self.trainer.should_stop = self.trainer.should_stop or self.finished

    # ---- validation --------------------------------------------------------------------------------------------------

    @property
    def whole_teacher(self) -> Any:
        """The teacher with full logits in the student's vocabulary, whichever targets are kept of them, or None."""
        teacher = self.models.teacher
        return None if teacher is None or "logits" not in self.alignment.provides else teacher.exact

    def on_validation_epoch_start(self) -> None:
        """Sums over the validation split, of a student that is finite."""
        stop_if_not_finite(self)
        self.sums = torch.zeros(6, dtype=torch.float64)

    def validation_step(self, window: Window, _: int) -> None:
        """Likelihood of the references, and the distance to the teacher where there is one in the same tokens."""
        for batch in window.batches:
            found = validation.sums(moved(batch, self.device), self.student, self.whole_teacher, self.alignment)
            self.sums += 0.0 if isinstance(batch, Idle) else found

    def on_validation_epoch_end(self) -> None:
        """Log the metrics, and pass them to the rollout, which may generate more or less afterwards."""
        sums = self.sum_over_ranks(self.sums).cpu()
        metrics = validation.metrics(sums, compared=self.whole_teacher is not None)
        check_validation(metrics, self.step_count)
        for model in (each for each in self.modules() if isinstance(each, LanguageModel)):
            model.recheck_packing()
        self.rollout.after_validation(metrics)
        for name, pair in sorted(reports_of(self.readers).items()):  # else they would count as training's
            total, times = self.sum_over_ranks(torch.tensor(pair, dtype=torch.float64)).tolist()
            metrics |= {name: total / times} if times else {}
        self.log_all("validation", metrics)

    # ---- state -------------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> tuple[list, list]:
        """One optimizer for the student and the terms' parameters; one more for each term with its own `lr`."""
        apart = {name for name, term in self.objective.items() if name in self.stateful and term.lr is not None}
        main = [p for n, p in self.named_parameters() if not (n.startswith("stateful.") and n.split(".")[1] in apart)]
        build = partial(self.optimization.build, fraction=lambda: self.progress.fraction)
        built = [build(main)]
        built += [build(self.stateful[n].parameters(), self.objective[n].lr) for n in sorted(apart)]
        return [optimizer for optimizer, _ in built], [scheduler for _, scheduler in built]

    def on_fit_start(self) -> None:
        """`from_pretrained` returns eval mode and Lightning keeps it: a student would train without dropout."""
        self.student.train()
        forget_peak_memory()
        for frozen in (self.models.teacher, self.models.reference):
            if frozen is not None and not (self.sharding and self.sharding.offload_teacher):
                frozen.to(self.device)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave the window: each micro-batch is moved when it is read."""
        return batch
