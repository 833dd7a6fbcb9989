"""What no record can be measured by is refused in one sentence, before a model is loaded.

Run: python -m pytest tests/evaluation/test_measurable.py
"""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from kd.evaluation.evaluate import Evaluation
from kd.evaluation.measurable import check_measurable
from kd.experiment.monitor import monitored
from kd.experiment.plan import check_evaluation, valid
from kd.experiment.scores import Evaluated
from kd.intervals import Score
from kd.skills.dataset import Dataset
from tests.runs import config
from tests.tiny import tiny


@pytest.fixture(autouse=True)
def allowed(monkeypatch):
    monkeypatch.setenv("KD_ALLOW", "tests")


def dataset(tmp_path: Path, *metrics: str, **columns) -> dict:
    rows = [{"prompt": f"Say {i}.", "response": str(i), **columns} for i in range(6)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = {"validation": 2, "test": 2}
    return {"_target_": "kd.skills.dataset.Dataset", "path": str(path), "metrics": list(metrics), **counts}


@pytest.mark.parametrize(
    ("metrics", "words", "sentence"),
    [
        (["exact_match", "pass_at_10"], [], r"metric pass_at_10: pass@10 requires 10 answers.*evaluation\.samples=10"),
        (["exact_match", "self_bleu"], [], r"metric self_bleu: .*evaluation\.samples=4"),
        (["exact_match", "choice_accuracy"], [], r"metric choice_accuracy: record rows/.* has no choices"),
        (["exact_match", "ndcg"], [], r"metric ndcg: record rows/.* has no choices"),
        (["exact_match", "tests_passed"], [], r"metric tests_passed: record rows/.* has no signature in its `meta`"),
        (["exact_match"], ["evaluation.skills=[spell_backwards]"], r"conf/skill has no spell_backwards\.yaml; did you"),
        pytest.param(
            ["exact_match"],
            ["evaluation.lm_eval.tasks=[kd_spell_backwards]"],
            r"lm-eval has no task kd_spell_backwards; did you mean kd_spell_backward\?",
            marks=pytest.mark.long,  # the names of all registered tasks are read
        ),
        (["exact_match"], ["evaluation.variants=[typo]"], r"conf/variant has no typo\.yaml; did you mean typos\?"),
        (
            ["exact_match"],
            ["evaluation.variants=[number_changes]"],
            r"variants=number_changes changes no evaluated item",
        ),
    ],
)
def test_what_cannot_be_measured(tmp_path, metrics, words, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_evaluation(config(*words, skill=dataset(tmp_path, *metrics)))


def made(tmp_path: Path, first: int, *, name: str = "own", test: int = 2) -> Dataset:
    """A skill of 6 records that count from a number."""
    path = tmp_path / f"{first}.jsonl"
    rows = ({"prompt": f"Say {first + i}.", "response": str(first + i)} for i in range(6))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Dataset({"train": str(path), "validation": str(path), "test": str(path)}, name=name, test=test)


def measurable(*skills: Dataset, **lm_eval) -> None:
    evaluation = Evaluation(items=2, answers=2, max_new_tokens=4, batch_size=2, lm_eval=lm_eval)
    check_measurable(evaluation, skills, curve=0, teacher=False)


def test_two_skills_of_one_name(tmp_path):
    own, same, other = made(tmp_path, 0), made(tmp_path, 0, test=4), made(tmp_path, 9)
    measurable(own, same)  # the same records, of which one reads more
    measurable(own, made(tmp_path, 9, name="another"))
    for pair in ((own, other), (made(tmp_path, 5, name="first"), own, other)):
        with pytest.raises(ValueError, match=r"evaluation\.skills has another skill by the name own, with other test"):
            measurable(*pair)


def test_a_task_by_the_name_of_a_skill(tmp_path):
    pytest.importorskip("lm_eval")
    measurable(made(tmp_path, 0), tasks=["kd_spell_backward"])
    with pytest.raises(ValueError, match=r"lm_eval\.tasks has kd_spell_backward, which is also the name of a skill"):
        measurable(made(tmp_path, 0, name="kd_spell_backward"), tasks=["kd_spell_backward"])


def test_a_task_of_a_group_by_the_name_of_a_skill_replaces_no_scores():
    """The tasks of a tag such as super-glue-lm-eval-v1 are known once lm-eval has read them: boolq is one."""
    found = {"boolq": {"lm_eval-acc": Score(0.5, 2, 0.1, 0.9)}}
    tasks = SimpleNamespace(tasks=("super-glue-lm-eval-v1",), measure=lambda model, **_: found)
    evaluation = SimpleNamespace(lm_eval=tasks, decoding=SimpleNamespace(batch_size=2))
    data = SimpleNamespace(data=SimpleNamespace(max_length=64))
    run = SimpleNamespace(evaluation=evaluation, cfg=data, outside={}, sessions={"own": None})
    Evaluated._measure_outside(run, "before", tiny(0), "a")
    assert run.outside["boolq"]["lm_eval-acc"]["before"]["value"] == 0.5
    run.sessions = {"boolq": None}
    with pytest.raises(ValueError, match=r"lm_eval\.tasks has boolq, which is also the name of a skill"):
        Evaluated._measure_outside(run, "before", tiny(0), "a")


def test_enough_samples_and_what_is_not_measured(tmp_path):
    several = dataset(tmp_path, "exact_match", "pass_at_10", "self_bleu")
    check_evaluation(config("evaluation.samples=10", "evaluation.temperature=1.0", skill=several))
    check_evaluation(config("evaluation=none", skill=several))
    choices = dataset(tmp_path, "exact_match", "choice_accuracy")
    check_evaluation(config("evaluation.items=0", skill=choices))  # answers alone are measured


def test_metrics_of_the_learning_curve(tmp_path):
    skill = dataset(tmp_path, "exact_match", "pass_at_10")
    check_evaluation(config("evaluation=none", "checkpoint.answers=2", skill=skill))  # validations leave it out
    broken = {**dataset(tmp_path, "exact_match", "tests_passed")}
    with pytest.raises(ValueError, match="metric tests_passed"):
        check_evaluation(config("evaluation=none", "checkpoint.answers=2", skill=broken))


def test_a_metric_that_validations_do_not_log_is_not_monitored(tmp_path):
    skill = dataset(tmp_path, "exact_match", "pass_at_10")
    words = ("checkpoint.answers=2", "evaluation=none", "checkpoint.monitor=rows/{}")
    assert monitored(config(*(word.format("exact_match") for word in words), skill=skill)).name == "exact_match"
    with pytest.raises(ValueError, match=r"monitor=rows/pass_at_10 .* a validation generates one; .*rows/exact_match"):
        monitored(config(*(word.format("pass_at_10") for word in words), skill=skill))


def test_a_run_is_refused_before_weights_are_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"evaluation\.samples=10"):
        valid(config("compare=null", skill=dataset(tmp_path, "exact_match", "pass_at_10")))
