"""The script for a GPU runs on a CPU, so that it does not fail for a trifle on the day when there is one.

Run: python -m pytest tests/test_gpu_script.py
"""

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

from benchmarks import gpu
from benchmarks.scene import Row, Scene

ROOT = Path(__file__).parents[1]
TINY = ["--device", "cpu", "--tiny", "--seconds", "100000"]
SKIPPED = {"trl": "trl", "trl_chunked": "trl", "liger": "liger_kernel", "vllm": "vllm"}  # where they are not installed


def rows(folder: Path, section: str) -> list[Row]:
    return [row for row in Scene(folder, "cpu").rows() if row["section"] == section]


def check_rows(found: list[Row]) -> None:
    """Ours and torch's were measured; a peer was, or is not installed."""
    assert found
    for row in found:
        if "skipped" in row:
            assert row["skipped"] == f"{SKIPPED[row['by']]} is not installed"
        else:
            assert row["figure"] > 0, row
            assert row.get("passed", True), row


def test_sections_write_rows_and_one_that_fails_stops_no_other(tmp_path, capsys, monkeypatch):
    def broken(scene: Scene) -> Iterator[Row]:
        yield {"case": "first", "by": "ours", "figure": 1.0, "unit": "ms", "share": 0.5, "gib": 2.0}
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(gpu.SECTIONS, "broken", broken)
    names = ["limits", "broken", "head", "vllm"]
    assert gpu.main([*TINY, "--here", "--out", str(tmp_path), "--sections", *names]) == 1
    for name in ("limits", "head", "vllm"):
        check_rows(rows(tmp_path, name))
    assert all(0 < row["share"] < 2 for row in rows(tmp_path, "head") if row["by"] == "ours")
    first, failed = rows(tmp_path, "broken")
    assert first["figure"] == 1
    assert "no such kernel" in failed["failed"]
    assert "in broken" in failed["traceback"]
    table = capsys.readouterr().out
    assert "RuntimeError: no such kernel" in table
    assert "50%" in table
    assert max(len(line) for line in table.splitlines() if "File" not in line) <= 80


def test_the_agreement_gate_fails_the_script(tmp_path, capsys):
    Scene(tmp_path, "cpu").write(
        {"section": "agreement", "case": "fkl head fp32", "by": "ours", "passed": False, **FIGURE}
    )
    assert gpu.main(["--report", str(tmp_path)]) == 1
    assert "FAIL" in capsys.readouterr().out


FIGURE = {"figure": 0.1, "unit": "rel"}


def test_a_peer_that_fails_does_not_fail_the_script(tmp_path, capsys):
    Scene(tmp_path, "cpu").write({"section": "head", "case": "jsd", "by": "trl", "failed": "out of memory"})
    assert gpu.main(["--report", str(tmp_path)]) == 0
    assert "out of memory" in capsys.readouterr().out


@pytest.mark.long
def test_all_of_it_runs_in_processes(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", *TINY, "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for name in gpu.SECONDS:
        check_rows(rows(tmp_path, name))


@pytest.mark.long
def test_a_kill_loses_no_row(tmp_path):
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        *TINY,
        "--sections",
        "limits",
        "agreement",
        "--out",
        str(tmp_path),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    while not rows(tmp_path, "agreement"):
        time.sleep(0.1)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["case"] for row in lines if row["section"] == "limits"] == ["product bf16", "product fp32", "copy"]


@pytest.mark.long
def test_a_section_that_takes_too_long_is_killed_with_what_it_started(tmp_path: Path) -> None:
    options: Any = gpu._parser().parse_args([*TINY, "--out", str(tmp_path)])
    gpu._in_a_process("agreement", Scene(tmp_path, "cpu", tiny=True), 3.0, options)
    *_, last = rows(tmp_path, "agreement")
    assert last["failed"] == "killed after its 3 s"
