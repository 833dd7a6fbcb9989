"""A file executes nothing but the project's components, unless whoever runs the command allows it.

Run: python -m pytest tests/components/test_allowed.py
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose
from omegaconf import DictConfig, OmegaConf

import kd.experiment.plan
from kd import cache
from kd.components.allowed import ALLOW, allow_typed, components
from kd.components.choices import CONF, parsed
from kd.components.instantiation import instantiate
from kd.components.signatures import located
from kd.composition.check import check
from kd.composition.overrides import check_overrides, started
from kd.doctor.__main__ import main as doctor
from kd.experiment.preparation import prepared
from kd.skills.__main__ import main as skills

ANNOTATED = """\
import os
import pathlib
from jaxtyping import Float
from torch import Tensor

pathlib.Path({mark!r}).touch()


def loss(student_logprobs: Float[Tensor, "*n"], *, scale: float = 1.0) -> Float[Tensor, "*n"]:
    return -scale * student_logprobs
"""
SKILL = """\
import pathlib
pathlib.Path({mark!r}).touch()
from kd.skills.reasoning_gym import ReasoningGym


class Mine(ReasoningGym):
    pass
"""


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the stranger's package leaves behind when it is imported."""
    mark = tmp_path / "executed"
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "strangers.py").write_text(ANNOTATED.format(mark=str(mark)))
    (tmp_path / "code" / "strange_skill.py").write_text(SKILL.format(mark=str(mark)))
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "strangers", raising=False)
    monkeypatch.delitem(sys.modules, "strange_skill", raising=False)
    monkeypatch.setenv(ALLOW, "")
    return mark


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """A config folder of a stranger's, as `--config-dir` takes it, of {path: text}."""

    def made(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / "conf" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / "conf"

    return made


def composed(*overrides: str) -> DictConfig:
    with started(CONF):
        return compose("config", overrides=["teacher=tiny", "student=tiny", "skill=spell_backward", *overrides])


def refused(cfg: DictConfig) -> str:
    with started(CONF), pytest.raises(ValueError, match="is not one of the project's components") as raised:
        check(cfg)
    assert "\n" not in str(raised.value)
    return str(raised.value)


SOMEWHERE = {  # where a node may stand: its path, and what is set there
    "a loss": ("objective.fkl.loss", lambda node: node),
    "nested": ("objective.fkl.loss.temperature", lambda node: node),
    "a stage": ("augmentation.stages", lambda node: {"own": node}),
    "a list": ("rollout.signals", lambda node: [node]),
    "a list in a list": ("rollout.signals", lambda node: [[{"deep": node}]]),
    "a section without calls": ("logger.wandb", lambda node: {"project": node}),
    "options": ("skill.options", lambda node: {"x": node}),
    "the trainer": ("trainer.plugins", lambda node: node),
}


@pytest.mark.parametrize("place", SOMEWHERE)
def test_foreign_code_is_refused_wherever_it_stands(place, mark):
    path, value = SOMEWHERE[place]
    cfg = composed()
    OmegaConf.update(cfg, path, value({"_target_": "strangers.loss", "_partial_": True}), merge=False, force_add=True)
    assert "strangers" in refused(cfg)
    assert not mark.exists()


BYPASSES = [
    "os.system",
    "builtins.eval",
    "subprocess.run",
    "hydra.utils.call",
    "hydra.utils.get_class",
    "hydra.utils.instantiate",
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "functools.partial",
    "torch.load",
    "torch.hub.load",
    "transformers.pipeline",
    "kd.sweeps.jobs.os.system",
    "kd.sweeps.jobs.Path",
    "kd.sweeps.entry.functools.partial",
    "kd.experiment.compatibility.instantiate",
    "kd.components.instantiation.hydra.utils.call",
    "kd.components.instantiation.instantiate",
    "kd.components.signatures.located",
    "kd.runs.folder.write_atomically",
    "kd.runs.folder.shutil.rmtree",
    "kd.runs.folder.git_state",
    "kd.objectives.divergence.forward_kl.__globals__.get",
    "kd.objectives.divergence.forward_kl.__call__",
    "kd.teachers.white_box.WhiteBox.load_state_dict",
    "kd.corpora.local.Local.texts",
    "kd.generators.vllm_server.requests.get",
    "kd.generators.vllm_colocated.importlib.import_module",
    "lightning.pytorch.loggers.wandb.os.system",
    "lightning.pytorch.callbacks.lr_monitor.rank_zero_warn",
]


@pytest.mark.parametrize("target", BYPASSES)
def test_no_path_leads_around_the_list(target, monkeypatch):
    monkeypatch.setenv(ALLOW, "")
    with pytest.raises(ValueError, match="is not one of the project's components") as raised:
        located("rollout", target)
    assert str(raised.value).startswith(f"rollout._target_={target}")


def test_a_target_that_comes_from_the_environment_is_checked_too(monkeypatch, mark):
    monkeypatch.setenv("KD_TEST_TARGET", "strangers.loss")
    cfg = composed()
    cfg.objective.fkl.loss._target_ = "${oc.env:KD_TEST_TARGET}"
    assert "objective.fkl.loss._target_=strangers.loss" in refused(cfg)
    assert not mark.exists()


def test_the_projects_own_components_are_allowed(monkeypatch):
    monkeypatch.setenv(ALLOW, "")
    assert {"kd.objectives.divergence", "kd.models.networks", "kd.skills.reasoning_gym"} <= components()
    assert not components() & {"kd.sweeps.entry", "kd.sweeps.jobs", "kd.runs.folder", "kd.components.signatures"}
    for target in ("lightning.pytorch.callbacks.LearningRateMonitor", "lightning.pytorch.loggers.CSVLogger"):
        assert callable(located("x", target))


# ---- who may allow ---------------------------------------------------------------------------------------------------


def test_the_environment_allows(mark, monkeypatch):
    cfg = composed()
    cfg.objective.fkl.loss = {"_target_": "strangers.loss", "_partial_": True}
    monkeypatch.setenv(ALLOW, "others, strangers")
    with started(CONF):
        check(cfg)
    assert mark.exists()


def test_what_is_allowed_opens_no_other_module(mark, monkeypatch):
    monkeypatch.setenv(ALLOW, "strangers")
    with pytest.raises(ValueError, match=r"which is posix.system, is not one of"):
        located("rollout", "strangers.os.system")


def test_a_typed_override_allows(mark, monkeypatch):
    with started(CONF):
        allow_typed([parsed("run.allow=[strangers]")])
    assert os.environ[ALLOW] == "strangers"
    assert callable(located("x", "strangers.loss"))


def test_a_file_allows_nothing(mark, folder):
    """Neither by `run.allow` nor by a sweep's parameters."""
    text = "# @package _global_\nrun:\n  allow: [strangers]\nobjective:\n  fkl:\n    loss: {_target_: strangers.loss}\n"
    conf = folder({"experiment/theirs.yaml": text})
    check_overrides(["--config-dir", str(conf), "experiment=theirs"])
    with started(CONF, conf):
        cfg = compose("config", overrides=["experiment=theirs", "teacher=tiny", "student=tiny"])
        with pytest.raises(ValueError, match=r"strangers.loss is not one of"):
            check(cfg)
        cfg.objective.fkl.loss._target_ = "kd.objectives.divergence.forward_kl"
        with pytest.raises(ValueError, match=r"run.allow=\[strangers\] stands in a file or was swept"):
            check(cfg)
    assert os.environ[ALLOW] == ""
    assert not mark.exists()


def test_a_jobs_overrides_allow_nothing(monkeypatch):
    """They may come from a file's `hydra.sweeper.params`; what the user typed is in the environment already."""
    monkeypatch.setenv(ALLOW, "")
    monkeypatch.setenv("KD_SWEEP", "/somewhere")
    with started(CONF):
        allow_typed([parsed("run.allow=[strangers]")])
    assert os.environ[ALLOW] == ""


# ---- every way to execute a config -----------------------------------------------------------------------------------


def test_a_job_of_a_sweep_is_refused_before_it_starts(mark):
    cfg = composed()
    cfg.objective.fkl.loss._target_ = "strangers.loss"
    with started(CONF), pytest.raises(ValueError, match=r"strangers.loss is not one of"):
        kd.experiment.plan.check(cfg)
    assert not mark.exists()


def test_what_a_preparation_reads_is_checked(mark, folder):
    """`prepare.skill` names a file that no one else composes."""
    conf = folder({"skill/theirs.yaml": "# x\n_target_: strange_skill.Mine\ntask: gcd\ntrain: 1\n"})
    with started(CONF, conf):
        cfg = compose("config", overrides=["teacher=tiny", "student=tiny", "skill=spell_backward"])
        cfg.teacher.prepare.skill = "theirs"
        with pytest.raises(ValueError, match=r"strange_skill.Mine is not one of"):
            check(cfg)
        with pytest.raises(ValueError, match=r"strange_skill.Mine is not one of"):
            prepared(cfg, lambda *_: pytest.fail("it was trained"))
    assert not mark.exists()


def test_what_is_made_is_checked_again(mark):
    node = OmegaConf.create({"rollout": {"_target_": "strangers.loss"}}).rollout
    with pytest.raises(ValueError, match=r"rollout._target_=strangers.loss is not one of"):
        instantiate(node)
    assert not mark.exists()


STRANGE = {"skill/theirs.yaml": "# Theirs\n_target_: strange_skill.Mine\ntask: gcd\ntrain: 4\nvalidation: 2\ntest: 2\n"}


def test_doctor_cache_and_skills_refuse_too(mark, folder, capsys):
    where = ["--config-dir", str(folder(STRANGE))]
    command = [*where, "teacher=tiny", "student=tiny", "skill=theirs"]
    assert doctor(command) == 1
    assert cache.main([*command, "targets=topk"]) == 1
    with pytest.raises(SystemExit) as stop:
        skills([*where, "theirs"])
    assert stop.value.code not in (0, None)
    skills(where)  # the list, without what would have to be imported
    told = capsys.readouterr()
    assert "strange_skill" in told.out + told.err
    assert not mark.exists()


def test_skills_prints_what_the_user_allows(mark, folder, capsys):
    skills(["--config-dir", str(folder(STRANGE)), "theirs", "run.allow=[strange_skill]", "-n", "1"])
    assert mark.exists()
    assert "gcd/" in capsys.readouterr().out


HYDRA = "# @package _global_\nhydra:\n  {}\n"


@pytest.mark.parametrize(
    "section",
    [
        "callbacks: {theirs: {_target_: strangers.loss}}",
        "launcher: {_target_: strangers.loss}",
        "sweeper: {_target_: os.system, command: x}",
        "sweeper: {check: strangers.loss}",
        "job_logging: {handlers: {theirs: {(): strangers.loss}}}",
        "hydra_logging: {handlers: {theirs: {class: strangers.loss}}}",
        "job_logging: {formatters: {theirs: {format: 'ext://strangers.loss'}}}",
        "job: {env_set: {KD_ALLOW: strangers}}",
        "launcher: {preload: [kd.command, strangers]}",
        "launcher: {address: 'strangers:6379'}",
        "launcher: {setup: [strangers]}",
        "callbacks: {theirs: {_target_: kd.sweeps.entry.main, config_path: x, config_name: y}}",
        "callbacks: {theirs: {_target_: hydra._internal.core_plugins.bash_completion.os.system, command: x}}",
        "callbacks: {theirs: {_target_: 'hydra_plugins.${name}'}}",
        "callbacks: {theirs: '${skill}'}",
        "callbacks: {theirs: {deep: ['${skill}']}}",
        "callbacks: {theirs: '${oc.create:${skill}}'}",
        "launcher: {deep: '${skill}'}",
        "job_logging: {handlers: {theirs: {class: logging.os.system, command: x}}}",
        "job_logging: {handlers: {theirs: {class: 'logging.${name}'}}}",
        "job_logging: {handlers: {theirs: {class: logging.StreamHandler, stream: '${name}'}}}",
        "job_logging: {handlers: {theirs: {class: logging.StreamHandler, stream: '${hydra.job.name}'}}}",
        "job_logging: {handlers: {theirs: {class: logging.StreamHandler, stream: 'e${name}'}}}",
        "job_logging: {handlers: {theirs: {class: logging.FileHandler, filename: /etc/profile}}}",
        "job_logging: {root: {handlers: ['ext://strangers']}}",
    ],
)
def test_the_section_that_hydra_carries_out_is_checked(section, mark, folder):
    conf = folder({"experiment/theirs.yaml": HYDRA.format(section)})
    with pytest.raises(ValueError, match="hydra") as raised:
        check_overrides(["--config-dir", str(conf), "experiment=theirs"])
    assert "\n" not in str(raised.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    "group",
    [
        *("job_logging=default", "launcher=joblib", "launcher=basic", "launcher=ray", "launcher=submitit_slurm"),
        *("launcher=submitit_local", "sweeper=basic"),
    ],
)
def test_what_hydra_and_its_plugins_bring_is_allowed(group):
    check_overrides([f"hydra/{group}"])


@pytest.mark.parametrize(
    ("callback", "told"),
    [
        ("{_target_: strangers.loss}", "hydra.callbacks.theirs._target_=strangers.loss"),
        ("'${theirs}'", "hydra.callbacks.theirs=${theirs}"),
    ],
)
def test_a_strangers_file_executes_nothing_from_the_command(callback, told, mark, folder):
    """The whole program, as it is started; the callback would be made before any task begins."""
    text = HYDRA.format(f"callbacks: {{theirs: {callback}}}") + "theirs: {_target_: strangers.loss}\n"
    conf = folder({"experiment/theirs.yaml": text})
    command = [sys.executable, "run.py", "--config-dir", str(conf), "experiment=theirs"]
    path = os.pathsep.join([str(mark.parent / "code"), str(CONF.parent)])
    ended = subprocess.run(
        command, cwd=CONF.parent, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert told in ended.stderr
    assert not mark.exists()
