"""The cost of an augmentation, the budgets by which arms are compared, and the curves that are drawn.

Run: python -m pytest tests/reports/test_costs.py
"""

from pathlib import Path
from typing import Any

import pytest

from kd.reports.comparisons.curves import series, shown, terms_of
from kd.reports.figures.curves import curves
from kd.reports.frame import Arm, Frame, frame_of
from kd.reports.runs import read_jobs
from kd.reports.sweep import Choices
from tests.reports.folders import write_run
from tests.reports.test_odd_folders import changed, values
from tests.reports.test_report_tables import table

STAGES = {"augmentation": {"stages": {"labeling": {"samples": 1}}}}
ELICITATION = {
    **{"records": 64, "responses": 128, "left_out": 3, "teacher_tokens": 400, "generated_tokens": 0},
    **{"student_flops": 0.0, "judge_flops": 0.0, "seconds": 12.5},
}
MODEL = {
    "parameters": 10,
    "weights_bytes": 20,
    "cache_bytes_per_token": 1,
    "tokens_per_second": 1.0,
    "generated_tokens": 1,
}


def elicited(page: dict[str, Any], **changes: Any) -> None:
    page["elicitation"] = {**ELICITATION, **changes}
    page["efficiency"] = {"teacher": {**MODEL, "flops_per_token": 2000}}


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> Frame:
    root = tmp_path_factory.mktemp("costs") / "outputs"
    for seed, seconds in ((1, 10.0), (2, 20.0)):
        write_run(root, "sft", seed=seed)
        folder = write_run(root, "fkl", seed=seed, sections=STAGES, spent={"teacher_tokens": 1000})
        changed(folder, lambda page, seconds=seconds: elicited(page, seconds=seconds))
        write_run(root, "rkl", seed=seed, spent={"teacher_tokens": 500})  # a teacher of unknown FLOPs
    return frame_of(read_jobs(root))


def test_the_elicitation_is_accounted_for(frame: Frame) -> None:
    grid = table(frame, "augmentation")
    found = {name: values(grid, name) for name in (line.replace("\n", " ") for line in grid.header)}
    at = [arm.values["objective"] for arm in frame.arms].index("fkl")
    assert found["elicited responses"][at] == 128
    assert found["by the teacher: tokens"][at] == 400
    assert found["by the teacher: FLOPs"][at] == 400 * 2000
    assert found["elicitation seconds"][at] == 15.0  # the mean over seeds
    assert found["all teacher tokens"][at] == 1000
    assert [name for name in found if name.startswith("judge")] == []
    assert [number for i, number in enumerate(found["elicitation seconds"]) if i != at] == [0.0, 0.0]


def test_a_run_from_before_has_dashes(tmp_path: Path) -> None:
    write_run(tmp_path, "sft", sections=STAGES)
    grid = table(frame_of(read_jobs(tmp_path)), "augmentation")
    assert values(grid, "elicitation seconds") == [None]


def test_budgets_have_the_elicitation_and_the_teachers_flops(frame: Frame) -> None:
    grid = table(frame, "pareto")
    objectives = [row[0] for row in grid.rows]
    seconds = dict(zip(objectives, values(grid, "elicitation seconds"), strict=True))
    flops = dict(zip(objectives, values(grid, "teacher FLOPs"), strict=True))
    assert seconds == {"fkl": 15.0, "rkl": 0, "sft": 0}
    assert flops == {"fkl": 1000 * 2000, "rkl": None, "sft": 0}  # unknown is neither 0 nor on the front
    place = [name.replace("\n", " ") for name in grid.header].index("teacher FLOPs")
    assert grid.rows[objectives.index("rkl")][place] == "–"


LOGGED = {
    "sums/accuracy": 0.5,
    **{f"validation/{name}": 1.0 for name in ("bits_per_byte", "nll", "forward_kl", "reverse_kl")},
    **{f"train/{name}": 2.0 for name in ("loss", "fkl", "sft", "fkl_weight", "grad_norm", "lr", "tokens_per_second")},
    **{f"train/{name}": 0.1 for name in ("generation_share", "truncation_rate", "response_length", "fkl/entropy")},
    "audit/mass": 0.9,
}


def arm(root: Path, objective: str) -> Arm:
    rows = [f"{step},{name.replace('/', ',', 1)},{value}" for name, value in LOGGED.items() for step in (0, 10)]
    write_run(root, objective, metrics="step,split,name,value\n" + "\n".join(rows) + "\n")
    return frame_of(read_jobs(root)).arms[0]


def test_curves_are_of_tasks_losses_divergences_weights_shares_and_truncation(tmp_path: Path) -> None:
    one = arm(tmp_path, "fkl+sft")
    assert shown({"a": series(one)}, terms_of([one])) == [
        *("sums/accuracy", "validation/bits_per_byte", "validation/forward_kl", "validation/reverse_kl", "train/loss"),
        *("train/fkl_weight", "train/fkl", "train/sft", "train/generation_share", "train/truncation_rate"),
        *("train/response_length", "train/grad_norm", "train/lr", "train/fkl/entropy"),
    ]
    [drawn] = curves(frame_of(read_jobs(tmp_path)), Choices())
    titles = [ax.get_title() for ax in drawn.figure.axes if ax.get_visible()]
    assert len(titles) == 12
    caption = " ".join(text.get_text() for text in drawn.figure.texts).replace("\n", " ")
    assert "Not drawn: train/lr, train/fkl/entropy." in caption


def test_of_one_term_the_loss_is_the_value(tmp_path: Path) -> None:
    one = arm(tmp_path, "fkl")
    assert "train/fkl" not in shown({"a": series(one)}, terms_of([one]))
