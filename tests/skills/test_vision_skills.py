"""Skills with images: digits, drawn shapes and own files; splits that do not leak, answers that the pixels bear out.

Run: python -m pytest tests/skills/test_vision_skills.py
"""

import json
from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from datasets import Dataset as Table
from datasets import Features, Value
from datasets import Image as Feature

from kd.data.hub import undecoded
from kd.data.images import PLACE, decoded, drawn, image_in
from kd.experiment.identity import _content, _plain, _records_digest
from kd.skills.__main__ import build, read
from kd.skills.dataset import Dataset
from kd.skills.records import load, made
from kd.skills.vision.digits import Digits
from kd.skills.vision.shapes import CELL, COLOURS, SHAPES, Shapes, Thing, _asked
from kd.types import Record, Response

SPLITS = ("train", "validation", "test")
COUNTS = {"train": 60, "validation": 20, "test": 30}


def cells(record: Record) -> list[tuple[str, int]]:
    """The colour and the number of pixels of each shape, by looking at the image."""
    [image] = record.images
    pixels = np.asarray(decoded(image))
    found = []
    for y in range(0, len(pixels), CELL):
        for x in range(0, len(pixels), CELL):
            own = pixels[y : y + CELL, x : x + CELL].reshape(-1, 3)
            if own.any():
                [colour] = {tuple(pixel) for pixel in own.tolist() if any(pixel)}
                found.append((next(name for name, rgb in COLOURS.items() if rgb == colour), int(own.any(1).sum())))
    return found


@pytest.mark.parametrize("skill", [Digits(**COUNTS), Shapes(**COUNTS), Shapes(kind="caption", **COUNTS)])
def test_an_image_is_in_one_split_alone_and_the_same_at_every_call(skill):
    splits = [load(skill, split) for split in SPLITS]
    assert [len(records) for records in splits] == list(COUNTS.values())
    images = [record.images[0].digest for records in splits for record in records]
    assert len(set(images)) == len(images)
    assert all(skill.score(r, r.responses[0].text) == 1 and skill.score(r, "no idea") == 0 for r in splits[2])
    again = type(skill)(**({"kind": skill.kind} if isinstance(skill, Shapes) else {}), **COUNTS)
    assert again.load("test") == skill.load("test")
    fewer = type(skill)(**({"kind": skill.kind} if isinstance(skill, Shapes) else {}), **{**COUNTS, "train": 10})
    assert fewer.load("test") == skill.load("test")
    assert fewer.load("train") == skill.load("train")[:10]
    assert all(r.meta[skill.group_key] for r in splits[0])


def test_the_numbers_in_the_digits_file_are_there():
    settings = read("images/digits", [])
    skill = build(settings)
    assert [len(skill.load(split)) for split in SPLITS] == [settings[split] for split in SPLITS]


def test_digits_are_what_they_look_like():
    """The nearest mean image of the training digits names most test digits."""
    skill = Digits(train=1000, validation=0, test=200)
    pixels = {s: np.array([np.asarray(decoded(r.images[0])).ravel() for r in skill.load(s)]) for s in ("train", "test")}
    answers = {s: np.array([int(r.meta["answer"]) for r in skill.load(s)]) for s in ("train", "test")}
    means = np.array([pixels["train"][answers["train"] == digit].mean(0) for digit in range(10)])
    nearest = ((pixels["test"][:, None] - means) ** 2).sum(-1).argmin(-1)
    assert (nearest == answers["test"]).mean() > 0.85
    with pytest.raises(ValueError, match=r"fewer than skill\.train=1700"):
        Digits(train=1700, validation=0, test=200).load("train")


def test_answers_about_shapes_are_true_of_the_pixels():
    records = Shapes(train=400, validation=0, test=0).load("train")
    asked = {r.prompt[0]["content"].removeprefix(PLACE).split()[0] for r in records}
    assert asked == {"How", "Which", "Is"}
    sizes = {"square": 100, "circle": 80, "triangle": 60}
    covered = {shape: set() for shape in sizes}
    for r in records:
        question, answer, things = r.prompt[0]["content"], r.meta["answer"], cells(r)
        if "How many" in question:
            assert int(answer) == len(things)
        elif "Which colour" in question:
            assert answer in [colour for colour, _ in things]
            if len(things) == 1:
                covered[question.split()[-1].rstrip("?")].add(things[0][1])
        elif "Which shape is" in question:
            [(_, size)] = [thing for thing in things if thing[0] in question]
            covered[answer].add(size)
        elif answer == "yes":
            assert any(colour in question for colour, _ in things)
    assert [len(sizes) for sizes in covered.values()] == [1, 1, 1]  # pixels of each kind of shape
    assert len(set.union(*covered.values())) == 3
    yes = [r.meta["answer"] for r in records if "Is there" in r.prompt[0]["content"]]
    assert 0.3 < yes.count("yes") / len(yes) < 0.7


def test_the_answers_yes_and_no_are_equally_frequent():
    """Also in a full scene, with 9 of the 12 kinds of shapes: an absent one is drawn, not rejected."""
    kinds = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    things = [Thing(cell, *kinds[cell]) for cell in range(9)]
    drawn_for = [_asked("presence", things, Random(seed)) for seed in range(1000)]
    assert None not in drawn_for
    answers = [answer for _, answer in drawn_for]
    assert abs(answers.count("yes") - 500) < 50  # 3 standard deviations
    present = {str(thing) for thing in things}
    assert all((question[len("Is there ") : -1] in present) == (answer == "yes") for question, answer in drawn_for)
    absent = Counter(question for question, answer in drawn_for if answer == "no")
    assert len(absent) == 3
    assert min(absent.values()) > 120


def test_captions_name_every_shape():
    for r in Shapes(kind="caption", **COUNTS).load("train"):
        assert [text.split()[1] for text in r.responses[0].text.split("; ")] == [colour for colour, _ in cells(r)]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"objects": 0}, "skill.objects=0"),
        ({"questions": ["size"]}, "names kinds that are none"),
        ({"questions": []}, "names kinds that are none"),
        ({"objects": 1, "train": 200}, "fewer than skill.train=200"),
    ],
)
def test_settings_without_scenes_are_reported(changes, told):
    with pytest.raises(ValueError, match=told):
        Shapes(**{**COUNTS, **changes}).load("train")


# ---- own files -------------------------------------------------------------------------------------------------------

COLUMNS = {"image": "{file}", "question": "{asked}", "answer": "{answer}"}


def rows(folder, *, files=20, changes=()):
    """A table beside files of images, two questions about each."""
    for i in range(files):
        decoded(drawn(np.full((4, 4, 3), i))).save(folder / f"{i}.png")
    lines = [{"file": f"{i}.png", "asked": f"{what}?", "answer": f"{i}"} for i in range(files) for what in ("a", "b")]
    for i, change in changes:
        lines[i] |= change
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_own_rows_name_files_beside_them(tmp_path):
    skill = Dataset(rows(tmp_path), columns=COLUMNS, train=20, validation=4, test=8)
    splits = {split: load(skill, split) for split in SPLITS}
    assert {split: len(own) for split, own in splits.items()} == {"train": 20, "validation": 4, "test": 8}
    for r in splits["train"]:
        assert np.asarray(decoded(r.images[0]))[0, 0, 0] == int(r.responses[0].text)
        assert r.prompt[0]["content"] in (f"{PLACE}a?", f"{PLACE}b?")
    images = {split: {r.images[0] for r in own} for split, own in splits.items()}
    assert not images["train"] & images["test"]  # though each has two questions, which are the same everywhere
    assert not images["validation"] & images["test"]


def test_a_missing_file_is_named_by_file_and_line(tmp_path):
    path = rows(tmp_path, changes=[(6, {"file": "gone.png"})])
    with pytest.raises(ValueError, match=r"rows.jsonl:7 names the image gone.png, but there is no file"):
        Dataset(path, columns=COLUMNS).load("train")


def test_several_images_places_and_demonstrations(tmp_path):
    path = rows(tmp_path, changes=[(i, {"file": ["0.png", f"{i // 2}.png"]}) for i in range(40)])
    skill = Dataset(path, columns=COLUMNS, few_shot=1, test=4, validation=2)
    r = load(skill, "test")[0]
    assert len(r.images) == 4
    assert [m["content"].count(PLACE) for m in r.prompt] == [2, 0, 2]
    parts = [{"type": "text", "text": "First"}, {"type": "image"}, {"type": "text", "text": "then?"}]
    lines = [{"pictures": [f"{i}.png"], "talk": [{"role": "user", "content": parts}], "said": "x"} for i in range(20)]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    talk = Dataset(
        str(tmp_path / "talk.jsonl"),
        columns={"images": "{pictures}", "messages": "{talk}", "response": "{said}"},
    )
    assert load(talk, "train")[0].prompt[0]["content"] == f"First{PLACE}then?"


def test_images_of_the_hub_are_read_as_files(tmp_path):
    decoded(drawn(np.full((4, 4, 3), 7))).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    table = Table.from_list(
        [{"picture": {"bytes": content, "path": None}, "label": 7}],
        features=Features({"picture": Feature(), "label": Value("int64")}),
    )
    [row] = list(undecoded(table))
    assert image_in(row["picture"], tmp_path).data == content


# ---- identity --------------------------------------------------------------------------------------------------------


def test_another_image_is_another_run_and_records_of_text_stay_what_they_were(tmp_path):
    def digest():
        made.cache_clear()
        return _records_digest.__wrapped__(node)

    node = json.dumps({"_target_": "kd.skills.dataset.Dataset", "path": rows(tmp_path), "columns": COLUMNS})
    before = digest()
    decoded(drawn(np.full((4, 4, 3), 200))).save(tmp_path / "3.png")
    assert digest() != before
    text = Record("a", "s", ({"role": "user", "content": "Q"},), (Response("A"),), ("labeling",), {"k": 1})
    assert _plain(_content(text)) == {
        "id": "a",
        "skill": "s",
        "prompt": [{"role": "user", "content": "Q"}],
        "responses": [{"text": "A", "source": "reference", "score": None}],
        "provenance": ["labeling"],
        "meta": {"k": 1},
        "control_tokens": False,
    }
    shown = [_content(replace(text, images=(drawn(np.full((2, 2, 3), i)),))) for i in (1, 2)]
    assert shown[0] != shown[1]
