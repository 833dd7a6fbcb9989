"""Known architectures, laid out without weights: sizes as published, and FLOPs as those of a network with weights.

Run: python -m pytest tests/models/test_architectures.py
"""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from kd.data.rows import Encoded
from kd.data.sequences import collate
from kd.doctor.memory import Load, activations, head_pass
from kd.doctor.shards import stored
from kd.models.architectures import architecture_of, architectures
from kd.models.flops import decoding_flops, reading_flops, training_flops
from kd.models.networks import scratch
from kd.models.outlines import networks_in, outline

LLAMA = {
    **{"model_type": "llama", "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 4},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
}
QUICK = ("gpt2", "opt-350m", "tinyllama-1.1b", "qwen2.5-0.5b", "qwen3-0.6b")  # one of each family


def node(**keys: Any) -> dict[str, Any]:
    return {"_target_": "kd.models.networks.scratch", "architecture": LLAMA, "tokenizer": "bytes", **keys}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.long]) for name in architectures()]
)
def test_an_architecture_has_the_published_number_of_parameters(name: str) -> None:
    known = architectures()[name]
    config = AutoConfig.for_model(**known.fields)
    if config.is_encoder_decoder:
        with torch.device("meta"):
            network = AutoModelForSeq2SeqLM.from_config(config)
    else:
        network = outline(pretrained(f"hub:{known.hub[0]}")).network
    assert sum(parameter.numel() for parameter in network.parameters()) == known.parameters
    assert all(parameter.is_meta for parameter in network.parameters())


def pretrained(address: str, **keys: Any) -> dict[str, Any]:
    return {"_target_": "kd.models.networks.pretrained", "source": address, **keys}


def test_an_address_is_found_in_any_case_and_revision() -> None:
    assert architecture_of("qwen/qwen2.5-math-7b-instruct") is architectures()["qwen2.5-7b"]
    assert architecture_of("Qwen/Qwen9-1T") is None
    hubs = [address.lower() for one in architectures().values() for address in one.hub]
    assert len(hubs) == len(set(hubs))
    found = outline(pretrained("hub:openai-community/gpt2@main"))
    assert found.vocabulary == 50257


def test_an_unknown_checkpoint_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"hub:nobody/nothing@main is none of the \d+ known architectures") as refused:
        outline(pretrained("hub:nobody/nothing@main"))
    assert "\n" not in str(refused.value)
    assert "local:PATH" in str(refused.value)


def test_an_encoder_decoder_is_refused() -> None:
    with pytest.raises(ValueError, match="model_type=t5 is an encoder-decoder"):
        outline(pretrained("hub:google-t5/t5-small"))


def test_the_networks_of_an_ensemble_are_all_found() -> None:
    teacher = {"_target_": "kd.teachers.ensemble.Ensemble", "members": {"a": {"model": node()}, "b": {"model": node()}}}
    assert len(list(networks_in(teacher))) == 2
    assert list(networks_in({"_target_": None})) == []


@pytest.mark.parametrize(
    "keys", [{}, {"architecture": {**LLAMA, "tie_word_embeddings": True}}, {"dtype": "bfloat16"}], ids=str
)
def test_an_outline_measures_as_the_network_that_it_stands_for(keys: dict[str, Any]) -> None:
    """Parameters, bytes, FLOPs and the memory of a step, of a network that is really made."""
    made = {name: value for name, value in node(**keys).items() if name != "_target_"}
    real, shapes = scratch(**made), outline(node(**keys))
    assert shapes.vocabulary == real.vocabulary
    assert sum(p.numel() for p in shapes.parameters()) == sum(p.numel() for p in real.parameters())
    assert stored(shapes) == pytest.approx(stored(real), rel=0.01)  # buffers that are made when the network is read
    sequence = collate([Encoded((0,) * 65, 33)], pad=0)
    assert training_flops(shapes, sequence) == training_flops(real, sequence)
    assert reading_flops(shapes, sequence) == reading_flops(real, sequence)
    assert decoding_flops(shapes, [32], [32]) == decoding_flops(real, [32], [32])
    load = Load(8, 256)
    assert head_pass(shapes, load) == head_pass(real, load)
    assert activations(shapes, load, "32-true") == pytest.approx(activations(real, load, "32-true"), rel=0.2)


def test_lora_and_cuts_change_shapes_as_they_do_with_weights() -> None:
    """LoRA trains r (in + out) numbers for each of the seven matrices of a layer."""
    whole = outline(pretrained("hub:Qwen/Qwen2.5-0.5B"))
    adapted = outline(pretrained("hub:Qwen/Qwen2.5-0.5B", lora={"r": 4, "target_modules": "all-linear"}))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    sides = 2 * (896 + 896) + 2 * (896 + 128) + 3 * (896 + 4864)  # q, o; k, v; gate, up, down
    assert trained == 24 * 4 * sides
    cut = outline({**pretrained("hub:Qwen/Qwen2.5-0.5B"), "_target_": "kd.models.networks.pruned", "layers": 12})
    layer = sum(p.numel() for name, p in whole.network.named_parameters() if ".layers.0." in name)
    assert sum(p.numel() for p in cut.parameters()) == sum(p.numel() for p in whole.parameters()) - 12 * layer
