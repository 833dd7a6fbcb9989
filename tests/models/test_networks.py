import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from kd.generators.generation import generate
from kd.models.language_model import LanguageModel
from kd.models.networks import _cut_depth, _cut_ffn, kept_layers, pretrained, pruned, scratch
from kd.models.tokenizers import byte_tokenizer
from kd.seeding import seeded
from tests.tiny import FAMILIES, LLAMA, tiny

TOKENS = torch.arange(24).reshape(2, 12) * 7 % 256
EXACT = {"atol": 1e-12, "rtol": 0.0}
SMOLLM3 = {**LLAMA, "model_type": "smollm3"}  # every fourth layer has no positions: a list with one entry per layer


def saved(model: LanguageModel, folder) -> dict[str, str]:
    """The `source` of a checkpoint on disk."""
    model.network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return {"address": f"local:{folder}"}


@pytest.fixture
def model() -> LanguageModel:
    return tiny(num_hidden_layers=4)


@pytest.fixture
def source(model, tmp_path) -> dict[str, str]:
    return saved(model, tmp_path)


@torch.no_grad()
def logits(network) -> Tensor:
    return network(TOKENS).logits


# --- which layers ---


@pytest.mark.parametrize(
    ("depth", "layers", "rule", "kept"),
    [
        (30, 10, "even", [0, 3, 6, 10, 13, 16, 19, 23, 26, 29]),  # 29 / 9 = 3.22 apart
        (4, 2, "even", [0, 3]),
        (5, 3, "even", [0, 2, 4]),
        (5, 4, "even", [0, 1, 3, 4]),  # 0, 1.33, 2.67, 4
        (5, 1, "even", [0]),
        (3, 3, "even", [0, 1, 2]),
        (6, 2, "first", [0, 1]),
        (6, 2, "last", [4, 5]),
        (6, 5, "ends", [0, 1, 2, 4, 5]),
        (6, 4, "ends", [0, 1, 4, 5]),
        (6, 1, "ends", [0]),
        (6, 6, "ends", [0, 1, 2, 3, 4, 5]),
        (6, [1, 4], "even", [1, 4]),
    ],
)
def test_kept_layers(depth, layers, rule, kept):
    assert kept_layers(depth, layers, rule) == kept


@pytest.mark.parametrize("rule", ["even", "first", "last", "ends"])
def test_any_number_of_layers_is_that_number_in_order(rule):
    for depth in range(1, 34):
        for layers in range(1, depth + 1):
            kept = kept_layers(depth, layers, rule)
            assert len(kept) == layers
            assert kept == sorted({*kept} & {*range(depth)})


@pytest.mark.parametrize("layers", [0, -1, 7])
def test_a_number_of_layers_that_there_is_not(layers):
    with pytest.raises(ValueError, match=f"layers={layers} is not between 1 and the checkpoint's depth 6"):
        kept_layers(6, layers, "even")


@pytest.mark.parametrize("layers", [[], [2, 1], [1, 1], [-1, 2], [0, 6]])
def test_indices_that_there_are_not(layers):
    with pytest.raises(ValueError, match="must be increasing indices below the checkpoint's depth 6"):
        kept_layers(6, layers, "even")


# --- fewer layers ---


@torch.no_grad()
def reassembled(network, kept: list[int]) -> Tensor:
    """A Llama by hand: embeddings, the layers that stay, norm, head."""
    hidden = network.model.embed_tokens(TOKENS)
    positions = torch.arange(TOKENS.shape[1])[None]
    rotary = network.model.rotary_emb(hidden, positions)
    for layer in kept:
        hidden = network.model.layers[layer](hidden, position_embeddings=rotary, position_ids=positions)
    return network.lm_head(network.model.norm(hidden))


def test_a_cut_is_what_one_would_assemble_by_hand(model, source):
    torch.testing.assert_close(reassembled(model.network, [0, 1, 2, 3]), logits(model.network), **EXACT)
    student = pruned(source=source, layers=[1, 3], dtype="float64")
    assert student.network.config.num_hidden_layers == 2
    torch.testing.assert_close(logits(student.network), reassembled(model.network, [1, 3]), **EXACT)


def mute(network, layer: int) -> None:
    """Makes a layer add nothing to the residual stream, so that to drop it is to change nothing."""
    for name, parameter in network.named_parameters():
        if f".{layer}." in name and ("o_proj" in name or "down_proj" in name or "c_proj" in name):
            parameter.data.zero_()


@pytest.mark.parametrize("family", [*FAMILIES.values(), SMOLLM3], ids=lambda family: family["model_type"])
@pytest.mark.parametrize("dropped", [[0], [2], [0, 1, 3], [5, 6]])
def test_dropping_layers_that_do_nothing_changes_nothing(family, dropped):
    """In Gemma 2 and SmolLM3 layers differ by their place: what a layer was, it stays."""
    with seeded(0, "layers"):
        depth = {"n_layer": 8} if family["model_type"] == "gpt2" else {"num_hidden_layers": 8}
        network = scratch(architecture={**family, **depth}, dtype="float64").eval().network
    for layer in dropped:
        mute(network, layer)
    cut = _cut_depth(network, [layer for layer in range(8) if layer not in dropped]).eval()
    torch.testing.assert_close(logits(cut), logits(network), **EXACT)


def test_a_cut_in_half_precision_keeps_exact_rotary_frequencies(tmp_path):
    source = saved(tiny(dtype="bfloat16"), tmp_path)
    whole = pretrained(source=source, dtype="bfloat16")
    same = pruned(source=source, layers=2, dtype="bfloat16")
    assert torch.equal(logits(same.network), logits(whole.network))


def test_a_cut_shares_no_memory_with_what_it_was_cut_from(model):
    before = logits(model.network)
    cut = _cut_depth(model.network, [0, 1, 2, 3])
    owned = {parameter.untyped_storage().data_ptr() for parameter in model.network.parameters()}
    assert owned.isdisjoint(parameter.untyped_storage().data_ptr() for parameter in cut.parameters())
    for parameter in cut.parameters():
        parameter.data.fill_(1.0)
    assert torch.equal(logits(model.network), before)


@pytest.mark.parametrize("family", ["gemma2", "gpt2"])
def test_tied_embeddings_stay_tied(family):
    cut = _cut_depth(tiny(family=family).network, [1])
    assert cut.get_output_embeddings().weight is cut.get_input_embeddings().weight


def test_a_cut_writes_with_its_cache_what_it_writes_without(source):
    student = pruned(source=source, layers=[1, 3], dtype="float64")
    prompt = TOKENS[0].tolist()
    ids = list(prompt)
    for _ in range(10):
        with torch.no_grad():
            ids.append(int(student.network(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    assert generate(student, [prompt], max_new_tokens=10) == [ids[len(prompt) :]]


def test_a_cut_saved_and_loaded_is_the_same(source, tmp_path):
    student = pruned(source=source, layers=3, ffn=40, dtype="float64")
    saved(student, tmp_path / "student")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student", dtype=torch.float64)
    assert torch.equal(logits(loaded), logits(student.network))
    assert AutoTokenizer.from_pretrained(tmp_path / "student").get_vocab() == student.tokenizer.get_vocab()


# --- narrower feed-forward blocks ---


def test_full_width_is_the_identity(model, source):
    student = pruned(source=source, layers=4, ffn=64, dtype="float64")
    torch.testing.assert_close(logits(student.network), logits(model.network), **EXACT)


@pytest.mark.parametrize("changes", [{}, {"mlp_bias": True}])
def test_neurons_that_change_nothing_go_first(changes):
    network = tiny(**changes).network
    dead = torch.randperm(64, generator=torch.Generator().manual_seed(3))[:40]
    for layer in network.model.layers:
        layer.mlp.down_proj.weight.data[:, dead] = 0
        if changes:
            layer.mlp.gate_proj.bias.data.uniform_(-1, 1, generator=torch.Generator().manual_seed(4))
            layer.mlp.up_proj.bias.data.uniform_(-1, 1, generator=torch.Generator().manual_seed(5))
    cut = _cut_ffn(network, 24).eval()
    assert cut.model.layers[0].mlp.up_proj.weight.shape == (24, 32)
    assert cut.config.intermediate_size == 24
    torch.testing.assert_close(logits(cut), logits(network), **EXACT)


def test_a_live_neuron_that_goes_is_missed(model):
    assert (logits(_cut_ffn(model.network, 63).eval()) - logits(model.network)).abs().max() > 1e-6


@pytest.mark.parametrize("ffn", [0, 65])
def test_a_width_that_there_is_not(source, ffn):
    with pytest.raises(ValueError, match=f"ffn={ffn} is not between 1 and the checkpoint's intermediate_size 64"):
        pruned(source=source, layers=2, ffn=ffn)


def test_blocks_that_cannot_be_narrowed():
    with pytest.raises(ValueError, match="GPT2LMHeadModel has no gated feed-forward blocks"):
        _cut_ffn(tiny(family="gpt2").network, 8)


# --- LoRA ---

LORA = {"r": 2, "target_modules": ["q_proj", "v_proj", "lm_head"]}


@pytest.mark.parametrize("make", [pretrained, lambda **named: pruned(layers=4, **named)])
def test_lora_trains_its_own_parameters_alone_and_begins_as_the_checkpoint(model, source, make):
    student = make(source=source, dtype="float64", lora=LORA)
    trained = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * (2 * 4 + 1)  # A and B, of two projections in four layers and of the head
    assert all("lora_" in name for name in trained)
    torch.testing.assert_close(logits(student.eval().network), logits(model.network), **EXACT)


@pytest.mark.parametrize("kind", ["use_dora", "lora_bias"])
def test_lora_that_is_no_matrix_is_refused_on_the_head(source, kind):
    with pytest.raises(ValueError, match=r"leave the head out of lora\.target_modules"):
        pretrained(source=source, lora={**LORA, kind: True})
    pretrained(source=source, lora={**LORA, "target_modules": ["q_proj"], kind: True})


def test_without_lora_everything_trains(source):
    assert all(parameter.requires_grad for parameter in pretrained(source=source).parameters())


# --- from nothing ---


def test_scratch_is_a_function_of_the_seed():
    same, again, other = tiny(1), tiny(1), tiny(2)
    assert torch.equal(logits(same.network), logits(again.network))
    assert not torch.equal(logits(same.network), logits(other.network))


def test_scratch_takes_vocabulary_and_special_ids_from_the_tokenizer():
    model, words = tiny(), byte_tokenizer()
    config = model.network.config
    assert config.vocab_size == len(words) == 261
    assert (config.pad_token_id, config.eos_token_id) == (words.pad_token_id, words.eos_token_id)


def test_scratch_with_a_checkpoints_tokenizer(source):
    model = scratch(architecture=LLAMA, tokenizer=source)
    assert model.tokenizer.get_vocab() == byte_tokenizer().get_vocab()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_weights_have_the_dtype_that_was_requested(source, dtype):
    wanted = getattr(torch, dtype)
    for model in (
        scratch(architecture=LLAMA, dtype=dtype),
        pretrained(source=source, dtype=dtype),
        pruned(source=source, layers=1, ffn=8, dtype=dtype),
    ):
        assert {parameter.dtype for parameter in model.parameters()} == {wanted}
