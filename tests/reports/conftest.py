"""The run folders that most tests of reports read, once for each file of tests."""

from pathlib import Path

import pytest

from kd.reports.frame import Frame, frame_of
from kd.reports.runs import read_jobs
from tests.reports.folders import write_grid


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An outputs folder with the runs of `write_grid`."""
    folder = tmp_path_factory.mktemp("reports") / "outputs"
    write_grid(folder)
    return folder


@pytest.fixture(scope="module")
def frame(root: Path) -> Frame:
    """What reports read of it."""
    return frame_of(read_jobs(root))
