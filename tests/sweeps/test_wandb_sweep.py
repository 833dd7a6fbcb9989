"""A sweep with `logger=[csv,wandb]` in one process: its W&B records, read back, and the dashboard made of them.

Run: python -m pytest tests/sweeps/test_wandb_sweep.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kd.reports.__main__ import main
from tests import runs
from tests.documents import ROOT
from tests.reports.test_wandb import panels, shown
from tests.wandb_records import Record, records_of

SWEEP = [
    *("-m", "objective=fkl,rkl", "teacher=tiny", "student=tiny", "skill=spell_backward", "teacher.prepare=null"),
    *("trainer=cpu", "optim.steps=2", "log_every=1", "evaluation=quick", "evaluation.max_new_tokens=4"),
    *("skill.train=16", "skill.validation=4", "skill.test=4", "checkpoint.validate=1", "checkpoint.answers=2"),
    *("checkpoint.records=2", "hydra/launcher=basic", "logger=[csv,wandb]", "logger.wandb.artifact=files"),
]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweep")
    hidden = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"NETRC": str(root / "netrc"), "WANDB_DATA_DIR": str(root / "data")}
    done = subprocess.run(
        [sys.executable, "run.py", *SWEEP, f"run.root={root / 'outputs'}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (root / "printed.txt").write_text(done.stdout)
    return root / "outputs"


@pytest.fixture(scope="module")
def records(outputs: Path) -> dict[Path, Record]:
    found = {path.parent: records_of(path.parent) for path in outputs.glob("*/DONE")}
    assert all(len(of_run) == 1 for of_run in found.values())
    return {path: of_run[0] for path, of_run in found.items()}


@pytest.mark.long
def test_the_runs_of_a_sweep_are_one_group(outputs: Path, records: dict[Path, Record]) -> None:
    """The one beside them, too, which is made once."""
    (sweep,) = (outputs / "sweeps").iterdir()
    assert {record.group for record in records.values()} == {sweep.name}
    types = {record.config["axis_objective"]: record.job_type for record in records.values()}
    assert types == {"fkl": "train", "rkl": "train", "sft": "baseline"}
    tags = {"skill:spell_backward", "teacher:tiny", "student:tiny", "rollout:offline"}
    assert all(tags <= set(record.tags) for record in records.values())
    assert all(record.exit_code == 0 for record in records.values())


@pytest.mark.long
def test_each_record_is_its_run_folder(records: dict[Path, Record]) -> None:
    for folder, record in records.items():
        logged = {
            f"{row['trainer/global_step']},{name.replace('/', ',', 1)}": value
            for row in record.history
            for name, value in row.items()
            if name.partition("/")[0] in ("train", "validation", "spell_backward") and "per_second" not in name
        }
        assert logged == {key: float(value) for key, value in runs.metrics(folder).items()}
        results = json.loads((folder / "results.json").read_text())
        for metric, systems in results["scores"]["spell_backward"].items():
            for system, one in systems.items():
                value = None if one is None else one["value"]
                assert record.summary.get(f"scores/spell_backward/{metric}/{system}") == value
        for metric, systems in results["agreement"].items():
            for system, one in systems.items():
                value = None if one is None else one["value"]
                assert record.summary.get(f"agreement/{metric}/{system}") == value
        (paths,) = record.artifacts.values()
        assert {"config.yaml", "results.json", "samples.jsonl", "metrics.csv", "DONE"} <= set(paths)
        assert not [path for path in paths if path.startswith(("student", "checkpoints", "wandb"))]
        for row in record.table("tables/answers"):
            present = ["teacher", "before", "after", *([] if "-sft-" in folder.name else ["sft"])]
            assert all(isinstance(row[system], str) for system in present)


@pytest.mark.long
def test_each_run_ends_with_the_command_that_uploads_it(outputs: Path, records: dict[Path, Record]) -> None:
    printed = (outputs.parent / "printed.txt").read_text()
    for record in records.values():
        assert printed.count(f"to upload it: wandb sync {record.folder}\n") == 1


@pytest.mark.long
def test_the_dashboard_shows_what_the_sweep_logged(outputs: Path, records: dict[Path, Record]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["wandb", str(outputs), "--offline", str(outputs / "spec.json")])
    assert ended.value.code == 0
    known = {name for record in records.values() for row in (*record.history, record.summary) for name in row}
    spec = json.loads((outputs / "spec.json").read_text())
    names = {name for panel in panels(spec) for name in shown(panel)}
    assert names <= known
    wanted = {"spell_backward/verifier_score", "train/loss", "validation/forward_kl", "budget/seconds"}
    assert wanted | {"headline/after", "agreement/top1/sft", "tables/answers"} <= names
