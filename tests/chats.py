"""Tokenizers with the habits of several families, trained on a few sentences."""

import json
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and loop.last %}<|im_start|>assistant\n"
    "{% if '</think>' not in m['content'] %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
SENTENCES = [
    "Spell this word backward (example: sun -> nus): house",
    "Tom has 12 apples and buys 7 more. How many has he? The answer is 19.",
    "def add(a, b):\n    return a + b\n",
    "naïve café 日本 🙂 3.5€ the quick brown fox jumps over the lazy dog",
] * 8
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
GEMMA_TOKENS = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")


def byte_level(
    template: str | None = CHATML, eos: str | None = "<|im_end|>", special: tuple[str, ...] = CHATML_TOKENS, **more: Any
) -> PreTrainedTokenizerFast:
    """As of GPT-2, Qwen and Llama 3."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=390, initial_alphabet=alphabet))
    inner.add_special_tokens([AddedToken(token, special=True) for token in special])
    settings = {"pad_token": special[0], "clean_up_tokenization_spaces": False, **more}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=eos, **settings)
    tokenizer.chat_template = template
    return tokenizer


def gemma(**more: Any) -> PreTrainedTokenizerFast:
    """Turns end with <end_of_turn>, and the end token is another."""
    return byte_level(GEMMA, "<eos>", GEMMA_TOKENS, bos_token="<bos>", **more)


def sentencepiece() -> PreTrainedTokenizerFast:
    """As of Llama 2: a space is put before every text, and a post-processor would write a second <s>."""
    inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    words = [word for sentence in SENTENCES for word in sentence.split()]  # so no token crosses a space
    inner.train_from_iterator(words, trainers.BpeTrainer(vocab_size=420, special_tokens=tokens))
    described = json.loads(inner.to_str())  # the bytes are ordinary tokens
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] not in tokens[3:]]
    inner = Tokenizer.from_str(json.dumps(described))
    start = [("<s>", inner.token_to_id("<s>"))]
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=start)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = LLAMA2
    return tokenizer
