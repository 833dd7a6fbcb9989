"""ExAccErr by hand and by its properties, with real networks.

Run: python -m pytest tests/evaluation/test_excess_error.py
"""

import math

import pytest
import torch

from kd.data.sequences import Encoder, prompt_ids
from kd.evaluation.evaluate import Evaluation
from kd.evaluation.excess_error import accumulated, with_excess_error
from kd.evaluation.measured import Measured
from kd.generators.generation import write
from kd.generators.sampling import Sampled
from kd.generators.settings import Decoding
from kd.seeding import seeded
from tests.evaluation.conftest import RECORDS, TenIntegers, silenced, tiny


@pytest.fixture(scope="module")
def student():
    return tiny(0)


@pytest.fixture(scope="module")
def teacher():
    return tiny(1, hidden_size=48)


@pytest.fixture
def encoder(student):
    return Encoder(student.tokenizer, None, max_length=200, max_tokens=100)


def kl(student, teacher, ids: list[int]) -> float:
    """KL(teacher || student) of the next id after these, as one would write it down."""
    with torch.no_grad():
        p, q = (
            m.network(torch.tensor([ids])).logits[0, -1, : m.vocabulary].log_softmax(-1) for m in (teacher, student)
        )
    return float((p.exp() * (p - q)).sum())


def test_the_sums_by_hand(student, teacher, encoder):
    decoding = Decoding(5, samples=2, batch_size=3)
    table = accumulated(student, teacher, encoder, RECORDS, decoding, seed=3)
    prompts = [prompt_ids(one, student.tokenizer) for one in RECORDS]
    for name, writer in (("own", student), ("oracle", teacher)):
        with seeded(3, "excess error"):
            found = write([writer], prompts, samples=2, max_new_tokens=5, choose=Sampled(1.0), batch_size=3)
        for prompt, answers, value in zip(prompts, found, table[name], strict=True):
            sums = [kl(student, teacher, [*prompt, *one.ids[:t]]) for one in answers for t in range(len(one.ids))]
            assert value == pytest.approx(sum(sums) / 2, rel=1e-6)
    assert table["own"].tolist() != table["oracle"].tolist()


def bigram(after_a: tuple[float, float], otherwise: tuple[float, float]):
    """A model that generates a or b, with these probabilities after an a, and with those after any other token."""
    model = tiny(0, hidden_size=4, num_hidden_layers=1, tie_word_embeddings=False)
    network, width = model.network, 4
    a, b = model.tokenizer("ab", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        network.model.layers[0].self_attn.o_proj.weight.zero_()  # the layer adds nothing to the token's embedding
        network.model.layers[0].mlp.down_proj.weight.zero_()
        network.model.embed_tokens.weight.copy_(torch.eye(width)[0])
        network.model.embed_tokens.weight[a] = torch.eye(width, dtype=torch.float64)[1]
        logits = torch.zeros(network.lm_head.weight.shape, dtype=torch.float64)
        logits[:, :2] = -40.0
        for column, shares in enumerate((otherwise, after_a)):
            logits[a, column], logits[b, column] = map(math.log, shares)
        network.lm_head.weight.copy_(logits / math.sqrt(width))  # the norm makes sqrt(width) of the 1
    return model


def test_two_tokens_by_hand():
    """p draws a and b alike; q draws b with 3/4, but after an a it is p. K = KL(p || q) = log(4/3) / 2 nats at the
    first token, and at the second one after a b. So R = K + 3/4 K, E = K + 1/2 K, and ExAccErr = 100 (1/4) / (3/2)."""
    student, teacher = bigram((1 / 2, 1 / 2), (1 / 4, 3 / 4)), bigram((1 / 2, 1 / 2), (1 / 2, 1 / 2))
    encoder = Encoder(student.tokenizer, None, max_length=200, max_tokens=2000)
    draws = 600
    table = accumulated(student, teacher, encoder, RECORDS[:1], Decoding(2, samples=draws, batch_size=600), seed=0)
    first = math.log(4 / 3) / 2
    shares = {name: table[name][0] / first - 1 for name in ("own", "oracle")}  # of responses that begin with b
    for name, expected in (("own", 3 / 4), ("oracle", 1 / 2)):
        assert shares[name] * draws == pytest.approx(round(shares[name] * draws), abs=0.05)
        assert shares[name] == pytest.approx(expected, abs=0.06)  # 3 standard deviations of 600 draws
    excess = 100 * (table["own"][0] - table["oracle"][0]) / table["oracle"][0]
    assert excess == pytest.approx(100 * (1 / 4) / (3 / 2), abs=6)


def test_of_one_token_nothing_accumulates(student, teacher, encoder):
    """Both prefixes are the prompt."""
    table = accumulated(student, teacher, encoder, RECORDS, Decoding(1, samples=3, batch_size=8), seed=0)
    assert table["own"].tolist() == pytest.approx(table["oracle"].tolist())


def test_a_student_that_is_the_teacher_has_no_error(teacher):
    encoder = Encoder(teacher.tokenizer, None, max_length=200, max_tokens=100)
    table = accumulated(teacher, teacher, encoder, RECORDS, Decoding(4, batch_size=8), seed=0)
    assert table[["own", "oracle"]].abs().to_numpy().max() < 1e-9


@pytest.fixture
def session(student, teacher, encoder):
    def start(**settings):
        skill = TenIntegers(student, 4, right=(2,))
        evaluation = Evaluation(items=0, answers=4, max_new_tokens=4, batch_size=5, baseline=None, **settings)
        return evaluation.session(
            skill=skill, train=(), test=skill.load("test"), encoder=encoder, teacher=teacher, teacher_identity="teacher"
        )

    return start


def test_the_score_is_a_ratio_of_sums(session, student, teacher, encoder):
    own = session(excess_error=2)
    nothing = Measured({}, None, None, [], 0.0)
    found = with_excess_error(own, student, nothing, identity="student")
    table = accumulated(student, teacher, encoder, own.prompts, Decoding(4, 2, batch_size=5), seed=0)
    expected = 100 * (table["own"].sum() - table["oracle"].sum()) / table["oracle"].sum()
    score = found.scores["excess_error"]
    assert score.value == pytest.approx(expected)
    assert score.n == 4
    assert score.low < score.value < score.high
    assert found.items["id"].tolist() == [one.id for one in own.prompts]
    assert with_excess_error(own, silenced(student), nothing, identity="student").scores == found.scores  # cached
    assert math.isfinite(score.value)


def test_it_is_measured_where_it_is_asked(session, student):
    nothing = Measured({}, None, None, [], 0.0)
    assert with_excess_error(session(), student, nothing, identity="student") is nothing
