"""What surrounds a run: its name and hash, what it is prepared by, the run beside it, the way from floor to teacher."""

from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from transformers import AutoModelForCausalLM

from kd.experiment import preparation
from kd.experiment import run as experiment
from kd.experiment.export import card
from kd.experiment.identity import SPLITS
from kd.experiment.plan import Plan, check
from kd.experiment.scores import _gap
from kd.metrics.table import METRICS, Metric
from kd.runs.folder import RunFolder
from kd.sweeps.jobs import Job
from tests.experiment.test_preparation import conf, cut_out
from tests.test_run_folder import results as stored

CONF = Path(__file__).parents[2] / "conf"
TINY = ["teacher=tiny", "student=tiny", "skill=spell_backward", "trainer=cpu"]


@pytest.fixture(autouse=True)
def _hydra():
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def config(*overrides: str) -> DictConfig:
    return compose("config", overrides=[*TINY, *overrides])


SHORT = ["teacher.prepare=null", "optim.steps=2", "evaluation=none", *(f"skill.{s}=8" for s in SPLITS)]
VARIED = [
    "reduction=sequence",
    "temperature=2",
    "temperature_squared=true",
    "compare=null",
    "checkpoint.records=4",
    "data.max_tokens=64",
    "optim.lr=1",
    "optim.steps=3",
    "seed=7",
    "objective=rkl",
    "log_every=1",
    "student.model.architecture.num_hidden_layers=1",
    "logger=wandb",
    "evaluation=quick",
    "trainer=ddp_cpu",
]


@pytest.mark.parametrize("override", VARIED)
def test_a_sweep_meets_one_teacher(override: str) -> None:
    overrides = [override] if not override.startswith("trainer=") else []
    words = [word for word in TINY if not (overrides == [] and word == "trainer=cpu")]
    other = compose("config", overrides=[*words, *(overrides or [override])])
    assert preparation.checkpoint_folder(other, "teacher") == preparation.checkpoint_folder(config(), "teacher")


@pytest.mark.parametrize(
    "override",
    [
        "teacher.prepare.steps=7",
        "teacher.prepare.lr=0.1",
        "teacher.prepare.seed=3",
        "teacher.prepare.window=8",
        "teacher.model.architecture.hidden_size=64",
        "skill.options.max_word_len=7",
        "data.max_length=100",
    ],
)
def test_what_a_preparation_depends_on(override: str) -> None:
    assert preparation.checkpoint_folder(config(override), "teacher") != preparation.checkpoint_folder(
        config(), "teacher"
    )


def test_a_run_on_sft_is_the_baseline_of_its_neighbours() -> None:
    """One sft run serves `-m objective=sft,fkl,rkl temperature=1,2`, and is what `objective=sft` itself makes."""
    own = Plan.of(config("objective=sft")).folder.path
    for overrides in (["objective=fkl"], ["objective=rkl", "temperature=2"], ["objective=jsd", "logger=wandb"]):
        plan = Plan.of(config(*overrides))
        assert plan.cfg.compare == "sft"
        assert plan.beside.folder.path == own


def test_the_runs_own_skill_comes_first_also_where_it_is_named_among_those_evaluated(tmp_path: Path) -> None:
    """Reports take the first skill of results.json for the one that a run was trained on."""
    short = [word for word in SHORT if not word.startswith("evaluation")]
    named = "evaluation.skills=[letter_counting,spell_backward]"
    alone = ["teacher=none", "objective=sft", "compare=null", f"run.root={tmp_path}"]
    cfg = config(*(word for word in short if "teacher" not in word), *alone, named, "evaluation=quick")
    results = experiment.work(Plan.of(cfg))
    assert list(results["scores"]) == list(results["gap_closed"]) == ["spell_backward", "letter_counting"]


def test_a_baseline_that_diverges_is_named(tmp_path: Path) -> None:
    """Past the check of the bounds: its learning rate is that of the run which it stands beside."""
    cfg = config(*SHORT, "compare=sft", f"run.root={tmp_path}")
    cfg.optim.lr = 1e30
    with pytest.raises(ValueError, match=r"is \S+ at step \d, .*; or leave it out, compare=null$") as refused:
        experiment.baseline_results(Plan.of(cfg))
    (failed,) = tmp_path.glob("*/results.json")
    named = f"the baseline, which compare=sft runs beside this one in {failed.parent}, failed: "
    assert str(refused.value).startswith(named)
    assert yaml.safe_load((failed.parent / "config.yaml").read_text())["objective"].keys() == {"sft"}


def test_seqkd_is_not_its_own_baseline() -> None:
    """Both have the objective sft; the baseline learns on the references, not on the teacher's text."""
    plan = Plan.of(config("objective=sft", "augmentation=labeling"))
    assert plan.cfg.compare == "sft"
    assert plan.beside.cfg.augmentation.stages == {}
    assert plan.beside.folder.path != plan.folder.path


def test_the_hash_sees_the_code_of_a_foreign_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "their_losses.py"
    module.write_text("def loss(student_logits, teacher_logits):\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("KD_ALLOW", "their_losses")
    cfg = config("objective.fkl.loss._target_=their_losses.loss")
    before = preparation.identity(cfg)
    assert preparation.identity(cfg) == before
    module.write_text("def loss(student_logits, teacher_logits):\n    return 2\n")
    assert preparation.identity(cfg) != before


def test_the_hash_sees_the_content_of_a_reward_models_run(tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "objective.safetensors").write_bytes(b"a head")
    cfg = config("reward=reward_model", f"reward.folder={tmp_path}", "rollout=on_policy", "objective=reinforce")
    before = preparation.identity(cfg)
    assert preparation.identity(cfg) == before
    (tmp_path / "objective.safetensors").write_bytes(b"another")
    assert preparation.identity(cfg) != before
    (tmp_path / "objective.safetensors").write_bytes(b"a head")
    (tmp_path / "student" / "model.safetensors").write_bytes(b"others")
    assert preparation.identity(cfg) != before


@pytest.mark.parametrize(
    ("setting", "hashed"),
    [("url=http://b:1", False), ("weights=/b", False), ("timeout=9", False), ("staleness=3", True)],
)
def test_where_a_generator_is_found_is_not_what_it_computes(setting: str, hashed: bool) -> None:
    words = ["rollout=on_policy", "generator=vllm", "generator.weights=/a"]
    names = [preparation.identity(config(*words, *more)) for more in ([], [f"generator.{setting}"])]
    assert (names[0] != names[1]) == hashed


def test_a_term_that_does_not_fit_is_refused_before_the_run_beside_it(tmp_path: Path) -> None:
    """The tiny teacher has four heads."""
    heads = ["student.model.architecture.num_attention_heads=2", "student.model.architecture.num_key_value_heads=2"]
    cfg = config("objective=attention_kl", *heads, f"run.root={tmp_path}", "optim.steps=1")
    with pytest.raises(ValueError, match="heads"):
        experiment.run(cfg, Job([]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.archive
@pytest.mark.parametrize("student", ["pruned", "lora", "pretrained"])
def test_tokenizers_and_shapes_are_checked_without_a_weight(student: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default teacher has 30 layers of nine heads, the students are made of it."""
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    words = ["teacher=smollm2_135m", f"student={student}", "skill=gsm_symbolic"]
    folders = [check(config(*words, *more)) for more in ([], ["objective=minilm2"])]
    assert all(isinstance(folder, RunFolder) and not folder.done for folder in folders)


@pytest.mark.archive
def test_a_student_with_other_tokens_is_refused_before_any_job() -> None:
    with pytest.raises(ValueError, match=r"alignment=same needs one tokenizer.*take alignment=spans"):
        check(config("teacher=smollm2_135m", "skill=gsm_symbolic"))
    check(config("teacher=smollm2_135m", "skill=gsm_symbolic", "alignment=spans"))


def test_gap_closed_by_hand() -> None:
    def systems(**values: float) -> dict:
        return {name: {"value": value} for name, value in values.items()}

    # (3 - 2) / (3 - 1)
    assert _gap(systems(floor=3.0, teacher=1.0, before=9.0, after=2.0), METRICS["bits_per_byte"]) == 0.5
    # (4 - 1) / (4 - 0): KL to the teacher, whose own is 0
    assert _gap(systems(floor=4.0, teacher=0.0, after=1.0), METRICS["forward_kl"]) == 0.75
    # (0.6 - 0.2) / (1.0 - 0.2)
    assert _gap(systems(floor=0.2, teacher=1.0, after=0.6), METRICS["top1"]) == pytest.approx(0.5)
    # a floor does not answer: from the student before
    assert _gap(systems(before=0.1, teacher=0.5, after=0.3), Metric("accuracy")) == pytest.approx(0.5)
    assert _gap(systems(before=0.5, teacher=0.5, after=0.3), Metric("accuracy")) is None
    assert _gap(systems(before=0.5, after=0.3), Metric("accuracy")) is None


def test_the_card_of_a_prepared_pair_shows_the_config_as_it_was_composed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was prepared on the way has the licence of what it stands on, and lies in this machine's cache."""
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))
    words = ("teacher.licence=MIT", "evaluation=quick", "optim.steps=2", f"run.root={tmp_path}")
    cfg = cut_out(tmp_path / "base", "pruned", *words)
    with conf():
        plan = Plan.of(cfg)
        cfg = plan.cfg
        plan.folder.start("", [])
        results = experiment.work(plan)
    text = (plan.folder.path / "student/README.md").read_text()
    for role in ("teacher", "student, before"):
        assert f"| {role} | `local:{tmp_path / 'base'}` | MIT |" in text
    assert yaml.safe_load(text.split("```")[1].removeprefix("yaml")) == OmegaConf.to_container(cfg, resolve=True)
    assert len(list((tmp_path / "cache/prepared").glob("*/model.safetensors"))) == 2
    assert str(tmp_path / "cache") not in text
    assert results["origins"]["teacher"] == {"which": f"local:{tmp_path / 'base'}", "licence": "MIT"}
    assert results["efficiency"]["student"]["parameters"] < results["efficiency"]["teacher"]["parameters"]
    assert results["contamination"]["splits"]["validation"]["items"] > 0
    top1 = results["agreement"]["top1"]["after"]
    assert f"top-1 agreement with the teacher | after | {top1['value']:.3f} |" in text


def test_a_run_that_another_method_made_is_shown_with_its_own_omissions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = config("compare=null", "omits=[the replay]", f"run.root={tmp_path}")
    other = config("compare=null", "omits=[the warm-up]", f"run.root={tmp_path}")
    folder = Plan.of(other).folder
    folder.start("", [])
    folder.finish(stored(omits=["the warm-up"]))
    for given, omitted in ((cfg, "the replay"), (other, "the warm-up")):
        experiment.run(given, Job([]))
        out = capsys.readouterr().out
        assert f"{folder.path.name} is DONE" in out
        assert [line for line in out.splitlines() if "omits" in line][-1].strip().endswith(f"its paper: {omitted}.")
    assert folder.results()["omits"] == ["the warm-up"]


def test_the_card_names_teacher_data_and_licences() -> None:
    cfg = Plan.of(config()).cfg
    text = card(
        OmegaConf.to_container(cfg, resolve=True),  # type: ignore[arg-type]
        {"scores": {"spell": {"bits_per_byte": {"after": {"value": 1.25, "low": 1.0, "high": 1.5, "n": 9}}}}},
        skill_licence="Apache-2.0",
        data="spell_backward",
    )
    assert "| spell | bits_per_byte | after | 1.250 | 1.000 to 1.500 | 9 |" in text
    for word in ("Apache-2.0", "spell_backward", "fkl", "kd.models.networks.scratch", "num_hidden_layers: 2"):
        assert word in text
