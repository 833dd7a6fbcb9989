"""The sharded tensors of a checkpoint, by `torch.distributed.checkpoint`: each rank writes and reads its own parts.

The checkpoint is a file, as that of one process, with all that is not sharded; and it names one of two folders beside
it (`last.shards-0`, `last.shards-1`), which holds the rest. The folder that the file does not name is written, with a
manifest of its own; then the file is replaced, atomically, by one that names it; then the other folder is deleted. So a
checkpoint is there, whole, whenever a process is killed.
"""

import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from kd.artifacts import MANIFEST, Manifest, file_sha256, key, remove, verified, write_atomically
from kd.models.sharding import is_sharded

SHARDS = "shards"  # in the checkpoint's file: the folder, its manifest's key, and the places of its tensors
INDEX = ".metadata"  # DCP's, of which part of which tensor lies where
Place = tuple[str | int, ...]  # the keys that lead to a tensor in a nested state


def split(state: Any, place: Place = ()) -> tuple[Any, dict[Place, Tensor]]:
    """A nested state without its sharded tensors, and those by their places. The state itself is left as it is."""
    if not isinstance(state, Mapping | list):
        return state, {}
    items = dict(state) if isinstance(state, Mapping) else dict(enumerate(state))
    found = {(*place, name): value for name, value in items.items() if isinstance(value, Tensor) and is_sharded(value)}
    rest = {}
    for name, value in items.items():
        if (*place, name) not in found:
            rest[name], inside = split(value, (*place, name))
            found |= inside
    return (rest if isinstance(state, Mapping) else list(rest.values())), found


def joined(state: dict[str, Any], tensors: Mapping[Place, Tensor]) -> dict[str, Any]:
    """The state with the tensors at their places."""
    for place, tensor in tensors.items():
        inside: Any = state
        for name in place[:-1]:
            inside = inside[name]
        inside[place[-1]] = tensor
    return state


# ---- written -------------------------------------------------------------------------------------------------------


def folders(path: Path) -> list[Path]:
    """The two folders of which the checkpoint `path` may name one."""
    return [path.with_name(f"{path.stem}.shards-{number}") for number in (0, 1)]


def write(path: Path, tensors: Mapping[Place, Tensor], step: int) -> dict[str, Any]:
    """Write the folder of a checkpoint of `step`: all ranks call it, and each writes its parts.

    Returns what the file `path` has to hold under SHARDS. The folder that the file names now is left alone.

    Raises OSError, on all ranks, where one could not write.
    """
    chosen: list[Any] = [_emptied(path) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(chosen)
    folder = path.with_name(chosen[0])
    named = {_name(place): tensor.detach() for place, tensor in tensors.items()}
    with one_sentence(f"the shards of {path} could not be written into {folder}", "what was saved before is kept"):
        dcp.save(named, storage_writer=dcp.FileSystemWriter(folder))
    content = _contents(folder, [f"__{dist.get_rank()}_*.distcp", *([INDEX] if dist.get_rank() == 0 else [])])
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, content)
    manifest = Manifest("checkpoint", {name: one for part in gathered for name, one in part.items()}, {"step": step})
    if dist.get_rank() == 0:
        write_atomically(folder / MANIFEST, manifest.text())
    places = {_name(place): list(place) for place in tensors}
    return {"folder": folder.name, "files": key(manifest.files), "places": places}


def keep_named(path: Path, state: Mapping[str, Any]) -> None:
    """Delete the folders that the checkpoint's file, with the content `state`, does not name."""
    for folder in folders(path):
        if folder.name != state.get(SHARDS, {}).get("folder"):
            remove(folder)


def _emptied(path: Path) -> str:
    """The name of a folder that the checkpoint does not name; what a killed process left there is deleted."""
    named = None
    with suppress(RuntimeError, EOFError, OSError, pickle.UnpicklingError):  # none yet, or damaged
        named = torch.load(path, map_location="cpu", mmap=True, weights_only=True).get(SHARDS, {}).get("folder")
    free = next(folder for folder in folders(path) if folder.name != named)
    if free.exists():
        shutil.rmtree(free)
    free.mkdir(parents=True)
    return free.name


def _name(place: Place) -> str:
    return ".".join(map(str, place))


def _contents(folder: Path, patterns: Sequence[str]) -> dict[str, list[list[Any]]]:
    """As `Manifest.files` has them, of this rank's files alone."""
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    return {file.name: [[file.stat().st_size, file_sha256(file)]] for file in files}


# ---- read ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shards:
    """The folder that a checkpoint names.

    Attributes:
        folder: where its files lie.
        files: the key of what its manifest lists.
        places: of its tensors, by the names under which they are stored.
    """

    folder: Path
    files: str
    places: Mapping[str, Place]

    @classmethod
    def of(cls, path: Path, state: Mapping[str, Any]) -> "Shards | None":
        """That of the checkpoint `path` with the content `state`; None where it is one file."""
        if SHARDS not in state:
            return None
        found = state[SHARDS]
        places = {name: tuple(place) for name, place in found["places"].items()}
        return cls(path.with_name(found["folder"]), found["files"], places)

    def verify(self, remedy: str) -> None:
        """Raises ValueError where a file is missing or was changed, or the folder is of another checkpoint."""
        if key(verified(self.folder, remedy=remedy).files) != self.files:
            raise ValueError(f"{self.folder} holds the shards of another checkpoint than the file beside it; {remedy}")

    def read_into(self, tensors: Mapping[Place, Tensor]) -> None:
        """Read each tensor of the folder into that of its place, of any sharding: all ranks call it.

        Raises ValueError where there is none for a place.
        """
        if lacking := sorted(_name(place) for place in self.places.values() if place not in tensors):
            raise ValueError(
                f"{self.folder} holds {lacking[0]} ({len(lacking)} such tensors), which this run has not; "
                "resume with the models and the trainer with which it was saved"
            )
        self._read({name: tensors[place] for name, place in self.places.items()})

    def whole(self) -> dict[Place, Tensor]:
        """All tensors, whole and in host memory, read by this process alone."""
        listed = dcp.FileSystemReader(self.folder).read_metadata().state_dict_metadata.items()
        tensors = {
            name: torch.empty(one.size, dtype=one.properties.dtype)
            for name, one in listed
            if isinstance(one, TensorStorageMetadata)
        }
        self._read(tensors, no_dist=True)
        return {place: tensors[name] for name, place in self.places.items()}

    def _read(self, tensors: dict[str, Tensor], **options: Any) -> None:
        with one_sentence(f"the shards in {self.folder} could not be read", "see that all machines reach this folder"):
            dcp.load(tensors, storage_reader=dcp.FileSystemReader(self.folder), **options)


@contextmanager
def one_sentence(what: str, remedy: str) -> Iterator[None]:
    """A context in which failures of DCP, which has a traceback of each rank, are one OSError."""
    try:
        yield
    except CheckpointException as failed:
        rank, (error, _) = next(iter(failed.failures.items()))
        raise OSError(f"{what}: rank {rank}: {' '.join(str(error).split())}; {remedy}") from failed
