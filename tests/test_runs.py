"""What the tests of runs share among pytest's workers.

Run: python -m pytest tests/test_runs.py
"""

from pathlib import Path

import pytest

from tests.runs import shared


def test_a_folder_is_made_once_and_a_half_filled_one_again(tmp_path_factory: pytest.TempPathFactory) -> None:
    calls = []

    def make(folder: Path) -> None:
        calls.append(folder)
        folder.mkdir()
        (folder / "first").touch()
        if len(calls) == 1:
            raise KeyboardInterrupt  # as if the process had been killed here
        (folder / "second").touch()

    with pytest.raises(KeyboardInterrupt):
        shared(tmp_path_factory, "whole", make)
    for _ in range(2):
        assert sorted(path.name for path in shared(tmp_path_factory, "whole", make).iterdir()) == ["first", "second"]
    assert len(calls) == 2
