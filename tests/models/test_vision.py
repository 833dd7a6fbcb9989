"""A vision-language model reads what `transformers` does on its processor's outputs, in training and in generation.

Run: python -m pytest tests/models/test_vision.py
"""

from dataclasses import replace

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from kd.data.images import view_of, vision_of
from kd.data.rows import tokenizer_digest
from kd.data.sequences import Encoder, prompt_ids
from kd.experiment.export import export
from kd.generators.generation import read_again
from kd.generators.settings import Decoding
from kd.generators.torch import Torch
from kd.generators.transformers import Transformers
from kd.models.flops import reading_flops
from kd.models.networks import pretrained, scratch
from kd.models.tokenizers import byte_tokenizer
from kd.models.vision import CHAT_TEMPLATE, check_inputs
from kd.rollouts.buffer import _batch, _plain
from kd.seeding import seeded
from tests.data.test_images import RECORDS, by_the_processor
from tests.tiny import record, tiny
from tests.vision import IDEFICS3, SIDE, noise, seen, tiny_vision

MODEL = tiny_vision()
GREEDY = Decoding(max_new_tokens=6, temperature=0.0, batch_size=4)
LOGPROBS = frozenset({"logprobs"})


def encoder(**settings: float) -> Encoder:
    return Encoder(MODEL.tokenizer, None, max_length=200, max_tokens=10_000, max_padding=1.0, **settings)


def their_loss(items, model=MODEL) -> torch.Tensor:
    """-log p of all answers with their end tokens by the library's forward pass, each conversation alone."""
    total, words = torch.zeros((), dtype=torch.float64), model.tokenizer
    for item in items:
        [row] = Encoder(words, None, max_length=200, max_tokens=10_000).encode(item)
        inputs = by_the_processor(item, words)
        inputs["pixel_values"] = inputs["pixel_values"].double()
        logits = model.network(**inputs).logits[0, :-1].log_softmax(-1)
        labels = inputs["input_ids"][0, 1:]
        total = total - logits.gather(-1, labels[:, None])[row.prompt - 1 : len(row.ids) - 1].sum()
    return total


def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
    MODEL.network.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in MODEL.network.parameters() if p.grad is not None]


def test_loss_and_gradient_are_those_of_the_library():
    [batch] = encoder().batches(RECORDS)
    ours = -MODEL(batch.student, LOGPROBS).logprobs.sum()
    theirs = their_loss(RECORDS)
    assert abs((ours - theirs).item()) < 1e-9 * theirs.item()
    for a, b in zip(gradients(ours), gradients(theirs), strict=True):
        assert torch.allclose(a, b, atol=1e-9)
    assert any(p.grad.abs().max() > 0 for p in MODEL.network.model.vision_model.parameters() if p.grad is not None)


def llava(folder) -> None:
    """A tiny LLaVA over bytes, with a tower of CLIP: another architecture, and other shapes of pixels."""
    words = byte_tokenizer()
    words.add_tokens(["<image>"], special_tokens=True)
    words.chat_template = CHAT_TEMPLATE
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    tower = CLIPVisionConfig(**sizes, num_hidden_layers=1, image_size=SIDE, patch_size=4, projection_dim=16)
    text = LlamaConfig(**sizes, num_hidden_layers=2, vocab_size=len(words), initializer_range=0.3, pad_token_id=256)
    kept = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    config = LlavaConfig(
        vision_config=tower, text_config=text, image_token_index=words.convert_tokens_to_ids("<image>"), **kept
    )
    with seeded(0, "llava"):
        LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor = LlavaProcessor(
        images, words, patch_size=4, vision_feature_select_strategy="full", num_additional_image_tokens=1
    )
    processor.save_pretrained(folder)


def test_another_architecture_is_read_by_the_same_path(tmp_path):
    llava(tmp_path)
    model = pretrained(source=f"local:{tmp_path}", dtype="float64").eval()
    [batch] = Encoder(model.tokenizer, None, max_length=200, max_tokens=10_000, max_padding=1.0).batches(RECORDS)
    with torch.no_grad():
        ours, theirs = -model(batch.student, LOGPROBS).logprobs.sum(), their_loss(RECORDS, model)
    assert abs(float(ours - theirs)) < 1e-9 * float(theirs)
    [written] = Torch()(model, [prompt_ids(RECORDS[1], model.tokenizer)], decoding=GREEDY)
    assert len(written[0].ids) == 6


def test_a_network_that_requires_kinds_of_tokens_is_reported():
    config = AutoConfig.for_model("qwen2_5_vl")
    with torch.device("meta"), pytest.raises(ValueError, match="requires mm_token_type_ids beside the ids"):
        check_inputs(AutoModelForImageTextToText.from_config(config))


def test_padding_and_neighbours_change_nothing():
    [together] = encoder().batches([*RECORDS, record(9)])  # three sizes, and one without an image
    found = dict(zip((r.id for r in together.records), MODEL(together.student, LOGPROBS).logprobs.sum(1), strict=True))
    for item in [*RECORDS, record(9)]:
        [alone] = encoder().batches([item])
        assert abs(float(MODEL(alone.student, LOGPROBS).logprobs.sum() - found[item.id])) < 1e-9
    other = replace(RECORDS[0], images=(noise(99),))
    [changed] = encoder().batches([other])
    assert abs(float(MODEL(changed.student, LOGPROBS).logprobs.sum() - found["0"])) > 1e-3


def test_hidden_states_and_queries_are_those_of_the_language_model():
    [batch] = encoder().batches(RECORDS)
    output = MODEL(batch.student, frozenset({"hidden", "attentions", "qkv"}))
    assert [len(x) for x in (output.hidden, output.attentions, output.qkv)] == [3, 2, 2]
    assert output.qkv[0][0].shape[2] == batch.student.tokens.shape[1]


# ---- generation ------------------------------------------------------------------------------------------------------


def test_engines_generate_what_the_library_does():
    prompts = [prompt_ids(item, MODEL.tokenizer) for item in RECORDS]
    ours = Torch()(MODEL, prompts, decoding=GREEDY)
    theirs = Transformers(options={})(MODEL, prompts, decoding=GREEDY)
    assert [one.ids for (one,) in ours] == [one.ids for (one,) in theirs]
    for prompt, (one,) in zip(prompts, ours, strict=True):
        [[alone]] = Torch()(MODEL, [prompt], decoding=GREEDY)
        assert alone.ids == one.ids
        inputs = {"input_ids": torch.tensor([list(prompt)]), **view_of(prompt).pixels()}
        plain = MODEL.network.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=257)
        assert tuple(plain[0, len(prompt) :].tolist()) == one.ids


def test_a_token_of_an_image_is_never_generated_and_logprobs_are_the_models_own():
    drawing = Decoding(max_new_tokens=40, samples=32, temperature=4.0, batch_size=64)
    prompts = [prompt_ids(item, MODEL.tokenizer) for item in RECORDS[:2]]
    for engine in (Torch(), Transformers(options={})):
        torch.manual_seed(0)
        written = engine(MODEL, prompts, decoding=drawing)
        ids = {i for group in written for one in group for i in one.ids}
        assert len(ids) > 200
        assert vision_of(MODEL.tokenizer).token not in ids
        [batch] = encoder().written(RECORDS[:2], written)
        again = read_again(MODEL, batch.student)
        assert torch.allclose(again.float(), batch.old_logprobs, atol=1e-4)


def test_a_buffer_keeps_images_in_its_state():
    [batch] = encoder().batches(RECORDS[:1])
    there = _batch(_plain(batch))
    assert there.records == batch.records
    assert torch.equal(MODEL(there.student, LOGPROBS).logprobs, MODEL(batch.student, LOGPROBS).logprobs)


# ---- refusals, and the way to disk and back --------------------------------------------------------------------------


def test_images_and_their_tokens_go_together():
    [batch] = encoder().batches(RECORDS)
    with pytest.raises(ValueError, match="tokens of images without the images"):
        MODEL(replace(batch.student, pixels=()), LOGPROBS)
    with pytest.raises(ValueError, match="tokens of images without the images"):
        Torch()(MODEL, [list(prompt_ids(RECORDS[0], MODEL.tokenizer))], decoding=GREEDY)
    with pytest.raises(ValueError, match="LlamaForCausalLM reads no images"):
        tiny()(batch.student, LOGPROBS)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "llava"}, "a processor of images is made for idefics3 alone"),
        ({"vision_config": {**IDEFICS3["vision_config"], "image_size": 18}}, "patch_size=4 x scale_factor=2; take 16"),
    ],
)
def test_an_architecture_without_a_processor_is_reported(changes, told):
    with pytest.raises(ValueError, match=told):
        scratch(architecture={**IDEFICS3, **changes})


def test_an_exported_model_is_read_again_with_its_processor(tmp_path):
    assert export(MODEL, tmp_path, "") == []
    again = pretrained(source=f"local:{tmp_path}", dtype="float64").eval()
    assert tokenizer_digest(again.tokenizer) == tokenizer_digest(MODEL.tokenizer)
    [batch] = Encoder(again.tokenizer, None, max_length=200, max_tokens=10_000, max_padding=1.0).batches(RECORDS)
    [own] = encoder().batches(RECORDS)
    assert torch.equal(again(batch.student, LOGPROBS).logprobs, MODEL(own.student, LOGPROBS).logprobs)
    adapted = pretrained(source=f"local:{tmp_path}", dtype="float64", lora={"r": 2, "target_modules": "all-linear"})
    assert torch.equal(adapted.eval()(batch.student, LOGPROBS).logprobs, again(batch.student, LOGPROBS).logprobs)
    (tmp_path / "processor_config.json").unlink()
    with pytest.raises(ValueError, match="a vision-language model whose processor"):
        pretrained(source=f"local:{tmp_path}")


def test_the_language_model_alone_is_counted():
    text = sum(p.numel() for p in MODEL.network.model.text_model.layers.parameters())
    text += MODEL.network.model.text_model.norm.weight.numel()
    [batch] = encoder().batches([seen(0)])
    s = batch.student
    tokens, rows = int(s.lengths.sum()), int(s.mask.sum())
    attention = 2 * 2 * 2 * 16 * tokens**2 // 2  # layers, keys and values, heads x width
    head = MODEL.network.get_output_embeddings().weight.numel()
    assert reading_flops(MODEL, s) == 2 * text * tokens + attention + 2 * head * rows
