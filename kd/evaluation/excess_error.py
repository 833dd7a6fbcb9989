"""The excess accumulated error of generation, with the teacher as the oracle (exposure bias).

Arora et al. 2022, "Why Exposure Bias Matters: An Imitation Learning Perspective of Error Accumulation in Language
Generation", arXiv 2204.01171 (%ExAccErr), with the divergence of the authors' code, KL(oracle || model); for
distillation Gu et al. 2023 (MiniLLM), arXiv 2306.08543, section 3.3. Implemented is, with the teacher p as the oracle,
the student q and responses y of up to l tokens to a prompt x,

    R(l)     = E_{y ~ q} sum_{t <= l} KL(p(. | y_<t, x) || q(. | y_<t, x))     the error on the student's own prefixes
    l eps(l) = E_{y ~ p} sum_{t <= l} KL(p(. | y_<t, x) || q(. | y_<t, x))     the error on the teacher's prefixes
    ExAccErr(l) = 100 (R(l) - l eps(l)) / (l eps(l))

0: errors do not accumulate, as at l = 1, where both prefixes are the prompt. l is `evaluation.max_new_tokens`; a
response that ends earlier adds nothing after its end token. It is no measure of quality: a student that is far from the
teacher everywhere has a small one. Prefixes are drawn at temperature 1, whatever the temperature of the answers.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pandas as pd

from kd.data.sequences import Encoder, prompt_ids
from kd.evaluation.cache import remembered
from kd.evaluation.evaluate import Session
from kd.evaluation.items import ratio_items
from kd.evaluation.likelihood import forward_kls
from kd.evaluation.measured import Measured, named
from kd.evaluation.positions import Bins, added, by_position
from kd.generators.generation import write
from kd.generators.sampling import Sampled
from kd.generators.settings import Decoding
from kd.intervals import ratio
from kd.metrics.table import EXCESS_ERROR
from kd.models.language_model import LanguageModel
from kd.seeding import seeded
from kd.teachers.ensemble import Ensemble
from kd.types import Batch, Record

VERSION = 1
COLUMNS = ("id", "own", "oracle", "own_positions", "oracle_positions")


def with_excess_error(
    session: Session, system: LanguageModel | Ensemble, measured: Measured, *, identity: str
) -> Measured:
    """What was measured of a student, with its excess accumulated error on the session's prompts where that is asked.

    It requires a teacher that generates, with the student's tokens; else nothing is added. Cached as answers are.
    """
    teacher, samples = session.teacher, session.evaluation.excess_error
    if not samples or not session.prompts or not isinstance(teacher, LanguageModel) or isinstance(system, Ensemble):
        return measured
    decoding = replace(session.evaluation.decoding, samples=samples, temperature=1.0, top_p=1.0)
    key = {
        "system": named(system, identity),
        "teacher": session.teacher_name,
        "prompts": session.prompt_contents(system.tokenizer),
        "settings": [decoding.max_new_tokens, samples, decoding.batch_size, session.encoder.max_length],
        "seed": session.evaluation.seed,
        "version": VERSION,
        "columns": list(COLUMNS),
    }
    compute = partial(
        accumulated, system, teacher, session.encoder, session.prompts, decoding, seed=session.evaluation.seed
    )
    table, seconds = remembered("excess_error", key, compute)
    groups, excess = session.groups(session.prompts), 100 * (table["own"] - table["oracle"])
    score = ratio(excess, table["oracle"], groups, **session.interval)
    rows = ratio_items(EXCESS_ERROR.name, table["id"].tolist(), groups, excess, table["oracle"])
    return replace(
        measured,
        scores={**measured.scores, EXCESS_ERROR.name: score},
        items=pd.concat([measured.items, rows]),
        seconds=measured.seconds + seconds,
        positions={
            **measured.positions,
            "own": by_position(table["own_positions"]),
            "teacher": by_position(table["oracle_positions"]),
        },
    )


def accumulated(
    student: LanguageModel,
    teacher: LanguageModel,
    encoder: Encoder,
    records: Sequence[Record],
    decoding: Decoding,
    *,
    seed: int,
) -> pd.DataFrame:
    """One row per record: id; own and oracle, R(l) and l eps(l) in nats, means over `decoding.samples` responses.

    own_positions, oracle_positions: bins of all these responses (`kd.evaluation.positions.Bins`).
    """
    found = [_along(writer, student, teacher, encoder, records, decoding, seed) for writer in (student, teacher)]
    columns = ([record.id for record in records], *(sums for sums, _ in found), *(bins for _, bins in found))
    return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))


def _along(
    writer: LanguageModel,
    student: LanguageModel,
    teacher: LanguageModel,
    encoder: Encoder,
    records: Sequence[Record],
    decoding: Decoding,
    seed: int,
) -> tuple[list[float], list[Bins]]:
    """For each record the summed KL(teacher || student) along the writer's responses to it, their mean; and bins."""
    found = forward_kls(student, teacher, drawn(writer, encoder, records, decoding, seed))
    groups = [[found[f"{i} {j}"] for j in range(decoding.samples)] for i in range(len(records))]
    sums = [sum(total for total, _ in group) / decoding.samples for group in groups]
    return sums, [added(bins for _, bins in group) for group in groups]


def drawn(
    writer: LanguageModel, encoder: Encoder, records: Sequence[Record], decoding: Decoding, seed: int
) -> list[Batch]:
    """`decoding.samples` responses of a model to each record, at temperature 1, each a record of its own.

    The id of response j to record i is "i j".
    """
    prompts = [prompt_ids(record, writer.tokenizer) for record in records]
    with seeded(seed, "excess error"):
        written = write(
            [writer],
            prompts,
            samples=decoding.samples,
            max_new_tokens=decoding.max_new_tokens,
            choose=Sampled(1.0),
            batch_size=decoding.batch_size,
        )
    rows = [(i, j, one) for i, answers in enumerate(written) for j, one in enumerate(answers)]
    copies = [replace(records[i], id=f"{i} {j}") for i, j, _ in rows]
    return encoder.written(copies, [[one] for *_, one in rows])
