"""The user's own text: a file, or a folder of files."""

import hashlib
import json
from functools import cached_property
from pathlib import Path

SUFFIXES = (".txt", ".md", ".rst")


class Local:
    """A text file, or the text files (.txt, .md, .rst) of a folder and the folders in it, each a document.

    Args:
        path: the file or folder, seen from the current folder.
        licence: the terms under which the text may be used; kept with the run's config, not checked.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: the folder has no text files.
    """

    name = "local"

    def __init__(self, *, path: str, licence: str = "not stated"):
        self.path, self.licence = Path(path).expanduser(), licence
        if not self.path.exists():
            raise FileNotFoundError(f"corpus.path={path} does not exist, seen from {Path.cwd()}; correct the path")
        if not self._files():
            raise ValueError(f"folder corpus.path={path} holds no file that ends in {', '.join(SUFFIXES)}; add one")

    def texts(self) -> tuple[str, ...]:
        """The files' contents without blank space around, in the order of their names; empty files are left out.

        Raises:
            ValueError: all files are empty, or one is no UTF-8.
        """
        return self._texts

    @cached_property
    def digest(self) -> str:
        """Hexadecimal sha256 of the texts and their order; names of files do not matter."""
        return hashlib.sha256(json.dumps(self.texts()).encode()).hexdigest()

    @cached_property
    def _texts(self) -> tuple[str, ...]:
        texts = tuple(filter(None, map(_text, self._files())))
        if not texts:
            raise ValueError(f"corpus.path={self.path} holds no text; write some into it, or name another path")
        return texts

    def _files(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        found = (path for path in self.path.rglob("*") if path.suffix in SUFFIXES and path.is_file())
        return sorted(found, key=lambda path: path.relative_to(self.path).as_posix())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"corpus file {path} is not UTF-8 ({error}); convert it, or take it away") from error
