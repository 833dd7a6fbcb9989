"""Adapters are folded into the weights wherever peft puts them, and what could not be folded is known before training.

Run: python -m pytest tests/models/test_merging.py
"""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from kd.experiment.export import export, rehearse
from kd.models.language_model import LanguageModel
from kd.models.merging import check_mergeable, merged
from kd.models.networks import _with_lora, scratch
from kd.seeding import seeded

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
FAMILIES = {
    "llama": {"num_key_value_heads": 2},
    "qwen3_moe": {"num_key_value_heads": 2, **EXPERTS},  # fused experts: a wrapper inside a wrapper
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
}


def adapted(family: str, tied: bool = False, **lora) -> LanguageModel:
    """A random model with adapters that do something."""
    with seeded(0, family):
        plain = scratch(architecture={"model_type": family, "tie_word_embeddings": tied, **SMALL, **FAMILIES[family]})
        lora = {"r": 2, "lora_alpha": 4, "target_modules": "all-linear", **lora}
        network = _with_lora(plain.network, LoraConfig(task_type="CAUSAL_LM", **lora))
        for name, parameter in network.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(0, 0.2)
    return LanguageModel(network, plain.tokenizer).eval()


def logits(network) -> torch.Tensor:
    with torch.no_grad():
        return network(torch.arange(20, 40)[None]).logits


@pytest.mark.filterwarnings("ignore:.*target_parameters")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_exported_folder_is_the_student_with_its_adapters(family, tmp_path):
    model = adapted(family)
    check_mergeable(model)
    with_adapters = logits(model.network)
    export(model, tmp_path, "card")
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), with_adapters)
    for name, parameter in model.network.named_parameters():
        parameter.data.mul_("lora_" not in name)
    assert not torch.allclose(logits(model.network), with_adapters), "the adapters do something"


@pytest.mark.parametrize(
    ("lora", "told"),
    [
        ({"bias": "all"}, r"lora\.bias=all: adapters alone"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"lora_alpha": 0}, r"lora\.lora_alpha=0: adapters scaled by it would not learn; set it above 0"),
        ({"lora_alpha": -4}, r"lora\.lora_alpha=-4"),
        ({"alpha_pattern": {"q_proj": 0}}, r"lora\.alpha_pattern\.q_proj=0"),
        ({"lora_dropout": 1.0}, r"lora\.lora_dropout=1\.0: .*at which they learn nothing"),
        ({"lora_dropout": -0.1}, r"lora\.lora_dropout=-0\.1"),
        *(
            ({"init_lora_weights": name}, rf"lora\.init_lora_weights={name}: .*; take true")
            for name in ("eva", "corda", "lora_ga")
        ),
    ],
)
def test_what_would_not_be_trained_or_not_be_folded_is_refused(lora, told):
    with pytest.raises(ValueError, match=told):
        adapted("llama", **lora)
    with torch.device("meta"), pytest.raises(ValueError, match=told):  # before any weight is loaded
        adapted("llama", **lora)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_2", "olora", "mica"])
def test_adapters_that_are_factors_of_the_weights_begin_as_the_checkpoint_and_need_float32(start):
    """They learn; what peft leaves as it is (B of MiCA) does not."""
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=start)
    architecture = {"model_type": "llama", **SMALL}
    with seeded(0, "factors"):
        model = scratch(architecture=architecture)
    before = logits(model.network.eval())
    network = _with_lora(model.network, lora)
    torch.testing.assert_close(logits(network), before, atol=1e-5, rtol=1e-4)
    network(torch.arange(20, 40)[None]).logits.logsumexp(-1).sum().backward()
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {name.split("lora_")[1][0] for name in learning} == ({"A"} if start == "mica" else {"A", "B"})
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in network.named_parameters() if name in learning)
    for device in ("meta", "cpu"):
        with torch.device(device):
            wide = scratch(architecture=architecture, dtype="float64")
            with pytest.raises(ValueError, match=rf"lora\.init_lora_weights={start}: .* set dtype=float32"):
                _with_lora(wide.network, lora)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_adapters_on_a_weight_of_two_modules_are_refused(target):
    """Folded in, the head's adapter would change the embeddings, too: peft merges, and the logits are others."""
    adapted("llama", target_modules=[target, "q_proj"])
    with pytest.raises(ValueError, match=r"share one weight .* leave both out of lora\.target_modules"):
        adapted("llama", tied=True, target_modules=[target, "q_proj"])


def test_an_export_is_compared_with_the_student_and_not_with_what_was_folded(tmp_path):
    """The same adapters, made by peft alone."""
    plain = adapted("llama", tied=True)
    network = get_peft_model(merged(plain).network, LoraConfig(r=2, target_modules=["lm_head"])).get_base_model()
    for name, parameter in network.named_parameters():
        parameter.data.add_(float("lora_" in name))
    (sentence,) = export(LanguageModel(network.eval(), plain.tokenizer), tmp_path, "card")
    assert "logits differ by up to" in sentence


def test_experts_are_wrapped_twice():
    """Else the test above shows nothing."""
    assert any("experts.base_layer.lora_A" in name for name, _ in adapted("qwen3_moe").named_parameters())
    assert not any("lora" in name or "base_layer" in name for name, _ in merged(adapted("mixtral")).named_parameters())


@pytest.mark.parametrize(
    ("lora", "reason"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1, 2]}, "token_adapter"),
        ({"lora_bias": True, "target_modules": ["q_proj"]}, "lora_bias"),
    ],
)
def test_what_could_not_be_exported_is_refused_on_shapes_alone(lora, reason):
    model = adapted("llama", **lora).to("meta")
    with pytest.raises(ValueError, match=rf"student\.model\.lora: LlamaForCausalLM .*{reason}"):
        check_mergeable(model)


def test_an_export_is_rehearsed(tmp_path):
    model = adapted("llama")
    rehearse(model, tmp_path, "card", 0)
    assert not list(tmp_path.iterdir()), "nothing is left"
    with pytest.raises(ValueError, match=r"GB free, but checkpoints \(1000000\.0 GB\) .*run\.root"):
        rehearse(model, tmp_path, "card", 10**15)
    model.network.config.strange = object()
    with pytest.raises(ValueError, match=r"could not be exported at the end: .*; mend"):
        rehearse(model, tmp_path, "card", 0)
