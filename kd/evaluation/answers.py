"""A model's answers to the skill's prompts, and the skill's scores of them."""

from collections.abc import Sequence

import pandas as pd

from kd.data.chat_template import response_text
from kd.data.sequences import prompt_ids
from kd.evaluation.engines import Engine
from kd.generators.generation import end_ids
from kd.generators.settings import Decoding
from kd.models.language_model import LanguageModel
from kd.progress import phase
from kd.seeding import seeded
from kd.skills.scoring import scored_all
from kd.types import Record, Skill


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
    seed: int = 0,
    engine: Engine | None = None,
    identity: str = "",
) -> pd.DataFrame:
    """`decoding.samples` answers per record, in its order: id, text, tokens (end token included), truncated (no end
    token was generated).

    seed: of the random numbers; the records and the decoding have streams of their own.
    engine: None: our own. identity: the model's, for an engine that holds weights.
    """
    engine = engine or Engine()
    prompts = [prompt_ids(record, model.tokenizer) for record in records]
    with phase("generate", len(records), "answers") as shown, seeded(seed, "evaluation"):
        written = engine(model, prompts, decoding, identity=identity, progress=shown.advance)
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
