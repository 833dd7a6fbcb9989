"""generator=... on a command line: which rollouts take it."""

from dataclasses import fields

import pytest
from hydra import initialize_config_dir
from omegaconf import open_dict
from transformers import GenerationConfig

from kd.components.choices import CONF
from kd.components.instantiation import instantiate
from kd.composition.check import check, resolved
from kd.experiment.plan import Plan, baseline
from kd.generators.options import BY_ANOTHER, Options
from kd.generators.vllm_server import Server
from kd.rollouts.offline import Offline
from tests.composition.test_composition import composed


@pytest.fixture(scope="module", autouse=True)
def hydra():
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield


TAKEN = (
    *(("rollout=on_policy",), ("rollout=teacher",), ("rollout=privileged_self", "teacher=own", "student=tiny")),
    *(("rollout=mixed",), ("rollout=replay",), ("rollout=adaptive",)),
)


@pytest.mark.parametrize("choices", TAKEN, ids=" ".join)
@pytest.mark.parametrize("generator", ["torch", "transformers", "vllm", "vllm_colocated"])
def test_where_one_model_writes_any_engine_may(choices, generator):
    cfg = composed(*choices, f"generator={generator}")
    check(cfg)
    rollout = resolved(cfg)["rollout"]
    assert rollout.get("writer", rollout)["generator"] == resolved(cfg)["generator"]


@pytest.mark.parametrize(
    ("rollout", "reason"),
    [
        ("speculative", "chooses each token with student and teacher together"),
        ("teacher_mixed", "chooses each token with student and teacher together"),
        ("teacher_mixed_replay", "chooses each token with student and teacher together"),
        ("offline", "generates nothing"),
    ],
)
def test_elsewhere_it_is_refused(rollout, reason):
    with pytest.raises(ValueError, match=f"generator Server.*{reason}; take generator=torch, or rollout=on_policy"):
        check(composed(f"rollout={rollout}", "generator=vllm"))


@pytest.mark.parametrize("rollout", ["paired", "ranked", "replay"])
def test_it_generates_for_the_innermost_rollout(rollout):
    reward = "verifier" if rollout == "ranked" else "none"
    check(composed(f"rollout={rollout}", "generator=transformers", f"reward={reward}"))


def test_it_writes_two_levels_down():
    cfg = composed("rollout=ranked", "generator=transformers", "reward=verifier")
    with open_dict(cfg):
        cfg.rollout = {"_target_": "kd.rollouts.mixed.Mixed", "seed": 1, "share": 0.5, "writer": cfg.rollout}
    check(cfg)
    cfg.rollout.writer.writer.generator = None
    with pytest.raises(ValueError, match="Mixed generates nothing with it"):
        check(cfg)


def test_the_rollout_gets_the_engine(tmp_path):
    cfg = composed("rollout=mixed", "generator=vllm", f"generator.weights={tmp_path}", "generator.staleness=2")
    generator = instantiate(cfg.rollout).writer.generator
    assert isinstance(generator, Server)
    assert (generator.staleness, generator.folder) == (2, tmp_path)


def test_the_teacher_labels_by_it_and_by_another_than_the_rollout():
    labels = instantiate(composed("augmentation=labeling", "generator=beam_search").augmentation.stages)
    assert labels.labeling.generator.options.num_beams == 5
    check(composed("augmentation=labeling", "generator=transformers", "rollout=teacher_mixed", "alignment=same"))
    beside = ("augmentation=labeling", "generator=vllm", "rollout=on_policy")
    with pytest.raises(
        ValueError, match=r"augmentation.stages.labeling.*set augmentation.stages.labeling.generator=null"
    ):
        check(composed(*beside))
    check(composed(*beside, "augmentation.stages.labeling.generator=null"))
    with pytest.raises(ValueError, match="generates nothing; take generator=torch"):
        check(
            composed("augmentation=labeling", "generator=transformers", "augmentation.stages.labeling.generator=null")
        )


TRANSFORMERS = ("generator=transformers", "rollout=on_policy")


def test_its_options_reach_it_as_plain_python():
    cfg = composed(*TRANSFORMERS, "generator.options.suppress_tokens=[5,6]", "generator.options.no_repeat_ngram_size=6")
    check(cfg)
    generator = instantiate(cfg.rollout).generator
    assert generator.options.chosen == {"suppress_tokens": [5, 6], "no_repeat_ngram_size": 6}
    assert type(generator.options.suppress_tokens) is list


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["options.num_beams=4"], "rollout: generator.options.num_beams=4 with temperature=1.0: .*; set temperature=0"),
        (["options.num_beams=0"], "generator.options.num_beams=0: should be greater than 0"),
        (["options.top_k=2.5"], r"generator.options.top_k=2.5: .*int"),
        (["options.early_stopping=maybe"], r"generator.options.early_stopping=maybe: should be .*never"),
        (["options.length_penalty=2.0"], "rollout: generator.options.length_penalty=2.0 is for beam search"),
        (["+options.beams=4"], "generator.options.beams: the generator takes no beams; did you mean num_beams?"),
        (["+options.max_length=9"], "generator.options.max_length=9: the writer's max_new_tokens bounds a response"),
        (["+options.num_return_sequences=2"], "generator.options.num_return_sequences=2: the writer's samples sets it"),
        (["+options.num_beam_groups=2"], "generator.options.num_beam_groups=2: transformers has moved it to code"),
    ],
)
def test_options_are_checked_before_any_weight_is_loaded(words, sentence):
    words = [word.replace("+", "+generator.") if word[0] == "+" else f"generator.{word}" for word in words]
    with pytest.raises(ValueError, match=sentence):
        check(composed(*TRANSFORMERS, *words))


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        (["rollout=mixed"], "rollout.writer: generator.options.num_beams=5 with temperature=1.0"),
        (
            ["augmentation=labeling", "augmentation.stages.labeling.samples=6"],
            "augmentation.stages.labeling: samples=6, but .*num_beams=5",
        ),
        (
            ["augmentation=labeling", "augmentation.stages.labeling.temperature=0.5"],
            "augmentation.stages.labeling: .*temperature=0.5",
        ),
    ],
)
def test_beams_are_checked_against_the_part_that_has_them(choices, sentence):
    with pytest.raises(ValueError, match=sentence):
        check(composed("generator=beam_search", *choices))


def test_what_is_known_of_options_is_what_the_library_has():
    """An option of ours that it does not know would do nothing, without a word."""
    known = vars(GenerationConfig()).keys()
    assert {field.name for field in fields(Options)} <= known
    assert BY_ANOTHER.keys() <= known
    assert not BY_ANOTHER.keys() & {field.name for field in fields(Options)}
    listed = resolved(composed(*TRANSFORMERS))["generator"]["options"]
    assert listed == {field.name: field.default for field in fields(Options)}


def test_the_baseline_writes_nothing():
    beside = baseline(Plan.of(composed("rollout=on_policy", "generator=vllm")).cfg)
    check(beside)
    assert isinstance(instantiate(beside.rollout), Offline)
