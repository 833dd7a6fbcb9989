"""One off-policy training run of a few steps, by each library, on the same weights and tokens.

A SmolLM2-135M-shaped teacher (30 layers) and an 8-layer student with random weights; batches of 8 conversations of 64
prompt and 64 response tokens (`fixed`) or of log-normal lengths up to that (`variable`).
"""

import math
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
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
LR = 1e-4
Tokens = tuple[list[int], list[int]]  # prompt, response with its end token


def conversations(steps: int, lengths: str, size: Mapping[str, int]) -> list[list[Tokens]]:
    """`steps` batches of random ids, the same for every contender."""
    draw = random.Random(0)

    def length(most: int) -> int:
        return most if lengths == "fixed" else max(4, min(most, round(draw.lognormvariate(math.log(most / 2.4), 0.5))))

    def ids(n: int) -> list[int]:
        return [draw.randrange(3, size["vocab_size"]) for _ in range(n)]

    pair = lambda: (ids(length(PROMPT)), [*ids(length(RESPONSE) - 1), 2])  # noqa: E731
    return [[pair() for _ in range(BATCH)] for _ in range(steps)]


def network(layers: int, size: Mapping[str, int], seed: int, dtype: torch.dtype = torch.float32) -> Any:
    """Random weights, the same for the same seed; logits that differ by a nat or so."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(**{**LLAMA, **size, "num_hidden_layers": layers, "initializer_range": 0.05})
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
    """Clocks and losses, one per optimizer step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.clock = machine.Clock()

    def begin(self) -> None:
        """A step starts."""
        self.clock.__enter__()

    def end(self) -> None:
        """And ends."""
        self.clock.__exit__()
        self.rows.append(self.clock.row())


# ---- ours ------------------------------------------------------------------------------------------------------------


def ours(case: Mapping[str, Any]) -> dict[str, Any]:
    """`Distillation` under Lightning's Trainer with the settings of conf/trainer, as run.py has it."""
    import lightning

    from kd.kernels.allocation import keep_freed_memory
    from kd.rollouts.offline import Offline

    keep_freed_memory()
    module = distillation(case, Offline(), words(case["size"]["vocab_size"]), max_tokens=2048)
    records = _records(conversations(case["steps"], case["lengths"], case["size"]))
    steps, losses = Steps(), []

    class Watch(lightning.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            steps.begin()

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            steps.end()
            losses.append(float(trainer.callback_metrics["train/loss"]))

    fit(module, records, case, Watch())
    return {"times": steps.rows, "losses": losses}


def fit(module: Any, records: list, case: Mapping[str, Any], callback: Any) -> None:
    """All steps, with nothing logged to files and nothing saved."""
    import lightning
    from omegaconf import OmegaConf

    import kd.training.trainer  # noqa: F401  quiets Lightning as run.py does
    from benchmarks.losses import CONF
    from kd.data.windows import Data

    name = "cpu_bf16" if case["precision"] == "bf16" else "cpu"
    trainer = lightning.Trainer(
        **OmegaConf.to_container(OmegaConf.load(CONF / "trainer" / f"{name}.yaml")),
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
    """The module, with `case["window"]` records a step (8 unless told otherwise)."""
    from benchmarks.losses import objective
    from kd.alignment.same import Same
    from kd.data.sequences import Encoder
    from kd.experiment.build import reads_packed
    from kd.models.language_model import LanguageModel
    from kd.teachers.white_box import WhiteBox
    from kd.training.module import Distillation
    from kd.training.optimization import Optimization
    from kd.training.terms import Term

    student = LanguageModel(network(case["layers"][1], case["size"], seed=1), tokenizer)
    dtype = torch.bfloat16 if case["precision"] == "bf16" else torch.float32
    teacher = WhiteBox(LanguageModel(network(case["layers"][0], case["size"], seed=2, dtype=dtype), tokenizer))
    window = case.get("window", BATCH)
    optimization = Optimization(
        steps=case["steps"], window=window, lr=LR, schedule="constant", warmup=0.0, beta2=0.999, clip=clip
    )
    module = Distillation(
        student,
        teacher,
        {case["objective"]: Term(objective(case["objective"]))},
        rollout,
        Same(),
        Encoder(tokenizer, tokenizer, max_length=512, max_tokens=max_tokens),
        optimization,
        seed=0,
        log_every=1,
    )
    if reads_packed(module):
        module.encoder.max_padding = 1.0  # as run.py has it
    return module


def _records(batches: Sequence[Sequence[Tokens]]) -> list:
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

    bf16 = case["precision"] == "bf16"
    better: dict[str, Any] = {"gradient_checkpointing": False, "optim": "adamw_torch_fused", "bf16": bf16}
    settings = GKDConfig(
        output_dir=tempfile.mkdtemp(),
        lmbda=0.0,
        beta={"fkl": 0.0, "rkl": 1.0, "jsd": 0.5}[case["objective"]],
        max_steps=case["steps"],
        per_device_train_batch_size=BATCH,
        learning_rate=LR,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        dataloader_num_workers=0,
        **(better if tuned else {"bf16": bf16}),
    )
    steps, losses = Steps(), []

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            steps.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps.end()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

    trainer = GKDTrainer(
        model=network(case["layers"][1], case["size"], seed=1),
        teacher_model=network(case["layers"][0], case["size"], 2, torch.bfloat16 if bf16 and tuned else torch.float32),
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
    from kd.seeding import permutation

    pairs = [pair for batch in conversations(case["steps"], case["lengths"], case["size"]) for pair in batch]
    return dataset.from_list(
        [{"prompt_ids": pairs[i][0], "response_ids": pairs[i][1]} for i in permutation(len(pairs), 0, "order", 0)]
    )


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


CONTENDERS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "ours": ours,
    "trl": trl,
    "trl_default": trl_default,
}


def least_gflop(case: Mapping[str, Any]) -> float:
    """Of one average step: no padding, no head on positions without loss, nothing computed twice."""
    size = {**LLAMA, **case["size"]}
    width, inner, ids = size["hidden_size"], size["intermediate_size"], size["vocab_size"]
    head_width = width // size["num_attention_heads"]
    layer = width * (2 * width + 2 * head_width * size["num_key_value_heads"] + 3 * inner)
    teacher, student = (layer * layers for layers in case["layers"])
    pairs = [pair for batch in conversations(case["steps"], case["lengths"], case["size"]) for pair in batch]
    lengths = [len(prompt) + len(response) - 1 for prompt, response in pairs]
    tokens, rows = sum(lengths), sum(len(response) for _, response in pairs)
    attention = 2 * width * sum(n * n for n in lengths)  # causal: half of 4 n^2 d
    flop = (6 * student + 2 * teacher) * tokens + 8 * width * ids * rows
    flop += attention * (3 * case["layers"][1] + case["layers"][0])
    return flop / case["steps"] / 1e9
