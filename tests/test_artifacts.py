"""Artifacts: there whole or not at all, made once, and never read after they were changed."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import tensor

from kd.artifacts import (
    MANIFEST,
    key,
    locked,
    manifest_of,
    once,
    read_manifest,
    remove,
    store,
    store_stream,
    texts_sha256,
    verified,
    write_atomically,
)


def flip(path: Path, bit: int) -> None:
    """One bit of a file, as a disk does it; its size stays."""
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


def model(path: Path) -> dict[str, float]:
    path.mkdir()
    (path / "deep").mkdir()
    (path / "config.json").write_text('{"width": 4}')
    (path / "README.md").write_text("a card")
    save_file({"w": tensor([1.0, 2.0])}, path / "deep" / "w.safetensors")
    return {"tokens": 7}


def text(content: str):
    return lambda path: path.write_text(content) and None


# ---- made once -------------------------------------------------------------------------------------------------------


def count(arguments: tuple[str, str]) -> None:
    target, log = map(Path, arguments)

    def write(path: Path) -> None:
        with log.open("a") as file:
            file.write("x")
        time.sleep(0.3)
        path.write_text("whole")

    once(target, write, kind="test")


def test_of_several_processes_one_makes_it(tmp_path):
    target, log = tmp_path / "deep" / "entry", tmp_path / "log"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(count, [(str(target), str(log))] * 4, chunksize=1)
    assert (log.read_text(), target.read_text()) == ("x", "whole")


@pytest.mark.parametrize("make", [text("half"), model])
def test_what_fails_leaves_nothing(tmp_path, make):
    target = tmp_path / "entry"

    def fail(path):
        make(path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        once(target, fail, kind="test")
    assert [path.name for path in tmp_path.iterdir()] == [".locks"]
    once(target, make, kind="test")
    assert target.exists()


def test_a_writer_that_is_killed_leaves_nothing_that_is_taken_for_whole(tmp_path):
    target = tmp_path / "entry"
    source = (
        "import os, signal; from pathlib import Path; from kd.artifacts import once\n"
        f"once(Path({str(target)!r}), lambda p: (p.write_text('half'), os.kill(os.getpid(), signal.SIGKILL)), kind='t')"
    )
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == -9
    assert not target.exists()
    once(target, text("whole"), kind="test")
    assert target.read_text() == "whole"


def test_an_older_folder_is_replaced_and_a_file_keeps_its_old_content_when_its_writer_fails(tmp_path):
    for name in ("one", "two"):
        store(tmp_path / "folder", lambda path, name=name: (path.mkdir(), (path / name).write_text(name)), kind="test")
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [MANIFEST, "two"]
    store(tmp_path / "file", text("one"), kind="test")
    with pytest.raises(OSError, match="full"):
        store(tmp_path / "file", full, kind="test")
    assert verified(tmp_path / "file").files["file"][0][0] == 3


def full(path: Path) -> None:
    path.write_text("ha")
    raise OSError("disk full")


def test_cost_and_facts_come_back(tmp_path):
    once(tmp_path / "model", model, kind="model", facts={"step": 3})
    manifest = once(tmp_path / "model", full, kind="model")
    assert (manifest.kind, manifest.facts, manifest.cost["tokens"]) == ("model", {"step": 3}, 7)
    assert manifest.cost["seconds"] > 0


def test_files_are_as_readable_as_any_other(tmp_path):
    """safetensors writes for the owner alone, and a cache may be shared."""
    (tmp_path / "plain").touch()
    store(tmp_path / "model", model, kind="model")
    store(tmp_path / "w", lambda path: save_file({"w": tensor([1.0])}, path), kind="model")
    modes = {(tmp_path / name).stat().st_mode for name in ("plain", "model/deep/w.safetensors", "w")}
    assert len(modes) == 1


# ---- verified when read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "deep/w.safetensors"])
@pytest.mark.parametrize("bit", [0, 77, 100])
def test_a_flipped_bit_is_named(tmp_path, name, bit):
    folder = tmp_path / "model"
    store(folder, model, kind="prepared model")
    flip(folder / name, bit)
    with pytest.raises(ValueError, match=rf"{name} of a prepared model was changed or damaged .*; delete .*model, and"):
        once(folder, full, kind="prepared model")


@pytest.mark.parametrize("bit", range(0, 800, 61))
def test_a_manifest_with_a_flipped_bit_lets_nothing_pass_that_differs(tmp_path, bit):
    path = tmp_path / "entry"
    store(path, text("whole"), kind="test", facts={"run": "abc"})
    flip(manifest_of(path), bit)
    path.write_text("other")
    with pytest.raises(ValueError, match="entry"):
        verified(path)


@pytest.mark.parametrize("bit", range(0, 3200, 37))
def test_no_bit_of_a_manifest_can_be_flipped(tmp_path, bit):
    """Also of the cost, which is charged to every run that reads the artifact, and of what it belongs to."""
    path = tmp_path / "entry"
    store(
        path, lambda partial: partial.write_text("whole") and {"teacher_tokens": 1234}, kind="test", facts={"run": "a"}
    )
    before = read_manifest(path)
    flip(manifest_of(path), bit)
    with suppress(ValueError):  # it is damaged
        assert read_manifest(path) == before  # a bit of white space


def test_a_manifest_from_before_manifests_had_a_sha256_of_their_own_is_read(tmp_path):
    path = tmp_path / "entry"
    before = store(path, text("whole"), kind="test")
    content = json.loads(manifest_of(path).read_text())
    del content["sha256"]
    manifest_of(path).write_text(json.dumps(content))
    assert verified(path) == before


def test_what_is_missing_is_named(tmp_path):
    store(tmp_path / "model", model, kind="model")
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config.json of a model is missing; delete"):
        verified(tmp_path / "model")
    (tmp_path / "loose").write_text("x")
    with pytest.raises(ValueError, match=r"loose has no loose.artifact.json and cannot be verified"):
        verified(tmp_path / "loose")


def test_a_card_may_be_edited(tmp_path):
    store(tmp_path / "model", model, kind="model")
    (tmp_path / "model" / "README.md").write_text("my own words")
    assert set(verified(tmp_path / "model").files) == {"config.json", "deep/w.safetensors"}


def test_what_it_belongs_to(tmp_path):
    store(tmp_path / "last.ckpt", text("x"), kind="checkpoint", facts={"run": "aaa"})
    assert verified(tmp_path / "last.ckpt", run="aaa").facts == {"run": "aaa"}
    with pytest.raises(ValueError, match=r"last.ckpt is a checkpoint of run=aaa, not of run=bbb; start again"):
        verified(tmp_path / "last.ckpt", run="bbb", remedy="start again")


@pytest.mark.parametrize("last", [0, 1, 2])
def test_a_file_that_is_being_replaced_is_right_before_and_after(tmp_path, monkeypatch, last):
    """The writer is stopped before its first, second or third rename."""
    path, renamed, rename = tmp_path / "last.ckpt", [], os.replace
    store(path, text("old"), kind="checkpoint")

    def replace(source, target):
        if len(renamed) == last:
            raise KeyboardInterrupt
        renamed.append(target)
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        store(path, text("newer"), kind="checkpoint")
    monkeypatch.undo()
    assert path.read_text() == ["old", "old", "newer"][last]
    assert verified(path)
    store(path, text("newest"), kind="checkpoint")
    assert [size for size, _ in read_manifest(path).files["last.ckpt"]] == [6]


def test_a_stream_is_hashed_as_it_is_written(tmp_path):
    parts = [os.urandom(n) for n in (1, 70_000, 3)]
    manifest = store_stream(tmp_path / "file", lambda file: [file.write(part) for part in parts], kind="test", facts={})
    (tmp_path / "other").write_bytes(b"".join(parts))
    store(tmp_path / "copy", lambda path: (tmp_path / "other").rename(path), kind="test")
    assert manifest.files["file"] == read_manifest(tmp_path / "copy").files["copy"]
    assert verified(tmp_path / "file") == manifest


def test_nothing_is_left_of_what_is_removed(tmp_path):
    store(tmp_path / "file", text("x"), kind="test")
    store(tmp_path / "model", model, kind="test")
    for name in ("file", "model", "never"):
        remove(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


# ---- keys, locks, text -----------------------------------------------------------------------------------------------


def test_keys_go_by_content():
    assert key({"a": [1, (2, 3)], "b": "x"}) == key({"b": "x", "a": [1, [2, 3]]})
    assert len({key({"a": value}) for value in (1, 2, "1", None, True)}) == 5
    with pytest.raises(ValueError, match="cannot be hashed"):
        key({"a": Path("x")})


def test_texts_do_not_run_together():
    assert texts_sha256(["ab", "c"]) != texts_sha256(["a", "bc"])
    assert texts_sha256(["\ud800"]) != texts_sha256(["\ud801"])  # lone surrogates are texts, too


def test_the_holder_of_a_lock_is_named(tmp_path):
    with locked(tmp_path / "run"):
        holder = json.loads((tmp_path / ".locks" / "run.holder").read_text())
    assert holder["pid"] == os.getpid()
    with locked(tmp_path / "run", wait=False):
        pass


@pytest.mark.parametrize("torn", ["", "{", "{}", "[]", "null", '{"pid": 1}'])
def test_a_holder_that_cannot_be_read_is_another_process(tmp_path, torn):
    with locked(tmp_path / "run"):
        (tmp_path / ".locks" / "run.holder").write_text(torn)
        with pytest.raises(BlockingIOError, match="in use by another process"), locked(tmp_path / "run", wait=False):
            pass


def test_a_text_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "text"
    write_atomically(path, "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_atomically(path, "new")
    assert [(file.name, file.read_text()) for file in path.parent.iterdir()] == [("text", "old")]


def test_tensors_come_back(tmp_path):
    store(tmp_path / "model", model, kind="test")
    assert load_file(tmp_path / "model/deep/w.safetensors")["w"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "manifest", ["", "{}", "[]", '{"kind": "k", "files": {"file": []}}', '{"kind": "k", "files": {"y": [[1, "a"]]}}']
)
def test_a_damaged_manifest_is_named_and_no_obstacle_to_a_new_file(tmp_path, manifest):
    """Else a checkpoint could not be saved for the manifest of the one that it replaces."""
    path = tmp_path / "file"
    store(path, lambda partial: partial.write_text("old"), kind="test")
    manifest_of(path).write_text(manifest)
    with pytest.raises(ValueError, match="is damaged"):
        verified(path)
    store(path, lambda partial: partial.write_text("new"), kind="test")
    assert [size for size, _ in verified(path).files["file"]] == [3]
