"""Functions that tests have called in the sandbox; they import what a verifier would, and no more."""

import os
import sys
import threading
import time

seen: list[str] = []


def count(text: str) -> int:
    """How many texts this process has judged, with this one."""
    seen.append(text)
    return len(seen)


def evaluated(text: str):
    """What a careless verifier does."""
    return eval(text)


def prefixed(prefix: str):
    return lambda text: prefix + text


def unfit(text: str):
    raise ImportError(f"no {text}")


def write(folder: str) -> str:
    """Tries to leave something for the next verdict, in every place that a process may find."""
    for place in (folder, ".", "/", "/tmp", "/box", os.environ["HOME"], "/dev/shm"):
        try:
            with open(f"{place}/left", "w") as file:
                file.write("x")
        except OSError:
            continue
        return place
    return ""


def surroundings() -> dict[str, object]:
    return {
        "torch": "torch" in sys.modules,
        "threads": threading.active_count(),
        "environment": sorted(os.environ),
        "descriptors": [n for n in range(256) if _open(n)],
    }


def _open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def spin() -> None:
    while True:
        pass


def sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "awake"
