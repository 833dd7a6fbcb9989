"""generator=... on a command line: which rollouts take it."""

import pytest
from hydra import initialize_config_dir

from kd.composition.check import check, resolved
from kd.composition.choices import CONF
from kd.experiment import baseline, named
from kd.generators.vllm_server import Server
from kd.rollouts.offline import Offline
from kd.training import instantiate
from tests.test_composition import composed


@pytest.fixture(scope="module", autouse=True)
def hydra():
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield


TAKEN = (
    *(("rollout=on_policy",), ("rollout=teacher",), ("rollout=privileged_self", "teacher=own", "student=tiny")),
    *(("rollout=mixed",), ("rollout=replay",), ("rollout=adaptive",)),
)


@pytest.mark.parametrize("choices", TAKEN, ids=" ".join)
@pytest.mark.parametrize("generator", ["torch", "vllm", "vllm_colocated"])
def test_where_one_model_writes_any_engine_may(choices, generator):
    cfg = composed(*choices, f"generator={generator}")
    check(cfg)
    rollout = resolved(cfg)["rollout"]
    assert rollout.get("writer", rollout)["generator"] == resolved(cfg)["generator"]


@pytest.mark.parametrize(
    ("rollout", "reason"),
    [
        ("speculative", "choose each token together"),
        ("teacher_mixed", "choose each token together"),
        ("teacher_mixed_replay", "choose each token together"),
        ("offline", "has nothing written"),
    ],
)
def test_elsewhere_it_is_refused(rollout, reason):
    with pytest.raises(ValueError, match=f"generator Server.*{reason}; take generator=torch, or rollout=on_policy"):
        check(composed(f"rollout={rollout}", "generator=vllm"))


def test_the_rollout_gets_the_engine(tmp_path):
    cfg = composed("rollout=mixed", "generator=vllm", f"generator.weights={tmp_path}", "generator.staleness=2")
    generator = instantiate(cfg.rollout).writer.generator
    assert isinstance(generator, Server)
    assert (generator.staleness, generator.folder) == (2, tmp_path)


def test_the_baseline_writes_nothing():
    beside = baseline(named(composed("rollout=on_policy", "generator=vllm")))
    check(beside)
    assert isinstance(instantiate(beside.rollout), Offline)
