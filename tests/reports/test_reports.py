"""Reports read what RunFolder and Job really write."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from kd.reports import grid
from kd.reports.comparisons.costs import OF_TRAINING
from kd.reports.comparisons.jobs import ITEM_INTERVALS, ONE_SEED
from kd.reports.comparisons.pivot import SEED_INTERVALS
from kd.reports.frame import IDENTITY, TIDY, read_runs
from kd.reports.render import terminal
from kd.reports.runs import read_jobs, run_folders
from kd.reports.sweep import sweep_grids, sweep_table, write_sweep
from kd.reports.table import run_grid
from kd.runs.folder import RunFolder
from kd.sweeps.jobs import Job

REPOSITORY = Path(__file__).parents[2]


def estimate(value: float | None, n: int = 32) -> dict[str, Any]:
    return {"value": value, "n": n, "low": None if value is None else value - 0.1, "high": None}


def page(
    seed: int = 1,
    after: float = 0.5,
    teacher: float = 0.8,
    spent: dict[str, float] | None = None,
    code: str | None = None,
    family: str | None = None,
    versions: dict[str, int] | None = None,
    **digests: str,
) -> dict[str, Any]:
    bits = {"value": after, "n": 320, "low": after - 0.25, "high": after + 0.25}
    students = {"before": estimate(0.0), "after": {"value": 0.02, "n": 32, "low": 0.0, "high": 0.1}}
    kl = {"before": estimate(2.0), "after": {"value": 0.25, "n": 640, "low": 0.2, "high": 0.3}}
    return {
        "seed": seed,
        "family": family,
        "scores": {
            "sums": {
                "accuracy": {**students, "teacher": estimate(teacher)},
                "bits_per_byte": {"floor": estimate(2.0), "before": estimate(3.0), "after": bits},
            }
        },
        "gap_closed": {"sums": {"accuracy": None, "bits_per_byte": 0.75}},
        "agreement": {"top1": kl, "forward_kl": kl, "reverse_kl": {**kl, "sft": estimate(0.5)}},
        "budget": {
            **{"student_flops": 1e9, "tokens": 123456, "teacher_tokens": 1, "generated_tokens": 0},
            **{"seconds": 61.0, "peak_memory_bytes": 10},
            **(spent or {}),
        },
        "digests": {"initial_weights": f"w{seed}", "data_order": "o", "evaluation_items": "e", **digests},
        "code": code,
        "versions": versions or {},
    }


def add_run(root: Path, number: int, overrides: list[str], **content: Any) -> RunFolder:
    folder = RunFolder.of(root, "toy", f"{number:012x}")
    folder.start("", overrides)
    folder.finish(page(**content))
    return folder


def add_job(sweep: Path, num: int, overrides: list[str], **content: Any) -> RunFolder:
    folder = add_run(sweep.parents[1], num, overrides, **content)
    Job(overrides, sweep, num, "done", os.path.relpath(folder.path, sweep), seconds=1.0).write()
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "sweeps" / "today"


def text(table: RenderableType) -> str:
    console = Console(width=220, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split(" | ")]


# --- reading -------------------------------------------------------------------------------------------------


def test_runs_are_tidy(tmp_path: Path) -> None:
    add_run(tmp_path, 1, [])
    add_run(tmp_path, 2, [], seed=2, after=1.5)
    RunFolder.of(tmp_path, "toy", "b" * 12).fail("too large", "")
    frame = read_runs([tmp_path])
    assert tuple(frame.columns) == TIDY
    # per finished run: accuracy of 3 systems, bits per byte of 3, three agreements of 2, sft's reverse KL
    assert len(frame) == 2 * (3 + 3 + 3 * 2 + 1)
    row = frame.query("seed == 1 and metric == 'bits_per_byte' and system == 'after'").squeeze()
    assert (row["skill"], row["seed"], row["value"], row["n"], row["low"]) == ("sums", 1, 0.5, 320, 0.25)
    assert set(frame.query("skill == ''")["metric"]) == {"top1", "forward_kl", "reverse_kl"}


def test_what_a_path_stands_for(tmp_path: Path, sweep: Path) -> None:
    first = add_job(sweep, 0, ["a=1"])
    second = add_job(sweep, 1, ["a=2"])
    first.set_aside()
    root = tmp_path / "outputs"
    assert run_folders(root) == [second.path]
    assert run_folders(second.path) == [second.path]
    assert run_folders(f"{first.path}.old-1") == [Path(f"{first.path}.old-1")]
    assert [path.name for path in run_folders(sweep)] == [first.path.name, second.path.name]
    assert len(read_runs([root, second.path])) == len(read_runs([second.path]))
    with pytest.raises(FileNotFoundError, match="no run folder"):
        run_folders(tmp_path / "nowhere")


def test_a_run_that_is_not_done_has_no_results(tmp_path: Path) -> None:
    folder = add_run(tmp_path, 1, ["+a=1"])
    (folder.path / "DONE").unlink()
    (job,) = read_jobs(tmp_path)
    assert (job.status, job.results, job.overrides) == ("unfinished", None, {"a": "1"})


# --- the table of a run --------------------------------------------------------------------------------------


def test_the_table_of_a_run(tmp_path: Path) -> None:
    results = add_run(tmp_path, 1, []).results()
    table = run_grid(results)
    assert table.header == [
        "",
        "bits per byte",
        "top-1 agreement",
        "forward KL (nats)",
        "reverse KL (nats)",
        "accuracy",
    ]
    rows = {row[0]: list(row[1:]) for row in table.rows}
    assert list(rows) == [
        *("unigram (floor)", "student before", "sft, equal steps", "student, distilled", "teacher", "gap closed")
    ]
    assert rows["student, distilled"][0] == "0.500 n=320\n[0.250, 0.750]"
    assert rows["student, distilled"][2] == "0.250 n=640\n[0.200, 0.300]"
    assert rows["unigram (floor)"] == ["2.00 n=32", "–", "–", "–", "–"]
    assert rows["sft, equal steps"][3] == "0.500 n=32"
    assert rows["teacher"][4] == "0.800 n=32"
    assert rows["gap closed"] == ["75 %", "–", "–", "–", "–"]
    assert "[0.250, 0.750]" in text(terminal(run_grid(results), 220))  # not taken for markup


def test_a_run_without_a_teacher_and_beside_another_objective(tmp_path: Path, sweep: Path) -> None:
    content = {**page(), "agreement": None}
    content["scores"]["sums"]["bits_per_byte"]["rkl"] = estimate(1.25)
    folder = RunFolder.of(sweep.parents[1], "toy", "0" * 12)
    folder.start("", [])
    table = run_grid(folder.finish(content))
    assert table.header == ["", "bits per byte", "accuracy"]
    assert [row[0] for row in table.rows][-4:] == ["rkl, equal steps", "student, distilled", "teacher", "gap closed"]
    Job([], sweep, 0, "done", os.path.relpath(folder.path, sweep)).write()
    assert "0.500 [0.250, 0.750]" in text(sweep_table(sweep, 220))
    assert set(read_runs([sweep])["metric"]) == {"bits_per_byte", "accuracy"}


@pytest.mark.parametrize(
    ("teacher", "words"), [(0.8, "for every student (the teacher is not)"), (0.03, "for every system")]
)
def test_accuracy_near_zero_is_remarked_on(teacher: float, words: str, tmp_path: Path) -> None:
    (note,) = run_grid(page(teacher=teacher)).notes[1:]
    assert note.startswith(f"sums: accuracy is near zero {words}")
    learned = page()
    learned["scores"]["sums"]["accuracy"]["after"]["value"] = 0.3
    assert run_grid(learned).notes[1:] == []


def test_metrics_near_zero_of_one_skill_share_a_sentence() -> None:
    results = page(teacher=0.03)
    scores = results["scores"]["sums"]
    scores |= {"exact_match": scores["accuracy"], "rouge_l": {"after": estimate(0.4), "teacher": estimate(0.5)}}
    (note,) = run_grid(results).notes[1:]
    assert note.startswith("sums: accuracy and exact_match are near zero for every system, so they do not rank the")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0.0, "0.00"),
        (0.12345, "0.123"),
        (-1.5, "-1.50"),
        (123.4, "123"),
        (12345.6, "12,346"),
        (0.00042, "0.000420"),
    ],
)
def test_numbers(value: float | None, shown: str) -> None:
    assert grid.number(value) == shown


# --- the tables of a sweep -----------------------------------------------------------------------------------


def test_a_sweep_with_one_seed(sweep: Path) -> None:
    add_job(sweep, 0, ["objective=fkl", "steps=9"])
    add_job(sweep, 1, ["objective=rkl", "steps=9"], after=1.5)
    Job(["objective=a|b", "steps=9"], sweep, 2, "failed", None, "it broke", 2.0).write()
    (table,) = sweep_grids(sweep)
    assert ONE_SEED in table.notes
    same = "initial weights identical, data order identical, evaluation items identical."
    assert f"Over the jobs of the same seed and skill: {same}" in table.notes
    assert table.header[:4] == ["job", "objective", "status", "skill"]  # steps tells nothing apart
    assert table.rows[1][:5] == ["1", "rkl", "done", "sums", "0.0200 [0.00, 0.100]"]
    place = table.header.index("bits per byte")
    assert table.rows[1][place : place + 2] == ["1.50 [1.25, 1.75]", "75 %"]
    assert table.rows[2][:3] == ["2", "a|b", "failed"]
    assert "Job 2 failed: it broke." in table.notes
    assert [len(row) for row in table.rows] == [len(table.header)] * 3
    shown = text(sweep_table(sweep, 220))
    assert "123,456" in shown
    assert "w1/o/e" not in shown  # the digests stand there where they differ


def test_a_sweep_with_seeds(sweep: Path) -> None:
    for seed, after in ((1, 1.0), (2, 2.0), (3, 3.0)):
        add_job(sweep, seed, ["objective=fkl", f"seed={seed}"], seed=seed, after=after)
    add_job(sweep, 4, ["objective=rkl", "seed=1"], seed=1, after=7.0, data_order="other")
    jobs, seeds = sweep_grids(sweep)
    assert ITEM_INTERVALS in jobs.notes
    assert ONE_SEED not in jobs.notes
    assert "data order DIFFERENT (job 4)" in " ".join(jobs.notes)
    bits = seeds.header.index("bits per byte")
    assert seeds.header[:2] == ["objective", "seeds"]
    assert [(*row[:2], row[bits]) for row in seeds.rows] == [
        ("fkl", "3", "2.00 [0.578, 6.93]"),  # 2 exp(-+ t / sqrt(3) / 2), t(0.975, 2 degrees) = 4.3027
        ("rkl", "1", "7.00 (one seed)"),
    ]
    assert SEED_INTERVALS in seeds.notes


def test_runs_of_other_versions_are_never_averaged_and_mixed_code_is_marked(sweep: Path) -> None:
    """Of three seeds one was run after `fkl` was mended: its value, 5.0, is in no mean of the others, 0.5 and 0.7."""
    add_job(sweep, 0, ["objective=fkl", "seed=1"], seed=1, after=0.5, code="a" * 16, versions={"kd.x": 2})
    add_job(sweep, 1, ["objective=fkl", "seed=2"], seed=2, after=0.7, code="a" * 16, versions={"kd.x": 2})
    add_job(sweep, 2, ["objective=fkl", "seed=3"], seed=3, after=5.0, code="b" * 16, versions={"kd.x": 3})
    jobs, means = sweep_grids(sweep)
    place = means.header.index("bits per byte")
    found = [(row[means.header.index("seeds")], row[place].split(" ")[0]) for row in means.rows]
    assert sorted(found) == [("1", "5.00"), ("2", "0.600")]
    assert IDENTITY in means.header
    assert [note for note in jobs.notes if note.startswith("MIXED CODE: the runs were made by 2 states")]


def test_runs_of_other_data_are_never_averaged_though_their_overrides_are_the_same(sweep: Path) -> None:
    """Seed 1 ran before the data file was edited, and again afterwards, as 2 and 3 did: their mean is of three."""
    for number, (seed, after, family) in enumerate(((1, 0.5, "a"), (1, 0.8, "b"), (2, 0.9, "b"), (3, 1.0, "b"))):
        add_run(sweep.parents[1], number, ["skill=own", f"seed={seed}"], seed=seed, after=after, family=family * 12)
    _, means = sweep_grids(sweep.parents[1])
    place = means.header.index("bits per byte")
    assert means.header[:2] == [IDENTITY, "seeds"]
    assert sorted((row[1], row[place].split(" ")[0]) for row in means.rows) == [("1", "0.500"), ("3", "0.900")]


def test_a_share_over_seeds_stays_one(sweep: Path) -> None:
    """None right in any seed is no proof that none can be; nor is a share above 1 where seeds differ widely."""
    found = {"fkl": (0.0, 0.0, 0.0), "rkl": (0.2, 0.9, 1.0)}
    for name, values in found.items():
        for seed, value in enumerate(values, 1):
            folder = add_job(sweep, 3 * (name == "rkl") + seed, [f"objective={name}", f"seed={seed}"], seed=seed)
            results = page(seed=seed)
            estimate = {"value": value, "n": 32, "low": None, "high": None}
            results["scores"]["sums"]["accuracy"]["after"] = results["agreement"]["top1"]["after"] = estimate
            folder.finish(results)
    _, seeds = sweep_grids(sweep)
    for name in ("accuracy", "top-1 agreement"):
        place = seeds.header.index(name)
        # t = 4.30265; 0 of 96: t^2/(96 + t^2) = .162; the others: v = .19/3, n = .21/v = 3.3158, a = 1 + t^2/n = 6.5832
        # (.7 + t^2/(2 n))/a -+ t/a sqrt(v + t^2/(4 n^2)) = .53038 -+ .45483; the plain t interval is [-.383, 1.78]
        assert [row[place] for row in seeds.rows] == ["0.00 [0.00, 0.162]", "0.700 [0.0755, 0.985]"]


def test_what_a_method_cost_over_seeds_stands_beside_what_it_reached(sweep: Path) -> None:
    first = {"student_flops": 4e11, "teacher_tokens": 1000, "generated_tokens": 300, "seconds": 30.0}
    second = {"student_flops": 6e11, "teacher_tokens": 2000, "generated_tokens": 500, "seconds": 41.0}
    add_job(sweep, 1, ["method=gkd", "seed=1"], seed=1, spent=first)
    add_job(sweep, 2, ["method=gkd", "seed=2"], seed=2, spent=second)
    _, means = sweep_grids(sweep)
    row = dict(zip(means.header, means.rows[0], strict=True))
    costs = ("student\nFLOPs", "teacher\ntokens", "generated\ntokens", "training\nseconds")
    assert [row[cost] for cost in costs] == ["5.00e+11", "1,500", "400", "35.5"]  # (4 + 6)/2, (1000 + 2000)/2, ...
    assert OF_TRAINING in means.notes
    assert "judge\nFLOPs" not in row


def test_a_judge_has_a_column_where_one_judged(sweep: Path) -> None:
    """Also beside a run from before it was counted."""
    add_job(sweep, 1, ["method=gad", "seed=1"], seed=1, spent={"judge_flops": 8e9})
    add_job(sweep, 2, ["method=gad", "seed=2"], seed=2)
    jobs, seeds = sweep_grids(sweep)
    place = jobs.header.index("judge\nFLOPs")
    assert [row[place] for row in jobs.rows] == ["8.00e+09", "0.00e+00"]
    assert seeds.rows[0][seeds.header.index("judge\nFLOPs")] == "4.00e+09"


def test_files_of_a_sweep(sweep: Path) -> None:
    add_job(sweep, 0, ["objective=fkl"])
    Job(["objective=a|b"], sweep, 1, "failed", None, "it broke", 2.0).write()
    write_sweep(sweep)
    with (sweep / "sweep.csv").open() as file:
        done, failed = csv.DictReader(file)
    assert (done["objective"], done["scores.sums.bits_per_byte.after.value"]) == ("fkl", "0.5")
    assert (done["budget.tokens"], done["digests.data_order"]) == ("123456", "o")
    assert (failed["status"], failed["reason"]) == ("failed", "it broke")
    lines = (sweep / "sweep.md").read_text().splitlines()
    rows = [cells(line) for line in lines if line.startswith("|")]
    assert rows[2][:3] == ["0", "fkl", "done"]
    assert rows[3][1] == "a\\|b"


def test_skills_share_the_row_of_their_job(sweep: Path) -> None:
    folder = add_run(sweep.parents[1], 9, [])
    results = page()
    results["scores"]["words"] = {"accuracy": results["scores"]["sums"]["accuracy"]}
    folder.finish(results)
    Job([], sweep, 0, "done", os.path.relpath(folder.path, sweep)).write()
    (table,) = sweep_grids(sweep)
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row["skill"] == "sums\nwords"
    assert row["bits per byte"] == "0.500 [0.250, 0.750]\n–"


def test_costs_stand_in_every_row(sweep: Path) -> None:
    add_job(sweep, 0, ["method=kd"])
    (table,) = sweep_grids(sweep)
    row = dict(zip(table.header, table.rows[0], strict=True))
    costs = ("student\nFLOPs", "tokens", "teacher\ntokens", "generated\ntokens", "training\nseconds")
    assert [row[cost] for cost in costs] == ["1.00e+09", "123,456", "1", "0", "61.0"]
    assert "judge\nFLOPs" not in row
    assert OF_TRAINING in table.notes


def test_methods_are_named_with_what_they_omit(sweep: Path) -> None:
    for seed in (1, 2):
        folder = add_job(sweep, seed, ["method=spin", f"seed={seed}"], seed=seed)
        folder.finish(page(seed=seed) | {"omits": ["later iterations", "RMSProp"]})
    add_job(sweep, 3, ["method=sft", "seed=1"])
    jobs, _ = sweep_grids(sweep)
    assert jobs.header[1:3] == ["method", "seed"]
    omitted = [note for note in jobs.notes if "omits" in note]  # once for both seeds, and nothing for sft
    assert omitted == ["method=spin omits of its paper: later iterations; RMSProp."]
    write_sweep(sweep)
    assert omitted[0] in (sweep / "sweep.md").read_text()
    with (sweep / "sweep.csv").open() as file:
        assert [row["omits"] for row in csv.DictReader(file)] == ["later iterations; RMSProp"] * 2 + [""]


def test_a_method_is_named_where_all_jobs_are_of_it(sweep: Path) -> None:
    for seed in (1, 2):
        add_job(sweep, seed, ["method=spin", "steps=9", f"seed={seed}"], seed=seed)
    assert [table.header[0:3] for table in sweep_grids(sweep)] == [
        ["job", "method", "seed"],
        ["method", "seeds", "accuracy"],
    ]


def test_what_a_run_omits_stands_under_its_table() -> None:
    assert run_grid(page() | {"omits": ["the warm-up"]}).notes[-1] == "The method omits of its paper: the warm-up."
    assert not any("omits" in note for note in run_grid(page()).notes)  # as in results written before


def test_a_job_without_a_method_is_named_by_its_number(sweep: Path) -> None:
    folder = add_job(sweep, 7, ["experiment=x"])
    folder.finish(page() | {"omits": ["the warm-up"]})
    assert "Job 7 omits of its paper: the warm-up." in sweep_grids(sweep)[0].notes


# --- the program ---------------------------------------------------------------------------------------------


def program(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kd.reports", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)


def test_the_program_prints_and_writes_only_on_request(tmp_path: Path, sweep: Path) -> None:
    folder = add_job(sweep, 0, ["a=1"])
    add_job(sweep, 1, ["a=2"])
    before = sorted(tmp_path.rglob("*"))
    shown = program(folder.path, sweep, sweep.parents[1])
    assert shown.returncode == 0, shown.stderr
    assert folder.path.name in shown.stdout
    assert shown.stdout.count("2 jobs") == 1  # each run once
    assert sorted(tmp_path.rglob("*")) == before
    assert program(sweep, "--out", tmp_path / "report").returncode == 0
    assert "| 0 | 1 | done" in (tmp_path / "report" / "tables.md").read_text()
    assert len((tmp_path / "report" / "runs.csv").read_text().splitlines()) == 1 + 2 * (3 + 3 + 3 * 2 + 1)


def test_a_wrong_path_is_one_sentence(tmp_path: Path) -> None:
    ended = program(tmp_path)
    assert ended.returncode == 1
    assert ended.stderr == f"{tmp_path} holds no run folder; name a run, a sweep or the folder above runs\n"


def test_reports_need_no_training_code() -> None:
    code = "import kd.reports.__main__, sys; sys.exit(str({'torch', 'lightning', 'hydra'} & set(sys.modules) or ''))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.stderr.strip() == ""
