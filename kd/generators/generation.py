"""Generation of responses by language models, many prompts at once."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from kd.data.chat_template import end_id
from kd.eval_mode import eval_mode
from kd.generators.account import charge_generation, charge_reading, shared
from kd.generators.decoding import CachedDecoder, Decoder, LogitsHead
from kd.generators.llama_decoder import LlamaDecoder, Weights, readable, shared_beginning
from kd.generators.sampling import Choose, logprobs_of
from kd.generators.settings import Decoding
from kd.generators.sheet import Sheet
from kd.models.language_model import LanguageModel
from kd.progress import count_tokens
from kd.types import Sequences, Source, Written

_WORTH_PACKING = 16  # steps after which the copies of weights have paid
_WORTH_FILLING = 4  # a batch is filled up where one row in so many is free: the others' states are copied once
DIVERGED = "the model's logits became NaN in generation, so it has diverged; lower optim.lr, or set optim.clip=1.0"


def write(
    readers: Sequence[LanguageModel],
    prompts: Sequence[Sequence[int]],
    *,
    samples: int = 1,
    max_new_tokens: int,
    choose: Choose,
    batch_size: int,
    source: Source = "student",
    progress: Callable[[int], None] | None = None,
) -> list[list[Written]]:
    """`samples` responses to each prompt, in the order of the prompts, chosen by `choose` from the readers' logits.

    All readers read the same ids, prompts and responses, each with a cache of its own. A prompt is read once for all
    its samples; a row ends at an end token of any reader and is removed from the batch; where no random numbers are
    drawn, prompts that wait take the places of finished rows. A checkpoint's saved generation settings are ignored,
    except that all its end tokens end a response. Ids beyond the tokenizers' (a padded head) are never generated, nor
    is the token of an image. The networks are in eval mode meanwhile, and their modes are
    restored; no gradient is recorded, and the tensors may be used in training, under `torch.inference_mode` too. The
    cost is added to every open meter (`kd.generators.account`).

    Args:
        readers: models with the same ids. The first one's own log-probabilities are the responses' `old_logprobs`.
        prompts: ids, of any lengths; those of similar length share a batch.
        max_new_tokens: a response that long ends without an end token, and is `truncated`.
        choose: a strategy of `kd.generators.sampling`.
        batch_size: responses that are generated at a time.
        source: the model that they are attributed to.
        progress: called with the number of prompts just finished.

    Raises:
        ValueError: a setting is out of range, a prompt is empty, or a tokenizer has no end token.
        FloatingPointError: a reader's logits are no numbers.
    """
    started = time.perf_counter()
    responses = decode(
        readers,
        prompts,
        samples=samples,
        max_new_tokens=max_new_tokens,
        choose=choose,
        batch_size=batch_size,
        source=source,
        progress=progress,
    )
    seconds = time.perf_counter() - started
    lengths = [[len(answer.ids) for answer in group] for group in responses]
    read = shared([len(prompt) for prompt in prompts], lengths)
    charge_generation(readers, read, responses, source=source, seconds=seconds)
    return responses


def decode(
    readers: Sequence[LanguageModel],
    prompts: Sequence[Sequence[int]],
    *,
    samples: int = 1,
    max_new_tokens: int,
    choose: Choose,
    batch_size: int,
    source: Source = "student",
    progress: Callable[[int], None] | None = None,
) -> list[list[Written]]:
    """The responses of `write`, for an engine whose call charges their cost."""
    Decoding(max_new_tokens=max_new_tokens, samples=samples).check()
    check_prompts(prompts, batch_size)
    ends = torch.tensor(
        sorted({end for reader in readers for end in end_ids(reader)}), device=readers[0].network.device
    )
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))  # the longest, so memory peaks, first
    together = max(1, batch_size // samples)
    responses: dict[int, list[Written]] = {}
    with eval_mode([reader.network for reader in readers]):
        steps = max_new_tokens * math.ceil(len(prompts) * samples / batch_size)
        images = sorted({reader.vision.token for reader in readers if reader.vision is not None})
        banned = torch.tensor(images, device=ends.device) if images else None
        batches = _Batches(openers(readers, steps=steps), ends, max_new_tokens, choose, source, banned)
        fills = choose.certain and samples == len(readers) == 1 and len(prompts) > batch_size and readable(readers[0])
        if fills:
            filled = batches.write_filled([prompts[i] for i in order], batch_size, progress)
            responses = {i: [one] for i, one in zip(order, filled, strict=True)}
        for start in range(0, 0 if fills else len(order), together):
            group = order[start : start + together]
            written = batches.write([prompts[i] for i in group], samples, batch_size)
            responses |= dict(zip(group, written, strict=True))
            if progress is not None:
                progress(len(group))
    _check_finite(responses)
    return [responses[i] for i in range(len(prompts))]


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
    """Ids of one response to each prompt, the end token included where one was generated. See `write`.

    Args:
        temperature, top_p: see `kd.generators.sampling.Sampled`.

    Raises:
        ValueError: a setting is out of range, a prompt is empty, or the tokenizer has no end token.
    """
    decoding = Decoding(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    decoding.check()
    written = write(
        [model],
        prompts,
        max_new_tokens=max_new_tokens,
        choose=decoding.sampled,
        batch_size=batch_size,
        progress=progress,
    )
    return [list(response.ids) for (response,) in written]


def end_ids(model: LanguageModel) -> frozenset[int]:
    """Ids that end a response: the template's end of a turn, the tokenizer's end token, and the checkpoint's further
    ones where it lists several.

    A single id in the checkpoint's settings adds nothing: it is the tokenizer's, or a leftover of the base model.

    Raises:
        ValueError: there is none.
    """
    declared = model.network.generation_config.eos_token_id
    known = {end_id(model.tokenizer), model.tokenizer.eos_token_id, *(declared if isinstance(declared, list) else ())}
    return frozenset(known - {None})


def _check_finite(responses: Mapping[int, Sequence[Written]]) -> None:
    """Raises FloatingPointError for NaN: ids drawn from it would be garbage that looks like text."""
    written = [answer for group in responses.values() for answer in group if len(answer.ids)]
    logprobs = [x for answer in written for x in (answer.old_logprobs, answer.behaviour_logprobs) if x is not None]
    if logprobs and torch.cat(logprobs).isnan().any():
        raise FloatingPointError(DIVERGED)


def check_prompts(prompts: Sequence[Sequence[int]], batch_size: int) -> None:
    """Raises ValueError for prompts that cannot be continued."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} decodes nothing; set it to 1 or more")
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {i} has no ids, so there is nothing to continue; give it at least one")


def read_again(model: LanguageModel, sequences: Sequences) -> Float[Tensor, "B T"]:
    """Log-probabilities of the labels under the current weights, without dropout, as in generation; no gradient.

    On the CPU, as all signals of a batch before its step. The cost is added to every open meter.
    """
    lengths, rows = sequences.lengths, sequences.mask.sum(1)
    charge_reading(model, (lengths - rows + 1).tolist(), rows.tolist())
    with eval_mode([model.network]):
        output = model(sequences.to(model.network.device), frozenset({"logprobs"}))
    return output.logprobs.cpu()


def openers(readers: Sequence[LanguageModel], *, steps: int) -> list[Callable[..., Decoder]]:
    """For each reader a factory of its decoders, over the ids that all readers have; weights are laid out once."""
    known, pack = min(reader.vocabulary for reader in readers), steps >= _WORTH_PACKING
    openers: list[Callable[..., Decoder]] = []
    for reader in readers:
        logits_head = LogitsHead(reader, known, pack=pack)
        if readable(reader):
            openers.append(partial(LlamaDecoder, Weights(reader, pack=pack), logits_head))
        else:
            openers.append(partial(CachedDecoder, reader, logits_head))
    return openers


class _Batches:
    """The generation of one batch of prompts after another."""

    def __init__(
        self,
        openers: Sequence[Callable[..., Decoder]],
        ends: Tensor,
        max_new_tokens: int,
        choose: Choose,
        source: Source,
        banned: Tensor | None,
    ):
        self.openers, self.ends, self.max_new_tokens = openers, ends, max_new_tokens
        self.choose, self.source, self.banned = choose, source, banned

    def write(self, prompts: Sequence[Sequence[int]], samples: int, batch_size: int) -> list[list[Written]]:
        """`samples` responses to each prompt, at most `batch_size` at a time; several batches only for one prompt."""
        room = max(map(len, prompts)) + self.max_new_tokens
        read = [opened(room=room) for opened in self.openers]
        logits = [decoder.start(prompts) for decoder in read]
        written: list[list[Written]] = [[] for _ in prompts]
        for start in range(0, samples, batch_size):
            count, last = min(batch_size, samples - start), start + batch_size >= samples
            rows = torch.arange(len(prompts), device=self.ends.device).repeat_interleave(count)
            decoders = read if last else [decoder.copy() for decoder in read]
            for decoder in decoders if count > 1 or len(rows) != len(prompts) else ():
                decoder.keep(rows)
            for row, response in enumerate(self._continue(decoders, [one[rows] for one in logits])):
                written[row // count].append(response)
        return written

    def _continue(self, decoders: Sequence[Decoder], logits: Sequence[Tensor]) -> list[Written]:
        """One response per row. logits: of the token after its prompt."""
        sheet = Sheet(len(logits[0]), self.max_new_tokens, self.ends)
        sheet.add(torch.arange(len(logits[0])))
        while logits:
            logits = self._step(sheet, decoders, logits)
        return sheet.responses(self.source)

    def write_filled(
        self, prompts: Sequence[Sequence[int]], batch_size: int, progress: Callable[[int], None] | None
    ) -> list[Written]:
        """One response to each prompt, by a `LlamaDecoder`: prompts that wait take the places of finished rows."""
        sheet = Sheet(len(prompts), self.max_new_tokens, self.ends)
        waiting, finished = deque(range(len(prompts))), 0
        first = self.openers[0](room=max(map(len, prompts)) + self.max_new_tokens)
        assert isinstance(first, LlamaDecoder)
        first.begin(prompts[0][: shared_beginning(prompts)])
        decoder, logits = first, list[Tensor]()
        while waiting or logits:
            free = batch_size - len(sheet.line)
            if waiting and free * _WORTH_FILLING >= batch_size:
                group = [waiting.popleft() for _ in range(min(free, len(waiting)))]
                more = first.copy()
                their_logits = more.follow([prompts[i] for i in group])
                if logits:
                    decoder.join(more, room=self.max_new_tokens)
                else:
                    decoder = more
                logits = [torch.cat([*logits, their_logits])]
                sheet.add(torch.tensor(group))
            logits = self._step(sheet, [decoder], logits)
            now = len(prompts) - len(waiting) - len(sheet.line)
            if progress is not None and now > finished:
                progress(now - finished)
            finished = now
        return sheet.responses(self.source)

    def _step(self, sheet: Sheet, decoders: Sequence[Decoder], logits: Sequence[Tensor]) -> list[Tensor]:
        """Chooses a token for each row, and returns the logits after it of the rows that go on; [] where none does."""
        ids, behaviour = self.choose(self._allowed(logits))
        untempered = self.choose.untempered and self.banned is None
        going = sheet.put(ids, behaviour, behaviour if untempered else logprobs_of(logits[0], ids))
        count_tokens(len(ids))
        if not len(going):
            return []
        if len(going) < len(ids):
            ids = ids[going]
            for decoder in decoders:
                decoder.keep(going)
        return [decoder.step(ids) for decoder in decoders]

    def _allowed(self, logits: Sequence[Tensor]) -> Sequence[Tensor]:
        """The logits without ids that are never generated: a token of an image would be read as one."""
        if self.banned is None:
            return logits
        return [each.index_fill(-1, self.banned, -torch.inf) for each in logits]
