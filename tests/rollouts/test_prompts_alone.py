"""Prompts without responses, with each rollout: one that generates learns on them, another refuses them.

Run: python -m pytest tests/rollouts/test_prompts_alone.py
"""

from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from kd.components.choices import choices
from kd.components.instantiation import instantiate
from kd.composition.groups import reads_given
from kd.data.references import prompted
from kd.data.sequences import Encoder
from kd.data.windows import Windows
from kd.experiment import build
from kd.seeding import seeded
from kd.teachers.white_box import WhiteBox
from kd.types import Models, Progress
from tests import runs
from tests.tiny import record, tiny

READ = {"offline", "mixed", "adaptive", "paired", "demonstrated", "privileged_self"}
JUDGED = {"ranked", "privileged_peers"}  # these require a reward
NOW = Progress(step=0, total=10)


@pytest.fixture(scope="module")
def models() -> Models:
    return Models(tiny(0), WhiteBox(tiny(1)), WhiteBox(tiny(0)))


def settings(name: str) -> dict:
    return OmegaConf.to_container(runs.config(f"rollout={name}", "objective=sft").rollout, resolve=True)


def test_rollouts_that_read_the_records_own_responses_are_known():
    assert {name for name in choices("rollout") if reads_given("rollout", settings(name))} == READ


@pytest.mark.parametrize("name", sorted(set(choices("rollout")) - READ - JUDGED))
def test_what_is_learnt_does_not_depend_on_a_response_that_is_replaced(name, models):
    encoder = Encoder(models.student.tokenizer, None, max_length=200, max_tokens=400)
    asked = record(0, "Who?", "a reference of some length")
    learnt = []
    for given in (asked, prompted(replace(asked, responses=()))):
        with seeded(0, "prompts alone"):
            rollout = instantiate(runs.config(f"rollout={name}", "objective=sft").rollout)
            windows = Windows([given], encoder, size=1, seed=0, steps=2)
            first, second = windows[0].batches, windows[1].batches
            batches = []
            for step, (window, coming) in enumerate(((first, [second]), (second, []))):
                rollout.foresee(coming)
                batches += rollout(window, models, replace(NOW, step=step, total=2), encoder)
        learnt.append([batch.student.labels[batch.student.mask].tolist() for batch in batches])
    assert learnt[0] == learnt[1]
    assert learnt[0][0]


def test_a_rollout_that_reads_them_refuses_prompts_alone_before_a_model_is_loaded():
    cfg = runs.config("objective=sft", "rollout=offline")
    bare = [record(0), replace(record(1), responses=())]
    with pytest.raises(
        ValueError, match=r"1 of 2 training records are prompts .* \(the first is 1\), and rollout Offline"
    ):
        build._train(cfg, bare)
    cfg = runs.config("objective=opd", "rollout=on_policy")
    assert [r.responses[0].text for r in build._train(cfg, bare)] == ["4", ""]
