"""A model's answers to the skill's prompts, and the skill's scores of them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pandas as pd
from transformers import PreTrainedTokenizerBase

from kd.data.chat_template import response_text
from kd.data.images import seen, view_of
from kd.data.sequences import prompt_ids
from kd.evaluation.cache import Part
from kd.evaluation.engines import Engine
from kd.generators.generation import end_ids
from kd.generators.settings import Decoding
from kd.models.language_model import LanguageModel
from kd.seeding import seeded
from kd.skills.scoring import scored_all
from kd.types import Record, Skill

TOGETHER = 256  # answers of a part, with a random stream of its own


def score_answers(
    model: LanguageModel, skill: Skill, records: Sequence[Record], *, max_new_tokens: int, batch_size: int
) -> pd.DataFrame:
    """One row per record: id, text, tokens, truncated, score, error. The answers are greedy."""
    decoding = Decoding(max_new_tokens, temperature=0.0, batch_size=batch_size)
    return judged(write_answers(model, records, decoding), skill, records)


def write_answers(
    model: LanguageModel,
    records: Sequence[Record],
    decoding: Decoding,
    *,
    stream: tuple[Any, ...] = (0, "evaluation"),
    engine: Engine | None = None,
    identity: str = "",
    progress: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """`decoding.samples` answers per record, in its order: id, text, tokens (end token included), truncated (no end
    token was generated).

    stream: of the random numbers.
    engine: None: our own. identity: the model's, for an engine that holds weights.
    progress: called with the number of prompts just finished.
    """
    engine = engine or Engine()
    prompts = [prompt_ids(record, model.tokenizer) for record in records]
    with seeded(*stream):
        written = engine(model, prompts, decoding, identity=identity, progress=progress)
    answers = [list(answer.ids) for group in written for answer in group]
    ends = end_ids(model)
    return pd.DataFrame(
        {
            "id": [record.id for record in records for _ in range(decoding.samples)],
            "text": [response_text(ids, model.tokenizer) for ids in answers],
            "tokens": [len(ids) for ids in answers],
            "truncated": [ids[-1] not in ends for ids in answers],
        }
    )


def answer_parts(
    model: LanguageModel, records: Sequence[Record], decoding: Decoding, *, seed: int, engine: Engine, identity: str
) -> list[Part]:
    """What `write_answers` does for records, in parts of TOGETHER answers at most; the first has the seed's stream.

    identity: the model's, with its precision.
    """
    size = max(1, TOGETHER // decoding.samples)
    settings: dict[str, Any] = {"max_new_tokens": decoding.max_new_tokens, "batch_size": decoding.batch_size}
    if decoding.temperature:
        drawn = ("samples", "temperature", "top_p")
        settings |= {name: vars(decoding)[name] for name in drawn} | {"seed": seed}
    if generator := engine.settings(model):
        settings |= {"generator": dict(generator)}
    parts, ends = [], sorted(end_ids(model))
    for number, start in enumerate(range(0, len(records), size)):
        some, place = records[start : start + size], [number] if number else []
        prompts = prompt_contents(some, model.tokenizer)
        content = {"system": identity, "prompts": prompts, "ends": ends, **settings}
        if decoding.temperature and number:
            content["part"] = number  # greedy text is the same wherever its prompts stand
        stream = (seed, "evaluation", *place)
        write = partial(write_answers, records=some, decoding=decoding, stream=stream, engine=engine, identity=identity)
        parts.append(Part(content, len(some), write))
    return parts


def prompt_contents(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase) -> list:
    """What the answers to prompts depend on: ids, tokens, and digests of images."""
    prompts = [(record.id, prompt_ids(record, tokenizer)) for record in records]
    return [[name, prompt, *seen(view_of(prompt))] for name, prompt in prompts]


def judged(answers: pd.DataFrame, skill: Skill, records: Sequence[Record]) -> pd.DataFrame:
    """The answers with the skill's `score` of each, between 0 (wrong) and 1 (right), and `error`.

    error: the reason for which the verifier returned no score, which counts as 0; None where it returned one.

    Raises:
        ValueError: names the record: a score is not between 0 and 1, or the verifier fails on the reference too.
    """
    by_id = {record.id: record for record in records}
    pairs = [(by_id[name], text) for name, text in zip(answers["id"], answers["text"], strict=True)]
    found = scored_all(skill, pairs, reference=_reference)
    errors = pd.Series([one.error for one in found], index=answers.index, dtype=object)
    return answers.assign(score=[one.score for one in found], error=errors)


def _reference(record: Record) -> str | None:
    return record.responses[0].text if record.responses else None
