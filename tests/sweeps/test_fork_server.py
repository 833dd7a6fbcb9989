"""A job that is forked is as one that was started, but for what it need not import again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hydra_plugins.kd_launcher.fork_server import ForkServer
from hydra_plugins.kd_launcher.job_process import RANK_VARIABLES

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="jobs are forked on Linux alone")
PROGRAM = """
import __main__, atexit, json, os, signal, sys, threading

def end():
    with open(sys.argv[1], "a") as file:
        file.write("at exit\\n")

atexit.register(end)
facts = {
    "argv": sys.argv, "orig_argv": sys.orig_argv, "path": sys.path[1:], "name": __name__, "file": __file__,
    "main": [__main__.__name__, __main__.__file__, str(__main__.__spec__ and __main__.__spec__.name)],
    "environment": {key: os.environ[key] for key in sorted(os.environ) if key not in ("LC_CTYPE", "PWD", "OLDPWD")},
    "leads": [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()], "folder": os.getcwd(),
    "stdin": os.readlink("/proc/self/fd/0"), "files": len(os.listdir("/proc/self/fd")),
    "signals": [str(signal.getsignal(number)) for number in (2, 13, 15, 17)],
    "threads": [threading.active_count(), len(os.listdir("/proc/self/task"))],
    "main_thread": threading.current_thread() is threading.main_thread(),
}
with open(sys.argv[1], "w") as file:
    file.write(json.dumps(facts) + "\\n")
if sys.argv[2] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "failed":
    raise ValueError("no")
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def server() -> Iterator[ForkServer]:
    found = ForkServer(["json", "decimal", "a_module_that_is_not_there"])
    yield found
    found.close()
    found.process.wait(timeout=20)


def facts(path: Path) -> tuple[dict[str, Any], list[str]]:
    first, *rest = path.read_text().splitlines()
    return json.loads(first), rest


@pytest.mark.parametrize("end", ["0", "3", "failed", "killed"])
@pytest.mark.parametrize("form", ["file", "module"])
def test_a_fork_is_as_a_process_that_was_started(form: str, end: str, tmp_path: Path, server: ForkServer) -> None:
    """Names, arguments, environment, session, standard input, open files, signals, threads, what is done at exit."""
    (tmp_path / "program.py").write_text(PROGRAM)
    words = [str(tmp_path / "program.py")] if form == "file" else ["-m", "program"]
    variables = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    variables = {**variables, "PYTHONPATH": str(tmp_path), "OURS": "ours"}
    out, command = tmp_path / "facts", [sys.executable, *words, str(tmp_path / "facts"), end]
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "start_new_session": True}
    code = subprocess.run(command, env=variables, check=False, stderr=subprocess.DEVNULL, **options).returncode
    started = facts(out)
    sys.path.insert(1, str(tmp_path))  # as PYTHONPATH of the launcher would
    try:
        other = ForkServer(["json"])
    finally:
        sys.path.remove(str(tmp_path))
    forked = other.start(command, variables)
    assert forked is not None
    assert forked.wait() == code == {"failed": 1, "killed": -9}.get(end, int(end) if end.isdecimal() else 0)
    found = facts(out)
    other.close()
    own = (str(tmp_path), str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))  # pytest's
    for one in (found[0], started[0]):
        one["path"] = [place for place in one["path"] if not place.startswith(own)]
    assert found == started
    assert found[1] == ([] if end == "killed" else ["at exit"])


def test_one_after_another_share_nothing(tmp_path: Path, server: ForkServer) -> None:
    (tmp_path / "leak.py").write_text(
        "import decimal, os, sys\n"
        "assert 'decimal' in sys.modules and not hasattr(decimal, 'leak') and 'LEAK' not in os.environ\n"
        "decimal.leak = os.environ['LEAK'] = 'x'\n"
    )
    pids = set()
    for _ in range(3):
        forked = server.start([sys.executable, str(tmp_path / "leak.py")], dict(os.environ))
        assert forked is not None
        assert forked.wait() == 0
        pids.add(forked.pid)
    assert len(pids) == 3


def test_a_signal_reaches_the_group_of_a_fork(tmp_path: Path, server: ForkServer) -> None:
    (tmp_path / "sleep.py").write_text("import subprocess, sys\nsubprocess.run(['sleep', '100'])\n")
    forked = server.start([sys.executable, str(tmp_path / "sleep.py")], dict(os.environ))
    assert forked is not None
    os.killpg(forked.pid, signal.SIGTERM)
    assert forked.wait() == -signal.SIGTERM


def test_without_the_server_there_is_no_fork(tmp_path: Path, server: ForkServer) -> None:
    """The caller then starts a process; and one that was forked before is waited for until it has gone."""
    (tmp_path / "sleep.py").write_text("import time\ntime.sleep(1.5)\n")
    command = [sys.executable, str(tmp_path / "sleep.py")]
    forked = server.start(command, dict(os.environ))
    assert forked is not None
    began = time.monotonic()
    server.process.kill()
    assert forked.wait() == -signal.SIGTERM
    assert time.monotonic() - began > 0.5
    assert server.start(command, dict(os.environ)) is None


def test_a_process_with_another_thread_is_not_forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that the thread holds would stay locked in the fork."""
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    threaded = ForkServer(["threaded"])
    assert threaded.start([sys.executable, "-c", "1"], dict(os.environ)) is None
    assert threaded.process.wait(timeout=20) == 1


LOOKED = """
import os, sys, threading
import torch
from torch.utils._python_dispatch import TorchDispatchMode

asked, ran = [], []
for module, names in ((torch.cuda, ("is_available", "device_count", "init", "current_device")),):
    for name in names:
        old = getattr(module, name)
        setattr(module, name, lambda *args, _name=name, _old=old, **more: asked.append(_name) or _old(*args, **more))

class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        ran.append(str(function))
        return function(*arguments, **(keywords or {}))

from hydra_plugins.kd_launcher.fork_server import preload
with Watch():
    preload(sys.argv[1:])
import numpy
tasks = [open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")]
print(sorted(set(asked)), sorted(set(ran)), threading.active_count(), sorted(tasks)[:-1])
"""


COMPUTED = """
import sys
assert "kd.experiment.build" in sys.modules and "transformers.models.llama.modeling_llama" in sys.modules
import numpy, torch
torch.set_num_threads(4)
wide = torch.ones(1500, 1500, requires_grad=True)
((wide @ wide).sum() + numpy.ones((1500, 1500)).dot(numpy.ones(1500)).sum()).backward()
sys.exit(0 if wide.grad.min() == 3000 else 1)
"""


@pytest.mark.long
def test_what_is_imported_before_a_fork_starts_no_thread_and_asks_for_no_device(tmp_path: Path) -> None:
    """Libraries that make threads when they are imported (OpenBLAS, jemalloc) handle forks, so threads work there."""
    modules = ["kd.command", "kd.sweeps.preloaded"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOOKED, *modules]
    done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = "[] ['aten.lift_fresh.default'] 1 ['jemalloc_bg_thd']"  # a constant becomes a tensor; pyarrow's allocator
    assert done.stdout.strip() == found
    (tmp_path / "computed.py").write_text(COMPUTED)
    server = ForkServer(modules)
    for _ in range(2):
        forked = server.start([sys.executable, str(tmp_path / "computed.py")], dict(os.environ))
        assert forked is not None
        assert forked.wait() == 0
    server.close()
