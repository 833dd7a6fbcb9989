"""The foreign code that the user allows by name, beside the project's own (`kd.components.allowed`)."""

import os
import re

ALLOW = "KD_ALLOW"  # the environment alone counts: `run.allow=[...]` of a command line is put there


def permitted() -> frozenset[str]:
    """The names that the user allows: packages, modules, functions, and `sdist:NAME`."""
    return frozenset(name for name in re.split(r"[\s,]+", os.environ.get(ALLOW, "")) if name)
