"""Plain text for terms that learn on the stream `lm`, such as MiniLLM's and DistiLLM's language-model loss."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class Corpus(Protocol):
    """Documents without prompts; one file each in `kd/corpora`."""

    name: str
    licence: str

    @property
    def digest(self) -> str:
        """Hexadecimal sha256 of the texts and their order."""

    def texts(self) -> Sequence[str]:
        """The documents, the same in the same order on every call."""
