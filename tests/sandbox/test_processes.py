"""Workers come and go: none outlives its parent, a dead one is replaced, a forked copy has its own.

Run: python -m pytest tests/sandbox/test_processes.py
"""

import operator
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from kd.sandbox import Limits, verdict
from kd.sandbox.mechanisms import missing
from kd.sandbox.pool import _close
from tests.sandbox import verifiers

ROOT = Path(__file__).parents[2]
LONG = """
import signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background starts programs without it
from kd.sandbox import Limits, run, verdict
from tests.sandbox import verifiers
limits = Limits(cpu_seconds=600, seconds=600)
for call in (lambda: verdict(verifiers.spin, (), limits=limits), lambda: run("while True: pass", limits=limits)):
    threading.Thread(target=call, daemon=True).start()
verdict(verifiers.evaluated, ("1",))
time.sleep(1)
print("ready", flush=True)
time.sleep(600)
"""


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def within(seconds: float, done) -> bool:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.05)
    return done()


def descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_the_parent(how, mechanism, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", LONG],
        env=environment(TMPDIR=str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as parent:
        assert parent.stdout.readline() == b"ready\n"
        started = psutil.Process(parent.pid).children(recursive=True)
        assert len(started) > 4  # two pools at work, one idle
        parent.send_signal(how)
        parent.wait()
    assert within(20, lambda: not any(process.is_running() and process.status() != "zombie" for process in started))
    assert within(5, lambda: list(tmp_path.iterdir()) == [])  # nor do their folders


def test_a_worker_that_died_is_replaced(mechanism):
    _close()  # so that the workers of earlier tests are not among the others
    others = descendants()
    assert verdict(operator.add, (1, 2)) == 3
    mine = descendants() - others
    assert len(mine) > 1
    for process in mine:
        with suppress(psutil.NoSuchProcess):  # it ended with its parent
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(mine, timeout=5)
    assert [verdict(operator.add, (i, 2)) for i in range(4)] == [2, 3, 4, 5]


def test_a_forked_copy_has_workers_of_its_own(mechanism):
    """As the data loader's processes are forked; neither reads the other's answers."""
    assert verdict(operator.add, (1, 2)) == 3
    pid = os.fork()
    if pid == 0:
        try:
            right = [verdict(operator.add, (i, 10)) for i in range(3)] == [10, 11, 12]
            _close()
        finally:
            os._exit(0 if right else 1)
    assert [verdict(operator.add, (i, 20)) for i in range(3)] == [20, 21, 22]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert verdict(operator.add, (1, 2)) == 3


def test_a_verdict_that_is_stopped_leaves_no_process(mechanism):
    before = descendants()
    for _ in range(2):
        with pytest.raises(Exception, match="it was stopped after 0"):
            verdict(verifiers.sleep, (60.0,), limits=Limits(seconds=0.2))
    assert not [p for p in descendants() - before if p.is_running() and p.cpu_times().user > 5]
    assert verdict(verifiers.sleep, (0.0,), limits=Limits(seconds=0.2)) == "awake"


def self_test(**variables: str) -> subprocess.CompletedProcess[str]:
    code = "from kd.sandbox import mechanism; print(mechanism())"
    return subprocess.run([sys.executable, "-c", code], env=environment(**variables), capture_output=True, text=True)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.strip().splitlines()[-1]


def test_without_a_mechanism_the_sentence_names_the_remedy(tmp_path):
    refused = self_test(KD_SANDBOX="bubblewrap", PATH=str(tmp_path))
    assert last_line(refused) == (
        "ValueError: a model's text cannot be evaluated in a sandbox here (bubblewrap: there is no bwrap on the PATH); "
        "install bubblewrap (Debian: apt install bubblewrap), or use Linux 5.13 or later with Landlock, or accept with "
        "KD_SANDBOX=none that a model's text runs unprotected as this user"
    )
    assert "KD_SANDBOX=chroot is no sandbox; take bubblewrap, landlock or none" in last_line(
        self_test(KD_SANDBOX="chroot")
    )
    assert self_test(KD_SANDBOX="none").stdout == "none\n"


PRETENDS = """#!/bin/sh
while [ "$1" != --remount-ro ]; do shift; done
shift 2
exec "$@"
"""


def test_a_bubblewrap_that_confines_nothing_is_found_out(tmp_path):
    fake = tmp_path / "bwrap"
    fake.write_text(PRETENDS)
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    refused = self_test(KD_SANDBOX="bubblewrap", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert "bubblewrap: it can still list" in last_line(refused)


@pytest.mark.skipif(missing("bubblewrap") is not None, reason="bubblewrap is not installed")
def test_an_interpreter_below_the_folder_for_temporary_files_is_no_escape(tmp_path):
    """Then that folder exists inside, too, with nothing in it but the way there."""
    (tmp_path / "lib").mkdir()
    found = self_test(KD_SANDBOX="bubblewrap", TMPDIR=str(tmp_path), LD_LIBRARY_PATH=f"{tmp_path}/lib")
    assert found.stdout == "bubblewrap\n"


def test_a_bubblewrap_that_does_not_start_gives_way(tmp_path):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2; exit 1\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert "bubblewrap: bwrap: No permissions to create" in last_line(self_test(KD_SANDBOX="bubblewrap", PATH=path))
    assert self_test(PATH=path, KD_SANDBOX="landlock").stdout == "landlock\n"
    unset = {name: value for name, value in environment(PATH=path).items() if name != "KD_SANDBOX"}
    code = "from kd.sandbox import mechanism; print(mechanism())"
    found = subprocess.run([sys.executable, "-c", code], env=unset, capture_output=True, text=True)
    assert found.stdout == "landlock\n"
