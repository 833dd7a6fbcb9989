"""Whatever is wrong with a command, it ends in one sentence that names the key, before a weight is loaded.

Run: python -m pytest tests/test_wrong_commands.py
"""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import run
from kd.components.axes import AXES
from kd.components.choices import CONF, choices
from kd.components.synonyms import KEYS, NOTES
from kd.composition.overrides import started
from kd.composition.suggestions import flattened
from kd.errors import explained, fault, in_one_sentence

BASE = (
    *("teacher=tiny", "student=tiny", "skill=spell_backward", "teacher.prepare=null", "trainer=cpu", "optim.steps=2"),
    *("compare=null", "evaluation=none", "skill.train=32", "skill.validation=8", "skill.test=8"),
)

# A command's words beside BASE, and what its sentence holds.
TYPED = {  # refused before anything is composed, or from what is composed
    "batch_size=8": ("batch_size=8", "did you mean optim.window?"),
    "per_device_train_batch_size=8": ("did you mean optim.window?",),
    "gradient_accumulation_steps=4": ("did you mean data.max_tokens?", "micro-batches"),
    "num_train_epochs=3": ("did you mean optim.steps?",),
    "max_steps=3": ("did you mean optim.steps?",),
    "learning_rate=1e-4": ("did you mean optim.lr?",),
    "warmup_ratio=0.1": ("did you mean optim.warmup?",),
    "weight_decay=0.1": ("did you mean optim.weight_decay?",),
    "max_length=256": ("did you mean data.max_length?",),
    "bf16=true": ("did you mean trainer.precision?", "bf16-mixed"),
    "output_dir=x": ("did you mean run.root?",),
    "report_to=wandb": ("did you mean logger?", "logger=wandb"),
    "logging_steps=1": ("did you mean log_every?",),
    "eval_steps=1": ("did you mean checkpoint.validate?",),
    "save_steps=1": ("did you mean checkpoint.every?",),
    "model_name_or_path=x": ("did you mean student.source?",),
    "teacher_model_name_or_path=x": ("did you mean teacher.source?",),
    "max_new_tokens=4": ("did you mean evaluation.max_new_tokens?",),
    "training_args.learning_rate=1": ("did you mean optim.lr?",),
    "beta=0.5": ("objective.jsd.loss.beta",),
    "lmbda=0.5": ("rollout.share",),
    "method=MiniLLM": ("method=MiniLLM", "did you mean minillm?"),
    "method=GKD": ("did you mean gkd?",),
    "objective=reverse_kl": ("did you mean rkl?",),
    "objective=FKL": ("did you mean fkl?",),
    "logger=tb": ("did you mean tensorboard?",),
    "rollout=on-policy": ("did you mean on_policy?",),
    "trainer=cuda": ("did you mean gpu?",),
    "optim.lr": ("optim.lr", "key=value"),
    "optim.lr=[1": ("optim.lr=[1", "Hydra cannot read this"),
    "--no-such-flag": ("--no-such-flag", "there is no such flag"),
    "--config-dir /no/such": ("/no/such is no folder",),
    "--config-name other": ("other",),
    "hydra/launcher=slurm": ("hydra/launcher/slurm", "Could not find"),
    "hydra.no_such=1": ("hydra.no_such",),
    "hydra/launcher=joblib hydra.launcher.n_jobs=many": ("hydra.launcher.n_jobs=many",),
    "run.root=/proc/outputs": ("run.root=/proc/outputs", "nothing can be written there"),
    "run.root=/etc/passwd/outputs": ("run.root=/etc/passwd/outputs", "not a directory"),
    "seed=1,2": ("seed=1,2",),
}
CHECKED = {  # by the task, from the composed config
    "compare=none": ("compare=none", "did you mean compare=null?"),
    "compare=SFT": ("compare=SFT", "did you mean sft?"),
    "optim.clip=none": ("optim.clip=none", "did you mean null?"),
    "optim.lr=fast": ("optim.lr=fast",),
    "optim=3": ("optim=3",),
    "+learning_rate=1": ("learning_rate", "did you mean optim.lr?"),
    "data.max_length=${nope}": ("data.max_length=${nope}", "the config has no nope"),
    "data.max_length=${oc.env:KD_NOT_THERE}": (
        "data.max_length=${oc.env:KD_NOT_THERE}: the environment variable",
        "set it",
    ),
    "optim.steps=???": ("optim.steps", "no value"),
    "rollout=mixed rollout.share=2.0": ("rollout", "share of 2"),
    "rollout=on_policy rollout.max_new_tokens=0": ("rollout", "max_new_tokens"),
    "rollout=on_policy rollout.temperature=-1": ("rollout", "temperature"),
    "skill.train=-1": ("skill", "train=-1"),
    "skill=reasoning_gym skill.task=composite skill.train=4": ("skill", "composite"),
    "skill._target_=os.system": ("skill._target_=os.system", "run.allow=[os]"),
    "corpus=local corpus.path=/no/such": ("corpus.path=/no/such does not exist",),
    "corpus=docstrings corpus.packages=[no_such_package]": ("corpus", "no_such_package"),
    "corpus=docstrings corpus.characters=0": ("corpus.characters=0",),
    "augmentation=labeling augmentation.stages.labeling.samples=0": ("augmentation.stages", "samples"),
    "name=a/b": ("name='a/b'", "cannot name a folder"),
    f"name={'x' * 300}": ("name=xxx", "bytes"),
    "trainer=gpu": ("trainer.accelerator=gpu", "take trainer=cpu"),
    "trainer.accelerator=cude": ("trainer.accelerator=cude", "did you mean cuda?"),
    "trainer.devices=0": ("trainer.devices=0",),
    "trainer.devices=some": ("trainer.devices=some",),
    "trainer.devices=[0]": ("trainer.devices=[0]",),
    "trainer=gpu trainer.accelerator=auto trainer.devices=some": ("trainer.devices=some",),
    "logger=wandb logger.wandb.project=a/b": ("logger.wandb.project=a/b",),
    "logger=wandb logger.wandb.tags=['']": ("logger.wandb.tags",),
    "logger=wandb logger.wandb.mode=online": ("logger.wandb.mode=online", "wandb login"),
    "logger=wandb logger.wandb.mode=on": ("logger.wandb.mode=on",),
    "rollout=on_policy generator=vllm generator.staleness=null generator.url=http://127.0.0.1:9": (
        "generator.url=http://127.0.0.1:9",
        "no server listens there",
    ),
    "rollout=on_policy generator=vllm generator.url=localhost": ("generator.url=localhost", "no address"),
    "rollout=on_policy generator=vllm_colocated generator.memory=2.5": ("generator.memory=2.5",),
    "reward=reward_model rollout=on_policy objective=reinforce": ("reward.folder",),
    "teacher.model.source={address:local:/no/such}": ("teacher.model.source",),
    "student=pretrained student.source=local:/no/such": ("local:/no/such",),
    "student=pretrained student.source=ftp:x": ("ftp:x",),
    "student=pretrained student.model.source={address:ftp:x}": (
        "set student.source=...",
        "instead of student.model.source",
    ),
}
SWEPT = {  # before job 0, with the job that cannot run
    "-m optim.lr=1,fast": ("job 1", "optim.lr=fast", "no job was started"),
    "-m skill.train=4,-1": ("job 1", "train=-1"),
    "-m trainer=cpu,gpu": ("job 1", "trainer.accelerator=gpu"),
    "-m name=a,b/c": ("job 1", "name='b/c'"),
    "-m seed=interval(1,2)": ("seed=interval(1,2)", "hydra/sweeper=optuna"),
}


@pytest.fixture
def sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """What the command prints to stderr, in this process; it ends with exit code 1 and one line."""

    def told(words: str) -> str:
        flags, own = (words.split(), []) if words.startswith("--") else (words.split()[:1], words.split()[1:])
        if not words.startswith("-"):
            flags, own = [], words.split()
        given = {word.partition("=")[0] for word in own}
        base = [word for word in BASE if word.partition("=")[0] not in given]
        root = [] if "run.root" in given else [f"run.root={tmp_path / 'outputs'}"]
        monkeypatch.setattr(sys, "argv", ["run.py", *flags, *base, *root, *own])
        for name in ("WANDB_API_KEY", "KD_ALLOW"):
            monkeypatch.setenv(name, "")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        GlobalHydra.instance().clear()
        with pytest.raises(SystemExit) as stop:
            run.start()
        if isinstance(stop.value.code, str):
            print(stop.value.code, file=sys.stderr)  # as Python does
        assert stop.value.code not in (0, None)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        assert "Error executing job" not in printed.out + printed.err
        assert len(printed.err.splitlines()) == 1, printed.err
        assert not list(tmp_path.rglob("config.yaml")), "a run was begun"
        return printed.err

    return told


@pytest.mark.parametrize("words", TYPED)
def test_a_wrong_word_ends_in_one_sentence(words, sentence):
    told = sentence(words)
    for part in TYPED[words]:
        assert part in told


@pytest.mark.long
@pytest.mark.parametrize("words", [*CHECKED, *SWEPT])
def test_a_wrong_config_ends_in_one_sentence(words, sentence):
    told = sentence(words)
    for part in (CHECKED | SWEPT)[words]:
        assert part in told


@pytest.mark.parametrize("words", ["rollout=mixed rollout.share=2.0", "-m trainer=cpu,gpu", "data.max_length=${nope}"])
def test_some_wrong_configs_end_in_one_sentence(words, sentence):
    told = sentence(words)
    for part in (CHECKED | SWEPT)[words]:
        assert part in told


# ---- the table of other names ----------------------------------------------------------------------------------------


def test_every_other_name_leads_to_a_key_that_exists():
    with started(CONF):
        known = flattened(compose("config"))
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    assert {key for key in KEYS.values() if key not in known and key not in groups} == set()
    assert not NOTES.keys() - KEYS.keys()
    assert {name for name in KEYS if name in known} == set(), "a key of the config is no other name"


def test_every_other_choice_is_a_file():
    for name, axis in AXES.items():
        assert set(axis.synonyms.values()) <= set(choices(name))
        assert not axis.synonyms.keys() & set(choices(name))


# ---- completion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "found"),
    [("objective=rk", "objective=rkd objective=rkl objective=rkl_student_topk"), ("optim.sc", "optim.schedule=")],
)
def test_tab_completes_as_hydra_documents_it(typed, found):
    line = f"python run.py {typed}"
    script = (
        'eval "$(python run.py -sc install=bash)"; '
        f'COMP_LINE="{line}"; COMP_POINT={len(line)}; COMP_CWORD=2; '
        'hydra_bash_completion 2> /dev/null; echo "${COMPREPLY[@]}"'
    )
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", script], cwd=CONF.parent, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert done.stdout.strip() == found, done.stderr


# ---- what is raised --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/disk/x"), ["/disk/x", "disk is full", "run.root"]),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/disk/x"), ["/disk/x", "disk is full"]),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), ["/x", "permission", "KD_CACHE"]),
        (OSError(errno.EROFS, "Read-only file system", "/x"), ["/x cannot be read or written"]),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"), ["/x does not exist"]),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/x"), ["name=..."]),
        (ConnectionError("no vLLM server answers at http://x"), ["no vLLM server answers"]),
        (MemoryError(), ["memory is used up", "data.max_tokens"]),
        (ValueError("two\nlines"), ["two lines"]),
    ],
    ids=lambda case: type(case).__name__ if isinstance(case, Exception) else "",
)
def test_what_the_user_can_mend_is_one_line(error, parts):
    told = explained(error)
    assert told is not None
    assert "\n" not in told
    for part in parts:
        assert part in told


def test_an_interpolation_names_key_and_reason():
    cfg = OmegaConf.create({"data": {"length": "${nope.more}"}})
    with pytest.raises(SystemExit) as stop, in_one_sentence():
        _ = cfg.data.length
    assert "data.length is an interpolation that cannot be resolved" in str(stop.value.code)
    assert "nope" in str(stop.value.code)


def test_a_fault_of_the_program_leaves_its_traceback_in_a_file(tmp_path):
    with pytest.raises(SystemExit) as stop, in_one_sentence(str(tmp_path)):
        _ = {}["missing"]
    (file,) = tmp_path.iterdir()
    assert str(stop.value.code) == f"KeyError: 'missing' (a fault of the program; its traceback is in {file})"
    assert "in_one_sentence(str(tmp_path))" in file.read_text() or "missing" in file.read_text()
    assert "Traceback" in file.read_text()
    assert fault(KeyError("x"), "/proc/no/such").count("\n") == 0
