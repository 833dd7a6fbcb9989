"""Tasks of lm-evaluation-harness on a model in memory agree with our own scores of the same records."""

import json
from pathlib import Path

import pytest

from kd.data.chat_template import encode_prompt
from kd.evaluation.evaluate import Evaluation
from kd.evaluation.lm_eval import LmEval, _manager
from kd.skills.answer_metrics import answer_metrics
from tests.evaluation.conftest import TenIntegers, greedy, record, silenced

pytest.importorskip("lm_eval")


def test_the_name_of_a_filter_is_no_direction():
    for name, higher in (("exact_match-get_letter", True), ("ter", False), ("word_perplexity", False)):
        assert LmEval().metric(f"lm_eval-{name}").higher_is_better == higher


TASK = """
task: ten_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
ANSWERS = """
task: ten_answers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: [], do_sample: false, max_gen_toks: 4}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
ROWS = [
    {"question": f"Which of them is {i * 7}?", "choices": ["a", f"b{i}", "see above", "no 3"], "answer": i % 4}
    for i in range(24)
]


class Choices(TenIntegers):
    """Questions with four choices."""

    name, group_key = "choices", "none"

    def __init__(self):
        self.metrics = answer_metrics(["choice_accuracy", "choice_accuracy_length"])
        self.metric = "choice_accuracy"

    def load(self, split):
        meta = [{"choices": row["choices"], "answer_index": row["answer"]} for row in ROWS]
        return [record(str(i), row["question"], "x", **meta[i]) for i, row in enumerate(ROWS)]


class Answered(TenIntegers):
    """The ten integers without a system message, three of them right."""

    def __init__(self, model):
        super().__init__(model, 4, (2, 3, 7))

    def _record(self, number):
        prompt = ({"role": "user", "content": f"What is the number {number}?"},)
        ids = greedy(self.model, encode_prompt(prompt, self.model.tokenizer), self.limit)
        text = self.model.tokenizer.decode(ids, skip_special_tokens=True)
        return record(f"ten/{number}", prompt[0]["content"], "x", expected=text if number in self.right else text + "?")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_ALLOW", "lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "ten.yaml").write_text(TASK.format(data=data))
    return str(tmp_path)


def test_it_agrees_with_our_own_score_of_the_same_task(student, encoder, folder):
    theirs = LmEval(["ten_choices"], include=folder).measure(student, identity="student", batch_size=8, max_length=200)[
        "ten_choices"
    ]
    skill = Choices()
    settings = {"items": None, "answers": 0, "max_new_tokens": 1, "batch_size": 8}
    session = Evaluation(**settings).session(skill=skill, train=(), test=skill.load("test"), encoder=encoder)
    ours = session.measure(student, identity="student").scores
    assert 0 < ours["choice_accuracy"].value < 1
    assert theirs["lm_eval-acc"].value == pytest.approx(ours["choice_accuracy"].value)
    assert theirs["lm_eval-acc_norm"].value == pytest.approx(ours["choice_accuracy_length"].value)
    assert theirs["lm_eval-acc"].n == 24
    assert theirs["lm_eval-acc"].low < theirs["lm_eval-acc"].value < theirs["lm_eval-acc"].high


def test_it_agrees_with_our_own_score_of_generated_answers(student, encoder, folder, tmp_path):
    skill = Answered(student)
    rows = [{"question": one.prompt[-1]["content"], "answer": one.meta["expected"]} for one in skill.load("test")]
    data = tmp_path / "answers.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "answers.yaml").write_text(ANSWERS.format(data=data))
    theirs = LmEval(["ten_answers"], include=folder).measure(student, identity="student", batch_size=4, max_length=200)[
        "ten_answers"
    ]
    settings = {"items": 0, "answers": None, "max_new_tokens": 4, "batch_size": 4}
    session = Evaluation(**settings).session(skill=skill, train=(), test=skill.load("test"), encoder=encoder)
    ours = session.measure(student, identity="student").scores["accuracy"]
    assert ours.value == 0.3
    assert theirs["lm_eval-exact_match"].value == pytest.approx(0.3)
    assert theirs["lm_eval-exact_match"].n == ours.n == 10


def test_a_folder_of_tasks_is_executed_only_where_it_is_allowed(tmp_path):
    with pytest.raises(ValueError, match=r"run\.allow=\[lm_eval\]"):
        LmEval(["mine"], include=str(tmp_path))


def test_an_embedded_task(student):
    found = LmEval(["kd_spell_backward"], limit=2).measure(student, identity="student", batch_size=2, max_length=200)
    assert found["kd_spell_backward"]["lm_eval-exact_match"].value == 0.0  # of a network without training
    assert found["kd_spell_backward"]["lm_eval-exact_match"].n == 2
    assert found["kd_spell_backward"]["lm_eval-exact_match"].high == pytest.approx(0.658, abs=1e-3)  # Wilson: 0 of 2


def test_scores_are_cached_by_what_they_depend_on(student, folder):
    """The same tasks, documents and settings are not measured again; another document or yaml is."""
    settings = {"identity": "student", "batch_size": 8, "max_length": 200}
    found = LmEval(["ten_choices"], include=folder).measure(student, **settings)
    silent = silenced(student)
    assert LmEval(["ten_choices"], include=folder).measure(silent, **settings) == found
    data, yaml = Path(folder) / "rows.jsonl", Path(folder) / "ten.yaml"
    for change in (
        lambda: LmEval(["ten_choices"], include=folder, limit=3).measure(silent, **settings),
        lambda: LmEval(["ten_choices"], include=folder).measure(silent, **{**settings, "identity": "another"}),
        lambda: (_rewrite(yaml, 'target_delimiter: ""', 'target_delimiter: " "'), _again(folder, silent, settings)),
        lambda: (_rewrite(data, "Which of them is 7?", "Which of them is 8?"), _again(folder, silent, settings)),
    ):
        with pytest.raises(AssertionError, match="forward was called"):
            change()


def _again(folder, model, settings):
    _manager.cache_clear()  # as another process reads the files
    return LmEval(["ten_choices"], include=folder).measure(model, **settings)


def _rewrite(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
