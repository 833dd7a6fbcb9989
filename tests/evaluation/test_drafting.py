"""The student as a draft of its teacher: acceptance and tokens a block, by hand and with real networks.

Run: python -m pytest tests/evaluation/test_drafting.py
"""

import itertools

import pytest
import torch

from kd.data.sequences import Encoder, prompt_ids
from kd.evaluation.drafting import drafted, overlaps, produced, with_drafting
from kd.evaluation.evaluate import Evaluation
from kd.evaluation.measured import Measured
from kd.generators.generation import write
from kd.generators.sampling import Sampled
from kd.generators.settings import Decoding
from kd.kernels.logits import DenseLogits
from kd.seeding import seeded
from tests.evaluation.conftest import RECORDS, TenIntegers, tiny

P, Q = (0.5, 0.3, 0.2), (0.2, 0.2, 0.6)  # of the target and of the draft
NOTHING = Measured({}, None, None, [], 0.0)


@pytest.fixture(scope="module")
def models():
    return tiny(0), tiny(1, hidden_size=48)


def encoder_of(model) -> Encoder:
    return Encoder(model.tokenizer, None, max_length=200, max_tokens=100)


def test_a_proposal_is_accepted_with_the_overlap_of_both():
    # sum min(p, q) = .2 + .2 + .2; the target's tokens 0 and 2 would have been kept with .2/.5 and min(1, .6/.2).
    logits = (DenseLogits(torch.tensor([row, row], dtype=torch.float64).log()) for row in (Q, P))
    beta, kept = overlaps(*logits, torch.tensor([0, 2]))
    assert beta.tolist() == pytest.approx([0.6, 0.6])
    assert kept.tolist() == pytest.approx([0.4, 1.0])


def test_the_tokens_of_a_block_by_hand():
    # Two proposals: 1 + .5 + .5 x .8 at the first token, 1 + .8 + .25 x 1 at the second, 1 + 1 at the last.
    beta, kept = torch.tensor([0.5, 0.8, 1.0]), torch.tensor([0.5, 0.25, 0.9])
    assert produced(beta, kept, 2).tolist() == pytest.approx([1.9, 2.05, 2.0])
    assert produced(beta, kept, 1).tolist() == pytest.approx([1.5, 1.8, 2.0])
    assert produced(beta, kept, 9).tolist() == pytest.approx([1.9 + 0.5 * 0.25, 2.05, 2.0])


def test_it_is_the_expected_length_of_what_speculative_decoding_accepts():
    """Over all texts of three tokens of two models with memory, against the rule itself, proposal by proposal."""
    torch.manual_seed(0)
    p, q = (torch.rand(3, 4, 3, dtype=torch.float64).add(0.1).log_softmax(-1).exp() for _ in range(2))

    def rows(table, text):  # next-token distributions at each position, given the token before
        return torch.stack([table[t, text[t - 1] if t else 3] for t in range(3)])

    def accepted(prefix: tuple[int, ...]) -> float:
        """The expected number of accepted proposals after `prefix`: accepted tokens are distributed as min(p, q)."""
        if len(prefix) == 3:
            return 0.0
        both = (table[len(prefix), prefix[-1] if prefix else 3] for table in (p, q))
        chances = torch.minimum(*both).tolist()
        return sum(chance * (1 + accepted((*prefix, v))) for v, chance in enumerate(chances))

    expected = 0.0
    for text in itertools.product(range(3), repeat=3):
        target, draft, labels = rows(p, text), rows(q, text), torch.tensor(text)
        probability = target[torch.arange(3), labels].prod()
        found = overlaps(DenseLogits(draft.log()), DenseLogits(target.log()), labels)
        expected += float(probability * produced(*found, 3)[0])
    assert expected == pytest.approx(1 + accepted(()))


def test_each_record_has_its_sums(models):
    student, teacher = models
    table = drafted(student, teacher, encoder_of(student), RECORDS, Decoding(4, batch_size=3), proposed=3, seed=3)
    prompts = [prompt_ids(one, student.tokenizer) for one in RECORDS]
    with seeded(3, "excess error"):
        written = write([teacher], prompts, samples=1, max_new_tokens=4, choose=Sampled(1.0), batch_size=3)
    for prompt, (answer,), row in zip(prompts, written, table.itertuples(), strict=True):
        beta = []
        for t in range(len(answer.ids)):
            with torch.no_grad():
                ids = torch.tensor([[*prompt, *answer.ids[:t]]])
                p, q = (m.network(ids).logits[0, -1, : m.vocabulary].softmax(-1) for m in (teacher, student))
            beta.append(float(torch.minimum(p, q).sum()))
        assert row.tokens == len(answer.ids)
        assert row.accepted == pytest.approx(sum(beta), rel=1e-5)
        assert row.tokens < row.produced <= sum(1 + min(3, row.tokens - t) for t in range(row.tokens))


def test_a_draft_that_is_its_target_is_accepted_whole(models):
    _, teacher = models
    table = drafted(teacher, teacher, encoder_of(teacher), RECORDS, Decoding(4, batch_size=3), proposed=2, seed=3)
    assert table["accepted"].tolist() == pytest.approx(table["tokens"].tolist())
    blocks = [sum(1 + min(2, n - t) for t in range(n)) for n in table["tokens"]]
    assert table["produced"].tolist() == pytest.approx(blocks)


def test_the_scores_are_ratios_of_sums(models):
    student, teacher = models
    skill = TenIntegers(student, 4, right=(2,))

    def start(**settings):
        evaluation = Evaluation(items=0, answers=4, max_new_tokens=4, batch_size=5, baseline=None, **settings)
        return evaluation.session(
            skill=skill,
            train=(),
            test=skill.load("test"),
            encoder=encoder_of(student),
            teacher=teacher,
            teacher_identity="teacher",
        )

    own = start(draft=3)
    found = with_drafting(own, student, NOTHING, identity="student")
    decoding = Decoding(4, batch_size=5)
    table = drafted(student, teacher, encoder_of(student), own.prompts, decoding, proposed=3, seed=0)
    for name, column in (("acceptance_rate", "accepted"), ("accepted_length", "produced")):
        assert found.scores[name].value == pytest.approx(table[column].sum() / table["tokens"].sum())
        assert found.scores[name].n == 4
    assert with_drafting(start(), student, NOTHING, identity="student") is NOTHING
