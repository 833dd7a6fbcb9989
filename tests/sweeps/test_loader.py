"""Keys that the swept choices of an axis have, and its default lacks: the composition of each job decides.

Run: python -m pytest tests/sweeps/test_loader.py
"""

import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from kd.components.axes import sections
from kd.components.choices import CONF, choices, content
from kd.composition.overrides import check_overrides, started
from kd.composition.suggestions import flattened
from kd.doctor.grid import jobs
from kd.doctor.subject import composed
from kd.sweeps.loader import SweepLoader
from tests.sweeps.test_sweeps import app, records, run, statuses, sweeps, with_pace  # noqa: F401  # app: a fixture

FILES = OmegaConf.load(CONF / "config.yaml").defaults
DEFAULTS = {axis: name for entry in FILES if OmegaConf.is_dict(entry) for axis, name in entry.items()}


def swept() -> Iterator[tuple[str, str, str]]:
    """Of each axis two files, and a key that both have and the default lacks."""
    for axis in sections():
        nodes = {name: content(axis, name) for name in choices(axis)}
        keys = {name: set(flattened(node)) for name, node in nodes.items() if "# @package" not in text_of(axis, name)}
        lacking = set(flattened(nodes[DEFAULTS[axis]]))
        for one, other in combinations(keys, 2):
            if found := sorted(key for key in keys[one] & keys[other] - lacking if "[" not in key and "_" not in key):
                yield axis, f"{one},{other}", found[0]
                break


def text_of(axis: str, name: str) -> str:
    return (CONF / axis / f"{name}.yaml").read_text()


def test_most_axes_have_such_a_key() -> None:
    assert len([*swept()]) > 8


@pytest.mark.parametrize(("axis", "names", "key"), [*swept(), ("method", "gkd,imitkd", "rollout.writer.samples")])
def test_a_key_of_the_swept_files_alone_is_set_in_each_job(axis: str, names: str, key: str) -> None:
    place = key if axis == "method" else f"{axis}.{key}"
    words = [f"{axis}={names}", f"{place}=7", "seed=3", "hydra.verbose=false"]
    with started():
        path = create_config_search_path(str(CONF))
        with pytest.raises(HydraException):  # Hydra alone
            ConfigLoaderImpl(path).load_configuration("config", words, RunMode.MULTIRUN)
        loader = SweepLoader(path)
        whole = loader.load_configuration("config", words, RunMode.MULTIRUN)
        assert whole.seed == 3
        assert list(whole.hydra.overrides.task) == words[:3]
        for name in names.split(","):
            job = loader.load_sweep_config(whole, [f"{axis}={name}", *words[1:3]])
            assert OmegaConf.select(job, place) == 7
        with pytest.raises(HydraException):  # a run has no other composition
            loader.load_configuration("config", words[1:], RunMode.RUN)


def test_a_list_of_files_is_swept_with_a_key_of_one_of_them() -> None:
    words = ["objective=[fkl,sft],[rkl,sft]", "objective.sft.weight=0.25", "~objective.sft.kind"]
    with started():
        whole = SweepLoader(create_config_search_path(str(CONF))).load_configuration("config", words, RunMode.MULTIRUN)
        assert list(whole.objective) == ["fkl"]
        assert list(whole.hydra.overrides.task) == words


def test_the_dry_run_composes_the_same_jobs() -> None:
    words = ["method=gkd,imitkd", "rollout.writer.max_new_tokens=9", "teacher=tiny", "student=tiny"]
    with started():
        found = list(jobs([*words, "skill=spell_backward"]))
    assert [(job.arm, job.cfg.rollout.writer.max_new_tokens) for job in found] == [
        ("method=gkd", 9),
        ("method=imitkd", 9),
    ]


# --- the arms of a grid ---


def test_a_key_that_an_arm_has_passes() -> None:
    check_overrides(["experiment=gkd_xsum_tiny", "rollout.writer.max_new_tokens=8"])
    check_overrides(["-m", 'hydra.sweeper.arms=["method=kd","method=gkd seed=2"]', "rollout.writer.max_new_tokens=8"])
    with pytest.raises(ValueError, match=r"the config has no rollout\.writer\.max_new_tokenz"):
        check_overrides(["experiment=gkd_xsum_tiny", "rollout.writer.max_new_tokenz=8"])
    with pytest.raises(ValueError, match=r"the config has no rollout\.writer"):
        check_overrides(["-m", 'hydra.sweeper.arms=["method=kd"]', "rollout.writer.max_new_tokens=8"])


def test_of_all_arms_the_nearest_key_is_suggested() -> None:
    """The first arm, objective=sft, has no key like it."""
    with pytest.raises(ValueError, match=r"no objective\.jsd\.loss\.betta; did you mean objective\.jsd\.loss\.beta\?"):
        check_overrides(["experiment=gkd_xsum_tiny", "objective.jsd.loss.betta=0.3"])


def test_arms_count_in_a_sweep_only() -> None:
    key, typed = "rollout.writer.max_new_tokens=8", 'hydra.sweeper.arms=["method=gkd"]'
    refusal = r"the config has no rollout\.writer"
    for words in (
        ["experiment=gkd_xsum_tiny", "hydra.mode=RUN", key],
        [typed, key],
        ["-m", typed, "hydra.sweeper.arms=null", key],
        ["experiment=gkd_xsum_tiny", "hydra.sweeper.arms=null", key],
    ):
        with pytest.raises(ValueError, match=refusal):
            check_overrides(words)
    with pytest.raises(ValueError, match=refusal), composed(["experiment=gkd_xsum_tiny", key]):
        pass  # as the doctor, kd.elicit and kd.cache compose it
    check_overrides(["-m", "experiment=gkd_xsum_tiny", "hydra.mode=RUN", key])  # which Hydra takes for a sweep
    check_overrides([typed, "hydra.mode=MULTIRUN", key])
    check_overrides([typed, "seed=1,2", key])  # of a dry run


@pytest.mark.parametrize(
    ("arms", "sentence"),
    [
        ('"method=gkd"', r"arms=method=gkd is no list; write hydra\.sweeper\.arms='\[\"method=gkd\"\]'"),
        ("5", r"arms=5 is no list"),
        ("{method: gkd}", r"arms=\{'method': 'gkd'\} is no list"),
        ("[{method: gkd}]", r"reads the arm \{'method': 'gkd'\} as something other than text; put the whole arm"),
        ("""["run.root=o'brien"]""", r"the arm run\.root=o'brien cannot be split into overrides: No closing quotation"),
    ],
)
def test_arms_that_are_no_list_of_texts_are_refused(arms: str, sentence: str) -> None:
    """In a file YAML reads `- a=b key=prefix: c=d` as a mapping, at its colon."""
    with pytest.raises(ValueError, match=sentence):
        check_overrides(["-m", f"hydra.sweeper.arms={arms}"])


def test_the_dry_run_names_the_job_that_a_key_does_not_fit() -> None:
    key, remedy = "rollout.writer.max_new_tokens", "only in the arms (hydra.sweeper.arms) or files that it fits"
    job, other = (
        f"job {arm} seed=1 skill=spell_backward" for arm in ("objective=sft augmentation=sampling", "method=imitkd")
    )
    alone = 'hydra.sweeper.arms=["method=imitkd"]'  # the other arms' rollouts take no writer
    for words, reason in {
        (f"{key}=8",): f"{job}: the config has no {key}; set {key}=8 {remedy}",
        ("rollout.writer={max_new_tokenz: 8}",): f"{job}: the config has no rollout.writer; set rollout.writer=",
        (alone, f"+{key}=8"): f"{other}: the config has {key} already; set +{key}=8 {remedy}",
    }.items():
        with started(), pytest.raises(ValueError, match=re.escape(reason)):
            list(jobs(["experiment=gkd_xsum_tiny", *words]))


def test_the_remedy_of_the_dry_run_works() -> None:
    arms = 'hydra.sweeper.arms=["objective=sft augmentation=sampling","method=gkd rollout.writer.max_new_tokens=8"]'
    words = ["experiment=gkd_xsum_tiny", arms]
    check_overrides(words)
    with started():
        assert [job.cfg.rollout.get("writer", {}).get("max_new_tokens") for job in jobs(words)] == [None] * 3 + [8] * 3


# --- programs ---


@pytest.fixture
def grouped(app: Path) -> Path:  # noqa: F811
    return with_pace(app)


def test_a_sweep_sets_the_key_of_its_files(grouped: Path) -> None:
    ended = run(grouped, "-m", "hydra/launcher=basic", "pace=slow,fast", "pace.depth=5", "run.name=toy-${pace.depth}")
    assert ended.returncode == 0, ended.stderr
    (sweep,) = sweeps(grouped)
    assert [record["overrides"][:2] for record in records(sweep)] == [
        ["pace=slow", "pace.depth=5"],
        ["pace=fast", "pace.depth=5"],
    ]
    assert statuses(sweep) == ["done", "done"]


def test_a_job_without_the_key_is_named(grouped: Path) -> None:
    ended = run(grouped, "-m", "hydra/launcher=basic", "pace=slow,none", "pace.depth=5")
    assert ended.returncode == 1
    assert ended.stderr == (
        "job 1 (pace=none pace.depth=5): the config has no pace.depth; set pace.depth=5 only in the arms "
        "(hydra.sweeper.arms) or files that it fits; no job was started\n"
    )


def test_the_remedy_runs(grouped: Path) -> None:
    arms = 'hydra.sweeper.arms=["pace=none","pace=slow pace.depth=5"]'
    ended = run(grouped, "-m", "hydra/launcher=basic", arms, "x=2")
    assert ended.returncode == 0, ended.stderr
    assert [record["overrides"] for record in records(sweeps(grouped)[0])] == [
        ["pace=none", "x=2"],
        ["pace=slow", "pace.depth=5", "x=2"],
    ]
