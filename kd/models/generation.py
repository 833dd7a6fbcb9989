"""Responses written by a language model, many prompts at once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from kd.models.language_model import LanguageModel
from kd.sequences import pad_id


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Ids of one response to each prompt, in the order of the prompts; the end token included where one was written.

    The decoding is what the arguments say: nothing of a checkpoint's saved generation settings counts, except that
    all its end tokens end a response. Ids beyond the tokenizer's (a padded head) are never written. The network is
    in eval mode meanwhile and is left as it was.

    Args:
        prompts: ids, of any lengths; those of similar length share a batch.
        max_new_tokens: a response that long ends without an end token.
        temperature: 0 is greedy; above 0, samples are drawn from torch's global generator.
        top_p: nucleus of the tempered distribution that is sampled from (arXiv 1904.09751); 1 is all of it.
        batch_size: prompts decoded together.
        progress: called with the number of prompts just finished.

    Raises:
        ValueError: a setting is out of range, a prompt is empty, or the tokenizer has no end token.
    """
    check_decoding(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    _check_prompts(prompts, batch_size)
    ends = end_ids(model)
    config = _generation_config(ends, pad_id(model.tokenizer), max_new_tokens, temperature, top_p)
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))  # the longest, so memory peaks, first
    responses: dict[int, list[int]] = {}
    with _decoding(model.network, config):
        for start in range(0, len(order), batch_size):
            group = order[start : start + batch_size]
            written = _write(model, [prompts[i] for i in group], config)
            responses |= {i: _until_end(ids, ends) for i, ids in zip(group, written, strict=True)}
            if progress is not None:
                progress(len(group))
    return [responses[i] for i in range(len(prompts))]


def end_ids(model: LanguageModel) -> frozenset[int]:
    """Ids that end a response: the tokenizer's end token, and the checkpoint's further ones where it lists several.

    A single id in the checkpoint's settings adds nothing: it is the tokenizer's, or a leftover of the base model.
    """
    end = model.tokenizer.eos_token_id
    if end is None:
        raise ValueError("the tokenizer has no end token, so no response would end; set its eos_token")
    declared = model.network.generation_config.eos_token_id
    return frozenset({end, *(declared if isinstance(declared, list) else ())})


def check_decoding(*, max_new_tokens: int, temperature: float, top_p: float, samples: int = 1) -> None:
    """Raises ValueError for settings that nothing, or nothing sensible, can be decoded with."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} leaves no room for a response; set it to 1 or more")
    if temperature < 0:
        raise ValueError(f"temperature={temperature} is negative; set it to 0 (greedy) or above")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} is not a share of probability; set it above 0 and at most 1")
    if samples < 1:
        raise ValueError(f"samples={samples} asks for no response; set it to 1 or more")
    if samples > 1 and temperature == 0:
        raise ValueError(f"samples={samples} at temperature=0 are all the same; raise temperature or set samples=1")


def _check_prompts(prompts: Sequence[Sequence[int]], batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} decodes nothing; set it to 1 or more")
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {i} has no ids, so there is nothing to continue; give it at least one")


def _generation_config(
    ends: frozenset[int], pad: int, max_new_tokens: int, temperature: float, top_p: float
) -> GenerationConfig:
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {}
    return GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=sorted(ends), pad_token_id=pad, use_cache=True, **sampling
    )


@contextmanager
def _decoding(network: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Eval mode, and `config` as the network's own: `generate` fills what a config leaves open from that one."""
    modes = {module: module.training for module in network.modules()}
    saved = network.generation_config
    try:
        network.eval()
        network.generation_config = config
        yield
    finally:
        network.generation_config = saved
        for module, mode in modes.items():
            module.training = mode


def _write(model: LanguageModel, prompts: Sequence[Sequence[int]], config: GenerationConfig) -> list[list[int]]:
    """What is written after each prompt, padded after the end token."""
    width = max(map(len, prompts))
    tokens = torch.full((len(prompts), width), pad_id(model.tokenizer))
    mask = torch.zeros_like(tokens)
    for i, prompt in enumerate(prompts):
        tokens[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    network: Any = model.network
    device = network.device
    out = network.generate(
        input_ids=tokens.to(device),
        attention_mask=mask.to(device),
        generation_config=config,
        logits_processor=LogitsProcessorList([_KnownIds(model.vocabulary)]),
    )
    return out[:, width:].tolist()


class _KnownIds(LogitsProcessor):
    """Keeps the rows of a padded head that no token belongs to from being written."""

    def __init__(self, vocabulary: int):
        self.vocabulary = vocabulary

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, self.vocabulary :] = -torch.inf
        return scores


def _until_end(ids: Sequence[int], ends: frozenset[int]) -> list[int]:
    last = next((i for i, token in enumerate(ids) if token in ends), len(ids) - 1)
    return list(ids[: last + 1])
