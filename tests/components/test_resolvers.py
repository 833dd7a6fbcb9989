"""Values of a config that follow from its other values."""

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError

import kd.components  # noqa: F401  registers them


def config(*terms: str):
    rate = "${by_objective:{fkl: 8e-3, sft+fkl: 1e-2}}"
    return OmegaConf.create({"optim": {"lr": rate}, "objective": {term: {"weight": 1.0} for term in terms}})


@pytest.mark.parametrize(("terms", "rate"), [(["fkl"], 8e-3), (["sft", "fkl"], 1e-2)])
def test_the_rate_of_an_objective(terms, rate):
    assert config(*terms).optim.lr == rate


def test_an_objective_without_a_rate():
    with pytest.raises(InterpolationResolutionError, match="no value is given for objective rkl, only for fkl, sft"):
        _ = config("rkl").optim.lr


def test_a_rate_that_was_set():
    cfg = config("rkl")
    cfg.optim.lr = 0.5
    assert cfg.optim.lr == 0.5
