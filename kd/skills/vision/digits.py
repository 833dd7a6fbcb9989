"""Handwritten digits of 8 x 8 pixels, as questions about images."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from kd.data.divisions import divided
from kd.data.images import PLACE, drawn
from kd.metrics.table import Metric
from kd.skills.answer_metrics import answer_metrics
from kd.skills.licences import check_commercial
from kd.skills.procedural import checked_counts
from kd.types import Record, Response, Skill, Split

QUESTION = "Which digit is this?"
BRIGHTEST = 16  # of a pixel in the data


class Digits(Skill):
    """The 1,797 digits of the UCI test set that scikit-learn holds; an image is in one split alone.

    The splits are cut in an order that is random and the same everywhere; a larger training set contains the smaller.
    The data do not state which of 13 persons wrote a digit, so a person's digits are in several splits.

    Args:
        train, validation, test: numbers of records, at most 1,797 in all.
        metrics: others of the same answers, names of files in `conf/metric`.
        seed: of the order and of the splits.
        commercial_only: as for every skill; the licence was not checked, so it is refused.

    Raises:
        ValueError: a count is negative, or too large in all; scikit-learn is not installed.
    """

    name = "digits"
    metric: str | Metric = Metric("accuracy")
    licence = "CC BY 4.0 (upstream, unchecked)"  # UCI, Optical Recognition of Handwritten Digits
    group_key = "image"
    leaf = "multimodal"
    commercial = None
    images = True

    def __init__(
        self,
        *,
        train: int,
        validation: int,
        test: int,
        metrics: Sequence[str | Mapping[str, Any]] = (),
        seed: int = 0,
        commercial_only: bool = False,
    ) -> None:
        check_commercial(self.name, self.licence, self.commercial, commercial_only=commercial_only)
        self.counts = checked_counts(self.name, train=train, validation=validation, test=test)
        self.metrics, self.seed = answer_metrics(metrics), seed

    def load(self, split: Split) -> tuple[Record, ...]:
        """Records of one split; the data are read at the first call."""
        return self._splits[split]

    def score(self, record: Record, text: str) -> float:
        """1 if the text is the digit, else 0."""
        return float(text.strip() == record.meta["answer"])

    @cached_property
    def _splits(self) -> dict[str, tuple[Record, ...]]:
        records = _records()
        wanted = {split: self.counts[split] for split in ("test", "validation", "train")}  # type: ignore[index]
        found = divided([record.meta["image"] for record in records], wanted, self.seed)
        return {split: tuple(records[i] for i in found[split]) for split in wanted}


def _records() -> list[Record]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError(
            "skill digits reads the data of scikit-learn, which is not installed; pip install 'kd[vision]'"
        ) from None
    data = load_digits()
    return [_record(i, *pair) for i, pair in enumerate(zip(data.images, data.target.tolist(), strict=True))]


def _record(i: int, pixels: np.ndarray, digit: int) -> Record:
    grey = (pixels * 255 / BRIGHTEST).round()
    image = drawn(np.repeat(grey[:, :, None], 3, axis=2))
    return Record(
        id=f"digits/{i}",
        skill="digits",
        prompt=({"role": "user", "content": f"{PLACE}{QUESTION}"},),
        responses=(Response(str(digit)),),
        meta={"answer": str(digit), "image": image.digest},
        images=(image,),
    )
