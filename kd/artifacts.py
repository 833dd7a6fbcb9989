"""Artifacts: files that one process makes and others read, whole or not there, locked while made, verified when read.

An artifact is a file or a folder with a manifest: the sizes and sha256 of its files, what it belongs to, what it cost.
A folder holds its manifest (`artifact.json`), a file has it beside itself (`NAME.artifact.json`). A stage names its
artifact by an identity (`kd.experiment.identity`), so that one which is complete is never made again.
"""

import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import platformdirs

from kd.locks import locked

MANIFEST = "artifact.json"
SEAL = "sha256"  # of a manifest's own content; one from before it was written has none
NOT_COVERED = {MANIFEST, "README.md"}  # a card may be edited: no number is read from it
Cost = Mapping[str, float | int]
_known: dict[tuple[str, int, int], str] = {}  # sha256 by path, size and modification time: read once in a process


@dataclass(frozen=True)
class Manifest:
    """The files of an artifact, and what it belongs to.

    Attributes:
        kind: the noun for messages, such as "checkpoint" or "prepared model".
        files: by relative name, the contents that are right, each as [size in bytes, sha256]. There is one, or two
            while a file is being replaced by a newer one.
        facts: what it belongs to (a run's hash, a step, an address).
        cost: what it took to make: `seconds`, and tokens where models generated or were read.
    """

    kind: str
    files: Mapping[str, list[list[Any]]]
    facts: Mapping[str, Any] = field(default_factory=dict)
    cost: Cost = field(default_factory=dict)

    def text(self) -> str:
        """The manifest as it is written, with the sha256 of its content."""
        content = asdict(self)
        return json.dumps({**content, SEAL: key(content)}, indent=2) + "\n"


def cache_root() -> Path:
    """`$KD_CACHE`, or the user's cache folder."""
    return Path(os.environ.get("KD_CACHE") or platformdirs.user_cache_dir("kd")).expanduser().absolute()


def key(content: Mapping[str, Any]) -> str:
    """Hexadecimal sha256 of plain data (numbers, strings, lists, mappings), whatever the order of its keys.

    Raises:
        ValueError: `content` holds a value that json has no form for.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=_refuse)
    return hashlib.sha256(text.encode()).hexdigest()


def _refuse(value: object) -> None:
    raise ValueError(
        f"the config holds {value!r} of type {type(value).__name__}, which cannot be hashed; "
        "pass OmegaConf.to_container(config, resolve=True) made of numbers, strings, lists and mappings"
    )


# --- made once ---


def once(path: Path, write: Callable[[Path], Any], *, kind: str, facts: Mapping[str, Any] | None = None) -> Manifest:
    """The verified manifest of the artifact at `path`, which is made by `write(temporary path)` if it is not there.

    Of several processes that need the same artifact one makes it and the others wait. Arguments as in `store`.

    Raises:
        ValueError: what is there was changed since it was written.
    """
    if not path.exists():
        with locked(path):
            if not path.exists():  # another process may have made it meanwhile
                store(path, write, kind=kind, facts=facts)
    return verified(path)


def store(path: Path, write: Callable[[Path], Any], *, kind: str, facts: Mapping[str, Any] | None = None) -> Manifest:
    """Make the file or folder `path` with its manifest: there whole, or not at all.

    Args:
        path: where the artifact belongs; an older one is replaced.
        write: writes everything to the temporary path that it is given; may return what that cost.
        kind: see `Manifest`.
        facts: see `Manifest`.
    """
    partial = _partial(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(partial)  # of a process of the same number that was killed
    started = time.perf_counter()
    try:
        returned = write(partial)
        cost = {"seconds": time.perf_counter() - started, **(returned if isinstance(returned, Mapping) else {})}
        manifest = Manifest(kind, _contents(partial, path.name), facts or {}, cost)
        _publish(partial, path, manifest)
    finally:
        _remove(partial)
    return manifest


def store_stream(path: Path, write: Callable[[Any], None], *, kind: str, facts: Mapping[str, Any]) -> Manifest:
    """Store one large file as `store` does: its content is hashed while `write(stream)` writes it."""
    partial = _partial(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    try:
        with partial.open("wb") as file:
            stream = _Hashed(file)
            write(stream)
        files = {path.name: [[partial.stat().st_size, stream.sha256.hexdigest()]]}
        manifest = Manifest(kind, files, facts, {"seconds": time.perf_counter() - started})
        _publish(partial, path, manifest)
    finally:
        _remove(partial)
    return manifest


class _Hashed(io.RawIOBase):
    """A binary file whose bytes are hashed as they are written, in order."""

    def __init__(self, file: IO[bytes]):
        self.file, self.sha256 = file, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self.sha256.update(content)
        return self.file.write(content)


def _publish(partial: Path, path: Path, manifest: Manifest) -> None:
    """Move what is complete into place. A file's manifest covers the old content, too, until the new one is there."""
    if partial.is_dir():
        write_atomically(partial / MANIFEST, manifest.text())
        for name in manifest.files:
            shutil.copymode(partial / MANIFEST, partial / name)  # safetensors writes for the owner alone
            _sync(partial / name)
        older = path.with_name(f".{path.name}.{os.getpid()}.old")
        if path.exists():
            os.rename(path, older)
        os.replace(partial, path)
        _remove(older)
    else:
        before = _before(path)
        both = {path.name: [*manifest.files[path.name], *before]}
        write_atomically(manifest_of(path), replace(manifest, files=both).text())
        shutil.copymode(manifest_of(path), partial)
        _sync(partial)
        os.replace(partial, path)
        if before:
            write_atomically(manifest_of(path), manifest.text())
    _sync(path.parent)


def _before(path: Path) -> list[list[Any]]:
    """The contents in the manifest of a file that is replaced; none where the manifest cannot be read."""
    try:
        return list(read_manifest(path).files[path.name]) if path.exists() else []
    except ValueError:
        return []


def _contents(path: Path, name: str) -> dict[str, list[list[Any]]]:
    """The contents that a manifest lists: of a file, which is to be called `name`, or of all files in a folder."""
    files = {name: path}
    if path.is_dir():
        inside = (file for file in sorted(path.rglob("*")) if file.is_file())
        files = {file.relative_to(path).as_posix(): file for file in inside}
    return {n: [[file.stat().st_size, file_sha256(file)]] for n, file in files.items() if n not in NOT_COVERED}


# --- verified when read ---


def manifest_of(path: Path) -> Path:
    """The path of the manifest of the artifact at `path`."""
    return path / MANIFEST if path.is_dir() else path.with_name(f"{path.name}.{MANIFEST}")


def read_manifest(path: Path, *, remedy: str = "delete both, and the same command makes them again") -> Manifest:
    """The manifest of `path` as it is written; no file is read.

    Raises:
        ValueError: there is none, or it is not readable.
    """
    try:
        content = json.loads(manifest_of(path).read_text(encoding="utf-8"))
        seal = content.pop(SEAL, None)
        manifest = Manifest(**content)
        if seal not in (None, key(content)):
            raise ValueError
        named = path.is_dir() or set(manifest.files) == {path.name}
        if not (named and manifest.files and all(manifest.files.values())) or None in (manifest.facts, manifest.cost):
            raise ValueError
        if any(len(one) != 2 for contents in manifest.files.values() for one in contents):
            raise ValueError
        return manifest
    except FileNotFoundError:
        raise ValueError(f"{path} has no {manifest_of(path).name} and cannot be verified; {remedy}") from None
    except (TypeError, ValueError, AttributeError):
        raise ValueError(f"{manifest_of(path)} of {path} is damaged; {remedy}") from None


def verified(path: Path, *, remedy: str | None = None, **facts: Any) -> Manifest:
    """The manifest of `path`, all of whose files are as they were written. Each file is read once in a process.

    Args:
        path: a file or a folder that `store` wrote.
        remedy: what ends the message of an error; None is to delete the artifact, which is then made again.
        facts: what the artifact must belong to; facts that its manifest lacks are not compared.

    Raises:
        ValueError: a file is missing or changed, or the artifact belongs to something else; names file and remedy.
    """
    remedy = remedy or f"delete {path}, and the same command makes it again"
    manifest = read_manifest(path, remedy=remedy)
    for name, contents in manifest.files.items():
        file = path / name if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"{file} of a {manifest.kind} is missing; {remedy}")
        size, sha256 = file.stat().st_size, file_sha256(file)
        if [size, sha256] not in contents:
            raise ValueError(
                f"{file} of a {manifest.kind} was changed or damaged since it was written: it has {size} bytes "
                f"(sha256 {sha256[:12]}…) instead of {contents[0][0]} ({contents[0][1][:12]}…); {remedy}"
            )
    for name, value in facts.items():
        if name in manifest.facts and manifest.facts[name] != value:
            raise ValueError(
                f"{path} is a {manifest.kind} of {name}={manifest.facts[name]}, not of {name}={value}; {remedy}"
            )
    return manifest


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's content, read once in a process for each size and modification time."""
    stat = path.stat()
    known = str(path.absolute()), stat.st_size, stat.st_mtime_ns
    if known not in _known:
        with path.open("rb") as file:
            _known[known] = hashlib.file_digest(file, "sha256").hexdigest()
    return _known[known]


# --- written whole ---


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file, a text in UTF-8, or leave the old one: temporary file beside it, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def remove(path: Path) -> None:
    """Delete an artifact with its manifest, if it is there."""
    beside = manifest_of(path)
    _remove(path)
    beside.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def texts_sha256(texts: Iterable[str]) -> str:
    """Hexadecimal sha256 of texts in their order."""
    whole = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        whole.update(len(content).to_bytes(8, "big") + content)
    return whole.hexdigest()
