import os
import signal

import pytest
import torch

from kd.experiment.build import build, fit
from kd.training.callbacks import WholeFiles, read_checkpoint
from tests import runs


@pytest.fixture(autouse=True)
def handlers():
    """A run gives the signals back, however it ends."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    now = {number: signal.getsignal(number) for number in before}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert now == before


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("uninterrupted")
    runs.train(runs.config(rollout=runs.scripted(path)), path)
    return path


def stopped(path, *signals: runs.Signal) -> int:
    """The exit code of a run that is sent `signals`."""
    with pytest.raises(SystemExit) as stop:
        runs.train(runs.config(rollout=runs.scripted(path, *signals)), path)
    return stop.value.code


def stopped_while_validating(path, validation: int, *overrides: str) -> int:
    """The same, sent in the first forward pass of the `validation`-th validation, counted from 0."""
    parts = build(cfg := runs.config(*overrides, rollout=runs.scripted(path)))
    begun = [0, False]  # validations so far, and whether the last forward pass was one's

    def strike(student: torch.nn.Module, *_) -> None:
        begun[0] += not student.training and not begun[1]
        if begun[0] == validation + 1 and not student.training and not begun[1]:
            os.kill(os.getpid(), signal.SIGTERM)
        begun[1] = not student.training

    parts.module.student.register_forward_pre_hook(strike)
    with pytest.raises(SystemExit) as stop:
        fit(cfg, parts, runs.started(path))
    return stop.value.code


def saved_step(path) -> int:
    return torch.load(path / "checkpoints/last.ckpt", weights_only=True)["distillation"]["step"]


def test_a_signal_finishes_the_step_and_saves_it(tmp_path, uninterrupted, capsys):
    assert stopped(tmp_path, (5, 0, "SIGTERM")) == 128 + signal.SIGTERM
    assert saved_step(tmp_path) == 5
    assert "stopped after step 5; the same command resumes there" in capsys.readouterr().out
    assert not any(key.startswith("5,validation") for key in runs.metrics(tmp_path))  # it was not its turn
    assert stopped(tmp_path, (6, 0, "SIGINT")) == 128 + signal.SIGINT
    assert saved_step(tmp_path) == 6
    runs.train(runs.config(rollout=runs.scripted(tmp_path)), tmp_path)
    assert f"resumed after step 6 of 10 ({tmp_path.name})" in capsys.readouterr().out
    assert runs.differences(uninterrupted, tmp_path) == []


def saved_differences(one, other) -> list[str]:
    """Without what only a process that made the last step itself leaves: its random state."""
    return [found for found in runs.differences(one, other) if not found.startswith("final")]


def test_a_signal_in_the_last_step_is_not_lost(tmp_path, uninterrupted):
    """Nothing is left to train, but whoever sent it does not want an evaluation either."""
    assert stopped(tmp_path, (runs.STEPS, 0, "SIGTERM")) == 143
    assert saved_step(tmp_path) == runs.STEPS
    assert saved_differences(uninterrupted, tmp_path) == []
    runs.train(runs.config(rollout=runs.scripted(tmp_path)), tmp_path)  # and the next call finds all done
    assert saved_differences(uninterrupted, tmp_path) == []


@pytest.mark.parametrize("validation", [0, 2])
def test_a_signal_while_validating_is_not_lost(tmp_path, uninterrupted, validation):
    """The validation is finished, and saved with the step that it belongs to."""
    assert stopped_while_validating(tmp_path, validation) == 143
    step = 3 * (validation + 1)
    assert saved_step(tmp_path) == step
    assert f"{step},validation,bits_per_byte" in runs.metrics(tmp_path)
    runs.train(runs.config(rollout=runs.scripted(tmp_path)), tmp_path)
    assert runs.differences(uninterrupted, tmp_path) == []


def test_a_signal_in_the_last_validation_is_not_lost(tmp_path):
    """No step comes after it that could notice."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    runs.train(runs.config("checkpoint.validate=5", rollout=runs.scripted(whole)), whole)
    assert stopped_while_validating(cut, 1, "checkpoint.validate=5") == 143
    assert saved_step(cut) == runs.STEPS
    assert saved_differences(whole, cut) == []


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    """In the middle of the step: what the first one would have saved is not there."""
    with pytest.raises(SystemExit) as stop:
        runs.train(runs.config(rollout=runs.scripted(tmp_path, (6, 0, "SIGINT"), (6, 0, "SIGINT"))), tmp_path)
    assert stop.value.code == 1
    assert isinstance(stop.value.__context__, KeyboardInterrupt)  # by which a sweep detects it
    assert saved_step(tmp_path) == 4  # the periodic one


def test_a_second_sigterm_changes_nothing(tmp_path):
    assert stopped(tmp_path, (5, 0, "SIGTERM"), (5, 0, "SIGTERM")) == 143
    assert saved_step(tmp_path) == 5


def test_a_signal_before_the_first_step_ends_the_run_with_its_code(tmp_path):
    """While Lightning still listens: it would exit with 0."""
    parts = build(cfg := runs.config(rollout=runs.scripted(tmp_path)))
    make = parts.data.train_dataloader

    def struck() -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return make()

    parts.data.train_dataloader = struck
    with pytest.raises(SystemExit) as stop:
        fit(cfg, parts, runs.started(tmp_path))
    assert stop.value.code == 143


def test_last_is_written_at_its_interval_and_at_the_end(tmp_path):
    """Ten steps, every four: the modification time changes at 4, 8 and 10."""
    last, seen = tmp_path / "checkpoints/last.ckpt", []
    parts = build(cfg := runs.config(rollout=runs.scripted(tmp_path)))
    inner = parts.module.rollout.inner

    def watching(*arguments):
        seen.append(saved_step(tmp_path) if last.exists() else None)
        return inner(*arguments)

    parts.module.rollout.inner = watching
    fit(cfg, parts, runs.started(tmp_path))
    assert seen == [None, None, None, None, 4, 4, 4, 4, 8, 8]
    assert saved_step(tmp_path) == 10


# ---- files -----------------------------------------------------------------------------------------------------------


class Unpicklable:
    def __reduce__(self):
        raise RuntimeError("cut off")


def test_a_file_that_is_cut_off_leaves_the_old_one(tmp_path):
    path, files = tmp_path / "new/last.ckpt", WholeFiles("")
    files.save_checkpoint({"global_step": 1}, path)
    with pytest.raises(RuntimeError, match="cut off"):
        files.save_checkpoint({"tensor": torch.zeros(1000), "global_step": 2, "bad": Unpicklable()}, path)
    assert read_checkpoint(path, "") == {"global_step": 1}
    files.save_checkpoint({"global_step": 2}, path)
    assert read_checkpoint(path, "") == {"global_step": 2}
    assert sorted(file.name for file in path.parent.iterdir()) == ["last.ckpt", "last.ckpt.artifact.json"]


def test_the_old_file_is_there_while_the_new_one_is_written(tmp_path):
    """And nothing is written anywhere else, as on another disk."""
    path, files = tmp_path / "last.ckpt", WholeFiles("")
    files.save_checkpoint({"global_step": 1}, path)
    seen = []

    class Looking:
        def __reduce__(self):
            seen.append((files.load_checkpoint(path), sorted(f.name for f in tmp_path.iterdir())))
            return (int, (2,))

    files.save_checkpoint({"global_step": 2, "looking": Looking()}, path)
    partial = f".last.ckpt.{os.getpid()}.part"
    assert seen == [({"global_step": 1}, [partial, "last.ckpt", "last.ckpt.artifact.json"])]


def test_a_checkpoint_with_a_flipped_bit_or_of_another_run_is_never_used(tmp_path):
    """Bits at ten places of the file, headers and weights alike."""
    path = tmp_path / "last.ckpt"
    WholeFiles("a" * 12).save_checkpoint({"global_step": 7, "weights": torch.arange(500.0)}, path)
    whole = path.read_bytes()
    for place in range(3, len(whole), len(whole) // 10):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"last.ckpt of a checkpoint was changed .* delete .* to begin at step 0"):
            read_checkpoint(path, "a" * 12)
    path.write_bytes(whole)
    assert read_checkpoint(path, "a" * 12)["global_step"] == 7
    with pytest.raises(ValueError, match=r"is a checkpoint of run=aaaaaaaaaaaa, not of run=bbbbbbbbbbbb"):
        read_checkpoint(path, "b" * 12)


# ---- lines -----------------------------------------------------------------------------------------------------------
