"""`python tests/training/shards_worker.py FOLDER SCENARIOS`: checkpoints that two processes save, some of them killed.

A scenario is [name, the place where a process kills itself or fails, or null]: each saves step 1, then step 2 into
FOLDER/name. With "then": "again", step 3 is saved, by other processes, which nothing kills.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import filesystem
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from kd.training import callbacks, shards
from kd.training.callbacks import WholeFiles

SHAPE = (5, 3)  # of which two ranks have three rows and two


def content(step: int) -> dict[str, Any]:
    """A whole checkpoint."""
    weight = torch.arange(15.0, dtype=torch.float64).reshape(SHAPE) + 100 * step
    moments = {"step": torch.tensor(float(step)), "exp_avg": -weight}
    return {
        "global_step": step,
        "state_dict": {"weight": weight, "scale": torch.tensor(2.0)},
        "optimizer_states": [{"state": {0: moments}, "param_groups": [{"params": [0]}]}],
    }


def save(path: Path, step: int) -> None:
    """As `ShardedStrategy.save_checkpoint`."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    state, sharded = shards.split(parted(content(step), mesh))
    state[shards.SHARDS] = shards.write(path, sharded, step)
    if dist.get_rank() == 0:
        WholeFiles("").save_checkpoint(state, path)
    dist.barrier()


def parted(state: Any, mesh: Any) -> Any:
    """The state with its matrices sharded."""
    if isinstance(state, dict):
        return {name: parted(value, mesh) for name, value in state.items()}
    if isinstance(state, list):
        return [parted(value, mesh) for value in state]
    large = isinstance(state, torch.Tensor) and state.shape == SHAPE
    return distribute_tensor(state, mesh, [Shard(0)]) if large else state


def struck(*_: Any, **__: Any) -> None:
    """The end of this process, as by a machine that fails."""
    os.kill(os.getpid(), signal.SIGKILL)


def full(*_: Any, **__: Any) -> None:
    """The disk has no room."""
    raise OSError(28, "No space left on device")


def second(inner: Callable[..., Any]) -> Callable[..., Any]:
    """A function by which this process ends at its second call."""
    calls: list[None] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        return struck() if len(calls) == 2 else inner(*arguments, **options)

    return counted


PLACES: dict[str, tuple[int, Any, str, Callable[..., Any]]] = {  # rank, and what is replaced there by what
    "within a rank's file": (1, filesystem, "_write_item", second(filesystem._write_item)),
    "before the index": (0, filesystem.FileSystemWriter, "finish", struck),
    "before the hashes": (1, shards, "_contents", struck),
    "before the manifest": (0, shards, "write_atomically", struck),
    "before the file": (0, callbacks, "store_stream", struck),
    "before the old folder is deleted": (0, callbacks, "keep_named", struck),
    "a full disk": (1, filesystem, "_write_item", full),
}


def rank_of(rank: int, folder: Path, steps: list[int], place: str | None) -> None:
    """One of two ranks."""
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / f"store{steps[0]}"), 2), rank=rank, world_size=2)
    for step in steps:
        if place is not None and step == 2 and PLACES[place][0] == rank:
            setattr(*PLACES[place][1:])
        save(folder / "last.ckpt", step)


def ranks(folder: Path, steps: list[int], place: str | None) -> None:
    """Two processes, up to their end; both end when one was killed, as by torchrun."""
    children = {}
    for rank in (0, 1):
        if (child := os.fork()) == 0:
            try:
                rank_of(rank, folder, steps, place)
                os._exit(0)
            except BaseException as error:
                (folder / f"error{rank}").write_text(f"{type(error).__name__}: {error}")
                os._exit(1)
        children[child] = rank
    while children:
        child, status = os.wait()
        del children[child]
        if status != 0 and place != "a full disk":
            for other in children:
                os.kill(other, signal.SIGKILL)


if __name__ == "__main__":
    for name, place, then in json.loads(sys.argv[2]):
        folder = Path(sys.argv[1]) / name
        folder.mkdir(parents=True, exist_ok=True)
        ranks(folder, [3] if then == "again" else [1, 2], place)
