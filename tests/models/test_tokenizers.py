import random

import pytest
from transformers import AutoTokenizer

from kd.models.tokenizers import END, PAD, ROLES, byte_tokenizer

TOKENIZER = byte_tokenizer()
SPECIAL = (PAD, END, *ROLES)
CONVERSATION = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def texts(n: int):
    """Any characters: controls, spaces, unassigned, beyond the basic plane."""
    draw = random.Random(0)
    for i in range(n):
        points = (draw.randrange(min(0x80 << i % 14, 0x110000)) for _ in range(draw.randrange(20)))
        yield "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)


def test_every_text_is_its_bytes_and_comes_back():
    for text in texts(200):
        assert len(ids(text)) == len(text.encode())
        assert TOKENIZER.decode(ids(text)) == text


def test_each_byte_has_one_id_below_256():
    two_byte_characters = "".join(map(chr, range(0x800)))
    seen = set(ids(two_byte_characters))
    assert seen <= set(range(256))
    assert len(seen) == 128 + 64 + 30  # ASCII, continuation bytes, leading bytes C2..DF


def test_nothing_is_added_to_a_text():
    assert TOKENIZER("ab")["input_ids"] == ids("ab")


@pytest.mark.parametrize("token", SPECIAL)
def test_a_special_token_is_one_id_and_left_out_of_text(token):
    assert len(ids(f"a{token}b")) == 3
    assert ids(token)[0] >= 256
    assert TOKENIZER.decode(ids(f"a{token}b"), skip_special_tokens=True) == "ab"


def test_end_and_padding_differ():
    assert TOKENIZER.eos_token_id == ids(END)[0]
    assert TOKENIZER.pad_token_id == ids(PAD)[0] != TOKENIZER.eos_token_id


def test_a_conversation_is_written_as_stated():
    text = TOKENIZER.apply_chat_template(CONVERSATION, tokenize=False)
    assert text == "<|user|>2 + 2?<|end|><|assistant|>4<|end|>"
    prompt = TOKENIZER.apply_chat_template(CONVERSATION[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|user|>2 + 2?<|end|><|assistant|>"


def test_a_saved_tokenizer_is_the_same(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    assert (loaded.eos_token_id, loaded.pad_token_id) == (TOKENIZER.eos_token_id, TOKENIZER.pad_token_id)
    text = TOKENIZER.apply_chat_template(CONVERSATION, tokenize=False)
    assert loaded.apply_chat_template(CONVERSATION, tokenize=False) == text
    assert loaded(" a  b \n", add_special_tokens=False)["input_ids"] == ids(" a  b \n")
