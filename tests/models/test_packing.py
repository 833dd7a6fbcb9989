"""Reading without padding says what reading each sequence alone says, and only networks that bear it are read so.

Run: python -m pytest tests/models/test_packing.py
"""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from kd.data.sequences import Encoded, collate
from kd.models import packing
from kd.models.language_model import LanguageModel
from kd.models.packing import Packing, packable, recompute
from kd.types import Sequences
from tests.tiny import FAMILIES, tiny

LENGTHS = ((9, 3), (31, 6), (5, 4), (31, 1), (12, 2), (6, 5))  # of rows, and of their prompts; in several groups
EXACT = {"atol": 1e-12, "rtol": 0.0}
PACKED = sorted(FAMILIES.keys() - {"gemma2"})


def rows(shapes: tuple[tuple[int, int], ...] = LENGTHS) -> list[Encoded]:
    draw = torch.Generator().manual_seed(0)
    return [Encoded(tuple(torch.randint(0, 256, (n,), generator=draw).tolist()), k) for n, k in shapes]


def some(side: str = "right", multiple: int = 1) -> Sequences:
    return collate(rows(), 0, side, multiple)


def one_by_one(model: LanguageModel) -> tuple[Tensor, Tensor]:
    """Last hidden states of all tokens, and the labels' log-probabilities, of each sequence on its own."""
    hidden, logprobs = [], []
    for row in rows():
        ids = torch.tensor([row.ids])
        out = model.network(ids[:, :-1], output_hidden_states=True)
        hidden.append(out.hidden_states[-1][0])
        said = out.logits[0, :, : model.vocabulary].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        logprobs.append(said[row.prompt - 1 :])
    return torch.cat(hidden), torch.cat(logprobs)


def gradients(model: LanguageModel, value: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, [p for p in model.network.parameters() if p.requires_grad]))


@pytest.mark.parametrize("family", PACKED)
@pytest.mark.parametrize("collated", [("right", 1), ("right", 64), ("left", 1), ("left", 64)])
def test_packed_sequences_are_read_as_each_alone(family, collated):
    model, sequences = tiny(family=family), some(*collated)
    assert model.packs
    output = model(sequences, frozenset({"hidden", "logprobs"}))
    hidden, logprobs = one_by_one(model)
    torch.testing.assert_close(output.hidden[-1][sequences.real], hidden, **EXACT)
    torch.testing.assert_close(output.logprobs[sequences.mask], logprobs, **EXACT)
    weights = torch.linspace(0.5, 2, len(logprobs), dtype=torch.float64)
    ours = gradients(model, (weights * output.logprobs[sequences.mask]).sum())
    for mine, theirs in zip(ours, gradients(model, (weights * logprobs).sum()), strict=True):
        assert (mine - theirs).norm() <= 1e-6 * theirs.norm()  # norms of float64 states are taken in float32


def test_no_sequence_sees_another():
    model, sequences = tiny(), some()
    before = model(sequences, frozenset({"logprobs"})).logprobs
    sequences.tokens[1] = (sequences.tokens[1] + 1) % 256
    after = model(sequences, frozenset({"logprobs"})).logprobs
    others = [0, 2, 3, 4, 5]
    assert torch.equal(after[others], before[others])
    assert not torch.equal(after[1], before[1])


def test_the_longest_stand_first_and_groups_hold_similar_lengths():
    packed = Packing.of(collate(rows(((4, 1), (7, 1), (3, 1))), 0, "left"))  # 3, 6 and 2 tokens, of 6 with padding
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2, 0, 1]]
    assert packed.places.tolist() == [6, 7, 8, 9, 10, 11, 3, 4, 5, 16, 17]
    # 6 and 3 in two rows of 6: a quarter is padding; with 2 in a third row it would be 7 of 18, more than 0.3
    assert [(group.count, group.longest, group.tokens) for group in packed.groups] == [(2, 6, 9), (1, 2, 2)]
    assert packed.groups[0].slots.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert packed.groups[1].slots is None


def test_what_packing_takes_apart_it_puts_together():
    sequences = some("left", 64)
    places = Packing.of(sequences)
    x = torch.randn(*sequences.tokens.shape, 3)
    packed = places.pack(x)
    assert packed.shape == (1, int(sequences.lengths.sum()), 3)
    torch.testing.assert_close(places.unpack(packed), x * sequences.real[..., None])
    torch.testing.assert_close(places.select(packed, sequences.places), x[sequences.mask])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"family": "gemma2"}, "its scores have a soft cap"),
        ({"model_type": "mistral", "sliding_window": 4}, "a token sees a window"),
        ({"attn_implementation": "eager"}, "somebody chose another attention"),
        ({"model_type": "mamba", "num_attention_heads": 4}, "its states run over all that came before"),
    ],
)
def test_other_networks_are_read_with_padding(changes, reason):
    assert not tiny(**changes).packs, reason


def test_windows_without_a_use_do_not_matter():
    assert tiny(model_type="mistral", sliding_window=None).packs


def test_a_network_whose_attention_looks_at_more_is_found_out():
    network = tiny().network
    for layer in network.model.layers:
        layer.self_attn.is_causal = False
    assert not packable(network)


def test_tokens_that_meet_outside_attention_are_found_out():
    network = tiny().network
    network.model.layers[0].mlp.register_forward_hook(lambda _, __, out: out.cumsum(1))  # causal, and knows no borders
    assert not packable(network)


def test_attention_is_in_float32_only_where_a_gradient_is_requested(monkeypatch):
    model, sequences, seen = tiny(dtype="float32"), some(), []
    assert model.packs
    own = packing.scaled_dot_product_attention
    monkeypatch.setattr(
        packing, "scaled_dot_product_attention", lambda q, *a, **k: seen.append(q.dtype) or own(q, *a, **k)
    )
    for learns, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(learns):
            model(sequences, frozenset({"logits"}))
        assert set(seen) == {dtype}


def test_layers_that_are_recomputed_are_read_with_padding():
    """They would be recomputed after the network's own attention has been put back."""
    model, sequences = tiny(), some()
    alone = gradients(model, model(sequences, frozenset({"logprobs"})).logprobs.sum())
    model.network.train()
    model.network.gradient_checkpointing_enable()
    again = gradients(model, model(sequences, frozenset({"logprobs"})).logprobs.sum())
    for mine, theirs in zip(again, alone, strict=True):
        assert (mine - theirs).norm() <= 1e-6 * theirs.norm()


def test_adapters_are_read_packed():
    model = tiny()
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = LanguageModel(get_peft_model(model.network, lora).get_base_model(), model.tokenizer).eval()
    assert model.packs
    _, expected = one_by_one(model)
    sequences = some()
    torch.testing.assert_close(model(sequences, frozenset({"logprobs"})).logprobs[sequences.mask], expected, **EXACT)


def test_attention_under_bf16_autocast_is_nearer_to_float64_than_the_librarys():
    """In float32 where a gradient is asked for: bfloat16 there is slower, and rounds."""
    exact, model, sequences = tiny(), tiny(dtype="float32"), some()
    model.load_state_dict(exact.state_dict())
    truth = gradients(exact, exact(sequences, frozenset({"logprobs"})).logprobs.sum())

    def gap(packs: bool) -> float:
        model.__dict__["packs"] = packs
        with torch.autocast("cpu", torch.bfloat16):
            said = model(sequences, frozenset({"logprobs"})).logprobs.sum()
        pairs = zip(gradients(model, said), truth, strict=True)
        return sum(float((mine - theirs).norm() ** 2) for mine, theirs in pairs) ** 0.5

    assert gap(True) < gap(False)


def test_looking_leaves_a_network_as_it_was():
    config = AutoConfig.for_model(**FAMILIES["llama"], attention_dropout=0.5, vocab_size=300)
    network = AutoModelForCausalLM.from_config(config).train()
    state = torch.get_rng_state()
    assert packable(network)
    assert network.training
    assert network.config._attn_implementation == "sdpa"
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in network.parameters())


def test_attention_that_looks_at_more_is_found_out():
    """As by architectures that choose what a token looks at, which with few tokens is all."""
    network = tiny().network
    layer = network.model.layers[1].self_attn
    own = layer.forward
    layer.forward = lambda *args, **kwargs: own(*args, **kwargs, block_indices=torch.zeros(1))
    assert not packable(network)


class Mixing(torch.nn.Module):
    """Adds to each token a share of all before it. At share 0, as it begins, tokens meet in attention alone."""

    def __init__(self, block: torch.nn.Module):
        super().__init__()
        self.block, self.share = block, torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) + self.share * x.cumsum(1)


def mixing() -> LanguageModel:
    model = tiny()
    model.network.model.layers[0].mlp = Mixing(model.network.model.layers[0].mlp)
    return model


@pytest.mark.parametrize("way", ["a look at the weights", "a checkpoint"])
def test_weights_that_no_longer_bear_packing_are_found_out(way, caplog):
    model, other, sequences = mixing(), mixing(), some()
    assert model.packs
    assert other.packs
    with torch.no_grad():
        other.network.model.layers[0].mlp.share.fill_(0.5)
    if way == "a checkpoint":
        model.load_state_dict(other.state_dict())
    else:
        model = other
        model.recheck_packing()
    assert not model.packs
    torch.testing.assert_close(
        model(sequences, frozenset({"logprobs"})).logprobs[sequences.mask], one_by_one(model)[1], **EXACT
    )
    model.recheck_packing()
    assert [record.message for record in caplog.records] == [
        "LlamaForCausalLM no longer reads packed sequences as it reads each alone, now that its weights have changed; "
        "sequences are padded from here on"
    ]


def test_recomputed_layers_read_packed_rows_with_the_same_gradients_and_less_memory(monkeypatch):
    """The layers are recomputed after the network's own attention has been put back, and yet by ours."""
    read, own = list[None](), packing._by_groups
    monkeypatch.setattr(packing, "_by_groups", lambda *given: read.append(None) or own(*given))

    def learnt(recomputes: bool) -> tuple[list[Tensor], int, int]:
        model, kept = tiny(num_hidden_layers=4), [0]
        assert model.packs
        if recomputes:
            recompute(model.network)
        model.train()
        read.clear()

        def save(x: Tensor) -> Tensor:
            kept[0] += x.numel() * x.element_size()
            return x

        with torch.autograd.graph.saved_tensors_hooks(save, lambda x: x):
            value = model(some(), frozenset({"logprobs"})).logprobs.square().sum()
        return gradients(model, value), kept[0], len(read)

    plain, whole, once = learnt(False)
    recomputed, part, twice = learnt(True)
    assert (once, twice) == (4, 8)
    assert part < whole / 3
    for mine, theirs in zip(recomputed, plain, strict=True):
        assert float((mine - theirs).norm()) <= 1e-12 * float(theirs.norm())
