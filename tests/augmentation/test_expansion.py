"""Expansion: each stage with a teacher that follows a rule, so that its records are known, and one that it rejects.

Run: python -m pytest tests/augmentation/test_expansion.py
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kd.augmentation.expansion.subgroups import clusters
from kd.augmentation.filters.embeddings import ngram_vectors
from kd.augmentation.new_records import PARENTS
from kd.augmentation.verification import Verified
from kd.doctor.subject import composed
from kd.experiment.elicitation import elicit
from kd.experiment.run import as_read
from kd.types import Record, Response, Skill, Split
from tests.augmentation.rules import Rule, after, configured, record, run, shown, starts

SEEDS = [record("a", "Name the capital of a country.", "Paris"), record("b", "Add two small numbers.", "3")]
PASSED = ["paraphrase", "self_instruct", "evol"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KD_CACHE", str(tmp_path))
    return tmp_path


# --- self-instruct ---


def self_instructing(text: str) -> str:
    if text.startswith(starts("self_instruct_tasks")):
        return "\n".join(
            [
                "1. Name the capital of the country.",  # ROUGE-L with the first seed: 2 * 5 / (6 + 6) = 0.83
                "2. Decide whether a review is positive or negative.",
                "3. Draw a picture of the sea.",
                "4. Sort.",
                "5. Translate the sentence into German.",
                "6. Name a colour that is not warm.",
            ]
        )
    if text.startswith(starts("self_instruct_classification")):
        return "Yes, it is." if "review" in text else "No."
    if text.startswith(starts("self_instruct_class")):
        return (
            "Class: positive\nInput: Great film.\nClass: negative\nInput: Dull film.\nClass: mixed\nInput: Dull film."
        )
    if "colour" in text:
        return "Input: none\nOutput: blue"
    return "Input: I see.\nOutput: Ich sehe.\nInput: Ja.\nOutput: ja.\nInput: I see.\nOutput: Ich sehe."


def test_self_instruct_by_hand():
    stage = configured("self_instruct", requests=1, count=10)
    made, account = run(stage, SEEDS, self_instructing)
    review, german = "Decide whether a review is positive or negative.", "Translate the sentence into German."
    assert shown(made) == [
        ("a", "Name the capital of a country.", ("Paris",)),
        ("b", "Add two small numbers.", ("3",)),
        ("toy/self_instruct1", f"{review}\n\nGreat film.", ("positive",)),
        ("toy/self_instruct2", f"{german}\n\nI see.", ("Ich sehe.",)),
        ("toy/self_instruct3", "Name a colour that is not warm.", ("blue",)),
    ]
    assert account.dropped == {
        "known instruction": 1,
        "instruction beyond text": 1,
        "short instruction": 1,
        "input with several outputs": 2,
        "output that repeats the input": 1,
        "repeated record": 1,
    }
    assert [sorted(one.meta) for one in made[2:]] == [["classification", PARENTS]] * 3
    assert sorted(made[2].meta[PARENTS]) == ["a", "b"]
    assert {one.provenance for one in made} == {("self_instruct",)}
    assert account.prompts == 1 + 3 + 3


def test_self_instructs_pool_grows_by_its_own_tasks():
    """The second request shows two tasks of the first reply, and what is like those is known."""
    counted = iter(range(100))

    def reply(text: str) -> str:
        if not text.startswith(starts("self_instruct_tasks")):
            return "Input: none\nOutput: it"
        return f"1. Explain how the {['whale', 'motor'][next(counted) % 2]} works.\n2. Same task every time here."

    teacher = Rule(reply)
    stage = configured("self_instruct", requests=2, together=1, count=10, classification_template=None)
    made, account = run(stage, SEEDS, teacher)
    first, second = (messages[0]["content"] for messages in teacher.read[:2])
    assert "whale" not in first
    assert "whale" in second
    assert account.dropped["known instruction"] == 2  # the motor shares 4 of 5 words, the other task all
    assert len(made) == 2 + 2


# --- evolution ---


def evolving(text: str) -> str:
    if text.startswith(starts("evol_equal")):
        first, second = after(text, "First prompt:").split("\n\nSecond prompt:\n")
        return "Equal." if second.partition("\n")[0] == first else "Different."
    if text.startswith((starts("evol_depth"), starts("evol_breadth"))):
        prompt = text.rpartition("\n\n")[2]
        return {"Refuse.": "Refuse it.", "Same.": "Same.", "Leak.": "The rewritten prompt: x"}.get(prompt, f"{prompt}+")
    if text == "Refuse it.":
        return "Sorry, I cannot."
    return "It is the…" if text == "Long.+" else "It is." if text == "Empty.+" else f"Answer to {text}"


def test_evolution_by_hand():
    """A prompt that fails stays in the pool as it was, and fails again in the second round."""
    texts = ("Go.", "Refuse.", "Same.", "Leak.", "Empty.", "Long.")
    given = [record(text[0], text, "old", meta={"answer": "old"}) for text in texts]
    stage = configured("evol_instruct", rounds=2, keep_given=False)
    made, account = run(stage, given, evolving)
    assert shown(made) == [("G/evol1", "Go.+", ("Answer to Go.+",)), ("G/evol2", "Go.++", ("Answer to Go.++",))]
    assert [one.meta["round"] for one in made] == [1, 2]
    assert all(one.meta[PARENTS] == ["G"] and "answer" not in one.meta for one in made)
    assert [response.source for one in made for response in one.responses] == ["teacher"] * 2
    assert account.dropped == {
        **{"refusal": 2, "no new information": 2, "words of the template": 2},
        **{"response without content": 2, "truncated text": 2},
    }


def test_operators_are_drawn_alike():
    """Of 300 prompts each of six operators, that of breadth among them, evolves a sixth: 50, give or take 4 sigma."""
    given = [record(str(i), f"Prompt {i}.") for i in range(300)]
    stage = configured("evol_instruct", rounds=1, keep_given=False)
    made, _ = run(
        stage, given, lambda text: "Other." if text.startswith(starts("evol_equal")) else f"{text[-11:]} Done"
    )
    counts = {name: sum(one.meta["operator"] == name for one in made) for name in (*stage.operators, "breadth")}
    assert sum(counts.values()) == 300
    assert all(24 < count < 76 for count in counts.values())


# --- paraphrase and fusion ---


def test_a_paraphrase_is_the_same_problem():
    given = [record("a", 'Add 12 and 7 to "x".', "19", "20", meta={"answer": 19}, provenance=("labeling",))]
    listed = '1. Sum 12 and 7 up for "x".\n2. Add 12 and 8 to "x".\n3. add 12 and  7 to "x".\n4. Add 7 and 12 to x.'
    made, account = run(configured("paraphrase", count=4), given, lambda _: listed)
    assert shown(made) == [
        ("a", 'Add 12 and 7 to "x".', ("19", "20")),
        ("a/paraphrase1", 'Sum 12 and 7 up for "x".', ("19", "20")),
    ]
    assert made[1].meta is given[0].meta  # the verifier's
    assert made[1].provenance == ("labeling", "paraphrase")
    assert account.dropped == {"repeated record": 1, "other numbers or quotations": 2}


def test_fusion_by_hand():
    given = [record(str(i), f"Do task {i} with care.") for i in range(4)]

    def reply(text: str) -> str:
        if not text.startswith(starts("fusion")):
            return f"Done: {text}"
        first, second = after(text, "First prompt:").split("\n\nSecond prompt:\n")
        return "None." if "0" in first + second else f"Both {first} And {second}"

    made, account = run(configured("fusion", keep_given=False), given, reply)
    (one,) = made
    first, second = one.meta[PARENTS]
    texts = {own.id: own.prompt[0]["content"] for own in given}
    assert one.prompt[0]["content"] == f"Both {texts[first]} And {texts[second]}"
    assert one.responses == (Response(f"Done: Both {texts[first]} And {texts[second]}", "teacher"),)
    assert one.id == f"{first}/fusion1"
    assert "0" not in (first, second)
    assert account.dropped == {"declined fusion": 1}
    _, account = run(configured("fusion", keep_given=False), given, lambda text: after(text, "Second prompt:"))
    assert account.dropped == {"one of the two prompts": 2}


# --- back-translation ---


def test_back_translation_by_hand():
    given = [
        record("a", "?", "The sea is salty."),
        record("b", "?", "Lorem."),
        record("c", "?"),
        record("d", "?", "Hm."),
    ]

    def reply(text: str) -> str:
        if text.startswith(starts("back_translation")):
            return f"Why is it so: {text.rpartition(chr(10))[2]}"
        return "Fine.\nScore: 5" if "salty" in text else "Score: 2" if "Lorem" in text else "Good!"

    made, account = run(configured("back_translation"), given, reply)
    (one,) = made
    assert shown(made) == [("a/back_translation1", "Why is it so: The sea is salty.", ("The sea is salty.",))]
    assert one.responses[0] == Response("The sea is salty.", "reference", 5.0)
    assert one.meta == {PARENTS: ["a"]}
    assert account.dropped == {"low rating": 1, "no rating": 1}


def test_documents_of_files_are_read_in_passages(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "b.txt").write_text("one two  three\nfour five", encoding="utf-8")
    (folder / "a.md").write_text("ünïcode", encoding="utf-8")
    (folder / "c.bin").write_bytes(b"\xff")
    documents = {"address": f"local:{folder}"}
    stage = configured("back_translation", documents=documents, words=3, least=1)
    made, _ = run(stage, SEEDS, lambda text: "Score: 3" if "Answer:" in text else f"Ask {len(text)}")
    assert [one.responses[0].text for one in made] == ["ünïcode", "one two  three", "four five"]
    assert [one.id for one in made][1:] == [f"toy/b.txt/passage{i}/back_translation1" for i in (1, 2)]
    assert made[1].meta == {PARENTS: ["b.txt"]}
    (folder / "b.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"b.txt is not UTF-8"):
        run(stage, SEEDS, lambda _: "x")


# --- subgroups ---


class Sums(Skill):
    """Sums and words; the score is 1 for "yes"."""

    name, metric, licence, group_key = "toy", "accuracy", "CC0-1.0", "none"

    def load(self, split: Split) -> Sequence[Record]:
        """Two kinds of problems."""
        return [record(f"s{i}", f"Add up numbers: {i} plus {i}.") for i in range(4)] + [
            record(f"w{i}", f"Spell this word backward, letter by letter: {'abcd'[i]}") for i in range(4)
        ]

    def score(self, record: Record, text: str) -> float:
        """Whether the text is "yes"."""
        return float(text == "yes")


def test_the_student_fails_in_a_subgroup_which_grows():
    """It solves no sum but the last, and all words: errors 3/4 and 0, 3/8 on average."""
    student = Rule(lambda text: "yes" if "word" in text or "3 plus" in text else "no")
    asked = Rule(lambda text: "1. Add up numbers: 8 plus 9.\n2. Add up numbers: 0 plus 0." if "Write" in text else "17")
    given = Sums().load("train")
    stage = configured("subgroups", groups=2, requests=1, shown=3, keep_given=False)
    made, account = run(stage, given, asked, student=student, student_id="s", skill=Sums())
    assert shown(made) == [("toy/group1/subgroup1", "Add up numbers: 8 plus 9.", ("17",))]
    assert sorted(made[0].meta[PARENTS]) == ["s0", "s1", "s2"]
    assert account.dropped == {"repeated record": 1}  # one of the examples
    assert account.prompts == len(given) + 1 + 1


def test_the_skill_scores_no_new_problem():
    """Neither by an old answer nor by the response itself; a paraphrase is the same problem."""
    own, meta = Sums().load("train")[0], {"answer": "yes"}
    given = [replace(own, responses=(Response("yes"),)), record("s0/evol1", "New?", "yes", meta={PARENTS: ["s0"]})]
    given += [record("s0/paraphrase1", "Sum up 0 and 0.", "yes", meta=meta), record("s1", "?", "no", meta={PARENTS: 2})]
    made, account = run(Verified(), given, lambda _: "", skill=Sums())
    assert [one.id for one in made] == ["s0", "s0/paraphrase1"]
    assert account.dropped == {"problem that the skill cannot score": 1, "no right response": 1}


def test_clusters_are_by_words():
    assert clusters(ngram_vectors(Sums().load("train")), 2) == [0] * 4 + [1] * 4
    assert clusters(ngram_vectors([record("a", "x")]), 3) == [0]


@pytest.mark.long
def test_a_real_teacher():
    """Each text is SmolLM2-135M's; its new records stand beside the six given ones, with parents among them."""
    words = ["augmentation=[paraphrase,self_instruct,evol_instruct]", "teacher=smollm2_135m", "skill=gsm_symbolic"]
    small = {
        "paraphrase": ("count=2", "max_new_tokens=160"),
        "self_instruct": ("requests=4", "count=3", "max_new_tokens=96"),
        "evol_instruct": ("rounds=1", "max_new_tokens=96"),
    }
    more = [f"augmentation.stages.{name}.{word}" for name, every in small.items() for word in every]
    with composed([*words, *more, "skill.train=6", "trainer=cpu"]) as config:
        made = elicit(as_read(config))
    ids = {one.id for one in made.records}
    given = [one for one in made.records if PARENTS not in one.meta and "/paraphrase" not in one.id]
    assert len(ids) == len(made.records) > 6
    assert len(given) == 6
    assert all([name.partition("@")[0] for name in one.provenance] == PASSED for one in given)
    assert all(stage.prompts >= 6 or stage.name == "self_instruct" for stage in made.stages)
    assert all(set(one.meta[PARENTS]) <= ids for one in made.records if PARENTS in one.meta)
