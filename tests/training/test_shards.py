"""Checkpoints of sharded runs, which two real processes write at once: whole whenever one is killed, and verified."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kd.training.callbacks import WholeFiles, read_checkpoint, remove_checkpoint
from kd.training.shards import SHARDS, joined, split
from tests import runs
from tests.training import shards_worker
from tests.training.shards_worker import content

UNKILLED = "nothing"
OLD = [place for place in shards_worker.PLACES if place != "before the old folder is deleted"]  # step 1 is what counts


def worker(folder: Path, scenarios: list[tuple[str, str | None, str]]) -> None:
    command = [sys.executable, shards_worker.__file__, str(folder), json.dumps(scenarios)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder for each place where a process was killed."""
    return runs.shared(tmp_path_factory, "shards", every_place)


def every_place(folder: Path) -> None:
    worker(folder, [(UNKILLED, None, ""), *((place, place, "") for place in shards_worker.PLACES)])


def unequal(one: Any, other: Any) -> list[str]:
    return runs._unequal([one, {k: v for k, v in other.items() if k != SHARDS}], "")


@pytest.mark.long
@pytest.mark.parametrize("place", [UNKILLED, *shards_worker.PLACES])
def test_a_checkpoint_is_whole_wherever_a_process_was_killed(saved, place):
    step = 1 if place in OLD else 2
    assert unequal(content(step), read_checkpoint(saved / place / "last.ckpt", "")) == []
    assert unequal(content(step), WholeFiles("").load_checkpoint(saved / place / "last.ckpt")) == []


@pytest.mark.long
def test_what_a_killed_process_left_is_in_nobodys_way(saved, tmp_path):
    """The next processes save over it, and nothing of it stays."""
    for place in shards_worker.PLACES:
        shutil.copytree(saved / place, tmp_path / place)
    worker(tmp_path, [(place, None, "again") for place in shards_worker.PLACES])
    for place in shards_worker.PLACES:
        last = tmp_path / place / "last.ckpt"
        assert unequal(content(3), read_checkpoint(last, "")) == []
        there = {path.name for path in last.parent.iterdir() if path.name[:4] == "last"}
        assert there == {"last.ckpt", "last.ckpt.artifact.json", torch.load(last)[SHARDS]["folder"]}


@pytest.mark.long
def test_a_disk_that_is_full_on_one_rank_ends_both_in_one_sentence(saved):
    for rank in (0, 1):
        sentence = (saved / "a full disk" / f"error{rank}").read_text()
        assert sentence.startswith("OSError: the shards of ")
        assert sentence.endswith("rank 1: [Errno 28] No space left on device; what was saved before is kept")
        assert "\n" not in sentence


@pytest.mark.long
def test_a_shard_that_is_missing_altered_or_of_another_checkpoint_is_named(saved, tmp_path):
    """Each file, at places of headers and weights alike."""
    last = tmp_path / "run" / "last.ckpt"
    shutil.copytree(saved / UNKILLED, last.parent)
    folder = last.with_name(torch.load(last)[SHARDS]["folder"])
    files = sorted(path for path in folder.iterdir() if path.name != "artifact.json")
    assert [path.name for path in files] == [".metadata", "__0_0.distcp", "__1_0.distcp"]  # each rank wrote its own
    for file in files:
        right = file.read_bytes()
        for at in (10, len(right) // 2, len(right) - 3):
            file.write_bytes(right[:at] + bytes([right[at] ^ 4]) + right[at + 1 :])
            with pytest.raises(ValueError, match=rf"{file.name} of a checkpoint was changed .* to begin at step 0"):
                read_checkpoint(last, "", whole=False)
        file.unlink()
        with pytest.raises(ValueError, match=rf"{file.name} of a checkpoint is missing; put the undamaged file back"):
            read_checkpoint(last, "")
        file.write_bytes(right)
    assert unequal(content(2), read_checkpoint(last, "")) == []
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"shards-\d has no artifact.json|artifact.json and cannot be verified"):
        read_checkpoint(last, "")
    other = saved / OLD[0] / "last.ckpt"  # a whole folder, of step 1
    shutil.copytree(other.with_name(torch.load(other)[SHARDS]["folder"]), folder)
    with pytest.raises(ValueError, match=r"holds the shards of another checkpoint than the file beside it; put the"):
        read_checkpoint(last, "")


@pytest.mark.long
def test_one_file_in_the_place_of_shards_deletes_them_and_a_checkpoint_is_deleted_with_them(saved, tmp_path):
    for name in ("one", "none"):
        shutil.copytree(saved / UNKILLED, tmp_path / name)
    WholeFiles("").save_checkpoint(content(4), tmp_path / "one/last.ckpt")
    assert unequal(content(4), read_checkpoint(tmp_path / "one/last.ckpt", "")) == []
    assert not list(tmp_path.glob("one/*.shards-*"))
    remove_checkpoint(tmp_path / "none/last.ckpt")
    assert not list(tmp_path.glob("none/last*"))


def test_a_state_without_sharded_tensors_is_all_in_the_file():
    state = content(1)
    rest, sharded = split(state)
    assert (rest, sharded) == (state, {})
    place = ("optimizer_states", 0, "state", 0, "exp_avg")
    taken = state["optimizer_states"][0]["state"][0].pop("exp_avg")
    assert unequal(content(1), joined(state, {place: taken})) == []
