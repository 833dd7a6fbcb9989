"""`positions.csv` of a run folder: divergence, agreement and entropy by the position of a token in its response."""

import csv
import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt, ValidationError, model_validator

from kd.runs.estimates import Page
from kd.runs.results import check_page

NAME = "positions.csv"
Responses = Literal["references", "own", "teacher"]


class PositionBin(Page):
    """The tokens of all responses at the positions `first` to `last`, counted from 1.

    skill, system: of the responses; responses: the `references`, or with `evaluation.excess_error` the system's `own`
    or the `teacher`'s. n: tokens. The others are means over these, in nats but for top1; None: not measured.
    """

    skill: str
    system: str
    responses: Responses
    first: PositiveInt
    last: PositiveInt
    n: NonNegativeInt
    top1: float | None
    forward_kl: float | None
    reverse_kl: float | None
    entropy: float | None
    teacher_entropy: float | None

    @model_validator(mode="after")
    def _ordered(self) -> "PositionBin":
        if self.first > self.last:
            raise ValueError(f"first={self.first} is above last={self.last}")
        if self.top1 is not None and not 0 <= self.top1 <= 1:
            raise ValueError(f"top1={self.top1} is no share")
        return self


COLUMNS = tuple(PositionBin.model_fields)
VALUES = COLUMNS[6:]


def positions_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """The text of positions.csv; numbers that are not finite are empty.

    Raises ValueError for a row that does not fit `PositionBin`.
    """
    found = [PositionBin.model_validate({key: _finite(value) for key, value in row.items()}) for row in rows]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [COLUMNS, *([getattr(one, name) for name in COLUMNS] for one in found)]
    )
    return text.getvalue()


def read_positions(folder: Path) -> list[PositionBin]:
    """The content of positions.csv; nothing where a run has none, as one from before it was written.

    Raises ValueError, which names the file, if it is not as it was when the run ended, or torn.
    """
    path = folder / NAME
    check_page(folder, NAME)
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        if not text.endswith("\n"):
            raise ValueError("its last row is incomplete")
        found = csv.DictReader(io.StringIO(text, newline=""), restval="missing", strict=True)
        rows = [{key: value or None for key, value in row.items()} for row in found]
        return [PositionBin.model_validate(row) for row in rows]
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "a row"
        raise ValueError(f"{path} is torn ({where}: {error.errors()[0]['msg']})") from None
    except (ValueError, csv.Error, TypeError) as error:
        raise ValueError(f"{path} is torn ({error})") from None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
