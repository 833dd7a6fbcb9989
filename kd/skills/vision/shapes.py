"""Drawn scenes of a few coloured shapes on a grid: questions about them, or captions."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, product
from random import Random
from typing import Any, Literal, NamedTuple

import numpy as np

from kd.data.images import PLACE, drawn
from kd.metrics.table import Metric
from kd.skills.answer_metrics import answer_metrics
from kd.skills.licences import check_commercial
from kd.skills.procedural import checked_counts, stream_seed, take_distinct
from kd.types import Image, Record, Response, Skill, Split

VERSION = 2  # the absent shape of a question is drawn among the absent ones, so that half of the answers are yes
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220), "yellow": (230, 210, 40)}
SHAPES = ("circle", "square", "triangle")
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")
CELL = 12  # pixels; an image has 3 x 3 cells
QUESTIONS = ("count", "colour", "shape", "presence")
PRIORITY: tuple[Split, ...] = ("test", "validation", "train")  # the split that keeps a scene which two streams draw


class Thing(NamedTuple):
    """A shape in a cell, numbered by rows."""

    cell: int
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.colour} {self.shape}"


class Shapes(Skill):
    """Scenes of 1 to `objects` shapes in 3 x 3 cells, of 36 x 36 pixels; a scene is in one split alone, once.

    A split is drawn from its own stream and leaves out what a split of higher priority holds (test, then validation,
    then train), so that the test scenes do not depend on how many are trained on.

    Args:
        kind: vqa: a question about each scene | caption: all shapes and their places, in the order of reading.
        train, validation, test: numbers of records.
        objects: the most shapes of a scene, up to 9.
        questions: kinds of questions: count ("How many shapes are there?"), colour ("Which colour is the circle?", of a
            shape that occurs once), shape ("Which shape is red?", likewise), presence ("Is there a red circle?", half
            of them yes).
        metrics: others of the same answers, names of files in `conf/metric`.
        seed: draws other scenes.
        commercial_only: as for every skill; the licence allows commercial use.

    Raises:
        ValueError: a count is negative, a kind of question is unknown, or there are fewer scenes than wanted.
    """

    metric: str | Metric = Metric("exact_match")
    licence = "Apache-2.0"
    group_key = "scene"
    leaf = "multimodal"
    commercial = True
    images = True

    def __init__(
        self,
        *,
        kind: Literal["vqa", "caption"] = "vqa",
        train: int,
        validation: int,
        test: int,
        objects: int = 3,
        questions: Sequence[str] = QUESTIONS,
        metrics: Sequence[str | Mapping[str, Any]] = (),
        seed: int = 0,
        commercial_only: bool = False,
    ) -> None:
        self.name, self.kind = f"shapes_{kind}", kind
        check_commercial(self.name, self.licence, self.commercial, commercial_only=commercial_only)
        self.counts = checked_counts(self.name, train=train, validation=validation, test=test)
        if not 1 <= objects <= len(ROWS) * len(COLUMNS):
            raise ValueError(f"skill.objects={objects} shapes are not between 1 and the 9 cells; take 3")
        if not questions or not set(questions) <= set(QUESTIONS):
            known = ", ".join(QUESTIONS)
            raise ValueError(f"skill.questions={list(questions)} names kinds that are none; take some of {known}")
        self.objects, self.questions = objects, tuple(questions)
        self.metrics, self.seed = answer_metrics(metrics), seed
        self._splits: dict[Split, tuple[Record, ...]] = {}

    def load(self, split: Split) -> tuple[Record, ...]:
        """Records of one split, drawn at the first call."""
        if not self._splits:
            taken: set[str] = set()
            for name in PRIORITY:
                self._splits[name] = self._take(name, taken)
                taken |= {record.meta["scene"] for record in self._splits[name]}
        return self._splits[split]

    def score(self, record: Record, text: str) -> float:
        """1 if the text is the reference but for case and spaces, else 0."""
        return float(_plain(text) == _plain(record.responses[0].text))

    def _take(self, split: Split, taken: set[str]) -> tuple[Record, ...]:
        wanted = self.counts[split]
        records = take_distinct(self._draws(split), wanted, taken, lambda record: {record.meta["scene"]})
        if len(records) < wanted:
            raise ValueError(
                f"{self.name} has about {len(records)} scenes of {self.objects} shapes for {split}, fewer than "
                f"skill.{split}={wanted}; lower it, or raise skill.objects"
            )
        return tuple(records)

    def _draws(self, split: Split) -> Iterator[Record | None]:
        start = stream_seed(self.seed, split)
        for draw in count():
            yield self._record(Random(f"{start} {draw}"), f"{self.name}/{self.seed}/{split}/{draw}")

    def _record(self, random: Random, name: str) -> Record | None:
        """One scene; None where the drawn kind of question has no answer in it."""
        cells = random.sample(range(len(ROWS) * len(COLUMNS)), random.randint(1, self.objects))
        things = [Thing(cell, random.choice([*COLOURS]), random.choice(SHAPES)) for cell in sorted(cells)]
        if self.kind == "caption":
            pair = "Describe the image.", "; ".join(f"{thing} at {_place(thing)}" for thing in things)
        elif (found := _asked(random.choice(self.questions), things, random)) is None:
            return None
        else:
            pair = found
        return Record(
            id=name,
            skill=self.name,
            prompt=({"role": "user", "content": PLACE + pair[0]},),
            responses=(Response(pair[1]),),
            meta={"answer": pair[1], "scene": " ".join(map("{0.cell}{0.colour}{0.shape}".format, things))},
            images=(scene(things),),
        )


def scene(things: Sequence[Thing]) -> Image:
    """The drawn scene, on black."""
    pixels = np.zeros((len(ROWS) * CELL, len(COLUMNS) * CELL, 3), dtype=np.uint8)
    for thing in things:
        y, x = divmod(thing.cell, len(COLUMNS))
        pixels[y * CELL : (y + 1) * CELL, x * CELL : (x + 1) * CELL][_mask(thing.shape)] = COLOURS[thing.colour]
    return drawn(pixels)


def _mask(shape: str) -> np.ndarray:
    """The pixels of a cell that a shape covers, a pixel away from its sides; integers alone, so the same everywhere."""
    inner = CELL - 2
    y, x = np.mgrid[:inner, :inner]
    across, down = 2 * x - (inner - 1), 2 * y - (inner - 1)
    masks = {"square": x >= 0, "circle": across**2 + down**2 <= inner**2, "triangle": abs(across) <= y + 1}
    return np.pad(masks[shape], 1)


def _asked(kind: str, things: Sequence[Thing], random: Random) -> tuple[str, str] | None:
    """A question and its answer; None where no shape, or colour, occurs once."""
    if kind == "count":
        return "How many shapes are there?", str(len(things))
    if kind == "presence":
        present = {thing[1:] for thing in things}
        absent = [pair for pair in product(COLOURS, SHAPES) if pair not in present]  # of 12, of which 9 can be present
        right = random.random() < 0.5
        shown = random.choice(things) if right else Thing(0, *random.choice(absent))
        return f"Is there {shown}?", "yes" if right else "no"
    own = [getattr(thing, "shape" if kind == "colour" else "colour") for thing in things]
    single = [thing for thing, value in zip(things, own, strict=True) if Counter(own)[value] == 1]
    if not single:
        return None
    thing = random.choice(single)
    if kind == "colour":
        return f"Which colour is the {thing.shape}?", thing.colour
    return f"Which shape is {thing.colour}?", thing.shape


def _place(thing: Thing) -> str:
    y, x = divmod(thing.cell, len(COLUMNS))
    return f"{ROWS[y]} {COLUMNS[x]}"


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
