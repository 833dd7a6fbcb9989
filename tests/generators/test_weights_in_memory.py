"""New weights for a server of the same machine, by shared memory."""

import os
import shlex
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kd.generators.generation import write
from kd.generators.vllm_server import Server
from kd.generators.weights import memory as weights_in_memory
from kd.generators.weights.memory import WeightsInMemory, checkpoint_tensors, server_command
from kd.generators.weights.worker.shared_weights import MEMORY, SharedWeights, shared_tensors
from tests.generators.completions import Served, ids_of, serving
from tests.generators.test_vllm_server import GREEDY, PROMPTS, asked, moved
from tests.tiny import tiny


@pytest.fixture
def student():
    return tiny()


@pytest.fixture
def served():
    with serving(Served(tiny(seed=1))) as found:
        yield found


@pytest.fixture
def connect(served, tmp_path):
    made = []

    def one(**settings):
        usual = {"url": served.url, "weights": str(tmp_path / "weights"), "retries": 0, "transfer": "memory"}
        made.append(Server(**{**usual, **settings}))
        return made[-1]

    yield one
    for generator in made:
        if generator.memory is not None:
            generator.memory.close()


def ours(student):
    return ids_of(write([student], PROMPTS, samples=1, max_new_tokens=12, choose=GREEDY, batch_size=3))


def test_each_step_generates_with_its_weights_and_saves_no_folder_again(connect, served, student, tmp_path):
    generator, texts, saved = connect(), [], []
    for step in range(3):
        assert ids_of(asked(generator, student, version=step)) == ours(student)
        texts.append(ours(student))
        saved.append((tmp_path / "weights" / "model.safetensors").stat().st_mtime_ns)
        moved(student, seed=step)
    assert saved[0] == saved[1] == saved[2]
    assert texts[0] != texts[1] != texts[2]
    methods = [body["method"] for path, body in served.asked if path == "/collective_rpc"]
    assert methods == ["reload_shared_weights"] * 3
    assert served.paths().count("/reset_prefix_cache") == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_the_tensors_are_those_of_the_checkpoint(tmp_path, dtype, tied):
    network = tiny(tie_word_embeddings=tied).network.to(dtype)
    memory = WeightsInMemory(tmp_path)
    try:
        memory.write(checkpoint_tensors(network))
        arguments = memory.arguments()
        found = dict(shared_tensors(MEMORY / arguments["piece"], arguments["tensors"]))
    finally:
        memory.close()
    network.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    saved.setdefault("lm_head.weight", network.get_output_embeddings().weight.detach())
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], saved[name]) and found[name].dtype == dtype for name in saved)


def test_loaded_tensors_outlive_the_next_write(tmp_path):
    memory = WeightsInMemory(tmp_path)
    try:
        memory.write({"a": torch.tensor([1.0, 2.0])})
        arguments = memory.arguments()
        [(_, first)] = shared_tensors(MEMORY / arguments["piece"], arguments["tensors"])
        memory.write({"a": torch.tensor([3.0, 4.0])})
        assert first.tolist() == [1.0, 2.0]
        assert "has other weights" in str(SharedWeights().reload_shared_weights(**arguments))
    finally:
        memory.close()


def test_scalars_empty_tensors_and_growth(tmp_path):
    memory = WeightsInMemory(tmp_path)
    sizes = [{"a": torch.tensor(2, dtype=torch.int64), "b": torch.zeros(0, 3)}, {"c": torch.arange(10_000.0)}]
    try:
        for tensors in sizes:
            memory.write(tensors)
            arguments = memory.arguments()
            found = dict(shared_tensors(MEMORY / arguments["piece"], arguments["tensors"]))
            assert found.keys() == tensors.keys()
            assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    finally:
        memory.close()


def test_a_server_without_the_extension(connect, served, student):
    served.extended = False
    with pytest.raises(ValueError, match=r"workers of .* have no .*start the server with PYTHONPATH=\S+/worker "):
        asked(connect(), student)


def test_a_server_of_another_machine(connect, served, student, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "kd.generators.weights.worker.shared_weights.MEMORY", tmp_path
    )  # the double's worker sees this one
    with pytest.raises(ValueError, match=r"this machine has no shared memory kd-.*or set generator.transfer=folder"):
        asked(connect(), student)


def test_no_server_yet(student, tmp_path):
    generator = Server(url="http://127.0.0.1:9", weights=str(tmp_path / "w"), retries=0, transfer="memory")
    try:
        with pytest.raises(
            ConnectionError, match=r"start one with PYTHONPATH=(\S+) .* shared_weights.SharedWeights"
        ) as e:
            asked(generator, student)
    finally:
        generator.memory.close()
    folder = str(e.value).split("PYTHONPATH=")[1].split()[0]
    assert [path.name for path in Path(folder).glob("shared_weights.py")] == ["shared_weights.py"]
    assert (tmp_path / "w" / "config.json").exists()


def test_little_shared_memory_is_refused_before_a_write_that_would_kill(student, tmp_path, monkeypatch):
    room = namedtuple("room", "total used free")(64e6, 64e6, 1000)
    monkeypatch.setattr(weights_in_memory.shutil, "disk_usage", lambda path: room)
    with pytest.raises(OSError, match="--shm-size"):
        WeightsInMemory(tmp_path).write(checkpoint_tensors(student.network))


def test_a_resumed_run_goes_on_with_the_weights_that_the_server_held(connect, student):
    first = connect(staleness=2)
    asked(first, student)
    state, then = first.state_dict(), ours(student)
    first.memory.close()
    moved(student)
    second = connect(staleness=2)
    second.load_state_dict(state)
    assert ids_of(asked(second, student, version=1)) == then != ours(student)
    assert second.state_dict()["weights"].keys() == state["weights"].keys()


@pytest.mark.parametrize(("before", "after"), [("memory", "folder"), ("folder", "memory")])
def test_a_run_that_is_resumed_with_the_other_transfer(connect, student, before, after):
    first = connect(staleness=2, transfer=before)
    asked(first, student)
    second = connect(staleness=2, transfer=after)
    second.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match=f"resume with generator.transfer={before}"):
        asked(second, student, version=1)


WRITER = """
import sys, time, torch
from pathlib import Path
from kd.generators.weights.memory import WeightsInMemory
memory = WeightsInMemory(Path(sys.argv[1]))
memory.write({"a": torch.ones(1000)})
print(memory.name, flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize("killed", [False, True])
def test_nothing_is_left_when_the_process_ends(tmp_path, killed):
    command = [sys.executable, "-c", WRITER, str(tmp_path), "60" if killed else "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL) as process:
        name = process.stdout.readline().strip()
        if killed:
            assert (MEMORY / name).exists()
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.read()  # the tracker has it open until it has removed what was left
    assert name.startswith("kd-")
    assert not (MEMORY / name).exists()


@pytest.mark.parametrize("left", [b"left", b""])
def test_a_piece_that_was_left_is_replaced(tmp_path, left):
    memory = WeightsInMemory(tmp_path)
    (MEMORY / memory.name).write_bytes(left)
    try:
        memory.write({"a": torch.ones(100)})
        arguments = memory.arguments()
        [(_, found)] = shared_tensors(MEMORY / arguments["piece"], arguments["tensors"])
        assert found.tolist() == [1.0] * 100
    finally:
        memory.close()


def test_a_piece_that_was_left_takes_no_room(tmp_path, monkeypatch):
    """Of memory for one such piece and a half."""
    memory = WeightsInMemory(tmp_path)
    left = MEMORY / memory.name
    left.write_bytes(bytes(4_000_000))
    room = namedtuple("room", "total used free")
    monkeypatch.setattr(
        weights_in_memory.shutil,
        "disk_usage",
        lambda path: room(6_000_000, 0, 6_000_000 - (left.stat().st_size if left.exists() else 0)),
    )
    try:
        memory.write({"a": torch.ones(1_000_000)})
        assert left.stat().st_size > 4_000_000
    finally:
        memory.close()
        left.unlink(missing_ok=True)


def test_a_server_with_a_model_of_other_shapes(connect, served):
    with pytest.raises(ValueError, match=r"takes other tensors .*; start it again .* with PYTHONPATH=\S+/worker "):
        asked(connect(retries=3), tiny(intermediate_size=48))
    assert served.paths().count("/collective_rpc") == 1


def test_a_server_of_another_user(tmp_path, monkeypatch):
    memory = WeightsInMemory(tmp_path)
    memory.write({"a": torch.ones(3)})

    def refused(path: Path, mode: str) -> None:  # as root, which this may run as, every file can be read
        raise PermissionError(path)

    try:
        monkeypatch.setattr(Path, "open", refused)
        assert SharedWeights().reload_shared_weights(**memory.arguments()) == (
            f"the shared memory {memory.name} belongs to another user"
        )
    finally:
        monkeypatch.undo()
        memory.close()


def test_the_command_of_a_server_holds_where_names_have_spaces(tmp_path, monkeypatch):
    folder = tmp_path / "my weights"
    monkeypatch.setattr(weights_in_memory.worker, "__file__", str(tmp_path / "my clone" / "__init__.py"))
    words = shlex.split(server_command(folder, extended=True))
    assert words[0] == f"PYTHONPATH={tmp_path}/my clone"
    assert words[words.index("serve") + 1] == str(folder)
