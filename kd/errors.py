"""Errors in one sentence. A fault of the program also leaves a traceback in a file, which the sentence names."""

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf.errors import InterpolationKeyError, InterpolationResolutionError, OmegaConfBaseException

from kd.secrets import masked

# Errors of libraries about what the user set, by name, so that no library is imported for them.
OF_LIBRARIES = (
    "lightning.fabric.utilities.exceptions.MisconfigurationException",
    "wandb.errors.errors.Error",
    "jinja2.exceptions.TemplateError",
    "huggingface_hub.errors.StrictDataclassError",
)
FULL = errno.ENOSPC, errno.EDQUOT
FORBIDDEN = errno.EACCES, errno.EPERM, errno.EROFS
ELSEWHERE = "take another folder: run.root=... for runs, KD_CACHE=... in the environment for models"


def sentence(error: BaseException) -> str:
    """An exception in one line: the message alone where the user can mend it, else after the exception's type."""
    return explained(error) or masked(f"{type(error).__name__}: {_line(error)}".rstrip(": "))


def explained(error: BaseException) -> str | None:
    """An error that the user can mend, in one sentence without any secret; None for a fault of the program."""
    text = _explained(error)
    return masked(text) if text else None


def _explained(error: BaseException) -> str | None:
    if isinstance(error, SystemExit):
        return _line(error) if isinstance(error.code, str) else f"it ended with exit code {error.code}"
    if _is(error, "hydra.errors.InstantiationException") and error.__cause__ is not None:
        return _explained(error.__cause__)
    if isinstance(error, OmegaConfBaseException):
        return _of_config(error)
    if _is(error, "hydra.errors.HydraException"):
        cause = f" ({_line(str(error.__cause__).partition(chr(10))[0])})" if error.__cause__ else ""
        return _line(str(error).partition("\n\n")[0]) + cause
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return f"memory is used up: {_line(error) or 'none is left'}; lower data.max_tokens, or take a smaller model"
    if isinstance(error, OSError) and error.errno is not None:
        return _of_system(error)
    if isinstance(error, ValueError | OSError | ImportError) or _is(error, *OF_LIBRARIES):
        return _line(error) or None
    return None


def _line(text: object) -> str:
    return " ".join(str(text).split())


def _is(error: BaseException, *names: str) -> bool:
    """Return whether it is one of these errors; their libraries are not imported for it."""
    return any(f"{kind.__module__}.{kind.__qualname__}" in names for kind in type(error).__mro__)


def _of_config(error: OmegaConfBaseException) -> str:
    """The key, what it is set to, and why that leads nowhere."""
    key, reason = error.full_key or "the config", _line(str(error).partition("\n")[0])
    if isinstance(error, InterpolationKeyError | InterpolationResolutionError):
        reason = f"an interpolation that cannot be resolved ({reason}); give {key} a value of its own"
        return f"{key} is {reason}"
    return reason if key in reason else f"{key}: {reason}"


def _of_system(error: OSError) -> str:
    """The operating system's reason, and the file that it refused."""
    what, why = error.filename or "a file", (error.strerror or str(error)).lower()
    if error.errno in FULL:
        return f"{what}: its disk is full ({why}); free some space, or {ELSEWHERE}"
    if error.errno in FORBIDDEN:
        return f"{what} cannot be read or written ({why}); change its permissions, or {ELSEWHERE}"
    if error.errno == errno.ENOENT:
        return f"{what} does not exist; correct the path, which is seen from {Path.cwd()}"
    if error.errno == errno.ENAMETOOLONG:
        return f"{what}: the name is too long for the file system; give a shorter name=... or run.root=..."
    if isinstance(error, BlockingIOError) or error.filename is None:
        return _line(error)
    return f"{what}: {why}; correct the path"


@contextmanager
def in_one_sentence(root: str = "") -> Iterator[None]:
    """End the process with exit code 1 and one line for an error inside; HYDRA_FULL_ERROR=1 keeps the traceback.

    root: the folder for the traceback of a fault; "" for that of temporary files.
    """
    try:
        yield
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        sys.exit(explained(error) or fault(error, root))


def fault(error: Exception, root: str = "") -> str:
    """The line for what is no fault of the user's; its traceback is written to a file in `root`."""
    text = masked("".join(traceback.format_exception(error)))
    for folder in (Path(root) if root else Path(tempfile.gettempdir()), Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"traceback-{os.getpid()}.txt"
            file.write_text(text, encoding="utf-8")
            break
        except OSError:
            continue
    else:
        return f"{sentence(error)} (a fault of the program; HYDRA_FULL_ERROR=1 shows the traceback)"
    return f"{sentence(error)} (a fault of the program; its traceback is in {file})"
