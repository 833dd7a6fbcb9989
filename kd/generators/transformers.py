"""The library's own `generate`, for decoding that our engine lacks: beam search, n-gram bans, penalties."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig

from kd.components.signatures import check_call
from kd.data.images import view_of
from kd.eval_mode import eval_mode
from kd.generators import Generator, Row
from kd.generators.generation import check_prompts, end_ids
from kd.generators.logits_processors import RecordingProcessors
from kd.generators.options import Options, check_known
from kd.generators.rescoring import read_responses
from kd.generators.sampling import Sampled
from kd.generators.settings import Decoding
from kd.models.language_model import LanguageModel
from kd.progress import count_tokens
from kd.types import Source, Written


class Transformers(Generator):
    """Generation by the library's `generate` with the model that learns, in this process, under `options`.

    Slower than our own engine: a prompt is read for each of its samples, and finished rows stay until all have ended.
    A checkpoint's saved generation settings are ignored, ids beyond the tokenizer's are never generated, and padding
    changes nothing, as with our engine; greedy text without options is the same.

    `old_logprobs` are the model's own, at temperature 1, `behaviour_logprobs` those of the distribution after all
    options; both are recorded at each step. A beam search draws nothing, so its responses have behaviour
    log-probabilities of 0, as greedy ones; a student's `old_logprobs` then come from one more forward pass.

    Args:
        options: see `kd.generators.options.Options`.
    """

    reads_images: ClassVar[bool] = True

    def __init__(self, *, options: Mapping[str, Any]):
        self.options = Options(**options)
        self._steps: list[int] = []  # of the last search for each prompt
        self._read_again = False  # whether the responses of the last search were scored again

    @classmethod
    def check_node(cls, path: str, node: Mapping[str, Any]) -> None:
        """See `kd.generators.Generator`: options that are set by another key, unknown, or of another type."""
        check_known(f"{path}.options", node["options"])
        check_call(f"{path}.options", node["options"], Options, name="the generator")

    @property
    def settings(self) -> dict[str, Any]:
        """See `kd.generators.Generator`."""
        return {"engine": "transformers", **self.options.chosen}

    def check(self, decoding: Decoding) -> None:
        """See `kd.generators.Generator`."""
        searches = self.options.num_beams > 1
        decoding.check(distinct=1 if searches else None)  # a search ends in several different responses
        self.options.check(temperature=decoding.temperature, top_p=decoding.top_p, samples=decoding.samples)

    def read(self, prompts: Sequence[int], responses: Sequence[Sequence[int]]) -> list[list[Row]]:
        """See `kd.generators.Generator`: one row for each sample, or for each beam of each step of its batch."""
        if self.options.num_beams == 1:
            return [[Row(n, (length,)) for length in group] for n, group in zip(prompts, responses, strict=True)]
        searches = zip(prompts, responses, self._steps, strict=True)
        return [
            [Row(n, (steps,))] * self.options.num_beams
            + [Row(n, (length,)) for length in (group if self._read_again else ())]
            for n, group, steps in searches
        ]

    def generate(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        *,
        decoding: Decoding,
        source: Source = "student",
        version: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Written]]:
        """See `kd.generators.Generator`.

        Raises:
            ValueError: a setting is out of range, a prompt is empty, or the options leave no id to be written.
            FloatingPointError: the model's logits are no numbers.
        """
        self.check(decoding)
        batch_size = decoding.batch_size
        check_prompts(prompts, batch_size)
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        together = max(1, batch_size // max(self.options.num_beams, decoding.samples))
        config = self._config(model, decoding)
        found: dict[int, list[Written]] = {}
        steps: dict[int, int] = {}
        with eval_mode([model.network]), _nothing_saved(model.network):
            for start in range(0, len(order), together):
                places = order[start : start + together]
                written, taken = self._write(model, [prompts[i] for i in places], decoding, config, source)
                found |= dict(zip(places, written, strict=True))
                steps |= dict.fromkeys(places, taken)
                count_tokens(sum(len(one.ids) for group in written for one in group))
                if progress is not None:
                    progress(len(places))
        self._steps = [steps[i] for i in range(len(prompts))]
        return self._finished(model, prompts, [found[i] for i in range(len(prompts))], batch_size, source)

    def _config(self, model: LanguageModel, decoding: Decoding) -> GenerationConfig:
        ends = sorted(end_ids(model))
        drawn = decoding.temperature > 0
        how = {"temperature": float(decoding.temperature), "top_p": float(decoding.top_p), "top_k": 0} if drawn else {}
        settings = {**how, **self.options.chosen}
        if model.vision is not None:  # a token of an image would be read as one
            settings["suppress_tokens"] = [*(settings.get("suppress_tokens") or ()), model.vision.token]
        if "repetition_penalty" in settings:  # the library refuses an int
            settings["repetition_penalty"] = float(settings["repetition_penalty"])
        return GenerationConfig(
            do_sample=drawn,
            max_new_tokens=decoding.max_new_tokens,
            eos_token_id=ends,
            pad_token_id=ends[0],  # occurs after the end alone
            use_cache=True,
            **settings,
        )

    def _write(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        config: GenerationConfig,
        source: Source,
    ) -> tuple[list[list[Written]], int]:
        """The samples of each prompt, and the number of steps of a search."""
        samples, batch_size = decoding.samples, decoding.batch_size
        if self.options.num_beams > 1:
            config.num_return_sequences = samples
            written, steps = _generate(model, prompts, config, source)
            return [written[i : i + samples] for i in range(0, len(written), samples)], steps
        groups: list[list[Written]] = [[] for _ in prompts]
        for start in range(0, samples, batch_size):  # more than one part only where a prompt is alone
            count = min(batch_size, samples - start)
            rows = [i for i in range(len(prompts)) for _ in range(count)]
            written, _ = _generate(model, [prompts[i] for i in rows], config, source)
            for i, one in zip(rows, written, strict=True):
                groups[i].append(one)
        return groups, 0

    def _finished(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        found: list[list[Written]],
        batch_size: int,
        source: Source,
    ) -> list[list[Written]]:
        """The responses with the student's own log-probabilities where they come from a search."""
        self._read_again = self.options.num_beams > 1 and source != "teacher"
        if not self._read_again:
            return found
        pairs = [(prompt, one.ids) for prompt, group in zip(prompts, found, strict=True) for one in group]
        readings = iter(read_responses(model, pairs, Sampled(0.0), batch_size=batch_size))
        return [
            [Written(one.ids, source, one.behaviour_logprobs, next(readings).own, one.truncated) for one in group]
            for group in found
        ]


@contextmanager
def _nothing_saved(network: Any) -> Iterator[None]:
    """A context without the checkpoint's saved settings, which would fill in all settings that are not given here."""
    saved = network.generation_config
    network.generation_config = GenerationConfig()
    try:
        yield
    finally:
        network.generation_config = saved


def _generate(
    model: LanguageModel, prompts: Sequence[Sequence[int]], config: GenerationConfig, source: Source
) -> tuple[list[Written], int]:
    """The output of `generate` for one batch, in its order, and the number of its steps."""
    network: Any = model.network
    width, beams = max(map(len, prompts)), config.num_beams or 1
    padding = [width - len(prompt) for prompt in prompts]
    tokens = torch.tensor([[0] * n + list(prompt) for n, prompt in zip(padding, prompts, strict=True)])
    mask = torch.arange(width) >= torch.tensor(padding)[:, None]
    ends = torch.tensor(config.eos_token_id, device=network.device)
    recorded = RecordingProcessors(model.vocabulary, width, ends, beams, torch.tensor(padding).repeat_interleave(beams))

    def decode(
        network: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **rest: Any,
    ) -> Tensor:
        recorded.processors = recorded.unpadded(logits_processor)
        search = type(network)._beam_search if beams > 1 else type(network)._sample
        return search(network, input_ids, recorded, stopping_criteria, generation_config, **rest)

    pixels = [{} if view is None else view.pixels() for view in map(view_of, prompts)]
    images = {name: x.to(network.device) for name, x in model.images(tokens, pixels).items()}
    sequences = network.generate(
        tokens.to(network.device),
        **images,
        attention_mask=mask.long().to(network.device),
        generation_config=config,
        custom_generate=decode,
        synced_gpus=False,  # sharded weights are whole here (`kd.models.sharding.gathered`)
    )
    return _cut(sequences[:, width:], recorded, config, source), recorded.steps


def _cut(
    ids: Int[Tensor, "b t"], recorded: RecordingProcessors, config: GenerationConfig, source: Source
) -> list[Written]:
    """Each row up to its end token, with the recorded log-probabilities unless it comes from a search."""
    searched = recorded.beams > 1
    own, drawn = (None, None) if searched else recorded.logprobs(ids)
    written = []
    for i, row in enumerate(ids.tolist()):
        end = next((place for place, one in enumerate(row) if one in config.eos_token_id), None)
        length = len(row) if end is None else end + 1
        certain = torch.zeros(length)
        written.append(
            Written(
                tuple(row[:length]),
                source,
                behaviour_logprobs=drawn[i, :length].clone() if config.do_sample and drawn is not None else certain,
                old_logprobs=None if own is None else own[i, :length].clone(),
                truncated=end is None,
            )
        )
    return written
