import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from kd.export import export, merged
from kd.models.networks import pretrained
from tests.test_module import LORA
from tests.tiny import tiny

TEXT = "what is exported says what was trained"


def logits(network, tokenizer) -> torch.Tensor:
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    with torch.no_grad():
        return network.eval()(ids).logits


def adapted(path, **lora):
    """A checkpoint with adapters that have learnt something."""
    model = tiny()
    model.network.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    student = pretrained(source={"address": f"local:{path}"}, dtype="float64", lora={**LORA, **lora})
    torch.manual_seed(0)
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return student


def loaded(path):
    network = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    return network, AutoTokenizer.from_pretrained(path)


def test_a_student_comes_back_as_it_was(tmp_path):
    model = tiny()
    export(model, tmp_path / "student", "# card")
    network, tokenizer = loaded(tmp_path / "student")
    torch.testing.assert_close(logits(network, tokenizer), logits(model.network, model.tokenizer))
    assert (tmp_path / "student/README.md").read_text() == "# card"
    assert tokenizer.chat_template == model.tokenizer.chat_template


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["embed_tokens", "v_proj"]},
        {"use_dora": True},
    ],
    ids=["linear", "head", "embeddings", "dora"],
)
def test_adapters_are_exported_merged(tmp_path, lora):
    student = adapted(tmp_path / "base", **lora)
    expected = logits(student.network, student.tokenizer)
    base, tokenizer = loaded(tmp_path / "base")
    assert (expected - logits(base, tokenizer)).abs().max() > 0.01  # they do say something
    export(student, tmp_path / "student", "")
    network, tokenizer = loaded(tmp_path / "student")
    torch.testing.assert_close(logits(network, tokenizer), expected, atol=1e-5, rtol=1e-5)
    assert not (tmp_path / "student/adapter_config.json").exists()
    assert not any("lora" in name for name, _ in network.named_parameters())


def test_merging_leaves_the_student_as_it_is(tmp_path):
    """It may still be trained or resumed."""
    student = adapted(tmp_path / "base")
    before = {name: p.clone() for name, p in student.state_dict().items()}
    flags = {name: p.requires_grad for name, p in student.named_parameters()}
    merged(student)
    assert all(torch.equal(p, before[name]) for name, p in student.state_dict().items())
    assert flags == {name: p.requires_grad for name, p in student.named_parameters()}


def test_merging_agrees_with_peft(tmp_path):
    student = adapted(tmp_path / "base")
    ours = merged(student).network
    base, tokenizer = loaded(tmp_path / "base")
    theirs = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **LORA))
    state = {f"base_model.model.{name}": value for name, value in student.network.state_dict().items()}
    theirs.load_state_dict(state)
    torch.testing.assert_close(logits(ours, tokenizer), logits(theirs.merge_and_unload(), tokenizer))
