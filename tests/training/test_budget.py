from dataclasses import replace
from mmap import mmap

import pytest
import torch
from peft import LoraConfig
from torch.nn.functional import cross_entropy, linear
from torch.utils.flop_counter import FlopCounterMode

from kd.data.sequences import collate, encode
from kd.data.windows import Windows
from kd.generators.generation import generate, write
from kd.generators.sampling import Sampled
from kd.models.flops import decoding_flops, scoring_flops, training_flops
from kd.models.networks import _with_lora, scratch
from kd.seeding import seeded
from kd.training.budget import forget_peak_memory, peak_memory_bytes
from kd.types import Sequences
from tests import runs
from tests.tiny import tiny

# one layer: width 16, two heads of 8, one of keys and values, feed-forward 32, 261 ids
D, KV, F, V = 16, 8, 32, 261
ONE_LAYER = {
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def sequences(model, *pairs):
    rows = [encode(({"role": "user", "content": q},), a, model.tokenizer, 512) for q, a in pairs]
    return collate(rows, 0)


@pytest.mark.parametrize("tied", [True, False])
def test_flops_by_hand(tied):
    """6 per weight and token, 3 x 4 x T^2/2 x width for attention, 6 per head weight and row; lookups are free."""
    model = tiny(**ONE_LAYER, tie_word_embeddings=tied)
    both = sequences(model, ("how many?", "12"), ("x", "longer answer"))
    # <user> question <end> <assistant> answer <end>, less the last, which is never read
    lengths = [1 + 9 + 2 + 2, 1 + 1 + 2 + 13]
    rows = 2 + 1 + 13 + 1
    assert both.lengths.tolist() == lengths
    linears = D * D + 2 * D * KV + D * D + 3 * D * F
    gains = 3 * D
    expected = 6 * (linears + gains) * sum(lengths) + 6 * V * D * rows
    expected += sum(3 * 4 * length**2 * D // 2 for length in lengths)
    assert training_flops(model, both) == expected


def counted(model, one) -> dict[str, int]:
    """Multiplications and additions that torch does in one forward and backward pass, by operation."""
    network = model.network
    network.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        hidden = network.model(input_ids=one.tokens, use_cache=False).last_hidden_state[one.mask]
        logits = linear(hidden, network.get_output_embeddings().weight)
        cross_entropy(logits, one.labels[one.mask]).backward()
    counts = {str(name): flops for name, flops in counter.get_flop_counts()["Global"].items()}
    attention = sum(flops for name, flops in counts.items() if "bmm" in name)
    return {"attention": attention, "matrices": sum(counts.values()) - attention}


@pytest.mark.parametrize("lora", [False, True])
def test_flops_agree_with_those_that_torch_does(lora):
    """Within a few percent: gains count here and not there, and torch does the half of attention that is masked.

    A frozen weight needs two thirds: forward, and backward to its input, but no gradient of its own.
    """
    model = tiny(**{**ONE_LAYER, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 4})
    if lora:
        _with_lora(model.network, LoraConfig(task_type="CAUSAL_LM", r=1, target_modules="all-linear"))
    one = sequences(model, ("a question of some length, as they are", "an answer"))
    torch_does = counted(model, one)
    length = int(one.lengths)
    attention = 3 * 4 * 4 * length**2 * 64 // 2  # 3 passes, 4 FLOP, 4 layers
    assert torch_does["attention"] == 2 * attention
    assert training_flops(model, one) - attention == pytest.approx(torch_does["matrices"], rel=0.06 if lora else 0.02)


MIXTURES = {  # of 4 experts of width 32 each, of which a token meets 2; and what stands beside them in a layer
    "mixtral": ({"intermediate_size": F, "num_local_experts": 4, "num_experts_per_tok": 2}, 4 * D),  # the router
    "qwen2_moe": (
        {
            **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": F, "decoder_sparse_step": 1},
            **{"shared_expert_intermediate_size": 24, "mlp_only_layers": [], "qkv_bias": False},
        },
        4 * D + 3 * D * 24 + D,  # the router, the shared expert and its gate
    ),
}


@pytest.mark.parametrize("family", MIXTURES)
def test_flops_of_a_mixture_are_of_the_experts_that_a_token_meets(family):
    """By hand; and those that torch does, expert by expert, but for gains and for the half of attention that is masked.

    Generating counts the same: twice the weights that a token meets.
    """
    changes, beside = MIXTURES[family]
    with seeded(0, family):
        model = scratch(architecture={"model_type": family, **ONE_LAYER, **changes, "tie_word_embeddings": False})
    one = sequences(model, ("how many?", "12"))
    length, rows = int(one.lengths), int(one.mask.sum())
    linears = 2 * D * D + 2 * D * KV + 2 * 3 * D * F + beside
    expected = 6 * (linears + 3 * D) * length + 6 * V * D * rows + 3 * 4 * length**2 * D // 2
    assert training_flops(model, one) == expected
    model.network.set_experts_implementation("eager")
    assert counted(model, one)["matrices"] == 6 * linears * length + 6 * V * D * rows
    read = 5 + 3 - 1
    written = 2 * (linears + 3 * D) * read + 2 * V * D * 3 + 4 * read**2 * D // 2
    assert decoding_flops(model, [5], [3]) == written


def test_adapters_of_experts_count_as_their_experts_do():
    """Frozen: 4 per weight that a token meets; of rank 2, each of the 2 has 2 (D + 2F) + 2 (F + D) trained weights."""
    changes, _ = MIXTURES["mixtral"]
    with seeded(0, "mixtral"):
        model = scratch(architecture={"model_type": "mixtral", **ONE_LAYER, **changes, "tie_word_embeddings": False})
    one = sequences(model, ("how many?", "12"))
    model.network.requires_grad_(False)
    frozen = training_flops(model, one)
    names = ["experts.gate_up_proj", "experts.down_proj"]
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=[], target_parameters=names)
    _with_lora(model.network, lora)
    adapters = 2 * (2 * (D + 2 * F) + 2 * (F + D))
    assert training_flops(model, one) - frozen == 6 * adapters * int(one.lengths)


FOUR_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4}
BESIDE_LLAMA = {  # how wide all heads together are in the layers that attend, keys and values summed
    "mamba": ({"num_hidden_layers": 2, "state_size": 8}, 0),
    "mamba2": ({"num_hidden_layers": 2, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1}, 0),
    "lfm2": ({"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"], **FOUR_HEADS}, 2 * 32),
    "deepseek_v3": (
        {
            **{"num_hidden_layers": 1, **FOUR_HEADS, "first_k_dense_replace": 1},
            **{"kv_lora_rank": 8, "q_lora_rank": None, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 16},
        },
        4 * (4 + 8 + 16),
    ),
}


@pytest.mark.parametrize("family", BESIDE_LLAMA)
def test_attention_is_counted_where_there_is_some(family):
    """Twice the tokens in one sequence are twice the matrices, and four times the attention: the difference is it."""
    changes, width = BESIDE_LLAMA[family]
    with seeded(0, family):
        model = scratch(architecture={"model_type": family, "hidden_size": 32, "intermediate_size": 64, **changes})
    one = sequences(model, ("how many?", "12"))
    longer = {name: getattr(one, name).repeat(1, 2) for name in ("tokens", "labels", "mask")}
    twice = replace(one, lengths=2 * one.lengths, **longer)
    square = int(one.lengths[0]) ** 2
    assert training_flops(model, twice) - 2 * training_flops(model, one) == 3 * 2 * width * (4 - 2) * square // 2


def test_flops_of_writing_agree_with_those_that_torch_does():
    """Each token is read once, but for the last; the head meets what is written."""
    model = tiny(**{**ONE_LAYER, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2})
    model.network.set_attn_implementation("eager")
    model.network.model.register_forward_hook(lambda *_: None)  # the library's own forward, which leaves nothing out
    with FlopCounterMode(display=False) as counter:
        (response,) = generate(model, [[3, 5, 7, 9, 11]], max_new_tokens=6)
    counts = {str(name): flops for name, flops in counter.get_flop_counts()["Global"].items()}
    matrices = sum(flops for name, flops in counts.items() if "bmm" not in name)
    read = 5 + len(response) - 1
    attention = 4 * 2 * 64 * read**2 // 2
    assert decoding_flops(model, [5], [len(response)]) - attention == pytest.approx(matrices, rel=0.02)
    assert decoding_flops(model, [5, 5], [len(response)] * 2) == 2 * decoding_flops(model, [5], [len(response)])


def test_flops_of_samples_count_their_prompt_once():
    """Three times 7 - 1 tokens after 5 that are read once, and the head met 1 + 3 * 6 times."""
    model = tiny(**{**ONE_LAYER, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2})
    model.network.set_attn_implementation("eager")
    model.network.model.register_forward_hook(lambda *_: None)
    with FlopCounterMode(display=False) as counter:
        write([model], [[3, 5, 7, 9, 11]], samples=3, max_new_tokens=7, choose=Sampled(0.0), batch_size=3)
    counts = {str(name): flops for name, flops in counter.get_flop_counts()["Global"].items()}
    matrices = sum(flops for name, flops in counts.items() if "bmm" not in name)
    attention = 4 * 2 * 64 * (5**2 + 3 * (11**2 - 5**2)) // 2
    assert decoding_flops(model, [5], [7] * 3, samples=3) - attention == pytest.approx(matrices, rel=0.02)


def test_flops_of_a_score_by_hand():
    """2 per weight and token, 4 x T^2/2 x width for attention, 2 D for a score; three times that with the gradients.

    The language model's head is met by no row, whether it is there or not.
    """
    lengths = [14, 17]
    weights = D * D + 2 * D * KV + D * D + 3 * D * F + 3 * D
    expected = 2 * weights * sum(lengths) + sum(4 * length**2 * D // 2 for length in lengths) + 2 * D * len(lengths)
    for tied in (True, False):
        model, head = tiny(**ONE_LAYER, tie_word_embeddings=tied), torch.nn.Linear(D, 1, bias=False)
        for _ in range(2):
            assert scoring_flops(model, head, torch.tensor(lengths)) == expected
            assert scoring_flops(model, head, torch.tensor(lengths), learning=True) == 3 * expected
            model.network.set_output_embeddings(torch.nn.Identity())


def test_peak_memory_is_of_what_came_after():
    size = 120_000_000
    with touched(2 * size):
        pass
    forget_peak_memory()
    before = peak_memory_bytes()
    with touched(size):
        assert before + 0.9 * size < peak_memory_bytes() < before + 1.5 * size


def touched(size: int) -> mmap:
    """Resident memory that goes back when it is closed, where an allocator may keep what was freed."""
    block = mmap(-1, size)
    for page in range(0, size, 4096):
        block[page] = 1
    return block


def seen(parts) -> list:
    """Records of all steps, in order."""
    data = parts.data
    windows = Windows(data.train, data.encoder, size=data.window, seed=data.seed, steps=data.steps)
    return [windows.records[i] for step in range(data.steps) for i in windows.indices(step)]


def tokens_and_rows(parts) -> tuple[int, int]:
    """Counted again from the texts: template and question and answer; answer and end token."""
    read = rows = 0
    for record in seen(parts):
        question, answer = record.prompt[0]["content"].encode(), record.responses[0].text.encode()
        read += len(question) + len(answer) + 3  # <user>, <end>, <assistant>
        rows += len(answer) + 1  # <end>
    return read, rows


@pytest.mark.parametrize("objective", ["fkl", "sft"])
def test_tokens_are_counted(tmp_path, objective):
    parts = runs.train(runs.config(f"objective={objective}"), tmp_path)
    tokens, rows = tokens_and_rows(parts)
    spent = parts.module.budget
    assert (spent.tokens, spent.rows) == (tokens, rows)
    assert spent.teacher_tokens == (tokens if objective == "fkl" else 0)
    assert spent.generated_tokens == 0
    assert 0 <= spent.padded < 0.2 * tokens
    assert spent.seconds > 0
    flops = sum(
        training_flops(parts.module.student, collate(parts.encoder.encode(record), 0)) for record in seen(parts)
    )
    assert spent.student_flops == flops


def test_what_the_student_writes_is_counted(tmp_path):
    """Every token that it writes is learnt from, its end token too."""
    cfg = runs.config("rollout=on_policy", "rollout.max_new_tokens=7", "rollout.samples=2", "optim.steps=3")
    parts = runs.train(cfg, tmp_path)
    spent = parts.module.budget
    prompts = sum(len(record.prompt[0]["content"]) + 3 for record in seen(parts))
    written = spent.generated_tokens
    assert 3 * 5 * 2 < written <= 3 * 5 * 2 * 7
    assert spent.rows == written
    assert spent.tokens == 2 * prompts + written - 2 * len(seen(parts))  # the last of each is not read
    assert spent.teacher_tokens == spent.tokens


def test_writing_adds_to_the_flops(tmp_path):
    """A student that writes what it learns on pays for both."""
    cfg = runs.config("rollout=on_policy", "rollout.max_new_tokens=7", "optim.steps=1", "optim.window=1")
    parts = runs.train(cfg, tmp_path)
    (record,) = seen(parts)
    prompt, written = len(record.prompt[0]["content"]) + 3, parts.module.budget.generated_tokens
    student = parts.module.student
    mask = torch.zeros(1, prompt + written - 1, dtype=torch.bool)
    mask[:, -written:] = True
    tokens = torch.zeros_like(mask, dtype=torch.long)
    learnt = Sequences(tokens, tokens, mask, torch.tensor([prompt + written - 1]))
    expected = training_flops(student, learnt) + decoding_flops(student, [prompt], [written])
    assert parts.module.budget.student_flops == expected


def test_what_a_frozen_student_reads_is_counted(tmp_path):
    """dpo reads with the student as it was before the first step, simpo does not: a third of forward and backward."""
    spent = {}
    for name in ("dpo", "simpo"):
        words = [f"objective={name}", "rollout=paired", "rollout.max_new_tokens=5", "optim.steps=1"]
        module = runs.train(runs.config(*words), tmp_path / name).module
        spent[name] = module.budget.student_flops, module.meter.spent.decoding_flops
    (dpo, writing), (simpo, same) = spent.values()
    assert writing == same > 0
    assert 3 * (dpo - simpo) == simpo - writing


def test_tokens_per_second_is_tokens_by_seconds(tmp_path):
    parts = runs.train(runs.config(), tmp_path)
    last = [row for row in (tmp_path / "metrics.csv").read_text().splitlines() if "tokens_per_second" in row][-1]
    spent = parts.module.budget
    assert float(last.rpartition(",")[2]) == pytest.approx(spent.tokens / spent.seconds, rel=0.01)
