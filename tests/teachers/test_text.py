"""A teacher that gives text alone: refused where more is required, and whole where text is."""

from typing import Any

import pytest

from kd.augmentation import Resources
from kd.augmentation.labeling import Labeling
from kd.composition.check import check
from kd.generators.account import metered
from kd.generators.settings import Decoding
from kd.generators.torch import Torch
from kd.models.language_model import LanguageModel
from kd.teachers.interface import Answers, Teacher
from kd.teachers.white_box import WhiteBox
from tests import runs
from tests.tiny import records, tiny

GREEDY = {"max_new_tokens": 6, "temperature": 0.0}


class TextAlone(Teacher):
    """The texts of a model, and nothing else of it."""

    provides = frozenset({"text"})

    def __init__(self, model: LanguageModel):
        self.behind = WhiteBox(model)

    def identity(self) -> str:
        return self.behind.identity()

    def generate(self, records: Any, **settings: Any) -> list[Answers]:
        return self.behind.generate(records, **settings)


def config(*words: str, target: str = "tests.teachers.test_text.TextAlone") -> Any:
    return runs.config(*words, f"teacher._target_={target}")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["objective=fkl"], "fkl needs teacher_logits, but teacher TextAlone provides text"),
        (
            ["objective=sft", "augmentation=superfiltering"],
            "stage Superfiltering needs native_teacher_logprobs, but teacher TextAlone provides text",
        ),
        (["objective=minilm"], "needs teacher_qkv, but teacher TextAlone provides text"),
        (["objective=sft", "rollout=teacher_mixed"], "needs teacher_logits, but teacher TextAlone provides text"),
        (
            ["objective=grpo", "rollout=on_policy", "rollout.samples=2", "reward=teacher_score"],
            "needs native_teacher_logprobs, but teacher TextAlone provides text",
        ),
        (
            ["objective=sft", "rollout=teacher", "rollout.max_new_tokens=4", "generator=transformers"],
            "generator Transformers generates with a teacher's weights, but teacher TextAlone gives text alone",
        ),
    ],
)
def test_what_needs_more_than_text_is_refused(words, told):
    with pytest.raises(ValueError, match="TextAlone") as error:
        check(config(*words))
    assert told in str(error.value)
    assert "\n" not in str(error.value).strip()


def test_labels_are_those_of_the_model_behind_it(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_CACHE", str(tmp_path))
    model, given, found, cost = tiny(1), records(4), [], []
    for teacher in (WhiteBox(model), TextAlone(model)):
        stage = Labeling(**GREEDY)
        with metered() as meter:
            labelled = list(stage(given, Resources(seed=0, teacher=teacher, teacher_id=type(teacher).__name__)))
        found.append([[response.text for response in record.responses] for record in labelled])
        cost.append(meter.spent.teacher_tokens)
    assert found[0] == found[1]
    assert cost[0] == cost[1] > 0


def test_its_cost_is_counted_once_whether_or_not_an_engine_counts():
    model, decoding = tiny(1), Decoding(6, temperature=0.0, batch_size=4)
    for teacher in (WhiteBox(model), TextAlone(model)):
        with metered() as meter:
            answers = teacher.respond(records(3), decoding=decoding, engine=Torch())
        assert meter.spent.teacher_tokens == sum(answer.tokens for answer in answers) > 0


@pytest.mark.parametrize(
    "words", [["augmentation=labeling", "augmentation.stages.labeling.max_new_tokens=6"], ["rollout=teacher"]]
)
def test_a_run_learns_from_its_texts(words, tmp_path, monkeypatch):
    """As much as the same run with the model's ids: the teacher reads the same tokens, and the text is the same."""
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))
    words = [*words, *(["rollout.max_new_tokens=6"] if "rollout=teacher" in words else [])]
    budgets = []
    for i, target in enumerate(("tests.teachers.test_text.TextAlone", "kd.teachers.white_box.WhiteBox")):
        cfg = config(*runs.EXACT, "objective=sft", "optim.steps=2", *words, target=target)
        check(cfg)
        parts = runs.train(cfg, tmp_path / str(i))
        budgets.append((parts.module.budget.teacher_tokens, parts.module.budget.responses))
    assert budgets[0] == budgets[1]
    assert budgets[0][0] > 0
