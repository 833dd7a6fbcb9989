"""The mechanism of confinement: bubblewrap where it works, else Landlock; none only where the user accepts that.

The system calls, capabilities and limits are the same under both. They differ in how files are hidden: bubblewrap
gives the worker namespaces of its own (files, processes, network) that hold nothing else; under Landlock the rest
exists and cannot be read, listed or written, though the size and times of a file whose path is known can be queried.
"""

import json
import os
import platform
import shutil
import site
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from kd.sandbox.confinement import DEVICES, landlock_version
from kd.sandbox.limits import Limits
from kd.sandbox.syscalls import ARCHITECTURES, supported

Mechanism = Literal["bubblewrap", "landlock", "none"]
ORDER: tuple[Mechanism, ...] = ("bubblewrap", "landlock")
VARIABLE = "KD_SANDBOX"  # forces one of them
SCRATCH = "/box"  # of a worker under bubblewrap
SYSTEM = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr/share/zoneinfo",
)
REMEDY = (
    "install bubblewrap (Debian: apt install bubblewrap), or use Linux 5.13 or later with Landlock, or accept with "
    f"{VARIABLE}=none that a model's text runs unprotected as this user"
)
BOOT = "import sys; sys.path += {paths!r}; from kd.sandbox.worker import main; main()"


def missing(mechanism: Mechanism) -> str | None:
    """The reason why this machine cannot have the mechanism, as far as is known without a trial, or None."""
    if mechanism == "none":
        return None
    if not supported():
        machine = f"{platform.system()} on {platform.machine()}"
        return f"system calls are filtered on Linux on {' and '.join(ARCHITECTURES)} only, and this is {machine}"
    if mechanism == "bubblewrap":
        return None if shutil.which("bwrap") else "there is no bwrap on the PATH"
    return None if landlock_version() else "the kernel does not offer Landlock"


def site_folders() -> list[str]:
    """The folders in which packages are installed, for this interpreter."""
    known = {*site.getsitepackages(), *[path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]}
    return sorted({os.path.realpath(path) for path in known if os.path.isdir(path)})


def package_folders(module: str) -> list[str]:
    """The folders, or the file, of the top-level package that holds `module`; none for the standard library's."""
    name = module.partition(".")[0]
    if name in sys.stdlib_module_names or name in sys.builtin_module_names:
        return []
    paths = getattr(sys.modules[name], "__path__", None) or [sys.modules[name].__file__]
    return [os.path.realpath(path) for path in paths if path]


def readable(packages: Sequence[str]) -> list[str]:
    """The paths that sandboxed code may read: interpreter, installed packages, system libraries, and `packages`."""
    interpreter = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    own = str(Path(__file__).parents[1])
    paths = [_base("lib"), *interpreter, *site_folders(), own, *packages, *libraries, *SYSTEM]
    return sorted({path for path in paths if path and os.path.exists(path)})


def _base(name: str) -> str:
    """A folder of the interpreter's installation; nothing for the system's own, which SYSTEM lists."""
    return "" if sys.base_prefix == "/usr" else os.path.join(os.path.realpath(sys.base_prefix), name)


def command(
    mechanism: Mechanism, limits: Limits, packages: Sequence[str], scratch: str, *, files: bool
) -> tuple[list[str], dict[str, str]]:
    """The worker's command and environment.

    scratch: a folder of its own, for files that an import may write; with `files` its children write there, too.
    """
    paths = readable(packages)
    settings = {"mechanism": mechanism, "limits": asdict(limits), "readable": paths, "scratch": scratch, "files": files}
    parents = [str(Path(__file__).parents[2]), *[str(Path(path).parent) for path in packages]]
    boot = BOOT.format(paths=[*site_folders(), *dict.fromkeys(map(os.path.realpath, parents))])
    python = os.path.realpath(sys.executable)
    worker = [python, "-S", "-s", "-P", "-c", boot, json.dumps(settings)]
    environment = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"OPENBLAS_NUM_THREADS": "1", "HOME": scratch, "TMPDIR": scratch}
    environment |= {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # half the cost of a fork
    if "LD_LIBRARY_PATH" in os.environ:
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    wrapped = _bubblewrap(python, paths, limits, scratch) if mechanism == "bubblewrap" else []
    return [*wrapped, *worker], environment


def _bubblewrap(python: str, paths: Sequence[str], limits: Limits, scratch: str) -> list[str]:
    """Namespaces that hold the readable paths, four devices and the scratch folder, nothing else, and no network."""
    binds = [part for path in (*paths, python) for part in ("--ro-bind-try", path, path)]
    devices = [part for path in DEVICES for part in ("--dev-bind-try", path, path)]
    space = ["--size", str(limits.disk), "--tmpfs", scratch]
    options = (
        "--unshare-all --unshare-user --die-with-parent --new-session --uid 65534 --gid 65534 --cap-drop ALL --chdir /"
    )
    return [shutil.which("bwrap") or "bwrap", *options.split(), *binds, *devices, *space, "--remount-ro", "/"]
