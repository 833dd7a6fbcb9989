"""A model and an adapter that PEFT saved, folded into one checkpoint."""

import json
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from kd.models.networks import pretrained, pruned
from kd.sources.addresses import digest, model_folder
from tests.tiny import tiny

TEXT = "Two and two are four."


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))


def base(folder: Path, **changes: int) -> Path:
    """A checkpoint on disk."""
    model = tiny(dtype="float32", **changes)
    model.network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def adapter(folder: Path, of: Path, *, seed: int = 0) -> Path:
    """An adapter with an effect, as PEFT saves it."""
    network = get_peft_model(
        AutoModelForCausalLM.from_pretrained(of), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4)
    )
    torch.manual_seed(seed)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(str(folder))
    return folder


def test_it_is_the_model_that_peft_reads(tmp_path: Path) -> None:
    where, beside = base(tmp_path / "base"), adapter(tmp_path / "adapter", tmp_path / "base")
    source = {"address": f"local:{where}", "adapter": f"local:{beside}"}
    ours = pretrained(source=source)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(where), str(beside)).eval()
    ids = torch.tensor([ours.tokenizer(TEXT)["input_ids"]])
    with torch.no_grad():
        expected, plain = theirs(ids).logits, AutoModelForCausalLM.from_pretrained(where)(ids).logits
        torch.testing.assert_close(ours.network(ids).logits, expected, atol=1e-4, rtol=1e-4)
        assert (expected - plain).abs().max() > 0.1  # the adapter has an effect
    assert pruned(source=source, layers=1).network.config.num_hidden_layers == 1


def test_its_identity_is_that_of_both(tmp_path: Path) -> None:
    where = f"local:{base(tmp_path / 'base')}"
    one, other = (f"local:{adapter(tmp_path / str(i), tmp_path / 'base', seed=i)}" for i in (1, 2))
    assert len({digest(where), digest(where, adapter=one), digest(where, adapter=other)}) == 3
    assert model_folder(where, adapter=one) == model_folder(where, adapter=one) != model_folder(where, adapter=other)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    """Of a deeper one, too, whose further layers PEFT would leave out."""
    deep, shallow = base(tmp_path / "deep", num_hidden_layers=3), base(tmp_path / "shallow")
    wide = base(tmp_path / "wide", hidden_size=64)
    for other in (deep, wide):
        beside = adapter(tmp_path / f"of_{other.name}", other)
        with pytest.raises(ValueError, match=f"adapter local:{beside} does not fit the model in {shallow}"):
            model_folder(f"local:{shallow}", adapter=f"local:{beside}")


def test_an_adapter_alone_is_refused_with_the_base_that_it_names(tmp_path: Path) -> None:
    where = base(tmp_path / "base")
    beside = adapter(tmp_path / "adapter", where)
    expected = f"source={{address: local:{where}, adapter: local:{beside}}}"
    with pytest.raises(ValueError, match=re.escape(expected)):
        model_folder(f"local:{beside}")
    config = json.loads((beside / "adapter_config.json").read_text())
    (beside / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "Qwen/Qwen3-8B"}))
    with pytest.raises(ValueError, match="address: hub:Qwen/Qwen3-8B, adapter: local:"):
        model_folder(f"local:{beside}")
    with pytest.raises(ValueError, match=r"base holds no adapter_config.json; name a folder that PEFT saved"):
        model_folder(f"local:{where}", adapter=f"local:{where}")
