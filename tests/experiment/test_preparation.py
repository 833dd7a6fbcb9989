"""Preparations are made once, by whichever process and however often they are interrupted, and are found again."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict
from safetensors.torch import load_file

from kd.composition.check import check
from kd.experiment.export import export
from kd.experiment.identity import identity
from kd.experiment.launch import check_launch
from kd.experiment.plan import Plan
from kd.experiment.preparation import checkpoint_folder, prepared, unprepared
from kd.experiment.run import train_only
from kd.runs.folder import RunFolder
from kd.training.finiteness import NotFinite
from tests import runs
from tests.tiny import tiny

ROOT = Path(__file__).parents[2]
SHORT = {"objective": "sft", "skill": None, "steps": 4, "window": 4}
SOURCE = "${teacher.model.source}"
CUT = {
    "pretrained": {"_target_": "kd.models.networks.pretrained", "source": SOURCE, "dtype": "float32", "lora": None},
    "lora": {"_target_": "kd.models.networks.pretrained", "source": SOURCE, "dtype": "float32", "lora": {"r": 2}},
    "pruned": {"_target_": "kd.models.networks.pruned", "source": SOURCE, "layers": 1, "dtype": "float32"},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@contextmanager
def conf() -> Iterator[None]:
    """Inside, what prepares can be composed."""
    with initialize_config_dir(str(runs.CONF), version_base="1.3"):
        yield


def config(*overrides: str, prepare: dict[str, Any] = SHORT, **nodes: Any) -> DictConfig:
    """A run whose teacher is tuned first."""
    cfg = runs.config("compare=null", *overrides, **nodes)
    with open_dict(cfg):
        cfg.teacher.prepare = prepare
    return cfg


def cut_out(base: Path, student: str, *overrides: str) -> DictConfig:
    """Teacher and student are tuned first, and the student is cut out of the teacher."""
    export(tiny(dtype="float32"), base, "")
    read = {"_target_": "kd.models.networks.pretrained", "source": {"address": f"local:{base}"}, "dtype": "float32"}
    cfg = config(*overrides, student={"model": CUT[student], "prepare": SHORT})
    with open_dict(cfg):
        cfg.teacher.model = {**read, "lora": None}
    return cfg


def copied(base: Path) -> Callable[[DictConfig, RunFolder, Path], None]:
    """Instead of a training: a copy of `base` that records what was trained, as the student would be another one."""

    def train(recipe: DictConfig, run: RunFolder, export_to: Path) -> None:
        shutil.copytree(base, export_to)
        (export_to / "README.md").write_text(OmegaConf.to_yaml(recipe.student, resolve=True))

    return train


# ---- found again -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("student", CUT)
def test_a_student_cut_out_of_a_prepared_teacher_is_found_again(
    student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several ranks are refused while both are missing, until one process has prepared them."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    cfg = cut_out(tmp_path / "base", student)
    cfg.trainer.devices, cfg.trainer.strategy = 2, "ddp"
    with conf():
        assert list(unprepared(cfg)) == ["teacher", "student"]
        with pytest.raises(ValueError, match="preparation of the teacher and the preparation of the student"):
            check_launch(Plan.of(cfg))
        made = prepared(cfg, copied(tmp_path / "base"))
        assert list(unprepared(cfg)) == []
        check_launch(Plan.of(cfg))
        assert made.teacher.model.source.address in (checkpoint_of(made, "student") / "README.md").read_text()
        assert made.student.model.lora == CUT[student].get("lora")
        shutil.rmtree(checkpoint_of(made, "student"))
        assert list(unprepared(cfg)) == ["student"]


def checkpoint_of(cfg: DictConfig, role: str) -> Path:
    return Path(cfg[role].model.source.address.removeprefix("local:"))


def test_the_given_config_stays_as_it_is(tmp_path: Path) -> None:
    cfg = cut_out(tmp_path / "base", "pruned")
    before = cfg.copy()
    with conf():
        prepared(cfg, copied(tmp_path / "base"))
        unprepared(cfg)
    assert cfg == before
    assert OmegaConf.to_container(cfg) == OmegaConf.to_container(before)  # interpolations too


def test_its_card_states_the_licence_of_what_it_was_made_of(tmp_path: Path) -> None:
    """A cut student has its teacher's, under another name by now; and what is known of it makes no other checkpoint."""
    cfg = cut_out(tmp_path / "base", "pruned")
    with conf():
        folder = checkpoint_folder(cfg, "teacher")
        cfg.teacher.licence = "Apache-2.0"
        assert checkpoint_folder(cfg, "teacher") == folder
        made = prepared(cfg, train_only)
    for role, before in (("teacher", cfg.teacher.model.source.address), ("student", made.teacher.model.source.address)):
        card = (checkpoint_of(made, role) / "README.md").read_text()
        assert f"\n| student, before | `{before}` | Apache-2.0 |\n" in card
        assert "unknown" not in card


# ---- what suffices ---------------------------------------------------------------------------------------------------


def test_objective_skill_and_steps_suffice() -> None:
    """What is left out has values; written out, it is the same preparation."""
    least = {"objective": "sft", "skill": None, "steps": 3}
    whole = {**least, "lr": 5e-4, "window": 32, "schedule": "cosine", "seed": 0}
    small, large = config(prepare=least), config(prepare=whole)
    with conf():
        folders = [checkpoint_folder(cfg, "teacher") for cfg in (small, large)]
        assert folders[0] == folders[1]
        for other in ({"lr": 1e-3}, {"window": 31}, {"schedule": "linear"}, {"seed": 1}, {"steps": 4}):
            assert checkpoint_folder(config_in(small, other), "teacher") not in folders


def config_in(cfg: DictConfig, settings: dict[str, Any]) -> DictConfig:
    """With other settings of the teacher's preparation."""
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.teacher.prepare.update(settings)
    return cfg


# ---- once ------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_two_processes_at_once_get_one_checkpoint(tmp_path: Path, cache: Path) -> None:
    OmegaConf.save(config(), tmp_path / "config.yaml")
    command = [sys.executable, str(ROOT / "tests/preparation_worker.py"), str(tmp_path / "config.yaml"), str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert len(list(tmp_path.glob("waiting.*"))) == 2
    assert len(list(tmp_path.glob("trained.*"))) == 1
    addresses = {out.splitlines()[-1] for out, _ in outputs}
    assert addresses == {f"local:{folder}" for folder in checkpoints(cache)}
    assert len(addresses) == 1


def test_a_prepared_model_that_was_changed_since_is_named(tmp_path: Path, cache: Path) -> None:
    cfg = config()
    with conf():
        made = prepared(cfg, watched(tmp_path / "log"))
        weights_file = checkpoint_of(made, "teacher") / "model.safetensors"
        content = bytearray(weights_file.read_bytes())
        content[-3] ^= 1
        weights_file.write_bytes(content)
        with pytest.raises(ValueError, match=r"safetensors of a prepared teacher was changed .*; delete"):
            prepared(cfg, watched(tmp_path / "again"))
        shutil.rmtree(weights_file.parent)  # the remedy
        assert weights(checkpoint_of(prepared(cfg, watched(tmp_path / "remade")), "teacher"))


def checkpoints(cache: Path) -> list[Path]:
    """The finished ones."""
    return [
        path for path in (cache / "prepared").iterdir() if path.is_dir() and not path.suffix and path.name != ".locks"
    ]


# ---- continued -------------------------------------------------------------------------------------------------------


def watched(log: Path, *signals: runs.Signal, then: Callable[[Path], None] | None = None) -> Any:
    """A training whose steps are written down in `log`; signals are sent in it, and `then` happens to the export."""

    def train(recipe: DictConfig, run: RunFolder, export_to: Path) -> None:
        recipe.rollout = runs.scripted(log, *signals)
        train_only(recipe, run, export_to)
        if then is not None:
            then(export_to)

    return train


def steps(log: Path) -> list[int]:
    """Those that were trained."""
    return [int(key.partition(":")[2]) for key in runs.windows(log)]


def weights(folder: Path) -> dict[str, Any]:
    return {name: value.tolist() for name, value in load_file(folder / "model.safetensors").items()}


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The weights of a preparation that nothing interrupted, in a cache of its own."""
    cfg = config()
    with monkeypatch.context() as patched, conf():
        patched.setenv("KD_CACHE", str(tmp_path / "other"))
        made = prepared(cfg, watched(tmp_path / "whole"))
        assert steps(tmp_path / "whole") == [0, 1, 2, 3]
        return weights(checkpoint_of(made, "teacher"))


def broken_off(exported: Path) -> None:
    """The process ends when half of the student is written."""
    (exported / "model.safetensors").unlink()
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("stop", "again"),
    [({"signals": [(2, 0, "SIGTERM")]}, [2, 3]), ({"then": broken_off}, [])],
    ids=["in training", "in the export"],
)
def test_a_preparation_goes_on_where_it_was_stopped(
    stop: dict[str, Any], again: list[int], whole: dict[str, Any], tmp_path: Path, cache: Path
) -> None:
    """And ends as the one that nothing interrupted."""
    cfg = config()
    with conf():
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            prepared(cfg, watched(tmp_path / "first", *stop.get("signals", ()), then=stop.get("then")))
        assert list(unprepared(cfg)) == ["teacher"]
        made = prepared(cfg, watched(tmp_path / "second"))
        assert list(unprepared(cfg)) == []
    assert steps(tmp_path / "first") + again == [0, 1, 2, 3]
    assert steps(tmp_path / "second") == again
    assert weights(checkpoint_of(made, "teacher")) == whole
    assert checkpoints(cache) == [checkpoint_of(made, "teacher")]


def test_a_template_file_counts_by_its_content(tmp_path):
    file = tmp_path / "own.jinja"
    seen = set()
    for text in ("{{ messages }}", "{{ messages }}!"):
        file.write_text(text, encoding="utf-8")
        seen.add(identity(runs.config(f"student.model.chat_template={file}")))
    assert len(seen) == 2
    thinking = (runs.config(f"teacher.model.template_kwargs={{enable_thinking: {on}}}") for on in ("true", "false"))
    assert len({identity(cfg) for cfg in thinking}) == 2


def test_a_preparation_that_diverges_names_its_own_learning_rate(tmp_path: Path) -> None:
    """Past the check of its bounds; optim.lr of the run has no part in it."""
    cfg = config(prepare={**SHORT, "lr": 1e30})
    refusal = r"^teacher\.prepare: .*lower teacher\.prepare\.lr=1e\+30"
    with conf(), pytest.raises(NotFinite, match=refusal) as raised:
        prepared(cfg, train_only)
    assert "optim.lr" not in str(raised.value)
    with conf():
        assert list(unprepared(cfg)) == ["teacher"]


def test_a_preparation_on_plain_text_is_refused_before_weights_are_loaded(tmp_path: Path) -> None:
    """An objective of one's own; the corpus is the run's, and no preparation is named by it."""
    loss = "{_target_: kd.objectives.divergence.cross_entropy, _partial_: true}"
    streams = {"plain_a": "main", "plain_b": "lm"}
    terms = [f"{name}: {{stream: {stream}, kind: likelihood, loss: {loss}}}\n" for name, stream in streams.items()]
    (tmp_path / "objective").mkdir()
    (tmp_path / "objective" / "plain.yaml").write_text("".join(terms))
    cfg = config(prepare={**SHORT, "objective": "plain"})
    refused = r"^teacher\.prepare\.objective=plain has plain_b, which learns on plain text .*; take sft$"
    with conf():
        GlobalHydra.instance().config_loader().get_search_path().append("command-line", f"file://{tmp_path}")
        with pytest.raises(ValueError, match=refused):
            check(cfg)
