"""New weights of a vLLM worker from shared memory of its machine.

    PYTHONPATH=…/kd/generators/weights/worker vllm serve FOLDER --worker-extension-cls shared_weights.SharedWeights …

Imported by vLLM, whose environment needs nothing of this project.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

MEMORY = Path("/dev/shm")  # where Linux has the pieces that `multiprocessing.shared_memory` makes
TOKEN = 16  # bytes at the beginning of a piece that tell one content from another


class SharedWeights:
    """A part of vLLM's worker (`--worker-extension-cls`), whose methods `/collective_rpc` calls."""

    reload_weights: Any  # the worker's own

    def reload_shared_weights(self, piece: str, token: str, tensors: list[list[Any]]) -> str | None:
        """Loads the tensors that lie in shared memory, as `reload_weights` loads those of a checkpoint.

        Args:
            piece: name of the shared memory.
            token: its first bytes, hexadecimal.
            tensors: of each one, its name in a checkpoint, its type, its shape, and the byte at which it begins.

        Returns:
            None, or the reason why nothing was loaded.
        """
        path = MEMORY / piece
        if not path.exists():
            return f"this machine has no shared memory {piece}"
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as view:
            if bytes(view[:TOKEN]).hex() != token:
                return f"the shared memory {piece} has other weights"
        self.reload_weights(weights_iterator=shared_tensors(path, tensors))
        return None


def shared_tensors(path: Path, tensors: list[list[Any]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Copies of the tensors, one after another, so that later contents of the memory change none of them."""
    with path.open("rb") as file:
        for name, dtype, shape, begin in tensors:
            kind = getattr(torch, dtype)
            content = bytearray(torch.Size(shape).numel() * kind.itemsize)
            file.seek(begin)
            file.readinto(content)
            yield name, torch.frombuffer(content, dtype=kind).view(shape) if content else torch.empty(shape, dtype=kind)
