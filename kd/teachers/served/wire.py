"""The content of requests to a teacher's server, and of its replies: tensors by name, as a safetensors file in memory.

GET  /teacher   `About`, as JSON
GET  /head      the head's tensors, and the tokenizer's files as bytes
POST /states    tokens, mask and lengths -> hidden, the last states of the loss rows; in the query, `Reading`
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save, save_file
from torch import Tensor

from kd.artifacts import key
from kd.kernels.logits import HeadLogits
from kd.types import Sequences

VERSION = 1  # of this form; both ends have the same
TEACHER = "Kd-Teacher"  # the header of a reply that names the teacher
HEAD = "head.safetensors"
FILE = "tokenizer/"  # before the names of the tokenizer's files
Sent = Literal["float64", "float32", "bfloat16", "float16"]  # types of states


@dataclass(frozen=True)
class About:
    """The teacher of a server.

    Attributes:
        version: of the form of requests.
        teacher: its identity (`kd.teachers.interface.Teacher.identity`): digests of weights and tokenizer.
        vocabulary: ids of its head.
        width: of its states.
        packs: whether it reads sequences without padding.
    """

    version: int
    teacher: str
    vocabulary: int
    width: int
    packs: bool


@dataclass(frozen=True)
class Reading:
    """How a request is read, so that the states are those that the model would have in the process of the run.

    Attributes:
        side: of the padding.
        autocast: the dtype of the caller's autocast; empty: none.
        dtype: of the states in the reply; empty: that in which they were computed.
    """

    side: Literal["left", "right"] = "right"
    autocast: Literal["bfloat16", "float16", ""] = ""
    dtype: Sent | Literal[""] = ""

    def query(self) -> str:
        """The query of its address."""
        return urlencode({name: value for name, value in asdict(self).items() if value})

    @classmethod
    def of(cls, query: str) -> "Reading":
        """Raises ValueError for a query that is none."""
        given: dict[str, Any] = dict(parse_qsl(query))
        types = ("float64", "float32", "bfloat16", "float16", "")
        allowed = {"side": ("left", "right"), "autocast": ("bfloat16", "float16", ""), "dtype": types}
        if odd := [name for name, value in given.items() if value not in allowed.get(name, ())]:
            raise ValueError(f"{odd[0]}={given[odd[0]]!r} is no setting of a request for states")
        return cls(**given)


def name_of(teacher: str) -> str:
    """The 16 digits by which a config names a teacher's identity."""
    return key({"teacher": teacher})[:16]


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors in one body."""
    return save({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()})


def unpacked(body: bytes, *names: str) -> dict[str, Tensor]:
    """The tensors of a body. Raises ValueError for one that is malformed, or has others than `names`, where given."""
    try:
        found = load(body)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{len(body)} bytes that are no tensors ({' '.join(str(error).split())[:100]})") from None
    if names and found.keys() != {*names}:
        raise ValueError(f"the tensors {', '.join(sorted(found)) or 'none'} in place of {', '.join(sorted(names))}")
    return found


def request_of(sequences: Sequences) -> bytes:
    """The body of a request. Raises ValueError for images, which are not sent."""
    if any(sequences.pixels):
        raise ValueError("teacher=served sends no images; take a skill of text alone, or a teacher in this process")
    real = sequences.tokens.to(torch.int32)
    return packed({"tokens": real, "mask": sequences.mask, "lengths": sequences.lengths.to(torch.int32)})


def sequences_of(body: bytes, side: Literal["left", "right"], vocabulary: int) -> Sequences:
    """The sequences of a request, without labels, on which no state depends. Raises ValueError for what is none."""
    found = unpacked(body, "tokens", "mask", "lengths")
    tokens, mask, lengths = found["tokens"], found["mask"], found["lengths"]
    if tokens.dtype != torch.int32 or mask.dtype != torch.bool or lengths.dtype != torch.int32:
        raise ValueError("tokens, mask and lengths are not of the types int32, bool and int32")
    if tokens.dim() != 2 or mask.shape != tokens.shape or lengths.shape != tokens.shape[:1] or not tokens.numel():
        raise ValueError(f"tokens {list(tokens.shape)}, mask {list(mask.shape)} and lengths {list(lengths.shape)}")
    if not 1 <= int(lengths.min()) <= int(lengths.max()) <= tokens.shape[1]:
        raise ValueError("a length that is none of its row")
    made = Sequences(tokens.long(), torch.zeros_like(tokens.long()), mask, lengths.long(), padding_side=side)
    read = tokens[made.real]
    if not 0 <= int(read.min()) <= int(read.max()) < vocabulary:
        raise ValueError(f"an id that is none of the teacher's {vocabulary}")
    if (mask & ~made.real).any():
        raise ValueError("a label where there is padding")
    return made


def states_of(body: bytes, rows: int, width: int, dtype: torch.dtype | None) -> Tensor:
    """The states of a reply. Raises ValueError for other ones than `rows` finite states of the width and type."""
    hidden = unpacked(body, "hidden")["hidden"]
    if hidden.shape != (rows, width):
        raise ValueError(f"states of shape {list(hidden.shape)} in place of {[rows, width]}")
    if not hidden.is_floating_point() or (dtype is not None and hidden.dtype != dtype):
        raise ValueError(f"states of {hidden.dtype} in place of {dtype or 'a floating-point type'}")
    if not hidden.isfinite().all():
        raise ValueError("states that are not finite")
    return hidden


def files_of(folder: Path) -> dict[str, Tensor]:
    """The files of a tokenizer's folder as bytes."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    return {f"{FILE}{path.name}": torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for path in files}


def write_frame(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write a head and a tokenizer's files. Raises ValueError for a file that would lie elsewhere."""
    (folder / FILE).mkdir(parents=True)
    for name in (name for name in tensors if name.startswith(FILE)):
        path = folder / FILE / name.removeprefix(FILE)
        if path.parent != folder / FILE or path.name in ("", ".."):
            raise ValueError(f"the tokenizer's file {name!r} is no name of one")
        path.write_bytes(tensors[name].numpy().tobytes())
    save_file({name: tensor for name, tensor in tensors.items() if not name.startswith(FILE)}, folder / HEAD)


def hidden_of(logits: HeadLogits, dtype: str) -> bytes:
    """The body of a reply."""
    return packed({"hidden": logits.hidden.to(getattr(torch, dtype)) if dtype else logits.hidden})
