import math

import pytest
import torch

from kd.evaluation.agreement import (
    calibration_error,
    confidence,
    correct,
    entropy,
    forward_kl,
    reverse_kl,
    top1_agreement,
)
from kd.objectives import divergence


def logits(*rows):
    return torch.tensor(rows, dtype=torch.float64).log()


def test_top1_agreement_by_hand():
    student = logits([0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.4, 0.4, 0.2])
    teacher = logits([0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.8, 0.1, 0.1])
    assert top1_agreement(student, teacher).tolist() == [True, False, True]  # of the tie, id 0 counts


def test_entropy_by_hand():
    values = entropy(logits([0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0]))
    # 1/2 log 2 + 2 * 1/4 log 4 = 3/2 log 2
    assert values.tolist() == pytest.approx([1.5 * math.log(2), math.log(3), 0.0], abs=1e-12)


def test_divergences_are_those_of_the_objectives():
    assert forward_kl is divergence.forward_kl
    assert reverse_kl is divergence.reverse_kl


def test_leading_axes_are_kept():
    rows = torch.randn(2, 3, 5)
    for values in (entropy(rows), confidence(rows), correct(rows, torch.zeros(2, 3, dtype=torch.long))):
        assert values.shape == (2, 3)
    assert torch.equal(entropy(rows)[1], entropy(rows[1]))


def test_calibration_error_by_hand():
    sure = logits([0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6])
    labels = torch.tensor([0, 1, 1, 1])
    # with ten bins: at 0.9 accuracy 1/2, gap 0.4; at 0.6 accuracy 1, gap 0.4; each half of the rows
    value = calibration_error(confidence(sure), correct(sure, labels), bins=10)
    assert value.item() == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)
    # with one bin the gaps cancel: mean confidence 0.75, accuracy 3/4
    assert calibration_error(confidence(sure), correct(sure, labels), bins=1).item() == pytest.approx(0.0, abs=1e-12)


def test_bins_hold_their_upper_edge():
    # one bin (0, 1/2] for both: |(0.5 - 0) + (0.4 - 1)| / 2; apart it would be (0.5 + 0.6) / 2
    value = calibration_error(torch.tensor([0.5, 0.4]), torch.tensor([False, True]), bins=2)
    assert value.item() == pytest.approx(0.05)


def test_calibrated_predictions_have_no_error():
    """Of ten rows at 0.7, seven are right."""
    held = torch.full((10,), 0.7, dtype=torch.float64)
    assert calibration_error(held, torch.arange(10) < 7).item() == pytest.approx(0.0, abs=1e-12)
    assert calibration_error(torch.ones(4), torch.ones(4, dtype=torch.bool)).item() == 0.0


def test_calibration_of_nothing_is_unknown():
    assert math.isnan(calibration_error(torch.zeros(0), torch.zeros(0, dtype=torch.bool)))
