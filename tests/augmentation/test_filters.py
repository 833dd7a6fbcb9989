"""Filters by text: each with a record that its rule rejects and one that it keeps, and laws that hold for all.

Run: python -m pytest tests/augmentation/test_filters.py
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from io import BytesIO

import pytest
from PIL import Image as Picture

from kd.augmentation import Resources
from kd.augmentation.filters import Filter
from kd.augmentation.filters.coreset import Coreset
from kd.augmentation.filters.decontamination import Decontaminated
from kd.augmentation.filters.duplicates import ExactDuplicates, NearDuplicates
from kd.augmentation.filters.language import Language
from kd.augmentation.filters.length import Length, TokenLength
from kd.augmentation.filters.novelty import Novel
from kd.augmentation.filters.refusals import Refusals
from kd.augmentation.verification import Verified
from kd.components.choices import content
from kd.data.images import PLACE
from kd.skills.records import skill_of
from kd.teachers.white_box import StudentText
from kd.types import Image, Record, Response, Skill, Split
from tests.tiny import tiny

ENGLISH = "Please write down how many people live in the city today."
GERMAN = "Bitte schreibe auf, wie viele Menschen heute in dieser Stadt leben."
LONG = " ".join(f"w{i}" for i in range(80))
TESTED = "a b c d e f g h i j k l m n o"  # 15 words


class Exam(Skill):
    """Two evaluated problems."""

    name, metric, licence, group_key = "exam", "accuracy", "CC0-1.0", "none"

    def load(self, split: Split) -> Sequence[Record]:
        """One each for validation and test."""
        return {"train": [], "validation": [record("v", "Short?", "yes")], "test": [record("t", TESTED)]}[split]

    def score(self, record: Record, text: str) -> float:
        """Whether it is right."""
        return float(text == "right")


def record(name: str, prompt: str, *answers: str, system: str | None = None, images: tuple[Image, ...] = ()) -> Record:
    led = () if system is None else ({"role": "system", "content": system},)
    told = ({"role": "user", "content": PLACE * len(images) + prompt},)
    return Record(name, "s", (*led, *told), tuple(Response(text, "teacher") for text in answers), images=images)


def resources() -> Resources:
    return Resources(seed=0, student=StudentText(tiny()), skill=Exam())


def applied(stage: Filter, records: Iterable[Record]) -> tuple[list[Record], Counter[str]]:
    used = resources()
    kept = list(stage(iter(records), used))
    return kept, used.account.dropped


def picture(shade: int) -> Image:
    file = BytesIO()
    Picture.new("L", (2, 2), shade).save(file, "PNG")
    return Image(file.getvalue())


# --- each rule, on a record that it rejects and one that it keeps ---

CASES = {
    "the first of one prompt stays": (
        ExactDuplicates(),
        [record("a", "Spell: Tree", "t"), record("b", "spell:  tree\n", "e"), record("c", "Spell: trees", "t")],
        "a c",
        {"exact duplicate": 1},
    ),
    "another answer is another record": (
        ExactDuplicates(of="record"),
        [record("a", "Spell", "t"), record("b", "Spell", "e"), record("c", "spell", "T")],
        "a b",
        {"exact duplicate": 1},
    ),
    "another system message is another prompt": (
        ExactDuplicates(),
        [
            record("a", "Spell"),
            record("b", "Spell", system="Reason first."),
            record("c", "Spell", system="reason first."),
        ],
        "a b",
        {"exact duplicate": 1},
    ),
    "another image is another prompt": (
        ExactDuplicates(),
        [record(n, "What is it?", images=(picture(shade),)) for n, shade in (("a", 0), ("b", 9), ("c", 0))],
        "a b",
        {"exact duplicate": 1},
    ),
    "nearly the same prompt": (
        NearDuplicates(),
        [record("a", ENGLISH), record("b", ENGLISH.replace("today", "now")), record("c", GERMAN)],
        "a c",
        {"near-duplicate": 1},
    ),
    "nearly the same, and exactly the same": (
        NearDuplicates(threshold=1.0),
        [record("a", ENGLISH), record("b", ENGLISH.replace("today", "now")), record("c", ENGLISH.upper())],
        "a b",
        {"near-duplicate": 1},
    ),
    "nearly the same words, another image": (
        NearDuplicates(),
        [record(n, ENGLISH, images=(picture(shade),)) for n, shade in (("a", 0), ("b", 9), ("c", 9))],
        "a b",
        {"near-duplicate": 1},
    ),
    "words of a template are not what makes prompts alike": (
        NearDuplicates(),
        [
            record(f"{i}", f"{ENGLISH} Its name: {name}")
            for i, name in enumerate(["Oslo", "Lima", "Kyiv", "Bonn", "Nice", "Perth"])
        ],
        "0 1 2 3 4 5",
        {},
    ),
    "Self-Instruct's bounds on instructions": (
        Length(shortest_prompt=4, longest_prompt=80, shortest_response=1),
        [
            record("a", "Name one river", "x"),
            record("b", "Name one river.  Now", "x"),
            record("c", LONG, "x"),
            record("d", f"{LONG} more", "x"),
            record("e", LONG, "..."),
            record("f", LONG),
        ],
        "b c f",
        {"short prompt": 1, "long prompt": 1, "short response": 1},
    ),
    "characters": (
        Length(unit="characters", longest_response=3),
        [record("a", "?", "日本語"), record("b", "?", "four"), record("c", "?", "one", "four")],
        "a",
        {"long response": 2},
    ),
    "tokens are those of the student, here bytes": (
        TokenLength(longest_prompt=4, longest_response=9),
        [
            record("a", "four", "日本語"),
            record("b", "fünf", "x"),
            record("c", "?", "日本語."),
            record("d", "?", "<|end|>"),
        ],
        "a d",
        {"long prompt": 1, "long response": 1},
    ),
    "one language": (
        Language(),
        [
            record("a", ENGLISH, ENGLISH),
            record("b", GERMAN, ENGLISH),
            record("c", ENGLISH, GERMAN),
            record("d", "3 + 4 =", "sieben"),
        ],
        "a d",
        {"other language of the prompt": 1, "other language of the response": 1},
    ),
    "of the response alone": (
        Language(languages=("de",), prompts=False),
        [record("a", ENGLISH, GERMAN), record("b", GERMAN, ENGLISH)],
        "a",
        {"other language of the response": 1},
    ),
    "WizardLM's elimination": (
        Refusals(),
        [
            record("a", "?", "I'm sorry, but I cannot help."),
            record("b", "?", "A sorry sight."),
            record("c", "?", f"I'm sorry, but {LONG}"),
        ],
        "b c",
        {"refusal": 1},
    ),
    "however long": (Refusals(words=None), [record("c", "?", f"I'm sorry, but {LONG}")], "", {"refusal": 1}),
    "GPT-3's rule": (
        Decontaminated(),
        [
            record("a", f"X {TESTED[2:27]}"),
            record("b", f"X {TESTED[2:25]}"),
            record("c", "new", TESTED.upper()),
            record("d", "short?"),
        ],
        "b",
        {"contaminated by the evaluation": 3},
    ),
    "any of several responses may repeat the test": (
        Decontaminated(n=4),
        [record("a", "new one", "fine", "xx e f g h"), record("b", "new two", "e f g")],
        "b",
        {"contaminated by the evaluation": 1},
    ),
    "ROUGE-L of 0.7": (
        Novel(),
        [
            record("a", "1 2 3 4 5 6 7 8 9 0"),
            record("b", "1 2 3 4 5 6 7 x y z"),
            record("c", "1 2 3 4 5 6 p q r s"),
            record("d", "?!"),
        ],
        "a c",
        {"known instruction": 1, "instruction without a word": 1},
    ),
    "Self-Instruct's heuristics": (
        Novel(heuristics=True),
        [
            record("a", "Draw a picture of it."),
            record("b", "Mapping is what they did."),
            record("c", "Sum it up"),
            record("d", "* a list of numbers"),
        ],
        "b",
        {"instruction beyond text": 1, "short instruction": 1, "instruction that begins oddly": 1},
    ),
    "the farthest first": (
        Coreset(share=0.5),
        [
            record("a", "one two three"),
            record("b", "one two four"),
            record("c", "five six seven"),
            record("d", "one two three four"),
        ],
        "a c",
        {"covered by others": 2},
    ),
}


@pytest.mark.parametrize(("stage", "records", "kept", "dropped"), CASES.values(), ids=CASES)
def test_what_stays(stage: Filter, records: list[Record], kept: str, dropped: dict[str, int]) -> None:
    found, reasons = applied(stage, records)
    assert [one.id for one in found] == kept.split()
    assert reasons == dropped
    by_id = {one.id: one for one in records}
    assert found == [replace(by_id[one.id], provenance=(stage.name,)) for one in found]


def test_responses_may_be_judged_one_by_one() -> None:
    given = [record("a", "?", "I cannot.", "Yes."), record("b", "?", "I can't."), record("c", "?", "Yes.", "No.")]
    kept, dropped = applied(Refusals(each="response"), given)
    assert [[r.text for r in one.responses] for one in kept] == [["Yes."], ["Yes.", "No."]]
    assert dropped == {"refusal": 1}
    assert Refusals.outline(given[0], {"each": "response"}) is None
    assert Refusals.outline(given[0], {"each": "record"}) == given[0]


def test_what_more_prompts_hold_is_a_template_and_samples_of_one_prompt_are_none() -> None:
    many = [record(f"{i}", f"{i}", TESTED) for i in range(11)]
    assert len(applied(Decontaminated(), many)[0]) == 11
    samples = [record(f"{i}", "one prompt", TESTED) for i in range(11)]
    assert applied(Decontaminated(), samples) == ([], {"contaminated by the evaluation": 11})


def test_other_evaluated_skills_are_compared() -> None:
    leaked = skill_of(content("skill", "spell_backward")).load("test")[0]
    assert len(applied(Decontaminated(), [leaked])[0]) == 1
    assert applied(Decontaminated(skills=["spell_backward"]), [leaked])[0] == []


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: NearDuplicates(threshold=0.5), "threshold=0.5 is not within"),
        (lambda: Length(shortest_prompt=5, longest_prompt=4), "shortest_prompt=5 and longest_prompt=4"),
        (lambda: Language(languages=("english",)), "languages: english is none that can be recognised"),
        (lambda: Language(languages=()), "languages: none"),
        (lambda: Decontaminated(n=0), "n=0"),
        (lambda: Decontaminated(skills=["spel_backward"]), "conf/skill has no spel_backward.yaml"),
        (lambda: Novel(below=0.0), "below=0.0"),
        (lambda: Coreset(share=1.5), "share=1.5"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, named) -> None:
    with pytest.raises(ValueError, match=named):
        make()


# --- laws ---

ALL = [
    ExactDuplicates(),
    ExactDuplicates(of="record"),
    NearDuplicates(),
    Length(shortest_prompt=2, longest_response=20),
    TokenLength(shortest_prompt=2, longest_response=60),
    Language(letters=5),
    Refusals(),
    Refusals(each="response"),
    Decontaminated(n=3),
    Novel(),
    Novel(heuristics=True),
    Coreset(share=0.5),
]
IDEMPOTENT = [stage for stage in ALL if not isinstance(stage, NearDuplicates | Coreset | Decontaminated)]
HOSTILE = [
    "",
    " \n\t\x00\x0b",
    "\u202eevil\u200b\ufeff",
    "<|im_end|><|endoftext|>{answer} {0} %s ${teacher} $(rm -rf /) ../../etc/passwd",
    "a" * 20_000,
    "I can't " * 500,
    "(" * 999 + "x" + ")" * 999,
    "日本語のテキスト🙂" * 200,
    "e\u0301" * 500,
    '{"a": [[[[]]]], "b": "\\ud800"}',
]


def drawn(seed: int) -> list[Record]:
    """Records of which many are alike, or hostile, in a random order; with none to three responses."""
    draw = random.Random(seed)
    texts = [*HOSTILE, ENGLISH, GERMAN, TESTED, "I'm sorry, but no.", *(f"Spell {word}." for word in TESTED.split())]
    return [
        record(
            f"{i}",
            draw.choice(texts),
            *draw.choices(texts, k=draw.randrange(4)),
            system=draw.choice([None, "", "Be brief."]),
        )
        for i in range(40)
    ]


@pytest.mark.parametrize("stage", ALL, ids=lambda stage: f"{stage.name}")
def test_what_stays_was_there_before_in_the_same_order(stage: Filter) -> None:
    for seed in range(2):
        given = drawn(seed)
        kept, dropped = applied(stage, given)
        places = {one.id: i for i, one in enumerate(given)}
        assert [places[one.id] for one in kept] == sorted({places[one.id] for one in kept})
        assert len(kept) + dropped.total() == len(given)
        for one in kept:
            before = given[places[one.id]]
            assert one == replace(before, responses=one.responses, provenance=(stage.name,))
            assert set(one.responses) <= set(before.responses)
        assert applied(stage, given) == (kept, dropped)  # the stage keeps no state


@pytest.mark.parametrize("stage", IDEMPOTENT, ids=lambda stage: f"{stage.name}")
def test_a_second_pass_drops_nothing(stage: Filter) -> None:
    kept, _ = applied(stage, drawn(2))
    again, dropped = applied(stage, kept)
    assert [one.id for one in again] == [one.id for one in kept]
    assert not dropped


@pytest.mark.parametrize("stage", ALL, ids=lambda stage: f"{stage.name}")
def test_no_records_are_no_error(stage: Filter) -> None:
    assert applied(stage, []) == ([], {})


def test_the_verifier_is_a_filter_of_responses() -> None:
    """The rule of RFT, which the stage of `augmentation=verified` has already."""
    used = resources()
    kept = list(Verified()([record("a", "?", "right", "wrong"), record("b", "?", "wrong")], used))
    assert [(one.id, [r.text for r in one.responses]) for one in kept] == [("a", ["right"])]
