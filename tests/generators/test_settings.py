"""One value says how responses are decoded, and configs set it where they did.

Run: python -m pytest tests/generators/test_settings.py
"""

from inspect import signature
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from kd.components.choices import CONF, choices
from kd.components.signatures import check_call, located
from kd.generators.settings import Decoding
from kd.generators.torch import Torch
from kd.rollouts.paired import Demonstrated, Paired
from kd.rollouts.speculative import Speculative
from kd.rollouts.teacher_mixed import TeacherMixed

SETTINGS = ("samples", "max_new_tokens", "temperature", "top_p", "batch_size")


def node(name: str) -> dict[str, Any]:
    """Of a rollout, or of the innermost that generates for it, without what refers to the rest of the config."""
    found: Any = OmegaConf.to_container(OmegaConf.load(CONF / "rollout" / f"{name}.yaml"))
    while "writer" in found:
        found = found["writer"]
    if isinstance(partner := found.get("environment"), dict) and "skill" in partner:
        partner["skill"] = {"_target_": "tests.runs.Toy"}
    return {key: value for key, value in found.items() if "${" not in str(value)}


GENERATING = [name for name in choices("rollout") if "max_new_tokens" in node(name)]


def test_most_rollouts_generate():
    assert {"on_policy", "teacher", "paired", "privileged_self", "speculative", "teacher_mixed"} <= set(GENERATING)


@pytest.mark.parametrize("name", GENERATING)
def test_a_rollout_decodes_as_its_keys_say(name):
    settings = {**node(name), "samples": 3, "max_new_tokens": 5, "temperature": 0.25, "batch_size": 7}
    found: Any = located("rollout", settings["_target_"])
    if "top_p" in signature(found).parameters:
        settings["top_p"] = 0.5
    check_call("rollout", settings, found)
    made = instantiate(settings)
    assert made.decoding == Decoding(5, 3, 0.25, settings.get("top_p", 1.0), 7)
    assert isinstance(made.generator, Torch)


@pytest.mark.parametrize("name", GENERATING)
def test_a_rollout_names_every_setting_for_the_check_of_keys(name):
    found: Any = located("rollout", node(name)["_target_"])
    assert {*SETTINGS} - signature(found).parameters.keys() <= ({"top_p"} if found is TeacherMixed else set())
    with pytest.raises(ValueError, match="did you mean temperature"):
        check_call("rollout", {"max_new_tokens": 5, "temprature": 1.0}, found)


@pytest.mark.parametrize(
    ("rollout", "key"),
    [(TeacherMixed, "top_p"), (TeacherMixed, "generator"), (Speculative, "generator"), (Demonstrated, "opponent")],
)
def test_what_a_rollout_does_not_take_is_refused(rollout, key):
    with pytest.raises(ValueError, match=f"takes no {key}"):
        check_call("rollout", {"max_new_tokens": 5, key: None}, rollout)
    with pytest.raises(TypeError, match=key):
        rollout(max_new_tokens=5, **{key: None})


def test_defaults_are_each_rollouts_own():
    assert Paired(max_new_tokens=2).decoding == Decoding(2, 1, 1.0, 1.0, 16)
    assert Demonstrated(max_new_tokens=2).decoding.samples == 4
    assert Speculative(max_new_tokens=2).decoding == Decoding(2, 1, 0.5, 0.5, 16)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 leaves no room"),
        ({"temperature": -0.1}, "temperature=-0.1 is negative"),
        ({"top_p": 0.0}, "top_p=0.0 is not a share"),
        ({"samples": 0}, "samples=0 requests no response"),
        ({"samples": 2, "temperature": 0.0}, "samples=2 at temperature=0 are all the same"),
    ],
)
def test_settings_that_nothing_can_be_decoded_with_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Decoding(**{"max_new_tokens": 3, **settings}).check()
    Decoding(3, samples=2, temperature=0.0).check(distinct=1)  # a search ends in several
