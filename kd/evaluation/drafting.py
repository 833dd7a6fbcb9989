"""The student as a draft model of its teacher: how much of what it proposes speculative decoding accepts.

In speculative decoding (Leviathan et al. 2022, arXiv 2211.17192) a draft q proposes gamma tokens, the target p reads
them in one pass and accepts each y with probability min(1, p(y)/q(y)) until one is rejected, and adds a token of its
own; the text is distributed as the target's. With the student as the draft and the teacher as the target,

    beta_t = sum_v min(p(v), q(v)) = 1 - TV(p, q)      a proposal at position t is accepted
    acceptance_rate = E_{y ~ p} beta_t                 their definition of alpha
    accepted_length = E_{y ~ p} [1 + sum_{i = 1..gamma} (prod_{j < i} min(1, q(y_j)/p(y_j))) beta_i]

The last one is the expected number of tokens for each pass of the target, its own included (block efficiency), for
which DistillSpec (arXiv 2310.08461) trains drafts; between 1 and gamma + 1. The product weighs a text that the target
draws by the chance that the draft proposes it and it is accepted, so that acceptances need not be independent, as they
have to be for (1 - alpha^(gamma + 1))/(1 - alpha). Prefixes and blocks are those of responses drawn from the teacher at
temperature 1; a block begins at every token, and ends with the response at the latest.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kd.data.sequences import Encoder
from kd.evaluation.cache import remembered
from kd.evaluation.evaluate import Session
from kd.evaluation.excess_error import drawn
from kd.evaluation.items import ratio_items
from kd.evaluation.measured import Measured, named
from kd.evaluation.reading import read, reading
from kd.generators.settings import Decoding
from kd.intervals import ratio
from kd.kernels.chunks import CHUNK, slices
from kd.kernels.logits import Logits
from kd.metrics.table import ACCEPTANCE, ACCEPTED_LENGTH
from kd.models.language_model import LanguageModel
from kd.objectives.divergence import log_probs
from kd.teachers.ensemble import Ensemble
from kd.types import Record

VERSION = 1
COLUMNS = ("id", "accepted", "produced", "tokens")


def with_drafting(session: Session, system: LanguageModel | Ensemble, measured: Measured, *, identity: str) -> Measured:
    """What was measured of a student, with its acceptance as a draft of the teacher where `evaluation.draft` is set.

    It requires a teacher that generates, with the student's tokens; else nothing is added. Cached as answers are.
    """
    teacher, proposed = session.teacher, session.evaluation.draft
    if not proposed or not session.prompts or not isinstance(teacher, LanguageModel) or isinstance(system, Ensemble):
        return measured
    decoding = replace(session.evaluation.decoding, samples=1, temperature=1.0, top_p=1.0)
    key = {
        "system": named(system, identity),
        "teacher": session.teacher_name,
        "prompts": session.prompt_contents(system.tokenizer),
        "settings": [proposed, decoding.max_new_tokens, decoding.batch_size, session.encoder.max_length],
        "seed": session.evaluation.seed,
        "version": VERSION,
        "columns": list(COLUMNS),
    }
    seed = session.evaluation.seed
    compute = partial(
        drafted, system, teacher, session.encoder, session.prompts, decoding, proposed=proposed, seed=seed
    )
    table, seconds = remembered("drafting", key, compute)
    groups, ids = session.groups(session.prompts), table["id"].tolist()
    columns = {ACCEPTANCE.name: table["accepted"], ACCEPTED_LENGTH.name: table["produced"]}
    scores = {name: ratio(column, table["tokens"], groups, **session.interval) for name, column in columns.items()}
    rows = [ratio_items(name, ids, groups, column, table["tokens"]) for name, column in columns.items()]
    return replace(
        measured,
        scores={**measured.scores, **scores},
        items=pd.concat([measured.items, *rows]),
        seconds=measured.seconds + seconds,
    )


def drafted(
    student: LanguageModel,
    teacher: LanguageModel,
    encoder: Encoder,
    records: Sequence[Record],
    decoding: Decoding,
    *,
    proposed: int,
    seed: int,
) -> pd.DataFrame:
    """One row per record: id; accepted and produced, the sums of beta and of the tokens a block over the tokens of the
    teacher's response; tokens, their number.

    proposed: gamma, the tokens that the student proposes for each pass of the teacher.
    """
    found: dict[str, tuple[float, float, int]] = {}
    batches = drawn(teacher, encoder, records, decoding, seed)
    with reading(student), reading(teacher):
        for (batch, own), (_, theirs) in zip(read(student, batches), read(teacher, batches), strict=True):
            mask = batch.student.mask
            lengths = mask.sum(1).tolist()
            beta, kept = (x.split(lengths) for x in overlaps(own, theirs, batch.student.labels[mask]))
            for record, each, also in zip(batch.records, beta, kept, strict=True):
                found[record.id] = (float(each.sum()), float(produced(each, also, proposed).sum()), len(each))
    rows = [(record.id, *found[f"{i} 0"]) for i, record in enumerate(records)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def overlaps(
    draft: Logits, target: Logits, labels: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """beta = sum_v min(p(v), q(v)) and min(1, q(y)/p(y)) at the rows of both models, in float64 on the CPU."""
    pieces = []
    for rows in slices(draft.n, CHUNK):
        q, p = log_probs(draft.rows(rows)).double(), log_probs(target.rows(rows)).double()
        at = labels[rows][:, None]
        beta = torch.minimum(p, q).exp().sum(-1)
        pieces.append(torch.stack([beta, (q.gather(1, at) - p.gather(1, at))[:, 0].clamp(max=0).exp()]).cpu())
    beta, kept = torch.cat(pieces, 1) if pieces else torch.zeros(2, 0, dtype=torch.float64)
    return beta.clamp(max=1), kept


def produced(beta: Float[Tensor, " n"], kept: Float[Tensor, " n"], proposed: int) -> Float[Tensor, " n"]:
    """The expected tokens of a block of `proposed` proposals that begins at each token of a response.

    beta: the chance that a proposal is accepted. kept: that of the response's own token, given the target drew it.
    """
    total, chance = torch.ones_like(beta), torch.ones_like(beta)
    for i in range(min(proposed, len(beta))):
        ahead = len(beta) - i
        total[:ahead] += chance[:ahead] * beta[i:]
        chance = chance[: ahead - 1] * kept[i : len(beta) - 1]
    return total
