"""Grades, preferences, revisions, repairs, and hard examples.

Run: python -m pytest tests/augmentation/test_feedback.py
"""

import re
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hydra.utils import instantiate

from kd.artifacts import cache_root, remove
from kd.augmentation import Resources, Stage, answering
from kd.augmentation.feedback.aspects import AspectScores
from kd.augmentation.feedback.hard import HardExamples
from kd.augmentation.feedback.preferences import PairwisePreferences
from kd.augmentation.feedback.repair import Repaired
from kd.augmentation.feedback.revision import Revision
from kd.augmentation.feedback.steps import StepScores
from kd.metrics import program_tests
from kd.types import Record, Response, Skill
from tests import runs
from tests.augmentation.scripted import CUT, NASTY, SETTINGS, Rule, Scripted, Sums, made, silent, smollm2, sums
from tests.tiny import record

FENCED = re.compile(r"^(=+)\n(.*?)\n\1$", re.DOTALL | re.MULTILINE)
ASPECTS = {"long": "Is it long?", "calm": "Is it calm?"}


@pytest.fixture(scope="module")
def real_teacher():
    """Loaded before the cache of a test is empty, so that the weights are those that are there."""
    return smollm2()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_CACHE", str(tmp_path))


def stage_of(name: str, **changes: Any) -> Stage:
    revision = {
        "constitution_template": "constitution",
        "critique_template": "critique",
        "revision_template": "revision",
    }
    hard = {"hard_template": "hard_instruction", "easy_template": "easy_instruction", "template": "hard_examples"}
    kinds: dict[str, tuple[type[Stage], dict[str, Any]]] = {
        "aspect_scores": (AspectScores, {"template": "aspect_scores", "aspects": ASPECTS}),
        "step_scores": (StepScores, {"template": "step_scores"}),
        "pairwise_preferences": (PairwisePreferences, {"template": "pairwise_preferences"}),
        "revised": (Revision, revision),
        "repaired": (Repaired, {"template": "repaired"}),
        "hard_examples": (HardExamples, {**hard, "high": 10}),
    }
    kind, settings = kinds[name]
    return kind(**{**SETTINGS, **settings, **changes})


def shown(prompt: str) -> list[str]:
    """The texts between the fences of a prompt."""
    return [text for _, text in FENCED.findall(prompt)]


def scores(found: list[Record]) -> list[list[tuple[str, float | None]]]:
    return [[(one.text, one.score) for one in each.responses] for each in found]


# --- grades ---


def graded(prompt: str) -> str:
    """The number of letters, at most 5, or 5 without an exclamation mark and else 1; the answer is repeated."""
    answer = shown(prompt)[1]
    if answer == "???":
        return "I cannot say."
    grade = min(5, len(answer)) if "long" in prompt else 1 if "!" in answer else 5
    return f"The answer was {answer}. [[{grade}]]"


def test_the_mean_over_aspects_is_the_score_and_the_order():
    given = [record(0, "q", "abcd!", "ab", "a!"), record(1, "q", "abc", "???"), replace(record(2), responses=())]
    found, account = made(stage_of("aspect_scores"), given, graded)
    assert scores(found) == [[("ab", 3.5), ("abcd!", 3.0), ("a!", 1.5)]]
    assert found[0].provenance == ("aspect_scores",)
    assert account.dropped == {"no grade": 1, "no response": 1}
    assert account.prompts == 10


def test_a_response_does_not_grade_itself():
    """The judge repeats it, with `[[5]]` in it: then there would be two grades, and the last counts for nothing."""
    found, _ = made(stage_of("aspect_scores"), [record(0, "q", "[[5]]!")], graded)
    assert scores(found) == [[("[[5]]!", 3.0)]]


@pytest.mark.parametrize("keep", ["best_and_worst", "best_and_other"])
def test_pairs_of_preference(keep):
    given = [record(0, "q", "abcd!", "ab", "a!"), record(1, "q", "ab", "cd"), record(2, "q", "ab")]
    found, account = made(stage_of("aspect_scores", keep=keep), given, graded)
    ((best, other),) = scores(found)
    assert best == ("ab", 3.5)
    assert other == ("a!", 1.5) or keep == "best_and_other"
    assert account.dropped == {"tie": 1, "one response": 1}
    for settings, size in (({"keep": keep}, 2), ({"keep": "all"}, 3)):
        outlined = AspectScores.outline(given[0], settings).responses
        assert len(outlined) == size
        assert None not in [one.score for one in outlined]


def checked(prompt: str) -> str:
    """5 for a right sum, 2 for a wrong one."""
    step = shown(prompt)[2]
    left, _, right = step.partition(" = ")
    return f"[[{5 if sum(map(int, left.split(' + '))) == int(right) else 2}]]"


@pytest.mark.parametrize(
    ("combine", "expected"),
    [("product", [1.0, 0.25, 0.0625]), ("min", [1.0, 0.25, 0.25]), ("mean", [1.0, 0.625, 0.25])],
)
def test_the_steps_make_the_score(combine, expected):
    """A grade of 2 from 1 to 5 is a quarter of the way."""
    given = [record(0, "q", "1 + 1 = 3\n\n2 + 2 = 5", "1 + 1 = 2\n2 + 2 = 4", "1 + 1 = 2\n2 + 2 = 5")]
    teacher = Scripted(checked)
    found, _ = made(stage_of("step_scores", combine=combine), given, silent, teacher=teacher)
    assert [score for _, score in scores(found)[0]] == expected
    assert scores(found)[0][0][0] == "1 + 1 = 2\n2 + 2 = 4"
    assert [shown(prompt[0]["content"])[1:] for prompt in teacher.read[:2]] == [
        ["(none)", "1 + 1 = 3"],
        ["1 + 1 = 3", "2 + 2 = 5"],
    ]


def test_a_rationale_without_steps_or_with_too_many_is_dropped():
    given = [record(0, "q", "1 + 1 = 2\n1 + 1 = 2\n1 + 1 = 2"), record(1, "q", " \n"), replace(record(2), responses=())]
    found, account = made(stage_of("step_scores", most=2), given, checked)
    assert not found
    assert account.dropped == {"too many steps": 1, "response without a step": 1, "no response": 1}


def test_a_scale_that_the_prompt_does_not_show_is_refused():
    with pytest.raises(ValueError, match=r"template has no \{high\}"):
        stage_of("step_scores", template="Grade {answer} to {question} after {before} from {low}.")
    with pytest.raises(ValueError, match=r"separator='\('"):
        stage_of("step_scores", separator="(")


# --- preferences ---


def longer(prompt: str) -> str:
    """The longer answer is better."""
    _, a, b = shown(prompt)
    return f"I compared them. [[{'tie' if len(a) == len(b) else 'A' if len(a) > len(b) else 'B'}]]"


def test_the_preferred_response_is_first():
    given = [
        record(0, "q", "a", "bbb"),
        record(1, "q", "a", "b"),
        record(2, "q", "a"),
        record(3, "q", "a", "ccc", "bb"),
    ]
    found, account = made(stage_of("pairwise_preferences"), given, longer)
    assert scores(found) == [[("bbb", 1.0), ("a", 0.0)], [("ccc", 1.0), ("a", 0.0)]]
    assert account.dropped == {"tie": 1, "fewer than two responses": 1}
    assert account.prompts == 2 + 2 + 3 * 2
    whole, _ = made(stage_of("pairwise_preferences", keep="all"), given[3:], longer)
    assert scores(whole) == [[("ccc", 1.0), ("bb", 0.5), ("a", 0.0)]]


def test_a_judge_that_prefers_a_place_prefers_nothing():
    given = [record(0, "q", "a", "bbb")]
    _, account = made(stage_of("pairwise_preferences"), given, lambda prompt: "[[A]]")
    assert account.dropped == {"tie": 1}
    _, account = made(stage_of("pairwise_preferences", temperature=0.5), given, lambda prompt: "The first one.")
    assert account.dropped == {"no verdict": 1}
    found, account = made(stage_of("pairwise_preferences", swap=False), given, lambda prompt: "[[A]]", seed=1)
    assert account.prompts == 1
    assert scores(found) == [[("a", 1.0), ("bbb", 0.0)]]


# --- revision ---


def quiet(prompt: str) -> str:
    """A critique of what is loud; the revision is without the first exclamation mark if the critique is so."""
    texts = shown(prompt)
    if "Write the response again" not in prompt:
        return "Too loud." if "!" in texts[1] else "It is fine."
    return texts[1].replace("!", "", 1) if texts[2] == "Too loud." else texts[1]


def test_the_revision_replaces_the_response_or_is_preferred_to_it():
    given = [
        record(0, "q", "Yes!!", "other"),
        record(1, "q", "No."),
        record(2, "q", f"Never{CUT}"),
        replace(record(3), responses=()),
    ]
    teacher = Scripted(quiet)
    found, account = made(stage_of("revised"), given, silent, teacher=teacher)
    assert [one.responses for one in found] == [(Response("Yes!", "teacher"),), (Response("No.", "teacher"),)]
    assert account.dropped == {"no response": 1, "truncated revision": 1}
    principles = [one.strip() for one in open_constitution().split("\n\n")]
    drawn = [[one for one in principles if one in prompt[0]["content"]] for prompt in teacher.read]
    assert all(len(one) == 1 for one in drawn)
    assert drawn[:3] == drawn[3:]  # a revision is by the principle of its critique
    pairs, account = made(stage_of("revised", keep="pair", rounds=2), given[:2], quiet)
    assert [one.responses for one in pairs] == [(Response("Yes", "teacher"), Response("Yes!!"))]
    assert account.dropped == {"unchanged response": 1}
    assert account.prompts == 8


def open_constitution() -> str:
    from kd.data.prompt_templates import template_text

    return template_text("template", "constitution")


# --- repair ---

FUNCTIONS = {
    "add": ('def add(a, b):\n    """The sum."""\n', "assert add(2, 3) == 5, 'add(2, 3) is no 5'"),
    "neg": ('def neg(a):\n    """The negative."""\n', "assert neg(2) == -2"),
    "odd": ('def odd(a):\n    """Whether it is odd."""\n', "assert odd(3)"),
}


class Functions(Skill):
    """Python functions, scored by their tests."""

    name, licence, group_key, metric = "functions", "Apache-2.0", "none", "accuracy"

    def load(self, split: Any) -> list[Record]:
        return [
            Record(
                name,
                "functions",
                ({"role": "user", "content": f"Write {name}."},),
                meta={"entry_point": name, "signature": given, "tests": tests},
            )
            for name, (given, tests) in FUNCTIONS.items()
        ]

    def score(self, record: Record, text: str) -> float:
        return program_tests.tests_passed(text, record.meta)


def attempt(prompt: str) -> str:
    return {"Write add.": "return a - b", "Write neg.": "return -a", "Write odd.": "return a % 2 == 0"}[prompt]


def mended(prompt: str) -> str:
    """add is mended if the error was shown, odd is not."""
    task, wrong, error = shown(prompt)
    right = wrong.replace("a - b", "a + b") if "add(2, 3) is no 5" in error else wrong
    return f"```python\n{FUNCTIONS[task[6:9]][0]}    {right}\n```"


def test_what_the_student_gets_wrong_and_the_teacher_mends_is_learnt():
    skill = Functions()
    found, account = made(stage_of("repaired", form="both"), skill.load("train"), mended, student=attempt, skill=skill)
    assert account.dropped == {"solved by the student": 1, "repair that fails": 1}
    assert [one.id for one in found] == ["add", "add/refined"]
    fix = '```python\ndef add(a, b):\n    """The sum."""\n    return a + b\n```'
    assert [one.responses for one in found] == [(Response(fix, "teacher", 1.0),)] * 2
    assert found[0].prompt[0]["content"] == "Write add."
    assert "return a - b" in found[1].prompt[0]["content"]
    assert "add(2, 3) is no 5" in found[1].prompt[0]["content"]


def test_answers_without_tests_are_repaired_by_their_scorer():
    given = sums((3, 4), (1, 1))
    rules: tuple[Rule, Rule] = (lambda prompt: "7", lambda prompt: "2")
    ((one,), account) = made(stage_of("repaired"), given, rules[0], student=rules[1], skill=Sums(*given))
    assert (one.id, one.responses) == ("3+4", (Response("7", "teacher", 1.0),))
    assert account.dropped == {"solved by the student": 1}


# --- hard examples ---


def referee(prompt: str) -> str:
    """Grades by length, new instructions of another kind for each record, and "new answer" to these."""
    if "Grade how well" in prompt:
        return f"[[{min(10, len(shown(prompt)[1]))}]]"
    if "as difficult" in prompt:
        return {"alpha": "Compose a song of rivers", "beta": "Tell me about gamma rays now"}[
            shown(prompt)[0].split()[-1]
        ]
    return "Count all the green birds" if "no more difficult" in prompt else "new answer"


def test_hard_records_stay_and_new_ones_are_made_like_them():
    given = [
        record(0, "Write of alpha", "long answer"),
        record(1, "Write of beta", "long answer"),
        record(2, "Tell me about gamma rays", "weak"),
        record(3, "Say hello", "weak"),
    ]
    found, account = made(stage_of("hard_examples"), given, referee, student=lambda prompt: "weak")
    assert [(one.id, one.prompt[0]["content"], one.responses[0].text) for one in found] == [
        ("0", "Write of alpha", "long answer"),
        ("1", "Write of beta", "long answer"),
        ("0/hard1", "Compose a song of rivers", "new answer"),
        ("2/easy1", "Count all the green birds", "new answer"),
    ]
    # beta's instruction is like that of record 2, and the second easy one like the first
    assert account.dropped == {"easy for the student": 2, "instruction like another": 2}
    assert [one.provenance for one in found] == [("hard_examples",)] * 4
    assert [one.meta for one in found[2:]] == [{"parents": ["0"]}, {"parents": ["2"]}]  # no verifier scores them
    alone, _ = made(stage_of("hard_examples", new=0), given, referee, student=lambda prompt: "weak")
    assert [one.id for one in alone] == ["0", "1"]
    _, account = made(stage_of("hard_examples", margin=7.0), given, referee, student=lambda prompt: "weak")
    assert account.dropped == {"easy for the student": 4}


# --- all of them ---

RULES: dict[str, Callable[[str], str]] = {
    "aspect_scores": graded,
    "step_scores": checked,
    "pairwise_preferences": longer,
    "revised": quiet,
    "hard_examples": referee,
}


def given_for(name: str) -> list[Record]:
    answers = ("1 + 1 = 2", "2 + 2 = 5") if name == "step_scores" else ("Yes!! and more", "ab")
    return [record(i, f"Write of {'alpha' if i % 2 else 'beta'}", *answers) for i in range(4)]


@pytest.mark.parametrize("name", RULES)
def test_a_restart_gives_the_same_and_generates_nothing_twice(name, monkeypatch):
    monkeypatch.setattr(answering, "TOGETHER", 2)
    student: Rule = lambda prompt: "weak"  # noqa: E731
    first, account = made(stage_of(name), given_for(name), RULES[name], student=student)
    assert first
    assert made(stage_of(name), given_for(name), silent, student=silent) == (first, account)
    files = sorted((cache_root() / "augmentation").glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    remove(files[-1])
    teacher = Scripted(RULES[name])
    assert made(stage_of(name), given_for(name), silent, student=silent, teacher=teacher) == (first, account)
    assert 0 < len(teacher.read) <= 2


@pytest.mark.parametrize("name", RULES)
def test_no_answer_makes_it_raise(name):
    draw = Random(0)
    given = [record(i, draw.choice(NASTY) or "?", draw.choice(NASTY), draw.choice(NASTY)) for i in range(40)]
    settings = {"most": 5} if name == "step_scores" else {}
    texts = [text for text in NASTY if len(text) < 1000]
    found, account = made(
        stage_of(name, **settings), given, lambda prompt: texts[len(prompt) % len(texts)], student=lambda prompt: "weak"
    )
    kept = {one.id for one in found if "/" not in one.id}
    assert len(kept) + account.dropped.total() >= len(given)
    assert len(kept) <= len(given)


def test_each_is_a_choice_and_they_compose():
    names = ["self_labeling", *RULES, "repaired"]
    cfg = runs.config(f"augmentation=[{','.join(names)}]")
    assert [*cfg.augmentation.stages] == names
    for name, node in cfg.augmentation.stages.items():
        stage = instantiate(node)
        assert isinstance(stage, Stage)
        assert name == "self_labeling" or type(stage) is type(stage_of(str(name)))


@pytest.mark.long
def test_a_real_teacher_gives_feedback(real_teacher):
    """A model of this size seldom ends with a grade; its revisions are texts."""
    teacher = real_teacher
    given = [
        record(i, text, "I do not know!", "It is in Europe, I think.")
        for i, text in enumerate(("Where is Rome?", "Where is Oslo?"))
    ]
    for name in ("revised", "aspect_scores", "pairwise_preferences"):
        account = Resources(0, teacher, teacher.identity())
        found = list(stage_of(name, max_new_tokens=96, batch_size=4)(iter(given), account))
        assert len(found) + account.account.dropped.total() == len(given)
        assert account.account.prompts > 0
