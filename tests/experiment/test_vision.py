"""Runs on images: learnt from the images, resumed exactly, refused where a part would leave them out.

Run: python -m pytest tests/experiment/test_vision.py
"""

import contextlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from kd.augmentation import answering
from kd.data.images import drawn
from kd.data.references import content
from kd.data.sequences import Encoder
from kd.evaluation.answers import score_answers
from kd.evaluation.evaluate import Evaluation
from kd.experiment.compatibility import check_models
from kd.experiment.elicitation import _lines, _record
from tests import runs
from tests.tiny import record
from tests.vision import IDEFICS3, noise, seen, tiny_vision

MODEL = {
    "_target_": "kd.models.networks.scratch",
    "architecture": IDEFICS3,
    "tokenizer": "bytes",
    "dtype": "float32",
}
STUDENT = {"model": MODEL, "prepare": None}
TEACHER = {"_target_": "kd.teachers.white_box.WhiteBox", "model": MODEL, "prepare": None, "licence": None}
DIGITS = {"_target_": "kd.skills.vision.digits.Digits", "train": 24, "validation": 8, "test": 8}
ON_POLICY = {"_target_": "kd.rollouts.on_policy.OnPolicy", "max_new_tokens": 4, "batch_size": 4}
REPLAY = {"_target_": "kd.rollouts.replay.Replay", "writer": ON_POLICY, "uses": 3, "capacity": 8, "max_age": 4}
ROLLOUTS = {"offline": None, "on_policy": ON_POLICY, "replay": {**REPLAY, "importance_bound": 1.5}}


def config(*words, **nodes):
    return runs.config(*words, **{"student": STUDENT, "teacher": TEACHER, "skill": DIGITS, **nodes})


@pytest.mark.parametrize(
    "rollout",
    [pytest.param("offline", marks=pytest.mark.long), "on_policy", pytest.param("replay", marks=pytest.mark.long)],
)
def test_a_stopped_run_goes_on_as_one_that_was_not(rollout, tmp_path):
    for name, signals in (("whole", ()), ("cut", [(3, 0, "SIGTERM")]), ("cut", ())):
        path = tmp_path / name
        inner = {} if ROLLOUTS[rollout] is None else {"inner": ROLLOUTS[rollout]}
        nodes = {"rollout": {**runs.scripted(path, *signals), **inner}}
        with contextlib.suppress(SystemExit):
            runs.train(config("optim.steps=5", "checkpoint.validate=100", "objective=[fkl,sft]", **nodes), path)
    ends = [torch.load(tmp_path / name / "final.0.pt", weights_only=True)["weights"] for name in ("whole", "cut")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


TEXT = runs.config().student


@pytest.mark.parametrize(
    ("words", "nodes", "told"),
    [
        (
            [],
            {"student": TEXT},
            "which the student .LlamaForCausalLM. does not read; take student=images/tiny",
        ),
        ([], {"teacher": runs.config().teacher}, "which the teacher .LlamaForCausalLM. does not read"),
        (["targets=topk", "targets.cached=true"], {}, "take targets.cached=false"),
        (["rollout=on_policy", "generator=vllm"], {}, "passes on no images, which the skill's prompts have"),
    ],
)
def test_what_would_leave_images_out_is_refused_before_weights_are_read(words, nodes, told):
    with pytest.raises(ValueError, match=told):
        check_models(config(*words, **nodes))


def test_what_is_kept_is_kept_by_its_images():
    """Measurements, answers, labels and elicited records: others for another image, and for a text what they were."""
    words = tiny_vision().tokenizer
    encoder = Encoder(words, None, max_length=200, max_tokens=1000)
    settings = Evaluation(items=None, answers=None, max_new_tokens=2, batch_size=2)
    one = seen(0)
    found = []
    for item in (one, replace(one, images=(noise(99),))):
        session = settings.session(skill=runs.Toy(), train=[item], test=[item], encoder=encoder)
        found.append((content(encoder, [item]), session.prompt_contents(words), answering.prompt_content(item)))
    assert all(a != b for a, b in zip(*found, strict=True))
    assert content(encoder, [record(0)])[0][:1] + content(encoder, [record(0)])[0][4:] == ["0"]
    for item, kept in ((one, one.images), (record(0), ())):
        [line] = _lines([item], [item])
        assert ("images" in json.loads(line)) == bool(kept)
        assert _record(line, [item]).images == kept


@pytest.mark.long
@pytest.mark.parametrize(
    ("skill", "steps", "least"),
    [
        ({"_target_": "kd.skills.vision.digits.Digits", "train": 1200, "validation": 8, "test": 200}, 150, 0.3),
        (
            {
                "_target_": "kd.skills.vision.shapes.Shapes",
                **{"train": 2000, "validation": 8, "test": 200, "questions": ["colour", "presence"]},
            },
            250,
            0.0,
        ),
    ],
    ids=["digits", "shapes_vqa"],
)
def test_a_student_learns_from_the_images(skill, steps, least, tmp_path):
    """Its answers are better than those to blank images: the paired difference's 95 % interval is above `least`."""
    small = OmegaConf.load(runs.CONF / "student" / "images" / "tiny.yaml")
    words = ["objective=sft", f"optim.steps={steps}", "optim.window=32", "data.max_tokens=4096", "optim.lr=2e-3"]
    teacher = {**TEACHER, "model": small.model}  # it is not read
    cfg = config(*words, "checkpoint.validate=100", skill=skill, student=small, teacher=teacher)
    parts = runs.train(cfg, tmp_path)
    records = parts.skill.load("test")
    blank = [replace(r, images=(drawn(np.zeros((36, 36, 3))),)) for r in records]
    scores = [
        score_answers(parts.module.student, parts.skill, some, max_new_tokens=10, batch_size=64)["score"].to_numpy()
        for some in (records, blank)
    ]
    gain = scores[0] - scores[1]
    draws = np.random.default_rng(0).choice(gain, (2000, len(gain))).mean(1)
    assert np.quantile(draws, 0.025) > least, (scores[0].mean(), scores[1].mean())
