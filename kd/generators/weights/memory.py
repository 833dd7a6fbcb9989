"""Weights that another process of this machine loads, in one piece of POSIX shared memory."""

import atexit
import hashlib
import json
import secrets
import shlex
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from kd.generators.weights import worker
from kd.generators.weights.worker.shared_weights import MEMORY, TOKEN

ALIGNED = 64  # bytes: each tensor begins at a multiple of it
EXTENSION = "shared_weights.SharedWeights"  # as vLLM imports it, from the folder of `worker`
INDEX, CONTENT = "index.json", "weights"


@dataclass(frozen=True)
class Place:
    """A tensor in the piece: its name in a checkpoint, type, shape, and the byte at which it begins."""

    name: str
    dtype: str
    shape: list[int]
    begin: int


class WeightsInMemory:
    """The piece of shared memory that belongs to a folder of weights.

    It has the size of the weights, and exists until this process ends: the standard library's resource tracker removes
    it where the process is killed. A piece of the same name that was left all the same is replaced.

    Args:
        folder: the checkpoint that the server was started from; the piece's name is derived from its path.
    """

    def __init__(self, folder: Path):
        self.name = "kd-" + hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        self.token, self.places = "", list[Place]()
        self._piece: SharedMemory | None = None

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies the tensors, by their names in a checkpoint, from whichever device they are on.

        Raises OSError where the machine's shared memory is too small."""
        places = list(_places(tensors))
        content = self._opened(places)
        for place, tensor in zip(places, tensors.values(), strict=True):
            goal = content[place.begin :][: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            goal.copy_(tensor.detach())
        self._finish(places)

    def held(self) -> dict[str, UInt8[Tensor, " bytes"]]:
        """Index and content, for a checkpoint."""
        index = json.dumps([vars(place) for place in self.places]).encode()
        assert self._piece is not None, "nothing was written"
        content = torch.frombuffer(self._piece.buf, dtype=torch.uint8)[TOKEN : _end(self.places)]
        return {INDEX: torch.frombuffer(bytearray(index), dtype=torch.uint8), CONTENT: content.clone()}

    def restore(self, files: Mapping[str, UInt8[Tensor, " bytes"]]) -> None:
        """Writes what `held` returned."""
        places = [Place(**place) for place in json.loads(files[INDEX].numpy().tobytes())]
        self._opened(places)[TOKEN : _end(places)].copy_(files[CONTENT])
        self._finish(places)

    def arguments(self) -> dict[str, Any]:
        """Those of `SharedWeights.reload_shared_weights` in the server."""
        tensors = [[place.name, place.dtype, place.shape, place.begin] for place in self.places]
        return {"piece": self.name, "token": self.token, "tensors": tensors}

    def close(self) -> None:
        """Removes the piece. A server that reads it goes on with what it has loaded."""
        if self._piece is not None:
            self._piece.close()
            self._piece.unlink()
            self._piece = None

    def _opened(self, places: list[Place]) -> UInt8[Tensor, " bytes"]:
        """The piece's bytes. No server loads them before `_finish`."""
        size = _end(places)
        if self._piece is None or self._piece.size < size:
            self.close()
            self._piece = _fresh(self.name, size)
            atexit.register(self.close)
        content = torch.frombuffer(self._piece.buf, dtype=torch.uint8)
        content[:TOKEN] = 0
        return content

    def _finish(self, places: list[Place]) -> None:
        assert self._piece is not None
        token = secrets.token_bytes(TOKEN)
        torch.frombuffer(self._piece.buf, dtype=torch.uint8)[:TOKEN] = torch.frombuffer(
            bytearray(token), dtype=torch.uint8
        )
        self.token, self.places = token.hex(), places


def server_command(folder: str | Path, extended: bool) -> str:
    """The command that starts vLLM's server from a checkpoint, with our extension of its workers or without."""
    command = f"vllm serve {shlex.quote(str(folder))} --logprobs-mode processed_logprobs --generation-config vllm"
    variables = "VLLM_SERVER_DEV_MODE=1"
    if not extended:
        return f"{variables} {command}"
    path = shlex.quote(str(Path(worker.__file__).parent))
    return f"PYTHONPATH={path} {variables} {command} --worker-extension-cls {EXTENSION}"


def check_extended(found: str, url: str, folder: Path) -> None:
    """Raises ValueError where a server's workers lack our method, for vLLM ends when one is called that is missing."""
    if found != EXTENSION:
        raise ValueError(
            f"the workers of {url} have no {EXTENSION}, which generator.transfer=memory needs; start the server with "
            f"{server_command(folder, extended=True)}, or set generator.transfer=folder"
        )


def check_transfer(files: Collection[str], in_memory: bool) -> None:
    """Raises ValueError where a checkpoint's files are those of the other transfer."""
    if (INDEX in files) != in_memory:
        other, this = ("memory", "folder") if INDEX in files else ("folder", "memory")
        raise ValueError(
            f"the checkpoint has the server's weights as generator.transfer={other} had them, now it is {this}; "
            f"resume with generator.transfer={other}"
        )


def checkpoint_tensors(network: Any) -> dict[str, Tensor]:
    """The tensors that `save_pretrained` would save, by their names in a checkpoint, with a head of its own."""
    state: dict[str, Tensor] = revert_weight_conversion(network, untied_state(network))
    return state


def untied_state(network: Any) -> dict[str, Tensor]:
    """The network's state, with the head as a tensor of its own also where it is tied to the embedding."""
    state, head = dict(network.state_dict()), tied_head(network)
    if head is not None:
        [name] = [name for name, module in network.named_modules() if module is head]
        state[f"{name}.weight"] = head.weight.clone()
    return state


def tied_head(network: Any) -> Any | None:
    """The network's head where its weight is the embedding's, else None."""
    head = network.get_output_embeddings()
    return head if head is not None and head.weight is network.get_input_embeddings().weight else None


def _places(tensors: Mapping[str, Tensor]) -> Iterator[Place]:
    begin = ALIGNED
    for name, tensor in tensors.items():
        yield Place(name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), begin)
        begin += -(-tensor.nbytes // ALIGNED) * ALIGNED


def _end(places: list[Place]) -> int:
    """The bytes of a piece with these tensors."""
    if not places:
        return ALIGNED
    last = places[-1]
    return last.begin + torch.Size(last.shape).numel() * getattr(torch, last.dtype).itemsize


def _fresh(name: str, size: int) -> SharedMemory:
    (MEMORY / name).unlink(missing_ok=True)  # of a process that was killed together with its resource tracker
    free = shutil.disk_usage(MEMORY).free
    if size > free:  # else the first write beyond it would end the process
        raise OSError(
            f"the student's weights take {size / 1e9:.3g} GB of shared memory and {MEMORY} has {free / 1e9:.3g} GB; "
            "enlarge it (of a container: docker run --shm-size=…), or set generator.transfer=folder"
        )
    return SharedMemory(name, create=True, size=size)
