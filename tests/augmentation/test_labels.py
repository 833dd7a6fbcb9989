"""Labels to another prompt than the student's, by programs, and with the rationale as a second task.

Run: python -m pytest tests/augmentation/test_labels.py
"""

import re
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hydra.utils import instantiate

from kd.artifacts import cache_root, remove
from kd.augmentation import Expected, Resources, Stage, answering
from kd.augmentation.labels.programs import ProgramOfThought
from kd.augmentation.labels.prompted import ChainOfThought, Explanations, FewShot, Strategies
from kd.augmentation.labels.rationales import RationaleTask, divided
from kd.experiment.elicitation import elicit
from kd.skills.gsm_symbolic import GsmSymbolic
from kd.types import Response
from tests import runs
from tests.augmentation.scripted import CUT, NASTY, SETTINGS, Scripted, Sums, made, silent, smollm2, sums
from tests.tiny import record

GIVEN = sums((3, 4), (1, 1), (2, 6), (5, 5))
MESSAGES = "Answer at once.\n\nReason first.\n\nAsk yourself why."


@pytest.fixture(scope="module")
def real_teacher():
    """Loaded before the cache of a test is empty, so that the weights are those that are there."""
    return smollm2()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_CACHE", str(tmp_path))


def stage_of(name: str, **changes: Any) -> Stage:
    kinds: dict[str, tuple[type[Stage], dict[str, Any]]] = {
        "label_cot": (ChainOfThought, {"template": "label_cot", "drop_unfinished": True}),
        "label_pot": (ProgramOfThought, {"template": "label_pot"}),
        "explanations": (Explanations, {"template": MESSAGES}),
        "strategies": (Strategies, {"template": MESSAGES, "choice": "all"}),
        "few_shot_labels": (FewShot, {"shots": 2}),
        "rationale_task": (RationaleTask, {"template": "rationale_task"}),
    }
    kind, settings = kinds[name]
    return kind(**{**SETTINGS, **settings, **changes})


def solved(prompt: str) -> str:
    """3 + 4 -> "3 and 4 make 7. The answer is 7."; of 5 + 5 a text that has no end."""
    a, b = re.findall(r"(\d+) \+ (\d+)", prompt)[-1]
    text = f"{a} and {b} make {int(a) + int(b)}."
    return f"{text[:8]}{CUT}" if a == "5" else f"{text} The answer is {int(a) + int(b)}."


def programmed(prompt: str) -> str:
    """A program for each sum: right, wrong, one that raises, and one that prints nothing."""
    return {
        "3": "Here it is:\n```python\na = 3\nprint('so')\nprint(a + 4)\n```\nDone.",
        "1": "print(3)",
        "2": "```python\nraise SystemError('no')\n```",
        "5": "x = 10",
    }[prompt.split()[0]]


RULES: dict[str, Callable[[str], str]] = {"label_pot": programmed}
NAMES = ["label_cot", "label_pot", "explanations", "strategies", "few_shot_labels", "rationale_task"]


# --- chains of thought ---


def test_the_rationale_is_learnt_without_the_prompt_that_requested_it():
    teacher = Scripted(solved)
    found, account = made(stage_of("label_cot"), GIVEN, solved, teacher=teacher)
    assert [one.responses for one in found] == [
        (Response("3 and 4 make 7. The answer is 7.", "teacher"),),
        (Response("1 and 1 make 2. The answer is 2.", "teacher"),),
        (Response("2 and 6 make 8. The answer is 8.", "teacher"),),
    ]
    assert [(one.prompt, one.meta, one.provenance) for one in found] == [
        (one.prompt, one.meta, ("label_cot",)) for one in GIVEN[:3]
    ]
    assert account.dropped == {"truncated response": 1}
    assert all(
        prompt[0]["content"].startswith(f"{one.prompt[0]['content']}\n\nWork")
        for prompt, one in zip(teacher.read, GIVEN, strict=True)
    )
    kept, _ = made(stage_of("label_cot", erase=False), GIVEN[:1], solved)
    assert kept[0].prompt == teacher.read[0]


# --- system messages ---


def test_a_system_message_is_drawn_by_the_record_and_stays():
    teacher = Scripted(lambda prompt: prompt.split("\n")[0])
    given = [record(i, f"question {i}") for i in range(30)]
    found, _ = made(stage_of("explanations"), given, silent, teacher=teacher)
    assert [one.prompt for one in found] == teacher.read
    drawn = {one.id: one.prompt[0] for one in found}
    assert {message["role"] for message in drawn.values()} == {"system"}
    assert {message["content"] for message in drawn.values()} == set(MESSAGES.split("\n\n"))
    assert all(one.responses[0].text == f"system: {one.prompt[0]['content']}" for one in found)
    turned, _ = made(stage_of("explanations"), given[::-1], lambda prompt: "")
    assert {one.id: one.prompt[0] for one in turned} == drawn
    other, _ = made(stage_of("explanations"), given, lambda prompt: "", seed=1)
    assert {one.id: one.prompt[0] for one in other} != drawn


def test_its_own_system_message_is_replaced():
    own = replace(GIVEN[0], prompt=({"role": "system", "content": "Be brief."}, *GIVEN[0].prompt))
    ((found,), _) = made(stage_of("explanations", template="Explain.\n\nExplain."), [own], lambda prompt: "7")
    assert [message["content"] for message in found.prompt] == ["Explain.", "3 + 4"]


def test_every_strategy_responds_and_none_is_seen_by_the_student():
    teacher = Scripted(lambda prompt: prompt.split("\n")[0].removeprefix("system: "))
    found, account = made(stage_of("strategies"), GIVEN[:2], silent, teacher=teacher)
    assert [[one.text for one in each.responses] for each in found] == [MESSAGES.split("\n\n")] * 2
    assert [one.prompt for one in found] == [one.prompt for one in GIVEN[:2]]
    assert account.prompts == len(teacher.read) == 6
    settings = {"template": MESSAGES, "choice": "all", "samples": 2, "max_new_tokens": 5, "keep_reference": True}
    assert len(Strategies.outline(GIVEN[0], settings).responses) == 1 + 3 * 2
    assert Strategies.expected(10, settings) == Expected(10, 30, 60, 300)
    assert Strategies.expected(10, {**settings, "choice": "one"}) == Expected(10, 10, 20, 100)
    ((one,), _) = made(stage_of("strategies", choice="one", student_system="Help."), GIVEN[:1], lambda prompt: "7")
    assert [message["content"] for message in one.prompt] == ["Help.", "3 + 4"]
    with pytest.raises(ValueError, match=r"student_system='Help\.' stands in the place of the strategy"):
        stage_of("strategies", erase=False, student_system="Help.")


# --- demonstrations ---


def test_demonstrations_are_others_and_are_erased():
    twin = replace(GIVEN[0], id="twin")
    teacher = Scripted(lambda prompt: str(prompt.count("assistant: ")))
    found, _ = made(stage_of("few_shot_labels"), [*GIVEN, twin], silent, teacher=teacher)
    assert [one.responses for one in found] == [(Response("2", "teacher"),)] * 5
    assert [one.prompt for one in found] == [one.prompt for one in [*GIVEN, twin]]
    answers = {one.prompt[0]["content"]: one.responses[0].text for one in GIVEN}
    for prompt in teacher.read:
        *shown, own = [message["content"] for message in prompt]
        assert [message["role"] for message in prompt] == ["user", "assistant"] * 2 + ["user"]
        assert own not in shown[::2]
        assert shown[1::2] == [answers[text] for text in shown[::2]]
    kept, _ = made(stage_of("few_shot_labels", erase=False), [*GIVEN, twin], lambda prompt: "2")
    assert [one.prompt for one in kept] == teacher.read
    with pytest.raises(ValueError, match=r"record 3\+4: there are 3 others with a response, fewer than shots=4"):
        made(stage_of("few_shot_labels", shots=4), GIVEN, silent)


# --- programs ---


def test_the_printed_answer_is_the_label():
    found, account = made(stage_of("label_pot"), GIVEN, programmed, skill=Sums(*GIVEN))
    assert [(one.id, one.responses) for one in found] == [("3+4", (Response("The answer is 7.", "teacher", 1.0),))]
    assert account.dropped == {"wrong answer": 1, "failed program": 1, "no printed answer": 1}
    found, _ = made(
        stage_of("label_pot", keep="all", response="program"),
        GIVEN[:2],
        silent,
        skill=Sums(*GIVEN),
        teacher=Scripted(programmed),
    )
    assert [one.responses[0] for one in found] == [
        Response("```python\na = 3\nprint('so')\nprint(a + 4)\n```", "teacher", 1.0),
        Response("```python\nprint(3)\n```", "teacher", 0.0),
    ]


# --- rationales ---


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Two and two make four. So the answer is 4.", ("Two and two make four.", "4")),
        ("It is so.\n\nFinal answer: **yes**", ("It is so.", "yes")),
        ("The answer is 4.", None),
        ("Two and two make four. The answer is", None),
        ("Four.", None),
        ("The answer is not 5: that is odd. The answer is 4", ("The answer is not 5: that is odd.", "4")),
    ],
)
def test_a_chain_of_thought_is_divided(text, parts):
    assert divided(text) == parts


def test_each_record_has_a_second_one_with_its_rationale():
    given = [
        replace(one, prompt=({"role": "user", "content": f"predict: {one.prompt[0]['content']}"},)) for one in GIVEN
    ]
    teacher = Scripted(lambda prompt: "I do not know." if prompt.startswith("1") else solved(prompt))
    stage = stage_of("rationale_task", label_prefix="predict:")
    found, account = made(stage, given, silent, teacher=teacher)
    assert [(one.id, one.prompt[0]["content"], one.responses) for one in found] == [
        ("3+4/label", "predict: 3 + 4", (Response("7"),)),
        ("3+4/rationale", "explain: 3 + 4", (Response("3 and 4 make 7.", "teacher"),)),
        ("2+6/label", "predict: 2 + 6", (Response("8"),)),
        ("2+6/rationale", "explain: 2 + 6", (Response("2 and 6 make 8.", "teacher"),)),
    ]
    assert account.dropped == {"no rationale or answer": 1, "truncated response": 1}
    assert [prompt[0]["content"].split("\n")[0] for prompt in teacher.read] == ["3 + 4", "1 + 1", "2 + 6", "5 + 5"]
    found, _ = made(
        stage_of("rationale_task", label="teacher"), [replace(one, responses=()) for one in GIVEN[:1]], solved
    )
    assert [one.responses[0].text for one in found] == ["7", "3 and 4 make 7."]
    _, account = made(stage, [replace(one, responses=()) for one in GIVEN[:1]], solved)
    assert account.dropped == {"no reference": 1}


@pytest.mark.parametrize(
    ("share", "labels", "rationales"), [(0.5, 6, 6), (0.25, 6, 2), (0.75, 2, 6), (0.1, 6, 0), (0.0, 6, 0)]
)
def test_the_share_of_rationales_is_their_weight(share, labels, rationales):
    given = sums(*((i, 3) for i in range(10, 16)))
    found, _ = made(stage_of("rationale_task", rationales=share), given, solved)
    kinds = [one.id.split("/")[1] for one in found]
    assert (kinds.count("label"), kinds.count("rationale")) == (labels, rationales)
    assert len(found) <= RationaleTask.expected(6, {"rationales": share, "max_new_tokens": 1}).records


# --- all of them ---


@pytest.mark.parametrize("name", NAMES)
def test_a_restart_gives_the_same_and_generates_nothing_twice(name, monkeypatch):
    monkeypatch.setattr(answering, "TOGETHER", 2)
    rule = RULES.get(name, solved)
    given, skill = [*GIVEN, *sums((7, 7))] if name != "label_pot" else GIVEN, Sums(*GIVEN)
    first, account = made(stage_of(name), given, rule, skill=skill)
    again, other = made(stage_of(name), given, silent, skill=skill)
    assert again == first
    assert other == account
    last = max((cache_root() / "augmentation").glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    remove(last)
    teacher = Scripted(rule)
    assert made(stage_of(name), given, silent, skill=skill, teacher=teacher)[0] == first
    assert 0 < len(teacher.read) <= 2


@pytest.mark.parametrize("name", [name for name in NAMES if name != "label_pot"])
def test_no_answer_makes_it_raise(name):
    draw = Random(0)
    given = [record(i, draw.choice(NASTY) or "?", draw.choice(NASTY)) for i in range(60)]
    found, account = made(stage_of(name), given, lambda prompt: NASTY[hash(len(prompt)) % len(NASTY)])
    assert len({one.id.split("/")[0] for one in found}) + account.dropped.total() == len(given)


def test_no_program_makes_it_raise():
    given = [record(i, f"question {i}") for i in range(len(NASTY))]
    for one in given:
        one.meta["answer"] = 1  # type: ignore[index]
    answers = iter(NASTY)
    found, account = made(stage_of("label_pot", keep="all"), given, lambda _: next(answers), skill=Sums(*given))
    assert len(found) + account.dropped.total() == len(given)
    assert account.dropped["failed program"] > 5


def test_each_is_a_choice_and_they_compose(tmp_path):
    cfg = runs.config(f"augmentation=[{','.join(NAMES)}]")
    assert [*cfg.augmentation.stages] == NAMES
    for name, node in cfg.augmentation.stages.items():
        stage = instantiate(node)
        assert isinstance(stage, Stage)
        assert type(stage) is type(stage_of(str(name)))


def test_the_students_prompt_is_kept_with_the_records():
    elicited = elicit(runs.config("augmentation=explanations", "augmentation.stages.explanations.max_new_tokens=4"))
    assert all(one.prompt[0]["role"] == "system" for one in elicited.records)
    assert elicited.stages[0].name == "explanations"


@pytest.mark.long
def test_a_real_teacher_labels(real_teacher):
    teacher = real_teacher
    given = list(GsmSymbolic(train=4, validation=1, test=1).load("train"))
    settings = {"max_new_tokens": 48, "batch_size": 4}
    for name in ("label_cot", "explanations", "few_shot_labels"):
        stage = stage_of(name, **settings, drop_unfinished=False)
        found = list(stage(iter(given), Resources(0, teacher, teacher.identity())))
        assert [one.id for one in found] == [one.id for one in given]
        assert all(len(one.responses[0].text) > 10 for one in found), name
        assert len({one.responses[0].text for one in found}) > 1
