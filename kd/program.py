"""The program that this process runs: how the user typed it, how it is started again, and its ranks."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence

NAME = "kd"  # the console command of the installed package


def typed(words: Sequence[str]) -> str:
    """A command line with `words`, for the program that the user started.

    `kd …` where the console command was started (its path, where the shell finds another one by that name),
    `python -m kd.doctor …` for a module, `python run.py …` else.
    """
    started, module = sys.argv[0], _module()
    if module is not None and module.startswith("kd."):
        return shlex.join(["python", "-m", module.removesuffix(".__main__"), *words])
    if os.path.basename(started) == NAME:
        return shlex.join([NAME if _found(started) else started, *words])
    return shlex.join(["python", "run.py", *words])


def again(without: str) -> str:
    """The command line that this process was started with, without the words that begin with `without`."""
    by_name = os.path.basename(sys.argv[0]) == NAME and _module() is None
    words = [word for word in (sys.argv[1:] if by_name else sys.orig_argv) if not word.startswith(without)]
    return typed(words) if by_name else shlex.join(words)


def started_by() -> list[str]:
    """The arguments of the Python interpreter that start the same program, without the program's own."""
    module = _module()
    return ["-m", module] if module else [os.path.abspath(sys.argv[0])]


def is_rank_zero() -> bool:
    """Return whether this process is the one that writes, by the variables (and their order) that Lightning reads."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        if name in os.environ:
            return int(os.environ[name]) == 0
    return True


def ranks_started() -> int:
    """Processes of this run that a launcher has started, by the variables Lightning reads; 1 if there is none."""
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):  # a shell in an allocation
        return int(os.environ.get("WORLD_SIZE", "1"))
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)


def _module() -> str | None:
    """The module that `python -m` runs."""
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else None


def _found(path: str) -> bool:
    """Return whether the shell finds this file by the name of the console command."""
    found = shutil.which(NAME)
    return found is not None and os.path.realpath(found) == os.path.realpath(path)
