"""New weights of a vLLM worker from shared memory of its machine.

    PYTHONPATH=…/kd/generators/weights/worker vllm serve FOLDER --worker-extension-cls shared_weights.SharedWeights …

Imported by vLLM in its own environment, which needs nothing of this project.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

MEMORY = Path("/dev/shm")  # where Linux has the pieces that `multiprocessing.shared_memory` makes
TOKEN = 16  # bytes at the beginning of a piece that are another number for each content


class SharedWeights:
    """A part of vLLM's worker (`--worker-extension-cls`) with a method that `/collective_rpc` calls."""

    reload_weights: Any  # the worker's own

    def reload_shared_weights(self, piece: str, token: str, tensors: list[list[Any]]) -> str | None:
        """Loads the tensors that lie in shared memory, as `reload_weights` loads those of a checkpoint.

        Args:
            piece: name of the shared memory.
            token: its first bytes, hexadecimal.
            tensors: of each one, its name in a checkpoint, its type, its shape, and the byte at which it begins.

        Returns:
            None, or the reason why not all of them were loaded: an error that is raised here is a 500 of the server.
        """
        path = MEMORY / piece
        try:
            with path.open("rb") as file:
                found = file.read(TOKEN).hex()
        except FileNotFoundError:
            return f"this machine has no shared memory {piece}"
        except PermissionError:
            return f"the shared memory {piece} belongs to another user"
        if found != token:
            return f"the shared memory {piece} has other weights"
        try:
            self.reload_weights(weights_iterator=shared_tensors(path, tensors))
        except Exception as error:  # of shapes and names, vLLM raises whatever its layers' loaders raise
            return f"its model takes other tensors ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
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
