"""Checkpoints that cannot be read, each in one sentence; and chat templates in place of a checkpoint's own.

Run: python -m pytest tests/models/test_checkpoints.py
"""

import pytest
from transformers import AutoConfig

from kd.data.chat_template import render
from kd.models.networks import pretrained, pruned, scratch
from tests.models.test_networks import saved
from tests.tiny import LLAMA, record, tiny


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "lm_head.weight"])
def test_weights_that_are_no_numbers_are_reported(tmp_path, name, value):
    model = tiny(dtype="float32", tie_word_embeddings=False)
    model.network.get_parameter(name).data[1, 2] = value
    source = saved(model, tmp_path)
    with pytest.raises(ValueError, match=f"1 of [0-9]+ weights of {name} are NaN or infinite"):
        pretrained(source=source)


def test_a_folder_without_a_tokenizer_is_reported(tmp_path):
    source = saved(tiny(dtype="float32"), tmp_path)
    for path in tmp_path.glob("*token*"):
        path.unlink()
    with pytest.raises(ValueError, match="holds no tokenizer that transformers can read"):
        pretrained(source=source)


@pytest.mark.parametrize(
    ("model_type", "fields", "told"),
    [
        ("t5", {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8}, "is an encoder-decoder"),
        (
            "llava",
            {"text_config": {"model_type": "llama"}, "vision_config": {"model_type": "clip_vision_model"}},
            "vision",
        ),
        ("vit", {}, "is no causal language model"),
    ],
)
def test_other_kinds_of_models_are_reported_before_their_weights_are_read(tmp_path, model_type, fields, told):
    source = saved(tiny(dtype="float32"), tmp_path)
    AutoConfig.for_model(model_type, **fields).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=told):
        pretrained(source=source)


# --- chat templates ---

PLAIN = "{% for m in messages %}[{{ m['content'] }}]<|end|>{% endfor %}{% if tone is defined %}{{ tone }}{% endif %}"


@pytest.mark.parametrize("way", ["text", "file"])
def test_another_template_takes_the_place_of_the_checkpoints(tmp_path, way):
    source = saved(tiny(dtype="float32"), tmp_path / "model")
    (tmp_path / "own.jinja").write_text(PLAIN, encoding="utf-8")
    template = PLAIN if way == "text" else str(tmp_path / "own.jinja")
    chosen = {"chat_template": template, "template_kwargs": {"tone": "!"}}
    made = [
        pretrained(source=source, **chosen),
        pruned(source=source, layers=1, **chosen),
        scratch(architecture=LLAMA, **chosen),
        scratch(architecture=LLAMA, tokenizer=source, **chosen),
    ]
    for model in made:
        assert render(record(0, "q").prompt, model.tokenizer) == "[q]<|end|>!"


def test_a_template_that_is_not_there_is_reported(tmp_path):
    with pytest.raises(ValueError, match="is neither a file nor a template"):
        scratch(architecture=LLAMA, chat_template=str(tmp_path / "none.jinja"))
