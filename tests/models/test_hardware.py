"""Options of a network that depend on the machine: recomputed activations, and what a machine lacks.

Run: python -m pytest tests/models/test_hardware.py
"""

import pytest
import torch

from kd.models.hardware import check_attention, quantised, recomputing
from kd.models.networks import scratch

ARCHITECTURE = {
    **{"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64},
}


def gradients(recomputes: bool) -> tuple[dict[str, torch.Tensor], int]:
    """Of a sum of logits in training, and the passes through the first layer."""
    torch.manual_seed(0)
    model = scratch(architecture=ARCHITECTURE, dtype="float64", gradient_checkpointing=recomputes).train()
    passes: list[None] = []
    model.network.model.layers[0].self_attn.register_forward_hook(lambda *_: passes.append(None))
    model.network(input_ids=torch.arange(8)[None], use_cache=False).logits.square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, len(passes)


def test_recomputed_activations_give_the_same_gradients():
    plain, once = gradients(False)
    recomputed, twice = gradients(True)
    assert (once, twice) == (1, 2)
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_what_a_machine_lacks_is_named():
    lacks = "needs a CUDA GPU and the package flash_attn, which this machine lacks; take sdpa"
    with pytest.raises(ValueError, match=f"attn_implementation=flash_attention_2 {lacks}"):
        check_attention("flash_attention_2")
    with pytest.raises(
        ValueError, match="load_in=4bit needs a CUDA GPU and the package bitsandbytes, which this machine"
    ):
        quantised("4bit", "bfloat16", lora=False)
    check_attention("sdpa")
    check_attention(None)
    assert quantised(None, "float32", lora=True) == {}


def test_an_architecture_that_does_not_recompute_is_named(monkeypatch):
    network = scratch(architecture=ARCHITECTURE).network
    monkeypatch.setattr(type(network), "supports_gradient_checkpointing", False)
    with pytest.raises(ValueError, match="gradient_checkpointing=true: LlamaForCausalLM does not recompute its layers"):
        recomputing(network)
