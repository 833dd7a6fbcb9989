"""Loggers and callbacks from yaml: made, given a folder, checked before weights are loaded, and (not) in the identity.

Run: python -m pytest tests/training/test_observers.py
"""

import csv
import json
import sqlite3
import struct
from collections import defaultdict
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from lightning.pytorch import callbacks as of_lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf

from kd.composition.check import check
from kd.experiment.identity import code_of, identity
from kd.experiment.plan import baseline
from kd.runs.folder import RunFolder
from kd.training.observers import REFUSED, try_observers
from kd.training.trainer import loggers
from tests import runs

CALLBACKS, LOGGERS = "lightning.pytorch.callbacks", "lightning.pytorch.loggers"
RATE = {"_target_": f"{CALLBACKS}.LearningRateMonitor", "logging_interval": "step"}
STOPPING = {"_target_": f"{CALLBACKS}.EarlyStopping", "monitor": "validation/bits_per_byte"}
TABLE = {"_target_": f"{LOGGERS}.CSVLogger", "name": "", "version": "", "flush_logs_every_n_steps": 1}
HAS_TENSORBOARD = bool(find_spec("tensorboard") or find_spec("tensorboardX"))


def config(callbacks=None, logger=None, *overrides: str):
    """A tiny run with these nodes."""
    cfg = runs.config("compare=null", *overrides)
    OmegaConf.set_struct(cfg, False)
    if callbacks is not None:
        cfg.trainer.callbacks = callbacks
    if logger is not None:
        cfg.logger = logger
    return cfg


# ---- in a run --------------------------------------------------------------------------------------------------------


class Impatient(Callback):
    """Ends a run before the third step begins."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        trainer.should_stop = pl_module.step_count == 2


def test_loggers_and_callbacks_of_a_run(tmp_path):
    """A table beside metrics.csv with the same numbers, and what a callback logs is in both."""
    bar = {"_target_": f"{CALLBACKS}.TQDMProgressBar"}  # nothing to draw on here
    runs.train(config({"rate": RATE, "bar": bar}, {"table": TABLE}, "optim.steps=4", "log_every=2"), tmp_path)
    table = defaultdict(dict)
    for row in csv.DictReader((tmp_path / "table" / "metrics.csv").open()):
        table[row["step"]] |= {name: value for name, value in row.items() if value}
    own = runs.metrics(tmp_path)
    for step in ("2", "4"):
        for name in ("loss", "fkl", "grad_norm", "lr"):
            assert float(table[step][f"train/{name}"]) == float(own[f"{step},train,{name}"])
    rates = [float(own[f"{step},lr-AdamW,pg1"]) for step in range(4)]
    assert len(set(rates)) == 4
    assert max(rates) == pytest.approx(1e-2)
    assert "skill" in OmegaConf.load(tmp_path / "table" / "hparams.yaml")  # the composed config


def test_a_run_that_a_callback_ends_is_over(tmp_path, capsys):
    """At the second validation, of those every 3 steps, nothing is better by 100 bits; a resumed run adds no step."""
    cfg = config({"stop": {**STOPPING, "min_delta": 100.0, "patience": 1}})
    ran = runs.train(cfg, tmp_path)
    assert ran.module.step_count == 6
    assert "a callback ended the run at step 6 of 10" in capsys.readouterr().out
    before = runs.checkpoint(tmp_path)["state_dict"]
    again = runs.train(cfg, tmp_path)
    assert (again.module.step_count, again.module.ended) == (6, True)
    after = runs.checkpoint(tmp_path)["state_dict"]
    assert all(before[name].equal(after[name]) for name in before)


def test_a_callback_may_end_a_run_before_a_step(tmp_path):
    """As a list, and one of one's own."""
    ran = runs.train(config([RATE, {"_target_": "tests.training.test_observers.Impatient"}]), tmp_path)
    assert ran.module.step_count == 2
    assert runs.checkpoint(tmp_path)["distillation"]["step"] == 2


def scalars(folder: Path) -> dict[tuple[int, str], float]:
    """Those of TensorBoard's event files: records of length, checksum, message, checksum."""
    if find_spec("tensorboardX"):
        from tensorboardX.proto.event_pb2 import Event
    else:
        from tensorboard.compat.proto.event_pb2 import Event
    found = {}
    for file in folder.glob("events.out.tfevents.*"):
        content = file.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            for value in event.summary.value:
                number = value.tensor.float_val[0] if value.tensor.float_val else value.simple_value
                found[event.step, value.tag] = number
    return found


@pytest.mark.skipif(not HAS_TENSORBOARD, reason="neither tensorboard nor tensorboardX is installed")
def test_tensorboard(tmp_path):
    cfg = config(None, None, "logger=[csv,tensorboard]", "optim.steps=4", "log_every=2")
    check(cfg)
    try_observers(cfg)
    runs.train(cfg, tmp_path)
    told, own = scalars(tmp_path / "tensorboard"), runs.metrics(tmp_path)
    for step in (2, 4):
        for name in ("loss", "fkl", "grad_norm"):
            assert told[step, f"train/{name}"] == pytest.approx(float(own[f"{step},train,{name}"]), rel=1e-6)


@pytest.mark.long
@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow, of the extra `mlflow`, is not installed")
def test_mlflow(tmp_path):
    cfg = config(None, None, "logger=[csv,mlflow]", "optim.steps=4", "log_every=2", f"run.root={tmp_path}")
    checked(cfg)
    runs.train(cfg, tmp_path / "run")
    with sqlite3.connect(tmp_path / "mlflow.db") as file:
        rows = {(step, key): value for step, key, value in file.execute("SELECT step, key, value FROM metrics")}
        keys = {key for (key,) in file.execute("SELECT key FROM params")}
    assert same_as_own(rows, tmp_path / "run")
    assert any("objective" in key for key in keys)


@pytest.mark.long
@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio, of the extra `trackio`, is not installed")
def test_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    cfg = config(None, None, "logger=[csv,trackio]", "optim.steps=4", "log_every=2", f"run.root={tmp_path}")
    checked(cfg)
    runs.train(cfg, tmp_path / "run")
    with sqlite3.connect(tmp_path / "trackio" / "kd.db") as file:
        found = [(step, json.loads(text)) for step, text in file.execute("SELECT step, metrics FROM metrics")]
    assert same_as_own({(step, key): value for step, row in found for key, value in row.items()}, tmp_path / "run")


def same_as_own(rows: Mapping[tuple[int, str], float], folder: Path) -> bool:
    """Whether a logger has the values of the run's own table."""
    own = runs.metrics(folder)
    return all(
        rows[step, f"train/{name}"] == pytest.approx(float(own[f"{step},train,{name}"]), rel=1e-6)
        for step in (2, 4)
        for name in ("loss", "fkl", "grad_norm")
    )


def test_several_loggers_compose():
    assert set(runs.config("logger=[csv,tensorboard]").logger) == {"tensorboard"}
    assert set(runs.config("logger=[tensorboard,wandb]").logger) == {"tensorboard", "wandb"}
    assert set(runs.config("logger=[csv,wandb]").logger) == {"wandb"}


@pytest.mark.parametrize(("name", "kind"), [("mlflow", "MLFlowLogger"), ("trackio", "Trackio")])
def test_a_logger_that_is_not_installed(name, kind):
    if find_spec(name):
        pytest.skip(f"{name} is installed")
    refusal = sentence(None, None, f"logger={name}")
    assert refusal == f"logger.{name}: {kind} needs a package that is not installed; pip install -e '.[{name}]'"


def test_a_logger_that_names_its_folder_keeps_it(tmp_path):
    elsewhere = {**TABLE, "save_dir": str(tmp_path / "elsewhere")}
    folder = RunFolder.of(tmp_path, "toy", "0" * 12)
    found = loggers(config(None, {"table": TABLE, "other": elsewhere}), folder)
    assert [type(logger) for logger in found] == [CSVLogger, CSVLogger]
    assert [logger.save_dir for logger in found] == [str(folder.path / "table"), str(tmp_path / "elsewhere")]


# ---- refused ---------------------------------------------------------------------------------------------------------


def sentence(callbacks=None, logger=None, *overrides: str) -> str:
    """The refusal, by what is checked before weights are loaded."""
    with pytest.raises(ValueError, match=r"^[^\n]*$") as refusal:
        checked(config(callbacks, logger, *overrides))
    return str(refusal.value)


def checked(cfg) -> None:
    check(cfg)
    try_observers(cfg)


@pytest.mark.parametrize("name", REFUSED)
def test_callbacks_that_break_what_a_run_promises(name):
    assert getattr(of_lightning, name)
    told = sentence({"x": {"_target_": f"{CALLBACKS}.{name}"}})
    assert told == f"trainer.callbacks.x._target_={CALLBACKS}.{name}: {REFUSED[name]}"


def test_a_callback_derived_from_a_refused_one():
    assert sentence([{"_target_": f"{CALLBACKS}.ModelCheckpoint"}]).startswith("trainer.callbacks[0]._target_=")


@pytest.mark.parametrize(
    ("callbacks", "logger", "told"),
    [
        (
            {"x": {**STOPPING, "monitor": "val_loss"}},
            None,
            "trainer.callbacks.x.monitor=val_loss: a run is",
        ),
        ({"x": {**STOPPING, "patiense": 3}}, None, "did you mean patience?"),
        ({"x": {**STOPPING, "mode": "sideways"}}, None, "trainer.callbacks.x: `mode` can be"),
        ([{**RATE, "logging_interval": "second"}], None, "trainer.callbacks[0]"),
        ({"x": {"_target_": f"{LOGGERS}.CSVLogger"}}, None, "is no callback of Lightning; derive it from Callback"),
        ({"x": {"patience": 3}}, None, 'trainer.callbacks.x={"patience": 3}: names no callback'),
        ("EarlyStopping", None, "trainer.callbacks=EarlyStopping: should be a mapping"),
        (None, {"x": RATE}, "logger.x._target_=lightning.pytorch.callbacks.LearningRateMonitor is no logger"),
        (None, {"x": {"save_dir": "."}}, 'logger.x={"save_dir": "."}: names no logger'),
        (None, {"x": {**TABLE, "prefiks": "a"}}, "did you mean prefix?"),
        (None, {"x": {"_target_": "tests.training.test_observers.Elsewhere"}}, "logger.x: Elsewhere needs a package"),
    ],
)
def test_what_does_not_fit_is_one_sentence(callbacks, logger, told):
    assert told in sentence(callbacks, logger)


def test_a_distance_to_the_teacher_needs_one():
    cfg = config({"stop": {**STOPPING, "monitor": "validation/forward_kl"}}, None, "objective=sft")
    cfg.teacher = OmegaConf.load(runs.CONF / "teacher" / "none.yaml")
    with pytest.raises(ValueError, match=r"trainer\.callbacks\.stop\.monitor=validation/forward_kl needs a teacher"):
        check(cfg)


@pytest.mark.skipif(HAS_TENSORBOARD, reason="tensorboard or tensorboardX is installed")
def test_tensorboard_that_is_not_installed():
    told = sentence(None, None, "logger=tensorboard")
    assert told.endswith("TensorBoardLogger needs a package that is not installed; pip install -e '.[tensorboard]'")


class Elsewhere(CSVLogger):
    """A logger whose package is missing."""

    def __init__(self, save_dir: str):
        raise ModuleNotFoundError("No module named 'elsewhere'", name="elsewhere")


# ---- identity --------------------------------------------------------------------------------------------------------


def test_what_only_watches_is_not_in_the_identity():
    plain = identity(config())
    watching = {"rate": RATE, "devices": {"_target_": f"{CALLBACKS}.device_stats_monitor.DeviceStatsMonitor"}}
    assert identity(config(watching)) == plain
    assert identity(config({}, {"table": TABLE})) == plain
    own = {"x": {"_target_": "tests.training.test_observers.Elsewhere"}}
    assert identity(config(None, own)) == plain
    assert not any("observers" in name for name in code_of(OmegaConf.to_container(config(None, own), resolve=True)))


def test_what_can_change_numbers_is():
    found = [None, {"stop": STOPPING}, {"stop": {**STOPPING, "patience": 5}}]
    found += [[{"_target_": "tests.training.test_observers.Impatient"}], {"rate": RATE}]
    *different, same = [identity(config(callbacks)) for callbacks in found]
    assert len(set(different)) == 4
    assert same == different[0]


def test_a_baseline_is_ended_by_the_same_callbacks():
    cfg = config({"stop": STOPPING}, {"table": TABLE})
    cfg.compare = "sft"
    with initialize_config_dir(str(runs.CONF), version_base="1.3"):
        other = baseline(cfg)
    assert other.trainer.callbacks == cfg.trainer.callbacks
    assert other.logger == cfg.logger  # it is logged as its neighbour is
