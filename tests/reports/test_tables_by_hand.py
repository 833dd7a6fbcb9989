"""Tables of runs with given scores: the numbers in them are computed by hand above each assertion.

The runs have no folders, so that their items are not known and seeds alone are compared.

Run: python -m pytest tests/reports/test_tables_by_hand.py
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from kd.reports.comparisons.differences import SEEDS_ALONE, SOME_SEEDS, TWO_SEEDS, difference_grid, p_cell
from kd.reports.comparisons.pivot import mean_of, pivot_grid
from kd.reports.frame import Arm, Frame, frame_of, seeds_text
from kd.reports.grid import Cell, Grid
from kd.reports.paired import Side, Table, _joined, mean_difference
from kd.reports.papers.tables import paper_grids
from kd.reports.runs import Job
from tests.reports.folders import FACTS, config

T1 = 12.706204736  # Student's t at 0.975 with one degree of freedom


def job(objective: str, skill: str = "sums", seed: int = 1, n: int = 4, **scores: float) -> Job:
    """A run with these scores, each with an interval of 0.1 to both sides over n items."""
    found = {
        name: {"after": {"value": value, "n": n, "low": value - 0.1, "high": value + 0.1}}
        for name, value in scores.items()
    }
    results = {
        **{"seed": seed, "config_hash": f"{objective}-{skill}-{seed}", "family": objective, "baseline": None},
        **{"scores": {skill: found}, "agreement": None, "gap_closed": {}, "metrics": FACTS, "budget": {}},
        "digests": {"initial_weights": "w", "data_order": "o", "evaluation_items": skill},
    }
    return Job(f"{skill}-{objective}-s{seed}", "done", results=results, config=config(objective, skill, seed))


def frame(**arms: Mapping[str, Sequence[float]]) -> Frame:
    """Arms of one skill by their objective: by metric the values of seeds 1, 2, ...."""
    jobs = []
    for objective, metrics in arms.items():
        for seed, values in enumerate(zip(*metrics.values(), strict=True), start=1):
            scores: dict[str, Any] = dict(zip(metrics, values, strict=True))
            jobs.append(job(objective, seed=seed, **scores))
    return frame_of(jobs)


def rows(grid: Grid | None) -> dict[str, list[Any]]:
    assert grid is not None
    return {" ".join(row[: grid.labels]): list(row[grid.labels :]) for row in grid.rows}


def arm_of(found: Frame, objective: str, skill: str = "sums") -> Arm:
    return next(arm for arm in found.arms if (arm.values["objective"], arm.skill) == (objective, skill))


# --- papers ---

SUMS = {"heading": "Sums", "skill": "sums"}
PAPER: dict[str, Any] = {
    **{"paper": "Sums, Table 1", "source": "https://example.org/sums", "setting": "one"},
    **{"metric": "accuracy", "scale": 100, "columns": {"sums": SUMS, "words": {"heading": "Words", "skill": "words"}}},
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def of_paper(place: Path, found: Frame, *, correction: str = "none", **parts: Any) -> list[Grid]:
    path = place / "experiments" / "sums" / "published.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**PAPER, **parts}))
    return paper_grids(found, "sums", correction=correction)


def test_ours_is_inside_or_outside_of_what_the_paper_states(place: Path) -> None:
    """Ours is 90 [80, 100] in both rows: 80 ± 20 reaches to 100, [60, 70] does not reach it; 80 is in ours, 65 not."""
    listed = [
        {"heading": "KD", "arm": {"objective": "fkl"}, "values": {"sums": 80}, "deviation": {"sums": 20}},
        {"heading": "RKD", "arm": {"objective": "rkl"}, "values": {"sums": 65}, "interval": {"sums": [60, 70]}},
    ]
    (grid,) = of_paper(place, frame(fkl={"accuracy": [0.9]}, rkl={"accuracy": [0.9]}), rows=listed)
    found = rows(grid)
    ours = found["KD Sums"][0]
    assert (ours.value, ours.low, ours.high) == pytest.approx((90, 80, 100))
    assert found["KD Sums"][1:] == ["80 ± 20", "+10.0", "yes", "yes"]
    assert found["RKD Sums"][1:] == ["65 [60, 70]", "+25.0", "no", "no"]
    assert "n = 4 items." in grid.notes
    assert "Not evaluated in ours: Words." in grid.notes


def test_a_claim_on_a_metric_of_which_less_is_better(place: Path) -> None:
    """KD less SFT is -1.0 and -1.1 bits: 1.05 as claimed, t = 1.05 / 0.05 = 21 with one degree of freedom."""
    found = frame(fkl={"bits_per_byte": [1.0, 1.1]}, sft={"bits_per_byte": [2.0, 2.2]})
    parts: dict[str, Any] = {
        **{"metric": "bits_per_byte", "scale": 1, "columns": {"sums": {**SUMS, "higher_is_better": False}}},
        "rows": [
            {"heading": "KD", "arm": {"objective": "fkl"}, "values": {"sums": 1}},
            {"heading": "SFT", "arm": {"objective": "sft"}, "values": {"sums": 3}},
        ],
        "directions": [{"better": "KD", "than": "SFT"}, {"better": "SFT", "than": "KD", "stated": "figure"}],
    }
    _, claims = of_paper(place, found, **parts)
    published, ours, p, verdict = rows(claims)["KD > SFT"]
    assert (published, verdict) == ("+2.00", "agrees")
    assert (ours.value, p.value) == pytest.approx((1.05, 1 - 2 * math.atan(21) / math.pi))
    assert rows(claims)["SFT > KD"][3] == "opposite"
    assert any("2 comparisons" in note for note in claims.notes)
    _, corrected = of_paper(place, found, correction="holm", **parts)
    assert rows(corrected)["KD > SFT"][2].value == pytest.approx(2 * p.value)  # 0.06
    assert rows(corrected)["KD > SFT"][3] == "not decided"


def test_a_claim_on_two_columns_of_which_one_was_not_run_is_not_tested(place: Path) -> None:
    jobs = [job(objective, skill, accuracy=0.5) for objective, skill in (("sft", "sums"), ("sft", "words"))]
    parts: dict[str, Any] = {
        "rows": [
            {"heading": "KD", "arm": {"objective": "fkl"}, "values": {"sums": 2, "words": 2}},
            {"heading": "SFT", "arm": {"objective": "sft"}, "values": {"sums": 1, "words": 1}},
        ],
        "directions": [{"better": "KD", "than": "SFT"}, {"better": "KD", "than": "SFT", "on": "sums"}],
    }
    _, claims = of_paper(place, frame_of([*jobs, job("fkl", accuracy=0.75)]), **parts)
    assert rows(claims)["KD > SFT"] == ["+1.00", "–", "–", "not run"]
    assert rows(claims)["KD > SFT\non Sums"][1].value == pytest.approx(25)
    assert rows(claims)["KD > SFT\non Sums"][3] == "not decided"  # of one seed without items there is no test


# --- differences ---


def test_a_mean_over_columns_of_runs_without_items_is_over_seeds() -> None:
    """sums: 0.2 and 0.3; words: 0.4 and 0.2. Means by seed 0.3 and 0.25, so 0.275 ± t × 0.025, times 100."""
    scores = {
        ("fkl", "sums"): (0.5, 0.6),
        ("sft", "sums"): (0.3, 0.3),
        ("fkl", "words"): (0.9, 0.9),
        ("sft", "words"): (0.5, 0.7),
    }
    jobs = [job(*pair, seed, accuracy=one) for pair, both in scores.items() for seed, one in enumerate(both, start=1)]
    found = frame_of(jobs)
    sides = [[Side(arm_of(found, o, s), s, "accuracy") for o in ("fkl", "sft")] for s in ("sums", "words")]
    one = mean_difference([(a, b, 100.0) for a, b in sides])
    assert one is not None
    assert (one.value, one.low, one.high) == pytest.approx((27.5, 27.5 - 2.5 * T1, 27.5 + 2.5 * T1))
    assert (one.items, one.seeds) == (0, 2)


def test_tables_of_several_skills_are_joined_about_their_own_means() -> None:
    """Means 2 and 3 of 2 and 4 items: weights 6 / (2 × 2) and 6 / (2 × 4) about 2.5."""
    first = Table(np.array([[1.0, 3.0]]), ["a", None], 1)
    second = Table(np.array([[0.0, 0.0, 3.0, 3.0]]), ["a", "a", "b", None], 2)
    found = _joined([first, second], [1.0, 2.0])
    assert found.differences.tolist() == [[1.0, 4.0, 0.25, 0.25, 4.75, 4.75]]
    assert found.groups == ["0 a", None, "1 a", "1 a", "1 b", None]
    assert found.left_out == 3
    assert _joined([second], [2.0]).differences.tolist() == [[0.0, 0.0, 6.0, 6.0]]


def test_the_scores_beside_a_difference_are_over_the_seeds_of_both() -> None:
    """Of seeds 1 and 2: fkl (0.5 + 0.7) / 2, sft 0.4; the third of fkl has none beside it."""
    found = frame(fkl={"accuracy": [0.5, 0.7, 0.9]}, sft={"accuracy": [0.4, 0.4]})
    grid = difference_grid(found, {"objective": "sft"})
    less, _, n, score, base = rows(grid)["fkl"]
    assert (less.value, score.value, base.value) == pytest.approx((0.2, 0.6, 0.4))
    assert n == "–"
    assert grid is not None
    assert {SOME_SEEDS, TWO_SEEDS, SEEDS_ALONE} <= set(grid.notes)
    same = difference_grid(frame(fkl={"accuracy": [0.5, 0.7, 0.9]}, sft={"accuracy": [0.4] * 3}), {"objective": "sft"})
    assert same is not None
    assert not {SOME_SEEDS, TWO_SEEDS} & set(same.notes)


def test_less_is_bold_only_where_it_is_better() -> None:
    """Of bits -1.0 and -1.1 (p = 0.03, as above) are better; of accuracy as much less is worse."""
    bits = frame(fkl={"bits_per_byte": [1.0, 1.1]}, sft={"bits_per_byte": [2.0, 2.2]})
    grid = difference_grid(bits, {"objective": "sft"})
    assert rows(grid)["fkl"][0].best
    assert grid is not None
    assert "Lower is better." in grid.notes
    share = frame(fkl={"accuracy": [0.1, 0.11]}, sft={"accuracy": [0.2, 0.22]})
    worse = difference_grid(share, {"objective": "sft"})
    assert rows(worse)["fkl"][1].value < 0.05
    assert not rows(worse)["fkl"][0].best


def test_p_values_are_as_exact_as_they_are_read() -> None:
    found = {0.0005: "<0.001", 0.001: "0.001", 0.0314: "0.031", 0.1: "0.10", 0.956: "0.96", math.nan: "–"}
    assert [str(p_cell(p)) for p in found] == list(found.values())


# --- means and pivots ---


def test_a_mean_over_seeds_has_the_most_items_and_that_of_one_seed_none() -> None:
    jobs = [job("fkl", seed=1, n=4, accuracy=0.5), job("fkl", seed=2, n=6, accuracy=0.7), job("rkl", accuracy=0.25)]
    found = frame_of([*jobs, *(job(one, "words", accuracy=0.5) for one in ("fkl", "rkl"))])
    mean = mean_of(arm_of(found, "fkl"), "sums", "accuracy")
    assert mean is not None
    assert (mean["value"], mean["n"]) == (pytest.approx(0.6), 6)
    assert mean_of(arm_of(found, "fkl"), "sums", "accuracy", "teacher") is None
    grid = pivot_grid(found, "objective", "skill")
    assert rows(grid)["rkl"][0] == "0.250 (one seed)"
    assert grid is not None
    assert "n = 4 to 6 items" in grid.notes[0]


def test_the_best_of_a_column_is_the_lowest_where_less_is_better() -> None:
    """rkl has 1.0 bits less than fkl at seed 1 and 1.1 at seed 2: p = 0.03, and 0.06 corrected for two columns."""
    values = {"fkl": [2.0, 2.2], "rkl": [1.0, 1.1]}
    jobs = [job(o, s, k + 1, bits_per_byte=v[k]) for o, v in values.items() for s in ("a", "b") for k in (0, 1)]
    grid = pivot_grid(frame_of(jobs), "objective", "skill", correction="none")
    assert [cell.best for cell in rows(grid)["rkl"]] == [True, True]
    assert [cell.best for cell in rows(grid)["fkl"]] == [False, False]
    assert grid is not None
    assert grid.notes[0].startswith("Lower is better. n = 4 items.")
    assert any("for 2 comparisons" in note for note in grid.notes)
    corrected = pivot_grid(frame_of(jobs), "objective", "skill", correction="holm")
    assert not any(cell.best for cell in rows(corrected)["rkl"])


# --- frames ---


def test_seeds_in_words() -> None:
    def arm(*seeds: int) -> Arm:
        return Arm({}, {seed: job("fkl", seed=seed, accuracy=0.5) for seed in seeds})

    assert seeds_text([arm(1), arm(1)]) == "Seed 1"
    assert seeds_text([arm(1, 2), arm(1, 2)]) == "Seeds 1, 2"
    assert seeds_text([arm(1, 2), arm(3, 4)]) == "2 seeds each"
    assert seeds_text([arm(1, 2), arm(1, 2, 3)]) == "2 to 3 seeds each"


def test_settings_are_ordered_as_numbers_before_texts() -> None:
    def steps(value: Any) -> Job:
        one = job("fkl", accuracy=0.5)
        page = {**(one.results or {}), "config_hash": str(value), "family": str(value)}
        return Job(str(value), "done", results=page, config={**one.config, "optim": {"steps": value, "lr": 0.001}})

    found = frame_of([steps(value) for value in (100, "auto", 9, 20)])
    assert [arm.values["optim.steps"] for arm in found.arms] == ["9", "20", "100", "auto"]


def test_the_tidy_frame_has_a_row_for_each_estimate() -> None:
    found = frame(fkl={"accuracy": [0.5, 0.7]}, sft={"accuracy": [0.4, 0.4]}).tidy()
    kept = found[(found["objective"] == "fkl") & (found["metric"] == "accuracy")]
    assert [tuple(row) for row in kept[["seed", "skill", "system", "value", "n", "low", "high"]].to_numpy()] == [
        (1, "sums", "after", 0.5, 4, 0.4, 0.6),
        (2, "sums", "after", 0.7, 4, pytest.approx(0.6), pytest.approx(0.8)),
    ]


def test_cells_without_a_number_are_dashes() -> None:
    assert (str(Cell.of(None)), str(Cell.of({"value": None}))) == ("–", "–")
