"""A metric of all answers together: numbers of each answer, and one number made of those of all."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np


class CorpusMetric(ABC):
    """Called with the inputs of one answer, an instance returns its row of numbers (or labels); `total` combines rows.

    Intervals resample rows, in groups, and combine those; so whatever `total` requires of an answer is in its row.

    Attributes:
        of_one: whether `total` of a single answer is a value of it; a correlation has none.
    """

    of_one: ClassVar[bool] = True

    def coded(self, rows: np.ndarray) -> np.ndarray:
        """Rows that `total` combines to the same number, faster: made once, before thousands of draws of them."""
        return rows

    @abstractmethod
    def total(self, rows: np.ndarray) -> float:
        """The metric of rows `[n k]`; NaN where it is not defined for them."""
