"""The folders that a run writes into, and its name: checked before anything begins."""

import re
import tempfile
from pathlib import Path

LONGEST_NAME = 200  # bytes; a hash and a suffix follow, and file systems take 255


def check_name(name: str | None) -> None:
    """Raises ValueError for a name that cannot be a folder's."""
    if name is None:
        return
    if re.search(r"[/\\\x00-\x1f]", name) or name.startswith((".", " ")) or not name.strip():
        raise ValueError(f"name={name!r} cannot name a folder; leave out slashes, control characters and a leading dot")
    if (size := len(name.encode())) > LONGEST_NAME:
        raise ValueError(f"name={name[:20]}… has {size} bytes, more than a folder's name can hold; give a shorter one")


def check_folder(what: str, path: Path, remedy: str) -> None:
    """Raises ValueError where nothing can be written into `path`, or into its first existing parent."""
    path = path.expanduser().absolute()
    try:
        there = next(place for place in (path, *path.parents) if place.exists())
        with tempfile.TemporaryFile(dir=there):
            return
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ValueError(f"{what}: nothing can be written there ({why}); name another folder with {remedy}") from None
