"""Processes that end with the sweep that started them, however that ended, so that no job outlives it."""

import os
import signal
import sys
import threading
import time

OWNER = "KD_SWEEP_OWNER"  # process id of the sweep, in the environment of what it starts
INTERVAL = 0.5  # seconds between looks
GRACE = 30.0  # seconds in which a job saves what it has


def own() -> None:
    """Note that this process is the sweep, for the processes that it starts."""
    os.environ[OWNER] = str(os.getpid())


def owns() -> bool:
    """Return whether this process is the sweep itself."""
    return os.environ.get(OWNER) == str(os.getpid())


def end_with_parent() -> None:
    """End this process once the one that started it is gone: by SIGTERM, so that it saves, and SIGKILL after GRACE.

    Nothing happens in the sweep's own process, or where there is no sweep. That a parent is gone shows in another
    parent's id, since orphans are given to one. A job watches its launcher, its ranks the first of them.
    """
    owner = os.environ.get(OWNER)
    if owner in (None, str(os.getpid())):
        return
    threading.Thread(target=_watch, args=(os.getppid(),), name="parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent and parent != 1:
        time.sleep(INTERVAL)
    print("the process that started this job has ended, so the job stops", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)
