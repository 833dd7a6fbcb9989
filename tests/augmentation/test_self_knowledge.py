"""Stages in which the student makes its own records: by hand on a scripted student, and with a real one.

Run: python -m pytest tests/augmentation/test_self_knowledge.py
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from kd.augmentation import Resources, Stage
from kd.augmentation.ratings import stated
from kd.augmentation.self_knowledge.context import ContextDistillation
from kd.augmentation.self_knowledge.contrast import RLCD
from kd.augmentation.self_knowledge.majority import Majority
from kd.augmentation.self_knowledge.rest import RisingThreshold
from kd.augmentation.self_knowledge.self_rewarding import SelfRewarding
from kd.augmentation.self_knowledge.star import STaR
from kd.composition.check import check
from kd.experiment.elicitation import elicit
from kd.skills.records import load
from kd.teachers.interface import Answers, Teacher
from kd.types import Record, Response, Skill, Split
from tests import runs
from tests.tiny import record

PROBLEMS = [
    record(0, "1 + 1 =", "2"),
    record(1, "3 + 4 =", "7"),
    record(2, "9 + 9 =", "18"),
    record(3, "{answer}%s =", "5"),
]


class Replies(Teacher):
    """A student whose replies are a function of the last message and the number of the sample."""

    provides = frozenset({"text"})
    charged_to = "student"

    def __init__(self, reply: Callable[[str, int], str]):
        self.reply = reply
        self.prompts: list[str] = []

    def identity(self) -> str:
        return "replies"

    def generate(self, records: Sequence[Record], *, decoding, engine, progress=None) -> list[Answers]:
        self.prompts += [one.prompt[-1]["content"] for one in records]
        finished = (True,) * decoding.samples
        return [
            Answers(tuple(self.reply(one.prompt[-1]["content"], i) for i in range(decoding.samples)), finished, 1)
            for one in records
        ]


class Sums(Skill):
    """The score is 1 where the text ends in the reference, and else the share of it that the last word is."""

    name, licence, group_key, metric = "sums", "CC0-1.0", "none", "accuracy"

    def load(self, split: Split) -> Sequence[Record]:
        return PROBLEMS

    def score(self, record: Record, text: str) -> float:
        right = float({one.id: one for one in PROBLEMS}[record.id].responses[0].text)
        return max(0.0, 1 - abs(float(text.split()[-1]) - right) / right)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_CACHE", str(tmp_path))


def applied(stage: Stage, given: Sequence[Record], student: Teacher | None = None) -> tuple[list[Record], Counter[str]]:
    used = Resources(seed=0, student=student, skill=Sums())
    return list(stage(iter(given), used)), used.account.dropped


def texts(records: Sequence[Record]) -> list[tuple[str, ...]]:
    return [tuple(response.text for response in one.responses) for one in records]


# --- STaR ---


def solving(prompt: str, _: int) -> str:
    """Right at once on 1 + 1; with the answer given on 3 + 4 and on the text with braces; never on 9 + 9."""
    if "9 + 9" in prompt:
        return "it is 17"
    if prompt == "1 + 1 =":
        return "one more than 1 is 2"
    for answer in ("7", "5"):
        if f"(The answer is {answer}.)" in prompt:
            return f"counting up gives {answer}"
    return "it is 0"


def test_star_keeps_right_rationales_and_gives_the_answer_where_there_is_none() -> None:
    student = Replies(solving)
    found, dropped = applied(STaR(max_new_tokens=9), PROBLEMS, student)
    assert [(one.id, one.prompt) for one in found] == [(PROBLEMS[i].id, PROBLEMS[i].prompt) for i in (0, 1, 3)]
    assert texts(found) == [("one more than 1 is 2",), ("counting up gives 7",), ("counting up gives 5",)]
    assert [one.provenance for one in found] == [("star",), ("star", "rationalised"), ("star", "rationalised")]
    assert {response for one in found for response in one.responses if response.source != "student"} == set()
    assert {response.score for one in found for response in one.responses} == {1.0}
    assert dropped == {"no right rationale": 1}
    assert "The answer is" not in "".join(str(one) for one in found)
    assert student.prompts[:4] == [one.prompt[0]["content"] for one in PROBLEMS]
    assert student.prompts[4:] == [
        f"{question}\n\n(The answer is {answer}.) Reason step by step up to this answer."
        for question, answer in (("3 + 4 =", "7"), ("9 + 9 =", "18"), ("{answer}%s =", "5"))
    ]


def test_star_without_rationalisation_and_without_an_answer_tries_once() -> None:
    assert len(applied(STaR(max_new_tokens=9, rationalise=False), PROBLEMS, Replies(solving))[0]) == 1
    student = Replies(solving)
    bare = [replace(one, responses=()) for one in PROBLEMS[:2]]
    assert [one.id for one in applied(STaR(max_new_tokens=9), bare, student)[0]] == ["0"]
    assert len(student.prompts) == 2
    short = [replace(bare[1], meta={"answer": 7})]
    assert texts(applied(STaR(max_new_tokens=9), short, student)[0]) == [("counting up gives 7",)]


def test_several_right_rationales_are_a_record_each() -> None:
    student = Replies(lambda prompt, i: ["so 2", "it is 3", "hence 2", "so 2"][i])
    stage = STaR(max_new_tokens=9, samples=4, temperature=1.0)
    found, _ = applied(stage, PROBLEMS[:1], student)
    assert [(one.id, *texts([one])[0]) for one in found] == [("0", "so 2"), ("0/2", "hence 2")]
    most = STaR(max_new_tokens=9, samples=4, temperature=1.0, most=1)
    assert texts(applied(most, PROBLEMS[:1], student)[0]) == [("so 2",)]


# --- ReST ---


@pytest.mark.parametrize(("number", "kept"), [(1, ["9", "14", "18"]), (2, ["14", "18"]), (3, ["18"]), (9, ["18"])])
def test_the_threshold_of_rest_rises_with_the_round(number, kept) -> None:
    """Of 18 the answers 9, 14 and 18 have scores 1/2, 7/9 and 1."""
    sampled = [replace(PROBLEMS[2], responses=tuple(Response(text, "student") for text in ("1", "9", "14", "18")))]
    found, dropped = applied(RisingThreshold(thresholds=[0.5, 0.7, 1.0], round=number), sampled)
    assert [text for (text,) in texts(found)] == kept
    assert {one.provenance for one in found} == {("rest",)}
    assert not dropped
    assert applied(
        RisingThreshold(thresholds=[0.9], round=number), [replace(sampled[0], responses=sampled[0].responses[:1])]
    )[1]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"thresholds": []}, r"thresholds=\[\]"),
        ({"thresholds": [0.5, 0.9, 0.7]}, r"thresholds=\[0\.5, 0\.9, 0\.7\]"),
        ({"thresholds": [0.5], "round": 0}, "round=0"),
    ],
)
def test_thresholds_that_do_not_rise_are_refused(settings, named) -> None:
    with pytest.raises(ValueError, match=named):
        RisingThreshold(**settings)


# --- LMSI ---


def sampled(*answers: str) -> list[Record]:
    return [replace(PROBLEMS[0], responses=tuple(Response(text, "student") for text in answers))]


def test_the_majority_is_kept_whatever_the_reference() -> None:
    found, dropped = applied(Majority(), sampled("so 4", "it is 5", "2 + 2 = 4.0", "no", "the answer is 04."))
    assert [(one.id, *texts([one])[0]) for one in found] == [
        ("0", "so 4"),
        ("0/2", "2 + 2 = 4.0"),
        ("0/3", "the answer is 04."),
    ]
    assert {response.score for one in found for response in one.responses} == {3 / 5}
    assert {one.provenance for one in found} == {("majority",)}
    assert not dropped


@pytest.mark.parametrize(
    ("settings", "answers", "kept", "dropped"),
    [
        ({}, ("it is 5", "so 4"), ["it is 5"], {}),  # of equal ones the first
        ({"least": 0.6}, ("4", "4", "5", "6"), [], {"no majority": 1}),
        ({"least": 0.5}, ("4", "4", "5", "6"), ["4", "4"], {}),
        ({"most": 1}, ("4", "so 4"), ["4"], {}),
        ({}, ("none", ""), [], {"no answer": 1}),
        ({}, (), [], {"no answer": 1}),
        ({"answer": "text"}, ("The cat.", "a dog", "cat", "..."), ["The cat.", "cat"], {}),
        ({"pattern": r"\(([a-d])\)"}, ("(a) or (b)", "(B)", "(b)!", "(a)", "b"), ["(a) or (b)", "(b)!"], {}),
        ({}, ("-0", "0.00", "-0.5", "9" * 6000), ["-0", "0.00"], {}),
    ],
)
def test_votes(settings, answers, kept, dropped) -> None:
    found, reasons = applied(Majority(**settings), sampled(*answers))
    assert [text for (text,) in texts(found)] == kept
    assert reasons == dropped


@pytest.mark.parametrize(
    ("settings", "named"), [({"pattern": "("}, "pattern='\\('"), ({"least": 2.0}, "least=2.0"), ({"most": 0}, "most=0")]
)
def test_votes_that_cannot_be_counted_are_refused(settings, named) -> None:
    with pytest.raises(ValueError, match=named):
        Majority(**settings)


# --- self-rewarding ---


def judging(prompt: str, sample: int) -> str:
    """Candidates of points 2, 4 and 4, 2 for the first problem; all alike for the second; none rated for the third."""
    if "<response>" not in prompt:
        return {"1 + 1 =": ["bad", "good", "fine", "odd"], "3 + 4 =": ["good"] * 4}.get(prompt, ["odd"] * 4)[sample]
    points = {"bad": (1, 3), "good": (5, 3), "fine": (4, 4), "odd": (7, 9)}
    text = prompt.partition("<response>")[2].partition("</response>")[0]
    return f"It says {text}.\nScore: {points[text][sample]}"


def test_the_best_and_the_worst_become_a_pair() -> None:
    student = Replies(judging)
    found, dropped = applied(SelfRewarding(judgements=2, max_new_tokens=9), PROBLEMS[:3], student)
    (pair,) = found
    assert [(r.text, r.source, r.score) for r in pair.responses] == [("good", "student", 4.0), ("bad", "student", 2.0)]
    assert (pair.id, pair.prompt, pair.provenance) == ("0", PROBLEMS[0].prompt, ("self_rewarding",))
    assert dropped == {"equal ratings": 1, "no rating": 1}
    assert len(student.prompts) == 3 + 3 * 4
    with pytest.raises(ValueError, match="samples=1 makes no pair"):
        SelfRewarding(samples=1, max_new_tokens=9)


def test_a_rating_is_the_last_that_a_reply_states() -> None:
    assert stated("Score: 2. On second thought, score: 4", 0, 5) == 4
    assert stated("**Score:** 3.5", 0, 5) == 3.5
    assert [stated(text, 0, 5) for text in ("Score: 6", "Score: -1", "Score", "4", "")] == [None] * 5
    assert stated("Score: " + "9" * 5000, 0, 5) is None


# --- context distillation and RLCD ---


def test_the_context_is_read_and_not_learnt() -> None:
    student = Replies(lambda prompt, i: f"{'kindly' if 'harms no one' in prompt else 'rudely'} {i}")
    stage = ContextDistillation(template="principles", samples=2, max_new_tokens=9, temperature=1.0)
    led = replace(PROBLEMS[0], prompt=({"role": "system", "content": "Be brief."}, *PROBLEMS[0].prompt))
    found, _ = applied(stage, [led, PROBLEMS[3]], student)
    assert texts(found) == [("kindly 0", "kindly 1")] * 2
    assert [one.prompt for one in found] == [led.prompt, PROBLEMS[3].prompt]
    assert [one.provenance for one in found] == [("context_distillation",)] * 2
    assert [
        text.endswith(f"\n\n{one.prompt[-1]['content']}") for text, one in zip(student.prompts, found, strict=True)
    ] == [True] * 2


def test_contrasting_prompts_make_the_pair() -> None:
    def reply(prompt: str, _: int) -> str:
        if prompt.startswith("9 + 9"):
            return "18"
        return "harmful" if "unhelpful, dishonest, and harmful" in prompt else "harmless"

    found, dropped = applied(RLCD(max_new_tokens=9), PROBLEMS[:3], Replies(reply))
    assert texts(found) == [("harmless", "harmful")] * 2
    assert [(one.prompt, one.provenance) for one in found] == [(one.prompt, ("rlcd",)) for one in PROBLEMS[:2]]
    assert dropped == {"equal responses": 1}
    with pytest.raises(ValueError, match=r"negative_template has no \{question\}"):
        RLCD(max_new_tokens=9, negative_template="{text}")


# --- in a run ---


@pytest.mark.parametrize(
    ("name", "responses", "words"),
    [
        ("rlcd", 2, []),
        pytest.param(
            "context_distillation",
            1,
            [
                f"augmentation.stages.context_distillation.{word}"
                for word in ("template='Be brief: {question}'", "temperature=1.0")
            ],
            marks=pytest.mark.long,
        ),
    ],
)
def test_with_a_real_student(name, responses, words) -> None:
    """The records come back from disk with the student's cost."""
    cfg = runs.config(
        f"augmentation={name}",
        f"augmentation.stages.{name}.max_new_tokens=4",
        *words,
        "objective=sft" if responses == 1 else "objective=dpo",
    )
    given, found = load(runs.Toy(), "train"), elicit(cfg)
    assert [one.prompt for one in found.records] == [one.prompt for one in given]
    assert {len(one.responses) for one in found.records} == {responses}
    assert {response.source for one in found.records for response in one.responses} == {"student"}
    assert found.spent.generated_tokens > 0
    assert found.spent.teacher_tokens == 0
    assert elicit(cfg).records == found.records


@pytest.mark.parametrize("name", ["rlcd", "self_rewarding"])
def test_objectives_on_pairs_take_them(name) -> None:
    check(runs.config(f"augmentation={name}", "objective=dpo"))


def test_a_threshold_follows_the_loop() -> None:
    for rounds in (1, 3):
        cfg = runs.config("augmentation=rest", "objective=sft", f"loop.rounds={rounds}")
        assert cfg.augmentation.stages.rest.round == rounds
