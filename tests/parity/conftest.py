"""Other libraries' losses beside ours. Needs the extra `parity`: `make parity`."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
HERE = Path(__file__).parent
PEERS = {"trl": "trl", "liger": "liger_kernel"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`test_<peer>.py` and `test_<peer>_<what>.py` need that peer."""
    for item in items:
        module = PEERS.get(item.path.stem.split("_")[1]) if item.path.parent == HERE else None
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.parity)
        if module and find_spec(module) is None:
            item.add_marker(pytest.mark.skip(reason=f"{module} is not installed; `make parity` installs it"))
