from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from kd.data.sequences import Encoded, collate
from kd.kernels.chunks import CHUNK
from kd.models.language_model import LanguageModel, check_head
from kd.seeding import seeded
from kd.teachers.white_box import WhiteBox
from kd.types import ModelOutput, Sequences
from tests.tiny import FAMILIES, tiny

ALL = frozenset({"logits", "logprobs", "hidden"})  # attention: tests/models/test_attention.py
EXACT = {"atol": 1e-12, "rtol": 0.0}


def rows(*shapes: tuple[int, int]) -> list[Encoded]:
    """(length, prompt) of each."""
    generator = torch.Generator().manual_seed(0)
    return [Encoded(tuple(torch.randint(0, 256, (n,), generator=generator).tolist()), k) for n, k in shapes]


SHAPES = ((9, 3), (14, 6), (5, 4), (14, 1))


def everything(output: ModelOutput) -> Tensor:
    return output.logits.rows(slice(0, output.logits.n))


def plain_logits(model: LanguageModel, sequences: Sequences) -> Tensor:
    """The network's own, at the loss rows, of the tokenizer's ids."""
    return model.network(sequences.tokens).logits[sequences.mask][:, : model.vocabulary]


def plain_logprobs(model: LanguageModel, sequences: Sequences) -> Tensor:
    logprobs = plain_logits(model, sequences).log_softmax(-1)
    return logprobs.gather(1, sequences.labels[sequences.mask][:, None])[:, 0]


def with_noise(model: LanguageModel, part: str) -> LanguageModel:
    """Adds noise to the parameters that would otherwise be all zeros or ones."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.network.named_parameters():
        if part in name:
            parameter.data += torch.empty_like(parameter).normal_(std=0.2, generator=generator)
    return model


# --- the network's own numbers ---


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_logprobs_are_the_networks_own(family):
    model, sequences = tiny(family=family), collate(rows(*SHAPES), pad=0)
    output = model(sequences, ALL)
    assert model.vocabulary == model.network.config.vocab_size
    torch.testing.assert_close(everything(output), plain_logits(model, sequences), **EXACT)
    torch.testing.assert_close(output.logprobs[sequences.mask], plain_logprobs(model, sequences), **EXACT)
    assert (output.logprobs[~sequences.mask] == 0).all()


@pytest.mark.parametrize("family", ["gemma2", "granite", "cohere"])
def test_what_a_family_does_to_its_logits_matters(family):
    """Else the test above would pass without it."""
    model, sequences = tiny(family=family), collate(rows(*SHAPES), pad=0)
    output = model(sequences, ALL)
    output.logits.head = output.logits.head._replace(scale=1.0, soft_cap=None)
    assert (everything(output) - plain_logits(model, sequences)).abs().max() > 0.1


def test_a_head_bias_counts():
    model, sequences = tiny(), collate(rows(*SHAPES), pad=0)
    head = model.network.lm_head
    head.bias = torch.nn.Parameter(torch.linspace(-1, 1, head.out_features, dtype=torch.float64))
    torch.testing.assert_close(everything(model(sequences, ALL)), plain_logits(model, sequences), **EXACT)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_hidden_states_are_the_networks_own_embeddings_first(family):
    model, sequences = tiny(family=family), collate(rows(*SHAPES), pad=0)
    hidden = model(sequences, frozenset({"hidden"})).hidden
    theirs = model.network(sequences.tokens, output_hidden_states=True).hidden_states
    assert len(hidden) == len(theirs) == 3
    for ours, other in zip(hidden, theirs, strict=True):
        torch.testing.assert_close(ours[sequences.real], other[sequences.real], **EXACT)
    if family != "gemma2":  # which scales its embeddings
        embedded = model.network.get_input_embeddings()(sequences.tokens)
        positions = model.network.transformer.wpe.weight[: sequences.tokens.shape[1]] if family == "gpt2" else 0
        torch.testing.assert_close(hidden[0][sequences.real], (embedded + positions)[sequences.real], **EXACT)


@pytest.mark.parametrize(
    "wanted",
    [set(), *({name} for name in sorted(LanguageModel.provides)), {"hidden", "logprobs"}, {"attentions", "qkv"}],
)
def test_no_more_is_filled_than_was_wanted(wanted):
    output = tiny()(collate(rows((5, 2)), pad=0), frozenset(wanted))
    assert {name for name in LanguageModel.provides if getattr(output, name) is not None} == wanted


def test_no_loss_row_is_no_error():
    sequences = collate(rows((5, 2)), pad=0)
    output = tiny()(replace(sequences, mask=torch.zeros_like(sequences.mask)), ALL)
    assert output.logits.n == 0
    assert (output.logprobs == 0).all()


# --- gradients ---


def test_mean_logprobs_are_of_a_token_and_constant():
    model = tiny().requires_grad_(True)
    sequences = collate(rows((5, 2), (6, 6), (9, 4)), pad=0)  # the second has a prompt and no response
    output = model(sequences, frozenset({"logprobs", "mean_logprobs"}))
    expected = [
        output.logprobs[i, mask].mean() if mask.any() else torch.zeros(()) for i, mask in enumerate(sequences.mask)
    ]
    torch.testing.assert_close(output.mean_logprobs, torch.stack(expected).double().detach(), **EXACT)
    assert not output.mean_logprobs.requires_grad


def test_gradients_of_logprobs_are_plain_autograds():
    sequences = collate(rows(*[(70, 5)] * 5), pad=0)
    assert sequences.mask.sum() > CHUNK  # more than one piece
    weights = torch.linspace(-1, 2, int(sequences.mask.sum()), dtype=torch.float64)
    ours, plain = tiny(), tiny()
    (ours(sequences, frozenset({"logprobs"})).logprobs[sequences.mask] * weights).sum().backward()
    (plain_logprobs(plain, sequences) * weights).sum().backward()
    for (name, mine), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert other.grad.abs().max() > 0, name
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-9, rtol=1e-9)


def test_positions_without_loss_do_not_matter():
    sequences = collate(rows(*SHAPES), pad=0)
    labels = sequences.labels.masked_fill(~sequences.mask, 77)
    model = tiny()
    given = model(sequences, ALL).logprobs
    assert torch.equal(model(replace(sequences, labels=labels), ALL).logprobs, given)


# --- padding ---


def split(output: ModelOutput, sequences: Sequences) -> list[tuple[Tensor, Tensor]]:
    """Logits and log-probabilities of each sequence's loss rows."""
    counts = sequences.mask.sum(1).tolist()
    logits = everything(output).split(counts)
    logprobs = output.logprobs[sequences.mask].split(counts)
    return list(zip(logits, logprobs, strict=True))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "cohere"])
@pytest.mark.parametrize(
    "collated",
    [
        {"multiple": 16},
        {"multiple": 64},
        {"padding_side": "left"},
        {"padding_side": "left", "multiple": 64},
        {"pad": 9},
    ],
)
def test_padding_changes_nothing(family, collated):
    model, encoded = tiny(family=family), rows(*SHAPES)
    lean, padded = collate(encoded, pad=0), collate(encoded, **{"pad": 0, **collated})
    expected, seen = (split(model(s, ALL), s) for s in (lean, padded))
    for (logits, logprobs), (other_logits, other_logprobs) in zip(expected, seen, strict=True):
        torch.testing.assert_close(other_logits, logits, **EXACT)
        torch.testing.assert_close(other_logprobs, logprobs, **EXACT)


def test_company_changes_nothing():
    model, encoded = tiny(), rows(*SHAPES)
    together = collate(encoded, pad=0)
    for row, (logits, logprobs) in zip(encoded, split(model(together, ALL), together), strict=True):
        alone = collate([row], pad=0)
        [(own_logits, own_logprobs)] = split(model(alone, ALL), alone)
        torch.testing.assert_close(own_logits, logits, **EXACT)
        torch.testing.assert_close(own_logprobs, logprobs, **EXACT)


# --- the vocabulary ---


def test_rows_of_a_padded_head_never_enter_a_softmax():
    model, sequences = tiny(vocab_size=320), collate(rows(*SHAPES), pad=0)
    assert model.vocabulary == len(model.tokenizer) == 261
    output = model(sequences, ALL)
    assert output.logits.size == 261
    cut = model.network(sequences.tokens).logits[sequences.mask][:, :261]
    torch.testing.assert_close(everything(output), cut, **EXACT)
    labels = sequences.labels[sequences.mask]
    expected = torch.stack([row.log_softmax(-1)[label] for row, label in zip(cut, labels, strict=True)])
    torch.testing.assert_close(output.logprobs[sequences.mask], expected, **EXACT)


def test_holes_among_the_ids_cut_nothing_off():
    words = {"a": 0, "b": 2, "<end>": 9}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="a")), eos_token="<end>")
    assert LanguageModel(tiny().network, tokenizer).vocabulary == 10


# --- LoRA ---


def adapted(**changes) -> LanguageModel:
    model = tiny()
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
    config = LoraConfig(r=3, lora_alpha=5, target_modules=linear, **changes)
    with seeded(0, "lora"):
        network = get_peft_model(model.network, config).get_base_model()
    return with_noise(LanguageModel(network, model.tokenizer).double(), "lora_B").eval()


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}])
def test_lora_on_every_linear_layer_is_the_networks_own_forward(changes):
    model, sequences = adapted(**changes), collate(rows(*SHAPES), pad=0)
    assert (plain_logits(model, sequences) - plain_logits(tiny(), sequences)).abs().max() > 0.1
    output = model(sequences, ALL)
    torch.testing.assert_close(everything(output), plain_logits(model, sequences), **EXACT)
    torch.testing.assert_close(output.logprobs[sequences.mask], plain_logprobs(model, sequences), **EXACT)


def test_gradients_reach_lora_on_the_head():
    sequences = collate(rows(*SHAPES), pad=0)
    ours, plain = adapted(), adapted()
    ours(sequences, ALL).logprobs.sum().backward()
    plain_logprobs(plain, sequences).sum().backward()
    trained = {name for name, parameter in plain.named_parameters() if parameter.requires_grad}
    assert {"network.lm_head.lora_A.default.weight", "network.lm_head.lora_B.default.weight"} <= trained
    for (name, mine), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        if name in trained:
            torch.testing.assert_close(mine.grad, other.grad, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("act", ["merge", "disable"])
def test_adapters_merged_or_switched_off_are_not_added_again(act):
    model, sequences = adapted(), collate(rows(*SHAPES), pad=0)
    for module in model.modules():
        if hasattr(module, "get_delta_weight"):
            module.merge() if act == "merge" else module.enable_adapters(False)
    torch.testing.assert_close(everything(model(sequences, ALL)), plain_logits(model, sequences), **EXACT)


# --- guards ---


class Doubling(LlamaForCausalLM):
    """An architecture that does to its logits what nobody expects."""

    def forward(self, *arguments, **named):
        output = super().forward(*arguments, **named)
        output.logits = 2 * output.logits
        return output


def test_an_unknown_turn_of_the_logits_is_refused():
    network = Doubling(tiny().network.config)
    with pytest.raises(ValueError, match="Doubling computes its logits from its last hidden states in a way"):
        check_head(network.train())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_known_turns_pass_and_leave_the_mode_alone(family, dtype):
    network = tiny(family=family, dtype=dtype).network.train()
    check_head(network)
    assert all(module.training for module in network.modules())


def test_a_white_box_teacher_has_the_same_outputs_without_learning():
    model, sequences = tiny(attention_dropout=0.5), collate(rows(*SHAPES), pad=0)
    expected = everything(model(sequences, ALL)).detach()
    teacher = WhiteBox(model).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert torch.equal(everything(teacher(sequences, ALL)), expected)
