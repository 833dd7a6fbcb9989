"""Prompts with images: the ids of the processor, places in texts, and pixels beside the rows that they belong to.

Run: python -m pytest tests/data/test_images.py
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase
from transformers.image_utils import SizeDict

from kd.data.contamination import overlapping
from kd.data.images import PLACE, decoded, drawn, from_plain, image_in, plain, view_of, vision_of
from kd.data.sequences import Encoder, prompt_ids, same_text
from kd.data.windows import Data
from kd.skills.records import checked
from kd.types import Image, Record, Response
from tests.tiny import record, tiny
from tests.vision import SIDE, noise, seen, tiny_vision

WORDS = tiny_vision().tokenizer
VISION = vision_of(WORDS)
RECORDS = [seen(0), seen(1, "A longer question, of two.", "no", images=2), seen(2, "?", "a long answer")]


def encoder(max_length: int = 200, **settings: float) -> Encoder:
    return Encoder(WORDS, None, max_length=max_length, max_tokens=10_000, max_padding=1.0, **settings)


def by_the_processor(item: Record, words: PreTrainedTokenizerBase = WORDS) -> dict:
    """The conversation by the library alone: its template, then its processor."""
    [message] = item.prompt
    content = [{"type": "image"}] * len(item.images) + [{"type": "text", "text": message["content"].replace(PLACE, "")}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": item.responses[0].text}]}
    text = words.apply_chat_template([{"role": "user", "content": content}, answer], tokenize=False)
    shown = [decoded(image) for image in item.images]
    return vision_of(words).processor(text=[text], images=[shown], add_special_tokens=False, return_tensors="pt")


@pytest.mark.parametrize("item", RECORDS, ids=["one", "two images", "long answer"])
def test_ids_and_pixels_are_those_of_the_processor(item):
    [row], theirs = encoder().encode(item), by_the_processor(item)
    assert list(row.ids) == theirs["input_ids"][0].tolist()
    pixels = row.view.pixels()
    assert pixels.keys() == {"pixel_values", "pixel_attention_mask"}
    assert all(torch.equal(pixels[name], theirs[name]) for name in pixels)
    assert list(prompt_ids(item, WORDS)) == list(row.ids[: row.prompt])


def test_an_image_in_several_pieces_has_the_ids_of_all():
    """As SmolVLM reads large images: tiles, with their places as text between them, and the whole once more."""
    words = tiny_vision().tokenizer
    images = vision_of(words).processor.image_processor
    images.do_image_splitting, images.size = True, SizeDict(longest_edge=2 * SIDE)
    wide = drawn(np.random.default_rng(0).integers(0, 256, (8, 32, 3)))
    item = replace(RECORDS[1], images=(noise(0), wide))
    [row] = Encoder(words, None, max_length=500, max_tokens=1000).encode(item)
    theirs = by_the_processor(item, words)
    assert list(row.ids) == theirs["input_ids"][0].tolist()
    assert row.ids.count(VISION.token) == 4 * (5 + 3)
    assert torch.equal(row.view.pixels()["pixel_values"], theirs["pixel_values"])


def test_tokens_of_images_are_read_and_never_labels():
    [batch] = encoder().batches(RECORDS)
    image, s = VISION.token, batch.student
    assert (s.tokens == image).sum(1).tolist() == [4 * len(r.images) for r in batch.records]
    assert not (s.labels[s.mask] == image).any()
    for_turns = encoder(every_turn=True)
    turns = replace(
        RECORDS[1],
        prompt=(
            {"role": "user", "content": PLACE + "First?"},
            {"role": "assistant", "content": "One."},
            {"role": "user", "content": "And" + PLACE + "?"},
        ),
    )
    [batch] = for_turns.batches([turns])
    s = batch.student
    assert (s.tokens == image).sum() == 8
    assert not (s.labels[s.mask] == image).any()
    assert WORDS.decode(s.labels[s.mask]) == "One.<|end|>no<|end|>"


def test_rows_keep_their_images_when_some_are_taken():
    [batch] = encoder().batches(RECORDS)
    part = batch.student.at([2, 0])
    assert part.pixels == (batch.student.pixels[2], batch.student.pixels[0])
    [mixed] = encoder().batches([*RECORDS[:1], record(7)])
    assert sorted(len(pixels) for pixels in mixed.student.pixels) == [0, 2]
    [text] = encoder().batches([record(7)])
    assert text.student.pixels == ()


def test_a_prompt_is_read_whole_or_left_out_and_a_response_is_cut():
    [row] = encoder().encode(RECORDS[0])
    assert encoder(row.prompt).encode(RECORDS[0]) is None
    [cut] = encoder(row.prompt + 2).encode(RECORDS[0])
    assert cut.truncated
    assert cut.ids == row.ids[: row.prompt + 2]
    assert cut.ids.count(VISION.token) == 4
    assert encoder(row.prompt).batches(RECORDS[:1]) == []


def test_text_that_reads_like_a_token_of_an_image_stays_text():
    told = replace(RECORDS[0], prompt=({"role": "user", "content": f"{PLACE}Is <image> a word?"},))
    ids = prompt_ids(told, WORDS)
    assert ids.count(VISION.token) == 4
    assert WORDS.decode(ids).count("<image>") == 5
    alone = record(0, f"{PLACE} and <image> are characters")
    assert VISION.token not in prompt_ids(alone, WORDS)
    assert view_of(prompt_ids(alone, WORDS)) is None


def test_an_image_that_a_model_does_not_read_is_named_with_its_record():
    with pytest.raises(ValueError, match=r"record 0 of seen has an image, which a model of text does not read"):
        prompt_ids(RECORDS[0], tiny().tokenizer)
    blind = tiny_vision().tokenizer
    blind.chat_template = "{% for m in messages %}{{ m['content'][-1]['text'] }}<|end|>{% endfor %}"
    with pytest.raises(ValueError, match="has 1 images, but the chat template writes 0"):
        prompt_ids(RECORDS[0], blind)


def test_parts_of_a_message_are_places_where_the_record_has_images():
    parts = ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]},)
    item = Record("a", "s", parts, (Response("x"),), images=(noise(0),))
    assert checked(item).prompt[0]["content"] == f"{PLACE}Which?"
    with pytest.raises(ValueError, match=r"record a of s has 2 images and 1 places for them"):
        checked(replace(item, images=(noise(0), noise(1))))
    with pytest.raises(ValueError, match="a part that is no text"):
        checked(replace(item, images=()))


def test_models_with_other_settings_of_images_do_not_share_rows():
    same, other = tiny_vision().tokenizer, tiny_vision().tokenizer
    assert same_text(WORDS, same)
    vision_of(other).processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    assert not same_text(WORDS, other)


def test_another_image_is_other_content():
    other = replace(RECORDS[0], images=(noise(99),))
    assert encoder().encode(RECORDS[0]) != encoder().encode(other)
    own = encoder()
    first, second = own.encode(RECORDS[0]), own.encode(other)
    assert first[0].ids == second[0].ids
    assert first[0].view.digest != second[0].view.digest
    digests = [Data([item], [], encoder(), window=1, steps=1, seed=0).order_digest() for item in (RECORDS[0], other)]
    assert digests[0] != digests[1]
    assert overlapping([RECORDS[0]], [replace(RECORDS[0], id="b"), replace(other, id="c")]) == ["b"]


def test_files_of_images(tmp_path):
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    image = drawn(pixels)
    assert np.array_equal(np.asarray(decoded(image)), pixels)
    decoded(image).save(tmp_path / "a.png")
    for value in ("a.png", {"path": "a.png", "bytes": None}, {"bytes": (tmp_path / "a.png").read_bytes()}):
        assert np.array_equal(np.asarray(decoded(image_in(value, tmp_path))), pixels)
    assert image_in(decoded(image), tmp_path) == image
    assert from_plain(plain([image])) == (image,)
    (tmp_path / "b.png").write_bytes(b"no image")
    for value, told in (("c.png", "names the image c.png"), ("b.png", "cannot be read"), (3, "has int as an image")):
        with pytest.raises(ValueError, match=told):
            image_in(value, tmp_path)
    assert Image(b"a") == Image(b"a") != Image(b"b")
