"""One off-policy training run of a few steps, by each library, on the same weights and tokens.

A SmolLM2-135M-shaped teacher (30 layers) and an 8-layer student with random weights; batches of 8 conversations of 64
prompt and 64 response tokens (`fixed`) or of log-normal lengths up to that (`variable`).

A case may have, beside layers, size, lengths, precision, objective and steps: `batch`, `prompt` and `response` for
other numbers than these, `device` (cpu), and `recomputes`, with which our student's activations are recomputed.
"""

import math
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks import machine

LLAMA = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "tie_word_embeddings": True,
    "vocab_size": 49152,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BATCH, PROMPT, RESPONSE = 8, 64, 64
USUAL = {"batch": BATCH, "prompt": PROMPT, "response": RESPONSE}
LR = 1e-4
Tokens = tuple[list[int], list[int]]  # prompt, response with its end token


def conversations(case: Mapping[str, Any]) -> list[list[Tokens]]:
    """A batch of random ids for each step, the same for every contender."""
    draw = random.Random(0)
    lengths, size = case["lengths"], case["size"]
    batch, prompt, response = (case.get(name, usual) for name, usual in USUAL.items())

    def length(most: int) -> int:
        return most if lengths == "fixed" else max(4, min(most, round(draw.lognormvariate(math.log(most / 2.4), 0.5))))

    def ids(n: int) -> list[int]:
        return [draw.randrange(3, size["vocab_size"]) for _ in range(n)]

    pair = lambda: (ids(length(prompt)), [*ids(length(response) - 1), 2])  # noqa: E731
    return [[pair() for _ in range(batch)] for _ in range(case["steps"])]


def network(
    layers: int, size: Mapping[str, int], seed: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Any:
    """Random weights, the same for the same seed and device; logits that differ by a nat or so."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(**{**LLAMA, **size, "num_hidden_layers": layers, "initializer_range": 0.05})
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def words(vocabulary: int, end: int = 2) -> Any:
    """A tokenizer whose token i is the word `w<i>`; 0 pads and `end` ends."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = {0: "<pad>", end: "<end>"}  # no beginning of another word: special tokens are cut out of the text first
    ids = {names.get(i, f"w{i}"): i for i in range(max(vocabulary, end + 1))}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>")


class Steps:
    """Clocks, one per optimizer step, which begin and end when the device has nothing left to do."""

    def __init__(self, device: str = "cpu") -> None:
        self.rows: list[dict[str, float]] = []
        self.clock, self.device = machine.Clock(), device

    def begin(self) -> None:
        """A step starts."""
        machine.finish(self.device)
        self.clock.__enter__()

    def end(self) -> None:
        """And ends."""
        machine.finish(self.device)
        self.clock.__exit__()
        self.rows.append(self.clock.row())


# ---- ours ------------------------------------------------------------------------------------------------------------


def ours(case: Mapping[str, Any]) -> dict[str, Any]:
    """`Distillation` under Lightning's Trainer with the settings of conf/trainer, as run.py has it."""
    import lightning

    from kd.kernels.allocation import keep_freed_memory
    from kd.rollouts.offline import Offline

    keep_freed_memory()
    most = max(2048, case.get("batch", BATCH) * (case.get("prompt", PROMPT) + case.get("response", RESPONSE)))
    module = distillation(case, Offline(), words(case["size"]["vocab_size"]), max_tokens=most)
    shown = records(conversations(case))
    steps, losses = Steps(case.get("device", "cpu")), []

    class Watch(lightning.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            steps.begin()

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            steps.end()
            losses.append(float(trainer.callback_metrics["train/loss"]))

    fit(module, shown, case, Watch())
    return {"times": steps.rows, "losses": losses}


def fit(module: Any, records: list, case: Mapping[str, Any], callback: Any) -> None:
    """All steps, with nothing logged to files and nothing saved."""
    import lightning
    from omegaconf import OmegaConf

    import kd.training.trainer  # noqa: F401  quiets Lightning as run.py does
    from benchmarks.losses import CONF
    from kd.data.windows import Data

    name = "gpu" if case.get("device", "cpu") == "cuda" else "cpu"
    settings = OmegaConf.to_container(OmegaConf.load(CONF / "trainer" / f"{name}.yaml"))
    trainer = lightning.Trainer(
        **{**settings, "precision": "bf16-mixed" if case["precision"] == "bf16" else "32-true"},
        max_epochs=1,
        logger=False,
        callbacks=[callback],
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tempfile.mkdtemp(),
    )
    window = module.optimization.window
    trainer.fit(module, datamodule=Data(records, [], module.encoder, window=window, steps=case["steps"], seed=0))


def distillation(
    case: Mapping[str, Any], rollout: Any, tokenizer: Any, *, max_tokens: int, clip: float | None = 1.0
) -> Any:
    """The module, with `case["window"]` records a step, else `case["batch"]`, else 8."""
    from benchmarks.losses import objective
    from kd.alignment.same import Same
    from kd.data.sequences import Encoder
    from kd.experiment.build import reads_packed
    from kd.models.hardware import recomputing
    from kd.models.language_model import LanguageModel
    from kd.teachers.white_box import WhiteBox
    from kd.training.module import Distillation
    from kd.training.optimization import Optimization
    from kd.training.terms import Term

    device = case.get("device", "cpu")
    student = LanguageModel(network(case["layers"][1], case["size"], seed=1, device=device), tokenizer)
    if case.get("recomputes"):
        recomputing(student.network)
    dtype = torch.bfloat16 if case["precision"] == "bf16" else torch.float32
    teacher = WhiteBox(LanguageModel(network(case["layers"][0], case["size"], 2, dtype, device), tokenizer))
    window = case.get("window", case.get("batch", BATCH))
    optimization = Optimization(
        steps=case["steps"], window=window, lr=LR, schedule="constant", warmup=0.0, beta2=0.999, clip=clip
    )
    module = Distillation(
        student,
        teacher,
        {case["objective"]: Term(objective(case["objective"]))},
        rollout,
        Same(),
        Encoder(tokenizer, tokenizer, max_length=max(512, max_tokens), max_tokens=max_tokens),
        optimization,
        seed=0,
        log_every=1,
    )
    if reads_packed(module):
        module.encoder.max_padding = 1.0  # as run.py has it
    return module


def records(batches: Sequence[Sequence[Tokens]]) -> list:
    """Each conversation as a record whose text has these ids."""
    from kd.types import Record, Response

    def text(ids: Sequence[int]) -> str:
        return " ".join(f"w{i}" for i in ids)

    pairs = [pair for batch in batches for pair in batch]
    return [
        Record(str(i), "words", ({"role": "user", "content": text(prompt)},), (Response(text(response[:-1])),))
        for i, (prompt, response) in enumerate(pairs)
    ]


# ---- TRL -------------------------------------------------------------------------------------------------------------


def trl(case: Mapping[str, Any], tuned: bool = True) -> dict[str, Any]:
    """`GKDTrainer` with lmbda=0 (off-policy).

    tuned: no gradient checkpointing, fused AdamW, teacher in bfloat16 beside bf16 autocast. Not tuned: its defaults.
    """
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    bf16, device = case["precision"] == "bf16", case.get("device", "cpu")
    narrow = torch.bfloat16 if bf16 and tuned else torch.float32
    better: dict[str, Any] = {"gradient_checkpointing": False, "optim": "adamw_torch_fused", "bf16": bf16}
    settings = GKDConfig(
        output_dir=tempfile.mkdtemp(),
        lmbda=0.0,
        beta={"fkl": 0.0, "rkl": 1.0, "jsd": 0.5}[case["objective"]],
        max_steps=case["steps"],
        per_device_train_batch_size=case.get("batch", BATCH),
        learning_rate=LR,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        use_cpu=device == "cpu",
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        dataloader_num_workers=0,
        **(better if tuned else {"bf16": bf16}),
    )
    steps, losses = Steps(device), []

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            steps.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps.end()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

    trainer = GKDTrainer(
        model=network(case["layers"][1], case["size"], seed=1, device=device),
        teacher_model=network(case["layers"][0], case["size"], 2, narrow, device),
        args=settings,
        train_dataset=_in_our_order(Dataset, case),
        data_collator=_collate,
        processing_class=words(case["size"]["vocab_size"]),
        callbacks=[Watch()],
    )
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(trainer.train_dataset)
    trainer.train()
    return {"times": steps.rows, "losses": losses}


def _in_our_order(dataset: Any, case: Mapping[str, Any]) -> Any:
    """The records in the order in which our stream shows them."""
    return dataset.from_list(_shown(case))


def _shown(case: Mapping[str, Any]) -> list[dict[str, list[int]]]:
    from kd.seeding import permutation

    pairs = [pair for batch in conversations(case) for pair in batch]
    return [{"prompt_ids": pairs[i][0], "response_ids": pairs[i][1]} for i in permutation(len(pairs), 0, "order", 0)]


def _collate(rows: Sequence[Mapping[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Padded on the right to the longest row."""
    width = max(len(row["prompt_ids"]) + len(row["response_ids"]) for row in rows)
    tokens, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
    seen = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        start, ids = len(row["prompt_ids"]), [*row["prompt_ids"], *row["response_ids"]]
        tokens[i, : len(ids)] = torch.tensor(ids)
        labels[i, start : len(ids)] = torch.tensor(row["response_ids"])
        seen[i, : len(ids)] = 1
    return {"input_ids": tokens, "attention_mask": seen, "labels": labels}


def trl_default(case: Mapping[str, Any]) -> dict[str, Any]:
    """See `trl`."""
    return trl(case, tuned=False)


# ---- a plain loop ----------------------------------------------------------------------------------------------------


def loop(case: Mapping[str, Any], head: str) -> dict[str, Any]:
    """The library's forward passes with padding, a head of `benchmarks.losses` at the responses, clip, fused AdamW."""
    from benchmarks.losses import CONTENDERS as HEADS
    from benchmarks.losses import Problem

    device, bf16 = case.get("device", "cpu"), case["precision"] == "bf16"
    student = network(case["layers"][1], case["size"], seed=1, device=device).train()
    teacher = network(case["layers"][0], case["size"], 2, torch.bfloat16 if bf16 else torch.float32, device).eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=LR, betas=(0.9, 0.999), weight_decay=0.0, fused=True)
    steps, losses, shown, batch = Steps(device), list[float](), _shown(case), case.get("batch", BATCH)
    for start in range(0, len(shown), batch):
        steps.begin()
        rows = {name: x.to(device) for name, x in _collate(shown[start : start + batch]).items()}
        kept = rows.pop("labels")[:, 1:] != -100
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            own = student.model(**rows, use_cache=False).last_hidden_state[:, :-1][kept]
            with torch.no_grad():
                theirs = teacher.model(**rows, use_cache=False).last_hidden_state[:, :-1][kept]
        given = Problem(own, student.lm_head.weight, theirs, teacher.lm_head.weight, case["objective"], bf16)
        loss = HEADS[head](given)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps.end()
        losses.append(float(loss))
    return {"times": steps.rows, "losses": losses}


CONTENDERS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "ours": ours,
    "trl": trl,
    "trl_default": trl_default,
    "plain": partial(loop, head="plain"),
    "liger": partial(loop, head="liger"),
}


def least_gflop(case: Mapping[str, Any]) -> float:
    """Of one average step: no padding, no head on positions without loss, nothing computed twice."""
    size = {**LLAMA, **case["size"]}
    width, inner, ids = size["hidden_size"], size["intermediate_size"], size["vocab_size"]
    head_width = width // size["num_attention_heads"]
    layer = width * (2 * width + 2 * head_width * size["num_key_value_heads"] + 3 * inner)
    teacher, student = (layer * layers for layers in case["layers"])
    pairs = [pair for batch in conversations(case) for pair in batch]
    lengths = [len(prompt) + len(response) - 1 for prompt, response in pairs]
    tokens, rows = sum(lengths), sum(len(response) for _, response in pairs)
    attention = 2 * width * sum(n * n for n in lengths)  # causal: half of 4 n^2 d
    flop = (6 * student + 2 * teacher) * tokens + 8 * width * ids * rows
    flop += attention * (3 * case["layers"][1] + case["layers"][0])
    return flop / case["steps"] / 1e9
