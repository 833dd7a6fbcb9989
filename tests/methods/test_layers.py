"""What the methods on layers compare, on features small enough to draw.

Run: python -m pytest tests/methods/test_layers.py
"""

from math import log

import pytest
import torch

from kd.types import Shape
from tests.methods.points import at, term, weight

YES = torch.ones(1, 2, dtype=torch.bool)
FIRST = torch.tensor([[True, False]])
ONE = torch.ones(1, 1, 2, 1, dtype=torch.float64)  # one head of width 1, two tokens
KEYS = torch.tensor([0.0, log(3)], dtype=torch.float64)[None, None, :, None]


def test_minilm_compares_distributions_and_relations_of_values():
    """Token 1 of the teacher attends by scores (0, ln 3), the student's by (0, 0); values (1, 1) relate alike.

    KL((1/4, 3/4) || (1/2, 1/2)) = 1/4 ln 1/2 + 3/4 ln 3/2 at token 1, 0 at token 0, which sees itself alone. With
    positions=all a response's value is the mean over its tokens.
    """
    values = term("minilm", "minilm")(((ONE, 0 * ONE, ONE),), ((ONE, KEYS, ONE),), YES, YES)
    attention = 0.25 * log(0.5) + 0.75 * log(1.5)
    assert values.mean().item() == pytest.approx(attention / 2)
    # values v = (1, ln 3) in the teacher: token 1 relates by ln 3 * (1, ln 3); in the student, v = (1, 1), evenly
    values = term("minilm", "minilm")(((ONE, ONE, ONE),), ((ONE, ONE, KEYS + 0 * ONE),), YES, YES)
    raw = [1.0, 3.0 ** log(3)]  # exp of ln 3 * (0, ln 3)
    p = [x / sum(raw) for x in raw]
    assert values.mean().item() == pytest.approx(sum(x * log(x / 0.5) for x in p) / 2)


def test_minilm_compares_prompts_too():
    """positions=all: token 1 belongs to no response, and counts."""
    values = term("minilm", "minilm")(((ONE, 0 * ONE, ONE),), ((ONE, KEYS, ONE),), FIRST, YES)
    assert values[FIRST].mean().item() > 0.01


def test_tinybert_compares_scores_before_softmax_and_every_layer():
    """Width 1, one block, W = 2. Embeddings: (2 * 1 - 5)^2 = 9; hidden states: (2 * 3 - 2)^2 = 16.

    Scores of token 1: the student's (0, 0) and the teacher's (0, ln 3): mean squared difference (ln 3)^2 / 2.
    """
    loss = term("tinybert", "tinybert")
    loss.sized_for(Shape(1, 1, 1, 1), Shape(1, 1, 1, 1))
    loss = loss.double()
    for weights in loss.parameters():
        torch.nn.init.constant_(weights, 2.0)
    ones = torch.ones(1, 2, 1, dtype=torch.float64)
    student, teacher = ((ONE, 0 * ONE, ONE),), ((ONE, KEYS, ONE),)
    found = loss((ones, 3 * ones), (5 * ones, 2 * ones), student, teacher, YES, YES)
    assert found[0].tolist() == pytest.approx([9 + 16, 9 + 16 + log(3) ** 2 / 2])


def test_tinybert_learns_predictions_when_it_has_learnt_the_layers():
    for step, expected in ((0, (1, 0)), (4, (1, 0)), (5, (0, 1)), (9, (0, 1))):
        assert tuple(weight("tinybert", name, at(step)) for name in ("tinybert", "soft_ce")) == expected


def test_pkd_compares_directions_below_the_last_layer():
    """Of two blocks the first alone: (3, 4)/5 = (.6, .8) against (0, 2)/2 = (0, 1): .36 + .04 = .4.

    The authors' 500 is of a mean over 768 dimensions and 5 layers: 500/768/5 = .13 of the sum; alpha is .7.
    """
    loss = term("pkd", "pkd")
    loss.sized_for(Shape(2, 2), Shape(2, 4))
    wrong = torch.full((1, 2, 2), 9.0)
    h = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
    g = torch.tensor([[[0.0, 2.0], [5.0, 0.0]]])
    found = loss((wrong, h, wrong), (-wrong, -wrong, g, -wrong, -wrong), YES, YES)  # block 1 of 2 learns from 2 of 4
    assert found[0].tolist() == pytest.approx([0.4, 0.0], abs=1e-6)
    assert [weight("pkd", name) for name in ("pkd", "fkl", "sft")] == pytest.approx([500 / 768 / 5, 0.7, 0.3], abs=1e-3)
