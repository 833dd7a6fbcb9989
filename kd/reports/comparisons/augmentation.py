"""What augmentation made of the training records, and what it cost."""

from kd.reports.comparisons.costs import cost_cell, mean_cost
from kd.reports.comparisons.pivot import mean_of
from kd.reports.frame import Arm, Frame, seeds_text
from kd.reports.grid import Cell, Grid

COUNTS = {"given": "training\nrecords", "left_out": "left out", "truncated": "truncated"}
SPENT = {"teacher_tokens": "teacher\ntokens", "generated_tokens": "generated\ntokens"}
CHARGED = (
    "Tokens are those of elicitation and training together: text that was elicited once is charged to every run that "
    "learns on it. Counts are means over seeds."
)


def stages_of(arm: Arm) -> list[str]:
    """The stages of an arm's augmentation, as its composed config has them."""
    job = next(iter(arm.runs.values()))
    return list((job.config.get("augmentation") or {}).get("stages") or ())


def augmentation_grid(frame: Frame) -> Grid | None:
    """Rows: arms. Columns: stages, the records after them, tokens, and the score; None where no arm has a stage."""
    if not any(map(stages_of, frame.arms)):
        return None
    rows = []
    for arm in frame.arms:
        name = arm.headline(arm.skill)
        score = Cell("–") if name is None else Cell.of(mean_of(arm, arm.skill, name))
        counts = [_count(arm, key) for key in COUNTS]
        spent = [cost_cell(key, mean_cost(arm, key)) for key in SPENT]
        stages = ", ".join(stages_of(arm)) or "none"
        rows.append([*(arm.values[key] for key in frame.columns), stages, *counts, *spent, score])
    header = [*frame.columns, "stages", *COUNTS.values(), *SPENT.values(), "score"]
    return Grid("Augmentation", header, rows, [CHARGED, f"{seeds_text(frame.arms)}."], len(frame.columns) + 1)


def _count(arm: Arm, key: str) -> Cell:
    found = [results["records"]["train"][key] for results in arm.results() if results.get("records")]
    return Cell.number(None) if not found else cost_cell("tokens", sum(found) / len(found))
