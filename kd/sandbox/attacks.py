"""Attacks of hostile code, each harmless where it succeeds: it prints ESCAPED, on targets made for it.

`inside` runs one in the sandbox and `outside`, to show that it is an attack at all, without it.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd.sandbox.limits import Limits
from kd.sandbox.pool import run

LIMITS = Limits(cpu_seconds=1, seconds=15.0, memory=256 << 20, file_size=8 << 20, disk=24 << 20, output=64 << 10)
MARK = "ESCAPED"


@dataclass(frozen=True)
class Targets:
    """The targets of the attacks.

    secret: a file outside; its content is MARK. folder: where it lies, writable. victim: the id of a process of the
    same user, whose environment holds MARK. tcp, udp: ports on this machine. unix: the path of a listening socket.
    """

    secret: str
    folder: str
    victim: int
    tcp: int
    udp: int
    unix: str


@contextlib.contextmanager
def targets() -> Iterator[Targets]:
    """Targets for one series of attacks, removed after it."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kd-attacked-"))
        secret = Path(folder, "secret")
        secret.write_text(MARK)
        sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
        victim = stack.enter_context(subprocess.Popen(sleep, env={**os.environ, "KD_SECRET": MARK}))
        stack.callback(victim.kill)
        tcp, udp, unix = socket.socket(), socket.socket(type=socket.SOCK_DGRAM), socket.socket(socket.AF_UNIX)
        for server in (tcp, udp, unix):
            stack.callback(server.close)
        tcp.bind(("127.0.0.1", 0))
        udp.bind(("127.0.0.1", 0))
        unix.bind(f"{folder}/socket")
        tcp.listen()
        unix.listen()
        ports = tcp.getsockname()[1], udp.getsockname()[1]
        yield Targets(str(secret), folder, victim.pid, *ports, f"{folder}/socket")


BY_CTYPES = "import ctypes, os; c = ctypes.CDLL(None, use_errno=True)\n"
ATTACKS: dict[str, str] = {
    "read a file outside": "print(open(T.secret).read())",
    "list a folder outside": "import os; os.listdir(T.folder); print(MARK)",
    "follow a symbolic link out": "import os; os.symlink(T.secret, 'link'); print(open('link').read())",
    "make a hard link to a file outside": "import os; os.link(T.secret, 'hard'); print(open('hard').read())",
    "climb with ..": "print(open('../' * 20 + T.secret).read())",
    "write a file outside": "open(T.folder + '/written', 'w').write('x'); print(MARK)",
    "change a file's mode outside": "import os; os.chmod(T.secret, 0o644); print(MARK)",
    "rename a file outside": "import os; os.rename(T.secret, T.secret); print(MARK)",
    "cut a file off outside": "import os; os.truncate(T.secret, os.stat(T.secret).st_size); print(MARK)",
    "read the parent's environment": "import os; print(MARK * os.environ.__contains__('KD_SECRET'))",
    "read an environment in /proc": "print(open(f'/proc/{T.victim}/environ').read())",
    "read the memory of a process": (
        "f = open(f'/proc/{T.victim}/mem', 'rb'); lines = open(f'/proc/{T.victim}/maps').read().splitlines()\n"
        "f.seek(int(lines[0].split('-')[0], 16)); f.read(8); print(MARK)"
    ),
    "trace a process": BY_CTYPES + "print(MARK * (c.ptrace(16, T.victim, None, None) == 0))",
    "TCP": "import socket; socket.create_connection(('127.0.0.1', T.tcp), 3); print(MARK)",
    "UDP": (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM)\n"
        "s.connect(('127.0.0.1', T.udp)); s.send(b'x'); print(MARK)"
    ),
    "a socket of the file system": "import socket; socket.socket(socket.AF_UNIX).connect(T.unix); print(MARK)",
    "listen on a port": "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); print(MARK)",
    "io_uring": BY_CTYPES + "p = ctypes.create_string_buffer(120); print(MARK * (c.syscall(425, 1, p) >= 0))",
    "signal to the parent": "import os; os.kill(os.getppid(), 0); print(MARK)",
    "signal to another process": "import os; os.kill(T.victim, 0); print(MARK)",
    "signal to all processes": "import os, signal; os.kill(0, 0); print(MARK)",
    "signal through a pipe's owner": (
        "import fcntl, os, struct; r, w = os.pipe(); fcntl.fcntl(r, 15, struct.pack('ii', 1, T.victim)); print(MARK)"
    ),
    "limits of another process": "import resource as r; r.prlimit(T.victim, r.RLIMIT_CORE, (0, 0)); print(MARK)",
    "priority of another process": "import os; os.setpriority(os.PRIO_PROCESS, T.victim, 5); print(MARK)",
    "raise its own limits": (
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY,) * 2); print(MARK)"
    ),
    "start a program": "import subprocess; print(MARK * (subprocess.run(['/bin/true']).returncode == 0))",
    "become another program": "import os; os.execv('/bin/echo', ['echo', MARK])",
    "fork bomb (to 60)": (
        "import os, time; pids = []\n"
        "for _ in range(60):\n"
        "    pid = os.fork()\n"
        "    if not pid: time.sleep(1); os._exit(0)\n"
        "    pids.append(pid)\n"
        "[os.waitpid(pid, 0) for pid in pids]; print(MARK)"
    ),
    "a child that survives (setsid)": (
        "import os, time; r, w = os.pipe()\n"
        "if not os.fork():\n"
        "    os.setsid()\n"
        "    if not os.fork(): time.sleep(0.1); os.write(w, b'x'); os._exit(0)\n"
        "    os._exit(0)\n"
        "os.wait(); print(MARK * len(os.read(r, 1)))"
    ),
    "a namespace of its own (unshare)": BY_CTYPES + "print(MARK * (c.unshare(0x10000000) == 0))",
    "shared memory (System V)": BY_CTYPES
    + "i = c.shmget(0, 4096, 0o1600); c.shmctl(i, 0, None); print(MARK * (i >= 0))",
    "memory without a file (memfd)": "import os; os.memfd_create('x'); print(MARK)",
    "memory (400 MB)": "x = bytearray(400 << 20); print(MARK)",
    "endless loop (2 s of CPU)": "import time\nwhile time.process_time() < 2: pass\nprint(MARK)",
    "catch the time limit": (
        "import signal, time; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\n"
        "while time.process_time() < 2.5: pass\n"
        "print(MARK)"
    ),
    "one large file (16 MB)": "open('large', 'wb').write(bytes(16 << 20)); print(MARK)",
    "many files (80 MB)": (
        "import time\nfor i in range(20): open(f'part{i}', 'wb').write(bytes(4 << 20)); time.sleep(0.03)\nprint(MARK)"
    ),
    "many empty files (5000)": (
        "import time\nfor i in range(5000): open(f'empty{i}', 'w').close(); time.sleep(0.0005)\nprint(MARK)"
    ),
    "30 MB of output": "print('x' * (30 << 20) + MARK)",
}


def source(attack: str, at: Targets) -> str:
    """The attack's code, with its targets written in."""
    fields = ", ".join(f"{name}={value!r}" for name, value in vars(at).items())
    return f"from types import SimpleNamespace\nT = SimpleNamespace({fields}); MARK = {MARK!r}\n{ATTACKS[attack]}"


def inside(attack: str, at: Targets, limits: Limits = LIMITS) -> tuple[bool, str]:
    """Run the attack in the sandbox; returns whether it succeeds, and how it ended."""
    outcome = run(source(attack, at), limits=limits)
    return MARK in outcome.stdout, outcome.error or "nothing came of it"


def outside(attack: str, at: Targets) -> bool:
    """Return whether the attack succeeds in an ordinary process of this user, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="kd-attacker-") as folder:
        environment: dict[str, Any] = {**os.environ, "KD_SECRET": MARK}
        done = subprocess.run(
            [sys.executable, "-c", source(attack, at)],
            cwd=folder,
            env=environment,
            capture_output=True,
            timeout=120,
            start_new_session=True,
        )
    return MARK.encode() in done.stdout
