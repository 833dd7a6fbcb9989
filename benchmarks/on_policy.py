"""One on-policy training run of a few steps, by each library, on the same weights and prompts.

The models of `benchmarks.training`; the student writes 64 tokens to each prompt of 64, then reverse KL to the teacher
on what it wrote, backward, clip, AdamW. The end token's id lies beyond the head: no model can generate it, so that all
responses have 64 tokens. A step covers `window` prompts, in micro-batches of 8.
"""

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.training import BATCH, LLAMA, LR, PROMPT, Steps, distillation, fit, least_gflop, network, words
from kd.rollouts import Rollout

NEW = 64
Contender = Callable[[Mapping[str, Any], "Watched"], None]


class Watched(Steps):
    """What each step wrote, and where `look` is called before the optimizer, its loss and gradients (unclipped)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[int] = []
        self.losses: list[float] = []
        self.gradients: dict[str, torch.Tensor] = {}
        self.written = 0  # since the step began

    def begin(self) -> None:
        """A step starts."""
        self.written = 0
        super().begin()

    def end(self) -> None:
        """And ends."""
        super().end()
        self.tokens.append(self.written)

    def look(self, student: Any) -> None:
        """At the student's gradients."""
        self.gradients = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}


def prompts(case: Mapping[str, Any]) -> list[list[int]]:
    """Random ids for all steps, the same for every contender."""
    draw = random.Random(0)
    count = case["steps"] * case["window"]
    return [[draw.randrange(3, case["size"]["vocab_size"]) for _ in range(PROMPT)] for _ in range(count)]


def told(prompt: Sequence[int], vocabulary: int) -> list[int]:
    """The response of the parity gate, of all contenders alike: it follows from the prompt, whatever the weights."""
    return [3 + (7 * prompt[i % len(prompt)] + i) % (vocabulary - 3) for i in range(NEW)]


def _tokenizer(case: Mapping[str, Any]) -> Any:
    vocabulary = case["size"]["vocab_size"]
    return words(vocabulary, end=vocabulary)


def _text(ids: Sequence[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


# ---- ours ------------------------------------------------------------------------------------------------------------


def ours(case: Mapping[str, Any], watched: Watched) -> None:
    """`Distillation` with the rollout `OnPolicy`, under Lightning's Trainer as run.py has it."""
    import lightning

    from kd.kernels.allocation import keep_freed_memory
    from kd.rollouts.on_policy import OnPolicy
    from kd.types import Record, Response

    keep_freed_memory()
    gate = case["gate"]
    rollout = _Told(case) if gate else OnPolicy(max_new_tokens=NEW, batch_size=case["window"])
    module = distillation(
        case, rollout, _tokenizer(case), max_tokens=BATCH * (PROMPT + NEW), clip=None if gate else 1.0
    )

    class Watch(lightning.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            self.before = module.budget.generated_tokens
            watched.begin()

        def on_before_optimizer_step(self, *_: Any) -> None:
            if gate:
                watched.look(module.student.network)

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            watched.written = module.budget.generated_tokens - self.before
            watched.end()
            watched.losses.append(float(trainer.callback_metrics["train/loss"]))

    records = [
        Record(str(i), "words", ({"role": "user", "content": _text(ids)},), (Response("w3"),))
        for i, ids in enumerate(prompts(case))
    ]
    fit(module, records, case, Watch())


class _Told(Rollout):
    """A rollout of given responses (`told`). Their source is the teacher, for nothing counts what is not generated."""

    provides = frozenset({"group_size", "written_by"})
    requires = frozenset[str]()

    def __init__(self, case: Mapping[str, Any]):
        self.vocabulary = case["size"]["vocab_size"]

    def __call__(self, window: list, models: Any, progress: Any, encoder: Any) -> list:
        from kd.data.chat_template import encode_prompt
        from kd.rollouts.wrapping import records_of
        from kd.types import Written

        records = records_of(window)
        asked = [encode_prompt(record.prompt, encoder.student) for record in records]
        answers = [[Written(tuple(told(ids, self.vocabulary)), "teacher", truncated=True)] for ids in asked]
        return encoder.written(records, answers)


# ---- TRL -------------------------------------------------------------------------------------------------------------


def distillation_trainer(case: Mapping[str, Any], watched: Watched, tuned: bool = True) -> None:
    """`DistillationTrainer`: writes a whole step's responses together, divergence in chunks."""
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    settings = DistillationConfig(beta=1.0, max_completion_length=NEW, **_settings(case, tuned))
    student, teacher = _networks(case, watched, tuned)
    DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": _text(ids)} for ids in prompts(case)]),
        processing_class=_tokenizer(case),
        callbacks=[_watch(watched, case)],
    ).train()


def gkd(case: Mapping[str, Any], watched: Watched, tuned: bool = True) -> None:
    """`GKDTrainer` with lmbda=1 and beta=1: writes each micro-batch by itself, all logits of both models."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    settings = GKDConfig(lmbda=1.0, beta=1.0, temperature=1.0, max_new_tokens=NEW, **_settings(case, tuned))
    student, teacher = _networks(case, watched, tuned)
    GKDTrainer(
        model=student,
        teacher_model=teacher,
        args=settings,
        train_dataset=Dataset.from_list([{"ids": ids} for ids in prompts(case)]),
        data_collator=_collate,
        processing_class=_tokenizer(case),
        callbacks=[_watch(watched, case)],
    ).train()


def _settings(case: Mapping[str, Any], tuned: bool) -> dict[str, Any]:
    """tuned: no gradient checkpointing (without it both write with a cache), fused AdamW, no logging."""
    logging: dict[str, Any] = {"logging_steps": 1} if case["gate"] else {"logging_strategy": "no"} if tuned else {}
    return {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": case["steps"],
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": case["window"] // BATCH,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 0.0 if case["gate"] else 1.0,
        "bf16": case["precision"] == "bf16",
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        **({"gradient_checkpointing": False, "optim": "adamw_torch_fused"} if tuned else {}),
        **logging,
    }


def _networks(case: Mapping[str, Any], watched: Watched, tuned: bool) -> tuple[Any, Any]:
    """Student, whose `generate` is watched, and teacher: in the run's precision if tuned, else in float32."""
    from kd.kernels.allocation import keep_freed_memory

    if case["keep"]:
        keep_freed_memory()
    size = {**case["size"], "eos_token_id": case["size"]["vocab_size"]}
    student = network(case["layers"][1], size, seed=1)
    narrow = tuned and case["precision"] == "bf16"
    teacher = network(case["layers"][0], size, 2, torch.bfloat16 if narrow else torch.float32)
    own = partial(_as_told, case["size"]["vocab_size"]) if case["gate"] else student.generate

    def generate(**inputs: Any) -> Any:
        out = own(**inputs)
        rows, length = getattr(out, "sequences", out).shape
        watched.written += rows * (length - inputs["input_ids"].shape[1])
        return out

    student.generate = generate
    return student, teacher


def _as_told(vocabulary: int, *, input_ids: torch.Tensor, return_dict_in_generate: bool = False, **_: Any) -> Any:
    answers = torch.tensor([told(row, vocabulary) for row in input_ids.tolist()])
    sequences = torch.cat([input_ids, answers], 1)
    return SimpleNamespace(sequences=sequences) if return_dict_in_generate else sequences


def _watch(watched: Watched, case: Mapping[str, Any]) -> Any:
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            watched.begin()

        def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
            if case["gate"]:
                watched.look(model)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            watched.end()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            watched.losses.extend([logs["loss"]] if "loss" in logs else [])

    return Watch()


def _collate(rows: Sequence[Mapping[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Prompts, and responses of which only the number of tokens counts: the loss is divided by it."""
    asked = torch.tensor([row["ids"] for row in rows])
    answers = torch.full((len(rows), NEW), 3)
    tokens = torch.cat([asked, answers], 1)
    return {
        "prompts": asked,
        "prompt_attention_mask": torch.ones_like(asked),
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "labels": torch.cat([torch.full_like(asked, -100), answers], 1),
    }


CONTENDERS: dict[str, Contender] = {
    "ours": ours,
    "distillation": distillation_trainer,
    "gkd": gkd,
    "distillation_default": partial(distillation_trainer, tuned=False),
    "gkd_default": partial(gkd, tuned=False),
}


# ---- the truth -------------------------------------------------------------------------------------------------------


def reference(case: Mapping[str, Any], *, exact: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one step on `told` responses: sum_v q (log q - log p), mean over tokens, by autograd.

    exact: in float64; else in the run's own precision, to tell what its rounding alone does.
    """
    size, bf16 = case["size"], case["precision"] == "bf16"
    student = network(case["layers"][1], size, seed=1)
    teacher = network(case["layers"][0], size, 2, torch.bfloat16 if bf16 else torch.float32)
    if exact:
        student, teacher = student.double(), teacher.double()
    total, rows = 0.0, case["window"] * NEW
    for prompt in prompts(case):
        tokens = torch.tensor([[*prompt, *told(prompt, size["vocab_size"])]])
        kept = slice(PROMPT - 1, PROMPT + NEW - 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16 and not exact):
            with torch.no_grad():
                p = teacher(tokens).logits[0, kept]
            q = student(tokens).logits[0, kept]
        p, q = (z.to(torch.promote_types(z.dtype, torch.float32)).log_softmax(-1) for z in (p, q))
        loss = (q.exp() * (q - p)).sum() / rows
        loss.backward()
        total += float(loss)
    return total, {name: parameter.grad for name, parameter in student.named_parameters()}


def deviations(case: Mapping[str, Any], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of each contender's loss and gradients from the truth: relative, and of the worst tensor's norm.

    `plain` is `reference` in the run's precision.
    """
    loss, gradients = reference(case, exact=True)

    def off(value: float, found: Mapping[str, torch.Tensor]) -> dict[str, float]:
        worst = max(float((found[name].double() - g).norm() / g.norm()) for name, g in gradients.items())
        return {"loss": abs(value - loss) / abs(loss), "gradient": worst}

    told_off: dict[str, dict[str, Any]] = {"plain": off(*reference(case, exact=False))}
    for name in names:
        watched = Watched()
        try:
            CONTENDERS[name](case, watched)
        except ImportError as missing:
            told_off[name] = {"failed": str(missing)}
            continue
        told_off[name] = off(watched.losses[0], watched.gradients)
    return told_off


def least_work(case: Mapping[str, Any]) -> float:
    """GFLOP of one micro-batch: the off-policy step's (`least_gflop`), and the student's products while it writes."""
    size = {**LLAMA, **case["size"]}
    width, inner = size["hidden_size"], size["intermediate_size"]
    keys = width // size["num_attention_heads"] * size["num_key_value_heads"]
    layers = case["layers"][1] * width * (2 * width + 2 * keys + 3 * inner)
    writing = 2 * BATCH * (layers * (PROMPT + NEW - 1) + width * size["vocab_size"] * NEW)
    return least_gflop({**case, "lengths": "fixed", "steps": 1}) + writing / 1e9
