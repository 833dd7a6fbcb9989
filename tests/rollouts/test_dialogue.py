"""Dialogues with an environment: the student learns its own turns, and nothing else.

Run: python -m pytest tests/rollouts/test_dialogue.py
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch

from kd.composition.check import check
from kd.data.sequences import Encoder
from kd.environments.calculator import Calculator
from kd.environments.interface import END, Environment, Observation
from kd.generators import Generator
from kd.generators.torch import Torch
from kd.models.tokenizers import byte_tokenizer
from kd.rollouts import Rollout
from kd.rollouts.dialogue import Dialogue
from kd.types import Message, Models, Progress, Record, Written
from tests import runs
from tests.tiny import record, tiny

NOW = Progress(0, 10)
CALCULATOR = partial(Calculator, template="{question} Tool: <calculate>")
ASKED = record(0, "What is 12 * 7?")
OPENED = "<|user|>What is 12 * 7? Tool: <calculate><|end|><|assistant|>"
CALL, VALUE = "So: <calculate>12 * 7</calculate>", "<|user|>84<|end|><|assistant|>"
CUT = "…"  # a turn that ends with it was truncated there


class Scripted(Generator):
    """An engine whose model generates given turns, one after another, whatever it reads.

    The log-probabilities are minus the number of the id, over all turns, and half of that.
    """

    def __init__(self, *turns: str):
        self.turns, self.read_prompts, self.count = deque(turns), list[list[int]](), 0

    def generate(self, model, prompts, *, decoding, source, version, progress) -> list[list[Written]]:
        assert decoding.samples == 1
        self.read_prompts += map(list, prompts)
        return [[self._turn(model)] for _ in prompts]

    def _turn(self, model) -> Written:
        text = self.turns.popleft()
        ids = coded(model, text.removesuffix(CUT) + ("" if text.endswith(CUT) else "<|end|>"))
        numbers = -torch.arange(self.count + 1.0, self.count + len(ids) + 1)
        self.count += len(ids)
        return Written(tuple(ids), "student", numbers, numbers / 2, truncated=text.endswith(CUT))


class Ending(Torch):
    """Our own engine; a turn that is truncated ends with an end token in the place of its last id."""

    def generate(self, model, prompts, **settings) -> list[list[Written]]:
        end = model.tokenizer.eos_token_id
        found = super().generate(model, prompts, **settings)
        return [[replace(one, ids=(*one.ids[:-1], end), truncated=False) for one in group] for group in found]


class Echo(Environment):
    """Repeats each turn; the dialogue ends with "stop"."""

    def reset(self, record: Record) -> tuple[Message, ...]:
        return record.prompt

    def step(self, text: str) -> Observation:
        return END if text == "stop" else Observation(text)


def coded(model, text: str) -> list[int]:
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def rolled(
    turns: Sequence[str], given: Sequence[Record] = (ASKED,), *, environment=CALCULATOR, max_length=250, **settings
):
    """The rollout after one call, its engine, and its batches."""
    student, engine = tiny(), Scripted(*turns)
    rollout = Dialogue(environment=environment, generator=engine, **{"max_new_tokens": 60, **settings})
    encoder = Encoder(student.tokenizer, None, max_length=max_length, max_tokens=10_000)
    batches = rollout(encoder.batches(list(given)), Models(student), NOW, encoder)
    return rollout, engine, batches


def by_hand(*pieces: tuple[str, bool]) -> tuple[list[int], list[bool]]:
    """Ids, and whether each is learnt, of pieces of text."""
    ids, learnt = list[int](), list[bool]()
    for text, own in pieces:
        more = coded(tiny(), text)
        ids, learnt = [*ids, *more], [*learnt, *[own] * len(more)]
    return ids, learnt


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_the_students_turns_are_learnt_and_the_tools_are_not():
    rollout, engine, [batch] = rolled([CALL, "It is 84."])
    assert isinstance(rollout, Rollout)
    ids, learnt = by_hand((OPENED, False), (f"{CALL}<|end|>", True), (VALUE, False), ("It is 84.<|end|>", True))
    assert batch.student.tokens[0].tolist() == ids[:-1]
    assert batch.student.labels[0].tolist() == ids[1:]
    assert batch.student.mask[0].tolist() == learnt[1:]
    assert batch.teacher is batch.student  # which the teacher reads at once
    assert engine.read_prompts == [by_hand((OPENED, False))[0], by_hand((OPENED + CALL + "<|end|>" + VALUE, False))[0]]
    numbers = torch.zeros(len(ids) - 1).masked_scatter(torch.tensor(learnt[1:]), -torch.arange(1.0, sum(learnt) + 1))
    torch.testing.assert_close(batch.behaviour_logprobs[0], numbers)
    torch.testing.assert_close(batch.old_logprobs[0], numbers / 2)
    assert batch.records[0].responses[0].text == "It is 84."  # which a reward scores
    assert all(getattr(batch, name) is not None for name in rollout.provides)


def test_calls_are_counted_by_what_became_of_them():
    turns = ["<calculate>1/0</calculate>", "<calculate>1", CALL, "It is 84."]
    rollout, _, [batch] = rolled(turns, max_length=500)
    report = rollout.take_report()
    assert report["turns"] == (4.0, 1.0)
    assert report["dialogues_finished"] == (1.0, 1.0)
    assert report["calls_failed"] == report["calls_malformed"] == (1.0, 3.0)
    assert report["truncation_rate"] == (0.0, 4.0)
    assert int(batch.student.mask.sum()) == report["response_length"][0]
    assert rollout.take_report()["turns"] == (0.0, 0.0)


def test_it_ends_after_the_last_turn_whether_or_not_that_is_an_answer():
    rollout, engine, [batch] = rolled(["a", "b", "c"], environment=Echo, max_turns=2)
    assert len(engine.read_prompts) == 2
    assert batch.student.mask[0].tolist()[-2:] == [True, True]  # "b" and its end token, and no observation after it
    assert rollout.take_report()["dialogues_finished"] == (0.0, 1.0)


def test_a_truncated_turn_ends_its_dialogue():
    rollout, engine, [batch] = rolled([f"a{CUT}", "b"], environment=Echo)
    assert len(engine.read_prompts) == 1
    assert batch.student.labels[0][batch.student.mask[0]].tolist() == coded(tiny(), "a")
    report = rollout.take_report()
    assert report["truncation_rate"] == (1.0, 1.0)
    assert report["dialogues_finished"] == report["out_of_room"] == (0.0, 1.0)


@pytest.mark.parametrize(("room", "learnt"), [(1, "ab"), (0, "a")])
def test_an_observation_after_which_nothing_fits_ends_it(room, learnt):
    """With room for one id the turn that follows is truncated to it."""
    plain = "<|user|>What is 12 * 7?<|end|><|assistant|>"
    length = len(coded(tiny(), f"{plain}a<|end|><|user|>a<|end|><|assistant|>")) + room
    rollout, _, [batch] = rolled(["a", "b"], environment=Echo, max_length=length)
    own = "".join(f"{letter}<|end|>" for letter in learnt)
    expected = coded(tiny(), own.removesuffix("<|end|>") if room else own)
    assert batch.student.labels[0][batch.student.mask[0]].tolist() == expected
    assert rollout.take_report()["out_of_room"] == (1.0 - room, 1.0)
    assert int(batch.student.lengths[0]) + 1 <= length


def test_samples_are_dialogues_of_their_own():
    rollout, _, [batch] = rolled(["a", "stop", "b", "stop"], environment=Echo, samples=2)
    assert batch.group_size == 2
    texts = ["a<|end|>b<|end|>stop<|end|>", "stop<|end|>"]  # the turns come round by round
    assert [batch.student.labels[i][batch.student.mask[i]].tolist() for i in (0, 1)] == [
        coded(tiny(), t) for t in texts
    ]
    assert [response.text for response in batch.records[0].responses] == ["stop", "stop"]
    assert rollout.take_report()["turns"] == (4.0, 2.0)


def test_a_record_whose_opening_leaves_no_room_is_left_out():
    given = [ASKED, record(1, "What are twelve times seven apples?")]
    length = len(coded(tiny(), "<|user|>What are twelve times seven apples?<|end|><|assistant|>"))
    rollout, _, [batch] = rolled(["stop"], given, environment=Long, max_length=length + 30)
    assert [kept.id for kept in batch.records] == ["0"]
    assert rollout.take_report()["left_out"] == (1.0, 2.0)
    with pytest.raises(
        ValueError, match=r"no prompt of this window leaves room for a turn.*needs 5 tokens beyond data"
    ):
        rolled(["stop"], given[1:], environment=Long, max_length=length + 30)


class Long(Echo):
    """Opens with 34 more letters."""

    def reset(self, record: Record) -> tuple[Message, ...]:
        [message] = record.prompt
        return ({**message, "content": message["content"] + "!" * 34},)


def test_a_rank_without_records_takes_part():
    student, engine = tiny(), Scripted()
    rollout = Dialogue(environment=Echo, generator=engine, max_new_tokens=3)
    encoder = Encoder(student.tokenizer, None, max_length=100, max_tokens=1000)
    assert rollout([], Models(student), NOW, encoder) == []


def test_a_teacher_with_other_tokens_is_refused():
    words = byte_tokenizer()
    words.chat_template = "Now. " + words.chat_template
    encoder = Encoder(tiny().tokenizer, words, max_length=200, max_tokens=1000)
    rollout = Dialogue(environment=Echo, max_new_tokens=3)
    with pytest.raises(ValueError, match="rollout Dialogue has the teacher read the student's ids"):
        rollout(encoder.batches([ASKED]), Models(tiny()), NOW, encoder)
    with pytest.raises(ValueError, match="rollout Dialogue has student and teacher generate or read the same ids"):
        check(runs.config("rollout=tool_use", "alignment=spans"))


# ---- runs ------------------------------------------------------------------------------------------------------------

OBJECTIVES = ("objective=fkl", "objective=iw_opd", "objective=[rkl_student_topk,grpo]")


@pytest.mark.parametrize("objective", ["objective=opd", *(pytest.param(o, marks=pytest.mark.long) for o in OBJECTIVES)])
def test_a_run_learns_from_dialogues(tmp_path, objective):
    """Each turn has four tokens at most and is wrong, so that each dialogue has three turns."""
    rewarded = ["reward=teacher_score", "rollout.samples=2"] if "grpo" in objective else []
    quick = ["rollout=retries", "rollout.max_new_tokens=4", "optim.steps=2", "log_every=1", "checkpoint.validate=2"]
    cfg = runs.config(*runs.EXACT, *quick, *rewarded, objective)
    cfg.rollout.generator = {"_target_": "tests.rollouts.test_dialogue.Ending"}
    parts = runs.train(cfg, tmp_path)
    told, budget = runs.metrics(tmp_path), parts.module.budget
    dialogues = 2 * 5 * (2 if rewarded else 1)  # of two steps
    assert float(told["2,train,turns"]) == 3
    assert float(told["2,train,dialogues_finished"]) == 0
    assert 3 * 2 * dialogues < budget.generated_tokens <= 3 * 4 * dialogues
    assert all(torch.isfinite(p).all() for p in parts.module.student.parameters())


def test_the_loss_rows_are_the_students_own_tokens_in_the_whole_dialogue():
    _, _, [batch] = rolled([CALL, "It is 84."])
    student = tiny()
    rows = student(batch.student, frozenset({"logits"})).logits
    assert rows.n == int(batch.student.mask.sum()) == len(coded(student, f"{CALL}<|end|>It is 84.<|end|>"))
    with torch.no_grad():
        whole = student.network(batch.student.tokens).logits[0, :, : student.vocabulary].log_softmax(-1)
    kept = whole[batch.student.mask[0]]
    torch.testing.assert_close(rows.rows(slice(0, rows.n)).log_softmax(-1), kept)
