"""Writing responses to records, and keeping account of what it cost and of what came out."""

import logging
from collections.abc import Sequence

from kd.generators import Generator
from kd.generators.torch import Torch
from kd.models.flops import decoding_flops
from kd.models.generation import write
from kd.models.language_model import LanguageModel
from kd.models.sampling import Choose, Sampled
from kd.rollouts import Spent
from kd.sequences import Encoder, encode_prompt
from kd.types import Record, Source, Written

log = logging.getLogger(__name__)

MANY_CUT = 0.1  # share of responses without an end token, from which on somebody should know
ENOUGH = 32  # responses, before that share means anything


class Writing:
    """What every rollout that writes has in common: the prompts' ids, the room there is, and the books.

    Args:
        generator: the engine where one model writes alone; None: our own.
    """

    def __init__(self, generator: Generator | None = None):
        self.generator: Generator = Torch() if generator is None else generator
        self._spent = Spent()
        self._untold = [0.0, 0.0, 0.0]  # responses, their tokens, and how many were cut, since the last report
        self._seen = self._cut = 0  # since the start
        self._warned = False

    def write(
        self,
        readers: Sequence[LanguageModel],
        records: Sequence[Record],
        encoder: Encoder,
        *,
        samples: int,
        max_new_tokens: int,
        choose: Choose,
        batch_size: int,
        source: Source = "student",
    ) -> list[list[Written]]:
        """`samples` responses to each record, all records decoded together; see `kd.models.generation.write`.

        `readers` is the student, and after it whichever teachers have a say in each token. With `source` "teacher"
        it is teachers alone: then the student's `old_logprobs` are not known. Ids are those of the first reader.
        """
        if not records:
            return []
        prompts = [encode_prompt(record.prompt, readers[0].tokenizer) for record in records]
        responses = write(
            readers,
            prompts,
            samples=samples,
            max_new_tokens=_within(encoder, prompts, max_new_tokens),
            choose=choose,
            batch_size=batch_size,
            source=source,
        )
        self._account(readers, list(map(len, prompts)), responses, source)
        self._warn(max_new_tokens)
        return responses

    def alone(
        self,
        model: LanguageModel,
        records: Sequence[Record],
        encoder: Encoder,
        *,
        samples: int,
        max_new_tokens: int,
        sampled: Sampled,
        batch_size: int,
        source: Source = "student",
        version: int = 0,
    ) -> list[list[Written]]:
        """The same where one model writes alone, by `generator`, which is told how many steps its weights have made."""
        prompts = [encode_prompt(record.prompt, model.tokenizer) for record in records]
        responses = self.generator(
            model,
            prompts,
            samples=samples,
            max_new_tokens=_within(encoder, prompts, max_new_tokens),
            sampled=sampled,
            batch_size=batch_size,
            source=source,
            version=version,
        )
        self._account([model], list(map(len, prompts)), responses, source)
        if self.generator.reads_again:
            self._account_reading(model, list(map(len, prompts)), responses, source)
        self._warn(max_new_tokens)
        return responses

    def spent(self) -> Spent:
        """Since the start, on this rank."""
        return self._spent

    def take_report(self) -> dict[str, tuple[float, float]]:
        """Tokens per response, the share of responses that a bound cut off, and what the generator tells."""
        responses, tokens, cut = self._untold
        self._untold = [0.0, 0.0, 0.0]
        theirs = self.generator.take_report() if hasattr(self.generator, "take_report") else {}
        return {"response_length": (tokens, responses), "truncation_rate": (cut, responses), **theirs}

    def _account(
        self,
        readers: Sequence[LanguageModel],
        prompts: Sequence[int],
        responses: Sequence[Sequence[Written]],
        source: Source,
    ) -> None:
        lengths = [[len(answer.ids) for answer in group] for group in responses]
        written = sum(map(sum, lengths))
        # the samples of a prompt share one reading of it, and nobody reads what is written last
        read = sum(prompt + sum(group) - len(group) for prompt, group in zip(prompts, lengths, strict=True))
        if source == "teacher":
            self._spent = self._spent.plus(Spent(teacher_tokens=len(readers) * read))
        else:
            flops = sum(_group_flops(readers[0], *group) for group in zip(prompts, lengths, strict=True))
            self._spent = self._spent.plus(Spent(written, flops, (len(readers) - 1) * read))
        cut = sum(answer.truncated for group in responses for answer in group)
        count = sum(map(len, lengths))
        self._untold = [old + new for old, new in zip(self._untold, (count, written, cut), strict=True)]
        self._seen, self._cut = self._seen + count, self._cut + cut

    def _account_reading(
        self, model: LanguageModel, prompts: Sequence[int], responses: Sequence[Sequence[Written]], source: Source
    ) -> None:
        """Each response read once more, its prompt before it; that costs as writing does (`kd.models.flops`)."""
        rows = [(n, len(answer.ids)) for n, group in zip(prompts, responses, strict=True) for answer in group]
        if source == "teacher":
            self._spent = self._spent.plus(Spent(teacher_tokens=sum(n + length - 1 for n, length in rows)))
        else:
            flops = decoding_flops(model, [n for n, _ in rows], [length for _, length in rows])
            self._spent = self._spent.plus(Spent(decoding_flops=flops))

    def _warn(self, max_new_tokens: int) -> None:
        if self._warned or self._seen < ENOUGH or self._cut <= MANY_CUT * self._seen:
            return
        self._warned = True
        log.warning(
            "%d of the %d responses written so far were cut off before they ended, by rollout.max_new_tokens=%d or "
            "data.max_length; raise the bound, or have the student learn to end (some steps of objective=sft) first",
            self._cut,
            self._seen,
            max_new_tokens,
        )


def _within(encoder: Encoder, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> int:
    """What is longer than the shortest prompt leaves room for would be cut off again."""
    return min(max_new_tokens, encoder.max_length - min(map(len, prompts), default=0))


def _group_flops(student: LanguageModel, prompt: int, responses: Sequence[int]) -> int:
    """FLOP of writing several responses to one prompt, which is read once."""
    again = decoding_flops(student, [prompt], [1])
    return decoding_flops(student, [prompt] * len(responses), responses) - (len(responses) - 1) * again
