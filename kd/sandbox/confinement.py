"""Irrevocable confinement of a process: limits, Landlock, capabilities, system calls.

Source: landlock(7), seccomp(2), capset(2), getrlimit(2). Nothing here needs privileges.
"""

import ctypes
import os
import resource
import stat
import struct
from collections.abc import Sequence

from kd.sandbox.limits import Limits
from kd.sandbox.syscalls import program

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # the same on every architecture
READ_FILE, READ_DIR, WRITE_FILE, TRUNCATE = 1 << 2, 1 << 3, 1 << 1, 1 << 14
RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}  # all those of a Landlock version
MAKE = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 12  # remove folders and files; make folders, files, symbolic links
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
OPEN_FILES = 32
PLACEHOLDER = 0x5EEDC0DE  # where a filter names the process; no system numbers processes so high

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4


def landlock_version() -> int:
    """The version of Landlock that the kernel offers, 0 for none."""
    return max(_call(LANDLOCK_CREATE, None, 0, 1), 0)


class Confinement:
    """Confinement of the children of this process: prepared once, because it is applied for each call.

    Args:
        limits: their bounds.
        readable: files and folders that they may read.
        scratch: the folder that they may write; None: they can change no file at all.
        landlock: whether Landlock hides the other files; else bubblewrap has hidden them.

    Raises:
        OSError: the kernel refuses one of the steps.
    """

    def __init__(self, limits: Limits, readable: Sequence[str], scratch: str | None, *, landlock: bool):
        self.limits = limits
        self.program = program(PLACEHOLDER, writes=scratch is not None)
        _checked(libc.prctl(38, 1, 0, 0, 0), "no_new_privs")
        _checked(libc.capset(struct.pack("Ii", 0x20080522, 0), struct.pack("6I", *[0] * 6)), "capset")
        self.ruleset = _ruleset(readable, scratch) if landlock else None

    def apply(self) -> None:
        """Confine this process, for good.

        Raises:
            OSError: the kernel refuses one of the steps.
        """
        limit(self.limits)
        if self.ruleset is not None:
            _checked(_call(LANDLOCK_RESTRICT, self.ruleset, 0), "landlock_restrict_self")
            os.close(self.ruleset)
        instructions = self.program.replace(struct.pack("I", PLACEHOLDER), struct.pack("I", os.getpid()))
        array = ctypes.create_string_buffer(instructions, len(instructions))
        head = struct.pack("HxxxxxxP", len(instructions) // 8, ctypes.addressof(array))
        filter_ = ctypes.create_string_buffer(head, len(head))
        _checked(libc.prctl(22, 2, ctypes.addressof(filter_), 0, 0), "seccomp")


def limit(limits: Limits) -> None:
    """Bound this process; the hard limits too, so that it cannot raise them again."""
    bounds = {
        resource.RLIMIT_CPU: limits.cpu_seconds,
        resource.RLIMIT_AS: limits.memory,
        resource.RLIMIT_FSIZE: limits.file_size,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, bound in bounds.items():
        _, hard = resource.getrlimit(kind)
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (bound, bound))


def _ruleset(readable: Sequence[str], scratch: str | None) -> int:
    version = landlock_version()
    handled = RIGHTS[max(known for known in RIGHTS if known <= version)]
    ruleset = _checked(_call(LANDLOCK_CREATE, struct.pack("Q", handled), 8, 0), "landlock")
    for path in readable:
        _allow(ruleset, path, READ_FILE | READ_DIR, handled)
    for path in DEVICES:
        _allow(ruleset, path, READ_FILE | WRITE_FILE, handled)
    if scratch is not None:
        _allow(ruleset, scratch, READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | MAKE, handled)
    return ruleset


def _allow(ruleset: int, path: str, rights: int, handled: int) -> None:
    """Adds a rule for `path` and everything below; a path that does not exist needs none."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not stat.S_ISDIR(os.fstat(place).st_mode):
        rights &= READ_FILE | WRITE_FILE | TRUNCATE
    rule = struct.pack("=Qi", rights & handled, place)
    _checked(_call(LANDLOCK_ADD, ruleset, 1, rule, 0), f"landlock rule for {path}")
    os.close(place)


def _call(number: int, *arguments: int | bytes | None) -> int:
    """A system call for which the C library has no function."""
    whole = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result: int = libc.syscall(ctypes.c_long(number), *whole)
    return result


def _checked(result: int, step: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{step}: {os.strerror(number)}")
    return result
