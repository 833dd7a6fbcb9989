"""Attention probabilities, queries, keys and values, embeddings and head, of several architectures."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaForCausalLM

from kd.data.sequences import Encoded, collate
from kd.models.language_model import LanguageModel
from kd.seeding import seeded
from kd.teachers.white_box import WhiteBox
from kd.types import Sequences
from tests.tiny import FAMILIES, tiny

BOTH = frozenset({"attentions", "qkv"})
CLOSE = {"atol": 2e-6, "rtol": 0.0}  # eager attention has its softmax in float32


def rows(*lengths: int) -> list[Encoded]:
    generator = torch.Generator().manual_seed(0)
    return [Encoded(tuple(torch.randint(0, 256, (n,), generator=generator).tolist()), 2) for n in lengths]


def some(side: str = "right", multiple: int = 1) -> Sequences:
    return collate(rows(9, 14, 5), 0, side, multiple)


def by_hand(q: Tensor, k: Tensor, sequences: Sequences) -> Tensor:
    """softmax(q k' / sqrt(d)) over what is not later and no padding."""
    width = sequences.tokens.shape[1]
    seen = torch.ones(width, width).tril().bool() & sequences.real[:, None, None]
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5
    return scores.masked_fill(~seen, -torch.inf).softmax(-1)


def at_tokens(x: Tensor, sequences: Sequences) -> Tensor:
    """The rows `[B h T ...]` has at tokens; those of padding mean nothing."""
    return x.transpose(1, 2)[sequences.real]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_attentions_are_the_networks_own(family):
    model, sequences = tiny(family=family), some()
    ours = model(sequences, frozenset({"attentions"})).attentions
    plain = tiny(family=family).network
    plain.set_attn_implementation("eager")
    theirs = plain(sequences.tokens, output_attentions=True).attentions
    assert len(ours) == len(theirs) == 2
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=0.0)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "granite", "cohere", "gpt2"])
def test_queries_and_keys_give_the_attentions(family, side):
    sequences = some(side)
    output = tiny(family=family)(sequences, BOTH)
    for (q, k, _), attention in zip(output.qkv, output.attentions, strict=True):
        mine = at_tokens(by_hand(q, k, sequences), sequences)
        torch.testing.assert_close(mine, at_tokens(attention, sequences), **CLOSE)


def test_values_are_the_projections_repeated_for_shared_heads():
    model, sequences = tiny(family="llama"), some()  # 4 query heads, 2 of keys and values
    output = model(sequences, frozenset({"qkv", "hidden"}))
    block = model.network.model.layers[1]
    values = block.self_attn.v_proj(block.input_layernorm(output.hidden[1])).unflatten(-1, (2, 8))
    for head in range(4):
        torch.testing.assert_close(output.qkv[1][2][:, head], values[:, :, head // 2], atol=1e-12, rtol=0.0)


def test_queries_are_taken_after_rotary_positions():
    model, sequences = tiny(), some()
    block = model.network.model.layers[0]
    output = model(sequences, frozenset({"qkv", "hidden"}))
    bare = block.self_attn.q_proj(block.input_layernorm(output.hidden[0])).unflatten(-1, (4, 8)).transpose(1, 2)
    q = output.qkv[0][0]
    torch.testing.assert_close(q[:, :, 0], bare[:, :, 0], atol=1e-12, rtol=0.0)  # position 0 is not turned
    torch.testing.assert_close(q.norm(dim=-1), bare.norm(dim=-1), atol=1e-6, rtol=0.0)
    assert (q[:, :, 1] - bare[:, :, 1]).abs().max() > 0.1


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_asking_changes_nothing_else(family):
    model, sequences = tiny(family=family), some()
    before = model.network.config._attn_implementation
    alone = model(sequences, frozenset({"hidden"})).hidden
    for wanted, tolerance in (({"qkv"}, 1e-12), ({"attentions"}, 1e-5), (BOTH, 1e-5)):
        hidden = model(sequences, frozenset({"hidden", *wanted})).hidden
        for mine, other in zip(hidden, alone, strict=True):
            torch.testing.assert_close(mine[sequences.real], other[sequences.real], atol=tolerance, rtol=tolerance)
        assert model.network.config._attn_implementation == before


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("collated", [("left", 1), ("left", 32), ("right", 32)])
def test_padding_changes_nothing(family, collated):
    model = tiny(family=family)
    lean, padded = some(), some(*collated)
    expected, found = model(lean, BOTH), model(padded, BOTH)
    for b in range(3):
        here, there = lean.real[b].nonzero()[:, 0], padded.real[b].nonzero()[:, 0]
        for mine, other in zip(found.attentions, expected.attentions, strict=True):
            torch.testing.assert_close(mine[b][:, there][:, :, there], other[b][:, here][:, :, here], **CLOSE)
            seen_of_padding = mine[b][:, there][:, :, ~padded.real[b]]
            assert (seen_of_padding == 0).all()
        for mine, other in zip(found.qkv, expected.qkv, strict=True):
            for x, y in zip(mine, other, strict=True):
                torch.testing.assert_close(x[b][:, there], y[b][:, here], atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_projections_of_queries_keys_and_values():
    model, sequences = tiny(), some()
    output = model(sequences, BOTH)
    q, k, v = output.qkv[1]
    (at_tokens(by_hand(q, k, sequences), sequences).square().sum() + v.square().sum()).backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    again = model(sequences, BOTH)
    seen = at_tokens(again.attentions[1], sequences)
    (seen.square().sum() + again.qkv[1][2].square().sum()).backward()
    for part in ("q_proj", "k_proj", "v_proj"):
        name = f"network.model.layers.1.self_attn.{part}.weight"
        assert ours[name].abs().max() > 1e-3
        torch.testing.assert_close(ours[name], model.get_parameter(name).grad, atol=1e-4, rtol=1e-4)


def test_a_lora_student_shows_its_adapters():
    model, sequences = tiny(), some()
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    with seeded(0, "lora"):
        network = get_peft_model(model.network, config).get_base_model()
    student = LanguageModel(network, model.tokenizer).double()
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    plain, adapted = tiny()(sequences, BOTH), student(sequences, BOTH)
    q, k, v = adapted.qkv[0]
    assert (q - plain.qkv[0][0]).abs().max() > 0.1
    torch.testing.assert_close(k, plain.qkv[0][1], atol=1e-6, rtol=0.0)
    mine = at_tokens(by_hand(q, k, sequences), sequences)
    torch.testing.assert_close(mine, at_tokens(adapted.attentions[0], sequences), **CLOSE)
    v.sum().backward()
    trained = {name for name, p in student.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert {n.rpartition("layers.0.")[2] for n in trained if "lora" in n} == {
        "self_attn.v_proj.lora_A.default.weight",
        "self_attn.v_proj.lora_B.default.weight",
    }


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("autocast", [True, False])
def test_in_bf16(autocast, side):
    model, sequences = tiny(dtype="float32"), some(side)
    exact = model(sequences, BOTH)
    if not autocast:
        model = model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(sequences, BOTH)
    for mine, other in zip(output.attentions, exact.attentions, strict=True):
        assert (at_tokens(mine, sequences) - at_tokens(other, sequences)).abs().max() < 0.2
        torch.testing.assert_close(at_tokens(mine, sequences).float().sum(-1), torch.ones(25, 4), atol=0.02, rtol=0.0)


def test_embeddings_and_head_are_the_matrices():
    model, sequences = tiny(vocab_size=320), some()
    output = model(sequences, frozenset({"embeddings", "head"}))
    assert output.embeddings.shape == output.head.weight.shape == (261, 32)
    rows = output.embeddings[sequences.tokens]
    torch.testing.assert_close(rows, model.network.get_input_embeddings()(sequences.tokens), atol=0.0, rtol=0.0)
    assert torch.equal(output.head.weight, model.network.lm_head.weight[:261])
    output.embeddings.sum().backward()
    assert (model.network.model.embed_tokens.weight.grad[:261] == 1).all()


def test_a_teacher_shows_the_same_and_learns_nothing():
    model, sequences = tiny(attention_dropout=0.5), some()
    expected = model(sequences, BOTH)
    output = WhiteBox(model).train()(sequences, BOTH)
    assert torch.equal(output.attentions[0], expected.attentions[0])
    assert not output.qkv[0][0].requires_grad


def test_shape_is_what_projections_are_sized_by():
    for changes in (*({"family": family} for family in FAMILIES), {"family": "qwen3", "head_dim": 16}):
        model = tiny(**changes)
        output = model(some(), frozenset({"hidden", "qkv"}))
        hidden, heads = output.hidden, {x.shape[1::2] for x in output.qkv[-1]}
        assert model.shape[:2] == (hidden[0].shape[-1], len(hidden) - 1)
        assert {model.shape[2:]} == heads
        assert WhiteBox(model).shape == model.shape


def test_heads_that_differ_in_width_are_left_open():
    model = tiny()
    model.network.config.v_head_dim = 4  # as DeepSeek's, whose head_dim is that of rotary positions alone
    assert model.shape == (32, 2, 4, None)


class Closed(LlamaForCausalLM):
    """An architecture whose attention cannot be exchanged."""

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return False


def test_an_architecture_that_keeps_its_queries_is_refused():
    model = tiny()
    closed = LanguageModel(Closed(model.network.config), model.tokenizer)
    with pytest.raises(ValueError, match="Closed gives no access to its queries, keys and values"):
        closed(some(), frozenset({"qkv"}))
    with pytest.raises(ValueError, match="Closed has 2 layers but shows attentions of"):
        closed(some(), frozenset({"attentions"}))


def test_real_marks_where_tokens_are():
    right, left = some("right", 4), some("left", 4)
    assert right.real.sum(1).tolist() == left.real.sum(1).tolist() == [8, 13, 4]
    assert right.real[0].tolist() == [True] * 8 + [False] * 8
    assert left.real[0].tolist() == [False] * 8 + [True] * 8
    assert (replace(right, mask=right.real).mask | ~right.mask).all()  # every loss row is a token
