"""A teacher with its network in another process (`python -m kd.serve`): the head is here, last states come by HTTP."""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kd.artifacts import cache_root, once
from kd.data.rows import tokenizer_digest
from kd.kernels.logits import HeadLogits
from kd.models.language_model import OF_ROWS, fill
from kd.models.tokenizers import load_tokenizer
from kd.program import is_rank_zero
from kd.progress import remark
from kd.teachers.ahead import Ahead
from kd.teachers.heads import moved, read_head
from kd.teachers.interface import Teacher
from kd.teachers.served.client import Client, Connection
from kd.teachers.served.wire import FILE, HEAD, About, Reading, request_of, states_of, unpacked, write_frame
from kd.types import Batch, Head, ModelOutput, Sequences, sent

SHORT = {torch.bfloat16: "bfloat16", torch.float16: "float16"}


class Served(Teacher):
    """The whole distribution of a model in another process, on another device or machine.

    The head and the tokenizer are fetched once. For each micro-batch the server returns the last hidden states of the
    loss rows, as the model has them here, so that logits are those of a teacher in this process.

    Args:
        url: of the server, as `python -m kd.serve` prints it.
        identity: of the teacher, as it prints that, too: 16 digits of weights, configuration and tokenizer.
        dtype: in which states are sent; None: that in which they are computed, so that nothing is lost.
        connection: see `kd.teachers.served.client.Connection`.

    Raises ValueError for what is no address.
    """

    provides: ClassVar[frozenset[str]] = OF_ROWS

    def __init__(
        self,
        *,
        url: str,
        identity: str,
        dtype: Literal["float32", "bfloat16"] | None = None,
        connection: Connection,
    ):
        place = urlsplit(url)
        if place.scheme not in ("http", "https") or not place.hostname:
            raise ValueError(f"teacher.url={url} is no address of a server; give one like http://127.0.0.1:8765")
        self.url, self.name, self.dtype = url.rstrip("/"), identity, dtype
        self.client = Client(url, identity, connection)
        self.ahead = Ahead(threads=connection.at_once, held=connection.held)
        self._placed: Head | None = None

    @classmethod
    def uncounted(cls, settings: Mapping[str, Any]) -> frozenset[str]:
        """See `Teacher`: the model counts, and not the way to it."""
        return frozenset({"url", "connection"})

    def identity(self) -> str:
        """The name of weights, configuration and tokenizer."""
        return f"served {self.name}"

    @cached_property
    def about(self) -> About:
        """The server's teacher. Raises ValueError where it is not the one that the config names."""
        about = self.client.about()
        if is_rank_zero():
            remark(f"teacher: {self.name}, {about.vocabulary} ids, at {self.url}; its own answers are not evaluated")
        return about

    @cached_property
    def folder(self) -> Path:
        """The folder of the head and the tokenizer, which are kept by the teacher's name.

        Raises ValueError for ones that do not belong to it.
        """
        folder, about = cache_root() / "served" / self.name, self.about
        once(folder, lambda path: write_frame(self._fetched(), path), kind="head of a served teacher")
        if tokenizer_digest(load_tokenizer(folder / FILE)) != about.teacher.rpartition(" ")[2]:
            raise ValueError(
                f"the tokenizer that {self.url} sent is not that of its teacher {self.name}; serve a teacher "
                "whose tokenizer save_pretrained keeps whole"
            )
        return folder

    @cached_property
    def words(self) -> PreTrainedTokenizerBase:
        """The teacher's tokenizer."""
        return load_tokenizer(self.folder / FILE)

    @cached_property
    def head(self) -> Head:
        """The teacher's output projection. Raises ValueError for one of other sizes."""
        head = read_head(self.folder / HEAD)
        if head.weight.shape != (sizes := (self.about.vocabulary, self.about.width)):
            raise ValueError(
                f"the head of {self.url} is {tuple(head.weight.shape)} in place of {sizes}; start it again"
            )
        return head

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """See `words`."""
        return self.words

    @property
    def vocabulary(self) -> int:
        """The number of ids of the head."""
        return self.about.vocabulary

    def projection(self) -> Head:
        """See `Teacher`."""
        return self.head

    @property
    def reads_elsewhere(self) -> bool:
        """See `Teacher`."""
        return True

    def reads_packed(self) -> bool:
        """See `LanguageModel.packs`, of the server's."""
        return self.about.packs

    def expect(self, batches: Sequence[Batch]) -> None:
        """See `Teacher`: requests are sent ahead, and `connection.held` replies wait at most."""
        if not any(batch.teacher.pixels for batch in batches):
            self.ahead.expect(batches, self._reader(batches[0].teacher.tokens.device))

    def output(self, batch: Batch, wanted: frozenset[str]) -> ModelOutput:
        """See `LanguageModel`; the logits are the head's here, of the states of the server."""
        sequences, output = batch.teacher, ModelOutput()
        if wanted:
            device = sequences.tokens.device
            states = self.ahead.awaited(batch, self._reader(device))
            fill(output, HeadLogits(sent(states, device), self._head_on(device)), sequences, wanted)
        return output

    def take_report(self) -> dict[str, tuple[float, float]]:
        """See `kd.types.Reports`: `teacher_wait`, the seconds that a micro-batch waited for the server."""
        return self.ahead.take_report()

    def _reader(self, device: torch.device) -> Any:
        """What reads a micro-batch as the caller would: autocast is of the caller's thread, and not of one that reads
        ahead."""
        on = torch.is_autocast_enabled(device.type)
        kind: Any = SHORT.get(torch.get_autocast_dtype(device.type), "") if on else ""
        return partial(self._states, autocast=kind)

    def _states(self, batch: Batch, autocast: Literal["bfloat16", "float16", ""]) -> Tensor:
        sequences: Sequences = batch.teacher
        reading = Reading(sequences.padding_side, autocast, self.dtype or "")
        body = self.client.states(reading.query(), request_of(sequences))
        dtype = None if self.dtype is None else getattr(torch, self.dtype)
        try:
            return states_of(body, len(sequences.places), self.about.width, dtype)
        except ValueError as error:
            raise ValueError(
                f"{self.url} returned {error} for a micro-batch of {len(sequences.tokens)} sequences; start it again, "
                "from the same kd"
            ) from None

    def _head_on(self, device: torch.device) -> Head:
        if self._placed is None or self._placed.weight.device != device:
            self._placed = moved(self.head, device)
        return self._placed

    def _fetched(self) -> dict[str, Tensor]:
        try:
            return unpacked(self.client.get("/head"))
        except ValueError as error:
            raise ValueError(f"{self.url} sent a head and tokenizer that cannot be read: {error}") from None
