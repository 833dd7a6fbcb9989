"""A new axis is one row; a list composes, in its order, or is refused with the way out.

Run: python -m pytest tests/composition/test_axes.py
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from kd.augmentation import Stage
from kd.components.axes import AXES, Axis, references_alone, sections
from kd.components.choices import CONF, choices
from kd.composition.check import check
from kd.composition.overrides import check_overrides, started
from kd.composition.requirements import demands
from kd.experiment.elicitation import elicit
from kd.experiment.identity import identity
from kd.experiment.plan import baseline
from kd.experiment.preparation import choice
from kd.pages.methods import page
from kd.types import Response
from tests import runs

TINY = ("teacher=tiny", "student=tiny", "skill=spell_backward", "teacher.prepare=null")

NAMED_IN_LISTS = ("metric", "variant", "lm_eval")  # folders of conf whose files keys name: skill.metrics and others


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    yield
    GlobalHydra.instance().clear()


# ---- a new axis ------------------------------------------------------------------------------------------------------


class Pace:
    """What an axis of one's own chooses: in which order records are learnt."""

    requires = frozenset({"rewards"})

    def __init__(self, *, share: float) -> None:
        self.share = share


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of conf/ with the axis `pace`: its folder, its default, its row."""
    shutil.copytree(CONF, tmp_path / "conf")
    files = {
        "pace/none.yaml": "_target_: null\n",
        "pace/slow.yaml": f"_target_: {__name__}.Pace\nshare: 0.5\n",
        "method/paced.yaml": "# @package _global_\n# A method of nobody.\ndefaults:\n  - override /pace: slow\n",
    }
    for name, text in files.items():
        (tmp_path / "conf" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "conf" / name).write_text(text)
    config = tmp_path / "conf" / "config.yaml"
    config.write_text(config.read_text().replace("  - corpus: none\n", "  - corpus: none\n  - pace: none\n"))
    monkeypatch.setenv("KD_ALLOW", __name__)
    monkeypatch.setitem(AXES, "pace", Axis(alone="none", synonyms={"gentle": "slow"}))
    return tmp_path / "conf"


@contextmanager
def composed(conf: Path, *words: str) -> Iterator[DictConfig]:
    with started(conf):
        yield compose("config", overrides=[*TINY, *words])


def refused(*words: str, conf: Path = CONF) -> str:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the callers look at the sentence
        check_overrides([*words], conf)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_new_axis_is_composed_and_its_demands_are_read(conf):
    with composed(conf, "pace=slow", "reward=verifier", "objective=apo_zero") as cfg:
        check(cfg)
        assert cfg.pace.share == 0.5
    with composed(conf, "pace=slow") as cfg:
        asked = [(who, names) for group, who, names in demands(OmegaConf.to_container(cfg)) if group == "pace"]
        assert asked == [("pace Pace", frozenset({"rewards"}))]
        with pytest.raises(ValueError, match=r"pace Pace needs rewards, but reward=none; take reward="):
            check(cfg)


def test_a_new_axis_is_back_at_its_default_in_a_baseline(conf):
    with composed(conf, "pace=slow") as cfg:
        assert baseline(cfg).pace == {"_target_": None}
        other = baseline(compose("config", overrides=[*TINY]))
        assert identity(baseline(cfg)) == identity(other)
        assert identity(cfg) != identity(compose("config", overrides=[*TINY]))


def test_a_new_axis_is_described(conf):
    assert "- Also chosen: `pace=slow`." in page(conf).partition("## paced")[2].partition("\n## ")[0]


def test_a_new_axis_is_refused_when_misspelt(conf):
    assert "did you mean pace?" in refused("pase=slow", conf=conf)
    assert "conf/pace has no slw.yaml; did you mean slow? choices: none, slow" in refused("pace=slw", conf=conf)
    assert "did you mean slow?" in refused("pace=gentle", conf=conf)
    assert refused("pace=[none,slow]", conf=conf) == (
        "pace=[none,slow]: a run has one pace; take a sweep with a run for each, -m pace=none,slow"
    )
    with composed(conf, "~pace") as cfg, pytest.raises(ValueError, match="pace=null: a run cannot do without it"):
        check(cfg)


def test_every_axis_is_a_folder_with_what_its_row_names():
    folders = {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra", *NAMED_IN_LISTS}
    assert set(AXES) == folders
    for name, axis in AXES.items():
        assert {*axis.first, *([axis.alone] if axis.alone else [])} <= set(choices(name))
    defaults = OmegaConf.load(CONF / "config.yaml").defaults
    chosen = {key: value for entry in defaults if OmegaConf.is_dict(entry) for key, value in entry.items()}
    assert {name for name in chosen if name in AXES} == set(AXES)
    for name, alone in references_alone().items():
        assert chosen[name] == alone, "a run on the references alone is the default one"


# ---- lists -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "axis", [name for name in AXES if name not in ("objective", "augmentation", "logger", "judge")]
)
def test_a_list_of_what_does_not_compose_is_refused(axis):
    first, second = choices(axis)[:2]
    ways = {"teacher": "teacher=ensemble", "skill": "skill=mixture 'skill.of={NAME: WEIGHT, ...}'"}
    several = f"{ways[axis]} for several at once, or " if axis in ways else ""
    sentence = (
        f"{axis}=[{first},{second}]: a run has one {axis}; take {several}a sweep with a run for each, "
        f"-m {axis}={first},{second}"
    )
    assert refused(f"{axis}=[{first},{second}]") == sentence
    assert refused("-m", f"{axis}=[{first},{second}],{first}") == sentence


def test_a_list_in_a_file_is_refused_too(tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults:\n  - override /skill: [spell_backward, chain_sum]\n"
    (tmp_path / "experiment" / "both.yaml").write_text(text)
    told = refused("--config-dir", str(tmp_path), "experiment=both")
    assert told.startswith(
        "experiment=both chooses skill=[spell_backward,chain_sum]: a run has one skill; take skill=mixture 'skill.of={"
    )


@pytest.mark.parametrize("line", ["logger=[csv,wandb]", "objective=[fkl,sft]", "augmentation=[sampling,labeling]"])
def test_what_composes_is_taken(line):
    check_overrides([line])


@pytest.mark.parametrize("line", ["logger=[csv,csv]", "objective=[fkl,sft,fkl]", "augmentation=[labeling,labeling]"])
def test_a_file_that_is_named_twice_is_refused(line):
    """Hydra takes one of them without a word."""
    named = line.partition("[")[2].partition(",")[0]
    assert refused(line).startswith(f"{line} names {named} twice, and one would replace")


def stages(*words: str) -> list[str]:
    return list(runs.config(*words).augmentation.stages)


def test_stages_compose_in_the_order_given():
    assert stages("augmentation=[sampling,labeling]") == ["sampling", "labeling"]
    assert stages("augmentation=[labeling,sampling]") == ["labeling", "sampling"]
    assert stages("augmentation=[none,labeling]") == ["labeling"]
    assert stages("augmentation=none") == []


KEPT = ("keep_reference=true", "max_new_tokens=4")


class Tagged(Stage):
    """A stage that adds its tag to every response."""

    requires = frozenset()

    def __init__(self, tag: str) -> None:
        self.tag = tag

    def __call__(self, records, resources):
        for record in records:
            yield replace(record, responses=tuple(Response(one.text + self.tag) for one in record.responses))


def elicited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str, **nodes: object) -> list[tuple[str, ...]]:
    """The texts of each training record after the stages, and last what they cost the teacher."""
    monkeypatch.setenv("KD_CACHE", str(tmp_path))
    made = elicit(runs.config(*words, **nodes))
    texts = [tuple(response.text for response in record.responses) for record in made.records]
    return [*texts, (str(made.spent.teacher_tokens),)]


def test_records_pass_the_stages_in_the_order_given(tmp_path, monkeypatch):
    for tags in ("ab", "ba"):
        nodes = {tag: {"_target_": f"{__name__}.Tagged", "tag": tag} for tag in tags}
        *texts, cost = elicited(tmp_path, monkeypatch, augmentation={"stages": nodes})
        assert texts == [(record.responses[0].text + tags,) for record in runs.Toy().load("train")]
        assert cost == ("0",)


def test_two_labelings_keep_what_each_generated_and_cost_both(tmp_path, monkeypatch):
    """Sampled text first, greedy text after it: the group is (reference, sample, greedy); the other way round, too."""
    found = {}
    for names in ("sampling", "labeling", "sampling,labeling", "labeling,sampling"):
        keys = [f"augmentation.stages.{n}.{key}" for n in names.split(",") for key in KEPT]
        found[names] = elicited(tmp_path, monkeypatch, f"augmentation=[{names}]", *keys)
    ((*sampled, s), (*greedy, g), (*both, cost), (*other, same)) = found.values()
    assert both == [(*one, two[-1]) for one, two in zip(sampled, greedy, strict=True)]
    assert other == [(*one, two[-1]) for one, two in zip(greedy, sampled, strict=True)]
    assert int(cost[0]) == int(same[0]) == int(s[0]) + int(g[0]) > 0


def test_the_order_of_stages_is_another_run():
    one, other = (runs.config(f"augmentation=[{names}]") for names in ("sampling,labeling", "labeling,sampling"))
    assert identity(one) != identity(other)
    assert identity(one) == identity(runs.config("augmentation=[sampling,labeling]"))


def test_a_list_of_stages_without_names_is_refused():
    cfg = runs.config(augmentation={"stages": [{"_target_": "kd.augmentation.labeling.Labeling"}]})
    with started(CONF), pytest.raises(ValueError, match=r"each stage has a name; write augmentation.stages={labeling:"):
        check(cfg)
    cfg = runs.config(augmentation={"stages": {"labeling": None}})
    with (
        started(CONF),
        pytest.raises(ValueError, match=r"labeling=null: a stage calls a class; .*~augmentation"),
    ):
        check(cfg)


def test_sections_are_axes_and_points_are_none():
    assert "method" not in sections()
    with started(CONF):
        assert choice("augmentation", "none") == {"stages": {}}
