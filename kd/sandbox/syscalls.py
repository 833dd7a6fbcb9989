"""The system calls that a sandboxed process may make, as a seccomp filter; every other one is refused.

Refused so are, among others: sockets of every family, new processes and programs, signals to others, ptrace and the
memory of others, namespaces and mounts, limits and priorities of others, owners and modes of files, io_uring (which
would go round the filter), shared memory of System V, memfd, keys, bpf.

Source: seccomp(2), `struct seccomp_data` in linux/seccomp.h; numbers of asm/unistd_64.h and asm-generic/unistd.h.
"""

import errno
import platform
import struct
from collections.abc import Iterator
from typing import NamedTuple

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # audit number, column of the tables

# name: numbers on x86_64 and aarch64; None where the architecture has no such call
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    **{"read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67)},
    **{"pwrite64": (18, 68), "close": (3, 57), "fstat": (5, 80), "stat": (4, None), "lstat": (6, None)},
    **{"newfstatat": (262, 79), "statx": (332, 291), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226)},
    **{"munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233), "brk": (12, 214), "msync": (26, 227)},
    **{"rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132)},
    **{"rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133), "access": (21, None)},
    **{"faccessat": (269, 48), "faccessat2": (439, 439), "pipe": (22, None), "pipe2": (293, 59), "select": (23, None)},
    **{"pselect6": (270, 72), "poll": (7, None), "ppoll": (271, 73), "epoll_create": (213, None)},
    **{"epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22)},
    **{"eventfd2": (290, 19), "sched_yield": (24, 124), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24)},
    **{"pause": (34, None), "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113)},
    **{"clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153)},
    **{"getitimer": (36, 102), "setitimer": (38, 103), "alarm": (37, None), "getpid": (39, 172), "gettid": (186, 178)},
    **{"getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176)},
    **{"getegid": (108, 177), "getgroups": (115, 158), "getresuid": (118, 148), "getresgid": (120, 150)},
    **{"getpgrp": (111, None), "getpgid": (121, 155), "getsid": (124, 156), "uname": (63, 160), "fsync": (74, 82)},
    **{"fdatasync": (75, 83), "ftruncate": (77, 46), "getdents": (78, None), "getdents64": (217, 61)},
    **{"getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "readlink": (89, None), "readlinkat": (267, 78)},
    **{"getrlimit": (97, 163), "getrusage": (98, 165), "sysinfo": (99, 179), "futex": (202, 98)},
    **{"set_robust_list": (273, 99), "set_tid_address": (218, 96), "rseq": (334, 293), "exit": (60, 93)},
    **{"exit_group": (231, 94), "getrandom": (318, 278)},
    **{"sched_getaffinity": (204, 123), "restart_syscall": (219, 128), "copy_file_range": (326, 285)},
    **{"sendfile": (40, 71), "fadvise64": (221, 223), "statfs": (137, 43), "fstatfs": (138, 44)},
    **{"getcpu": (309, 168), "membarrier": (324, 283), "close_range": (436, 436)},
}
# Those that change files, beside what an opened one allows.
WRITING: dict[str, tuple[int | None, int | None]] = {
    **{"open": (2, None), "openat": (257, 56), "creat": (85, None), "fallocate": (285, 47), "rename": (82, None)},
    **{"renameat": (264, 38), "renameat2": (316, 276), "rmdir": (84, None), "unlink": (87, None)},
    **{"unlinkat": (263, 35), "symlink": (88, None), "symlinkat": (266, 36)},
}
OWNER = 0o700  # of a new folder: it can be emptied afterwards
CLONE_THREAD = 0x10000
WRITE_FLAGS = 0o1103  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC


class Condition(NamedTuple):
    """Argument number `place`, masked, is one of `values`; all 32-bit."""

    place: int
    mask: int
    values: tuple[int, ...]


Conditions = dict[tuple[int | None, int | None], Condition]

NEW_FOLDER: Conditions = {
    (83, None): Condition(1, OWNER, (OWNER,)),  # mkdir
    (258, 34): Condition(2, OWNER, (OWNER,)),  # mkdirat
}
READING: Conditions = {
    (2, None): Condition(1, WRITE_FLAGS, (0,)),  # open
    (257, 56): Condition(2, WRITE_FLAGS, (0,)),  # openat
}


def of_itself(pid: int) -> Conditions:
    """Calls that are allowed on the process itself, which is `pid`, and on its own descriptors and threads."""
    whole = 0xFFFFFFFF
    return {
        (16, 29): Condition(1, whole, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),  # ioctl: isatty, close-on-exec
        (72, 25): Condition(1, whole, (0, 1, 2, 3, 4, 1030)),  # fcntl: copies and flags; no owner for SIGIO, no lease
        (56, 220): Condition(0, CLONE_THREAD, (CLONE_THREAD,)),  # clone: threads
        (302, 261): Condition(0, whole, (0, pid)),  # prlimit64
        (157, 167): Condition(0, whole, (15, 16)),  # prctl: a thread's name
        (62, 129): Condition(0, whole, (pid,)),  # kill
        (234, 131): Condition(0, whole, (pid,)),  # tgkill
    }


CLONE3 = (435, 435)  # its flags lie in memory; "no such call" sends the C library back to clone

LOAD, EQUAL, AND, RETURN = 0x20, 0x15, 0x54, 0x06
ALLOW, KILL, REFUSE, ABSENT = 0x7FFF0000, 0x80000000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # places in struct seccomp_data

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def supported() -> bool:
    """Return whether the numbers of this machine's system calls are known."""
    return platform.system() == "Linux" and platform.machine() in ARCHITECTURES


def program(pid: int, *, writes: bool) -> bytes:
    """The filter for process `pid`, an array of `struct sock_filter`; without `writes` no file can be changed."""
    return b"".join(struct.pack("HBBI", *instruction) for instruction in _instructions(pid, writes))


def _instructions(pid: int, writes: bool) -> Iterator[Instruction]:
    audit, column = ARCHITECTURES[platform.machine()]
    yield from ((LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, audit), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER))
    for numbers in (*ALLOWED.values(), *(WRITING.values() if writes else ())):
        yield from _if_number(numbers[column], [(RETURN, 0, 0, ALLOW)])
    for numbers, condition in (of_itself(pid) | (NEW_FOLDER if writes else READING)).items():
        yield from _if_number(numbers[column], _checked(condition))
    yield from _if_number(CLONE3[column], [(RETURN, 0, 0, ABSENT)])
    yield (RETURN, 0, 0, REFUSE)


def _if_number(number: int | None, then: list[Instruction]) -> Iterator[Instruction]:
    if number is not None:
        yield (EQUAL, 0, len(then), number)
        yield from then


def _checked(condition: Condition) -> list[Instruction]:
    place, mask, values = condition
    tests = [(EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    load = [(LOAD, 0, 0, ARGUMENTS + 8 * place), (AND, 0, 0, mask)]
    return [*load, *tests, (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]
