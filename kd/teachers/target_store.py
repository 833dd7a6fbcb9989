"""A teacher's targets on disk: a folder of shards, each complete or absent, looked up by the content of a sequence.

    targets.json              the kind of targets and their teacher
    tokenizer/                the teacher's
    head.safetensors          of `hidden` targets
    probe.safetensors         log-probabilities over all ids, of a few sequences
    shard-<hash>.safetensors  columns of many sequences one after the other; `keys`, and each column's `<name>.ends`

Each has a manifest (`kd.artifacts`) and is verified before it is used. A shard is never changed: more sequences are
more shards, so a writer that was killed is resumed.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from kd.artifacts import store, verified
from kd.types import Sequences

VERSION = 2  # part of the address: raise it when the same settings are to give other files
KEY = 16  # bytes
ENDS = ".ends"


def keys_of(sequences: Sequences) -> list[bytes]:
    """A key of each sequence's content: its ids and which of them belong to a response; padding does not count.

    Raises ValueError for sequences with images, of which the ids alone would be the key.
    """
    if sequences.pixels:
        raise ValueError("targets of sequences with images are not kept; take targets.cached=false")
    width = sequences.tokens.shape[1]
    rows = zip(*(x.cpu() for x in (sequences.tokens, sequences.labels, sequences.mask)), strict=True)
    keys = []
    for length, (tokens, labels, mask) in zip(sequences.lengths.tolist(), rows, strict=True):
        real = slice(0, length) if sequences.padding_side == "right" else slice(width - length, width)
        ids = torch.cat([tokens[real][:1], labels[real]]).to(torch.int64)
        content = ids.numpy().tobytes() + mask[real].numpy().tobytes()
        keys.append(hashlib.blake2b(content, digest_size=KEY).digest())
    return keys


class TargetStore:
    """The sequences that a folder holds. Columns are read from the file on demand."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.where: dict[bytes, tuple[Path, int]] = {}
        self._open: dict[Path, Any] = {}
        self._ends: dict[Path, dict[str, list[int]]] = {}
        for path in sorted(folder.glob("shard-*.safetensors")):
            self._add(path)

    @property
    def manifest(self) -> dict[str, Any]:
        """The kind of targets and their teacher."""
        return json.loads(check_part(self.folder / "targets.json").read_text(encoding="utf-8"))

    def __contains__(self, key: object) -> bool:
        return key in self.where

    def __len__(self) -> int:
        return len(self.where)

    def columns(self, keys: Sequence[bytes]) -> dict[str, Tensor]:
        """Every column of these sequences, one after the other. Raises KeyError(key) for one that is not there."""
        found = [self._sequence(*self.where[key]) for key in keys]
        return {name: torch.cat([columns[name] for columns in found]) for name in found[0]}

    @property
    def probe(self) -> Path:
        """The file of the few sequences whose full log-probabilities are kept."""
        return self.folder / "probe.safetensors"

    def probed(self) -> set[bytes]:
        """Their keys."""
        if not self.probe.exists():
            return set()
        with safe_open(check_part(self.probe), framework="pt") as file:
            return {bytes.fromhex(name) for name in file.keys()}  # noqa: SIM118

    def rows(self) -> int:
        """The number of loss rows of all sequences."""
        return sum(ends["tail" if "tail" in ends else "hidden"][-1] for ends in self._ends.values())

    def size_bytes(self) -> int:
        """The size of the shards on disk."""
        return sum(path.stat().st_size for path in self.folder.glob("shard-*.safetensors"))

    def append(self, entries: Mapping[bytes, Mapping[str, Tensor]]) -> None:
        """Writes one more shard, atomically."""
        first = next(iter(entries.values()))
        tensors = {name: torch.cat([columns[name] for columns in entries.values()]).contiguous() for name in first}
        for name in first:
            lengths = torch.tensor([len(columns[name]) for columns in entries.values()])
            tensors[name + ENDS] = lengths.cumsum(0)
        tensors["keys"] = torch.frombuffer(bytearray(b"".join(entries)), dtype=torch.uint8).view(-1, KEY)
        name = hashlib.blake2b(b"".join(entries), digest_size=8).hexdigest()
        self._add(keep(self.folder / f"shard-{name}.safetensors", lambda path: save_file(tensors, path)))

    def _add(self, path: Path) -> None:
        with safe_open(check_part(path), framework="pt") as file:
            keys, names = file.get_tensor("keys"), [name for name in file.keys() if name.endswith(ENDS)]  # noqa: SIM118
            self._ends[path] = {name.removesuffix(ENDS): [0, *file.get_tensor(name).tolist()] for name in names}
        self.where |= {keys[i].numpy().tobytes(): (path, i) for i in range(len(keys))}

    def _sequence(self, path: Path, i: int) -> dict[str, Tensor]:
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt").__enter__()
        file = self._open[path]
        return {name: file.get_slice(name)[ends[i] : ends[i + 1]] for name, ends in self._ends[path].items()}


def keep(path: Path, write: Callable[[Path], None]) -> Path:
    """`path`, a part of a cache of targets, made by `write(temporary path)`."""
    store(path, write, kind="cache of the teacher's targets")
    return path


def check_part(path: Path) -> Path:
    """`path`, a part of a cache of targets. Raises ValueError if it was changed since it was written."""
    verified(path, remedy=f"delete {path} and run `python -m kd.cache` with the same overrides")
    return path
