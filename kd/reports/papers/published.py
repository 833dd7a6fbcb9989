"""The published numbers of a paper's table, `experiments/<paper>_<table>/published.yaml` (docs/papers.md)."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator, model_validator

import kd
from kd.reports.settings import as_shown
from kd.runs.composed import LOADER

FILE = "published.yaml"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Column(_Part):
    """A column of the table.

    Attributes:
        heading: the paper's.
        skill: that of our runs at full scale, on which they were trained or evaluated.
        metric, scale: where they differ from those of the table.
        higher_is_better: the direction of its numbers.
    """

    heading: str
    skill: str
    metric: str | None = None
    scale: FiniteFloat | None = Field(None, gt=0)
    higher_is_better: bool = True


class Row(_Part):
    """A row of the table.

    Attributes:
        heading: the paper's name of the system.
        arm: the settings of our runs that it stands for, as `{method: minillm, optim.lr: 0.001}`.
        system: the measured system of these runs; `after` is the trained student.
        values: by column.
        deviation: standard deviations over the paper's seeds, by column.
        interval: intervals that the paper states, by column.
        unconfirmed: columns with a number that was not seen in the paper itself.
        lacks: why no run of ours stands for it, where there is none.
    """

    heading: str
    arm: Mapping[str, str] = Field(default_factory=dict)
    system: Literal["after", "before", "sft", "teacher"] = "after"
    values: Mapping[str, FiniteFloat]
    deviation: Mapping[str, FiniteFloat] = Field(default_factory=dict)
    interval: Mapping[str, tuple[FiniteFloat, FiniteFloat]] = Field(default_factory=dict)
    unconfirmed: Sequence[str] = ()
    lacks: str | None = None

    @field_validator("arm", mode="before")
    @classmethod
    def _as_shown(cls, found: Any) -> Any:
        return {key: as_shown(value) for key, value in found.items()} if isinstance(found, Mapping) else found

    def stated(self, column: str) -> tuple[float, float] | None:
        """The interval that the paper states: its own, or a standard deviation to both sides."""
        if column in self.interval:
            return self.interval[column]
        if column not in self.deviation:
            return None
        return self.values[column] - self.deviation[column], self.values[column] + self.deviation[column]


class Direction(_Part):
    """A claim that can be tested at any scale: one row is better than another.

    Attributes:
        better, than: headings of rows.
        on: the columns; none: all in which both have a number.
        stated: where the paper claims it without numbers that were read, as `figure` or `text`.
    """

    better: str
    than: str
    on: Sequence[str] = ()
    stated: str | None = None

    @field_validator("on", mode="before")
    @classmethod
    def _several(cls, found: Any) -> Any:
        return [found] if isinstance(found, str) else found


class Published(_Part):
    """A published table.

    Attributes:
        paper: title, number and table, as a heading.
        source: the address at which the numbers were read.
        setting: models, metric and seeds in one line.
        metric: the name of its metric in our runs.
        scale: published = ours × scale.
        note: a sentence on the numbers, under the table.
    """

    paper: str
    source: str
    setting: str
    metric: str
    scale: FiniteFloat = Field(1.0, gt=0)
    columns: Mapping[str, Column] = Field(min_length=1)
    rows: Sequence[Row] = Field(min_length=1)
    directions: Sequence[Direction] = ()
    note: str | None = None

    @model_validator(mode="after")
    def _checked(self) -> "Published":
        if doubled := {row.heading for row in self.rows if [r.heading for r in self.rows].count(row.heading) > 1}:
            raise ValueError(f"two rows have the heading {min(doubled)}; give each its own")
        for row in self.rows:
            self._check_row(row)
        for i, claim in enumerate(self.directions):
            self._check_direction(f"directions[{i}]", claim)
        return self

    def _check_row(self, row: Row) -> None:
        if row.lacks and row.arm:
            raise ValueError(f"row {row.heading} has an arm, and lacks one ({row.lacks}); keep one of the two")
        for name in ("values", "deviation", "interval", "unconfirmed"):
            for column in getattr(row, name):
                _among(f"row {row.heading}: {name} of {column}", column, self.columns, "column")
        for name in ("deviation", "interval", "unconfirmed"):
            for column in getattr(row, name):
                if column not in row.values:
                    raise ValueError(f"row {row.heading}: {name} of {column}, which has no value there; give it")
        for column, deviation in row.deviation.items():
            if deviation < 0:
                raise ValueError(f"row {row.heading}: deviation of {column} is {deviation:g}; it is not below 0")
        for column, (low, high) in row.interval.items():
            if not low <= row.values[column] <= high:
                raise ValueError(f"row {row.heading}: {row.values[column]:g} of {column} is not in [{low:g}, {high:g}]")

    def _check_direction(self, where: str, claim: Direction) -> None:
        for name in ("better", "than"):
            _among(f"{where}.{name}={getattr(claim, name)}", getattr(claim, name), self.by_heading, "row")
        for column in claim.on:
            _among(f"{where}.on={column}", column, self.columns, "column")
        if claim.better == claim.than:
            raise ValueError(f"{where} compares {claim.better} with itself; name two rows")
        text = f"{where}: {claim.better} better than {claim.than}"
        if not self.compared(claim) or set(claim.on) - set(self.compared(claim)):
            raise ValueError(f"{text} needs a number of both in its columns; add values, or name where it is `stated`")
        if (found := self.difference(claim)) is not None and found <= 0:
            raise ValueError(f"{text} is not what its numbers are: their difference is {found:g}; turn it around")

    @cached_property
    def by_heading(self) -> Mapping[str, Row]:
        """The rows by heading."""
        return {row.heading: row for row in self.rows}

    def metric_of(self, column: str) -> str:
        """The name of a column's metric in our runs."""
        return self.columns[column].metric or self.metric

    def scale_of(self, column: str) -> float:
        """The factor by which our numbers become those of a column."""
        return self.columns[column].scale or self.scale

    def compared(self, claim: Direction) -> list[str]:
        """The columns of a claim: those named, of all in which both rows have a number; of a stated one, of all."""
        rows = [self.by_heading[claim.better], self.by_heading[claim.than]]
        both = [name for name in self.columns if claim.stated or all(name in row.values for row in rows)]
        return [name for name in both if name in claim.on or not claim.on]

    def difference(self, claim: Direction) -> float | None:
        """The published difference, mean over its columns; positive: as claimed. None of a claim without numbers."""
        if claim.stated:
            return None
        better, than = self.by_heading[claim.better], self.by_heading[claim.than]
        found = [
            (better.values[name] - than.values[name]) * (1 if self.columns[name].higher_is_better else -1)
            for name in self.compared(claim)
        ]
        return sum(found) / len(found)

    def confirmed(self, claim: Direction) -> bool:
        """Return whether all numbers of a claim were seen in the paper itself."""
        rows = [self.by_heading[claim.better], self.by_heading[claim.than]]
        return not any(name in row.unconfirmed for row in rows for name in self.compared(claim))


# --- files ---


def folders() -> list[Path]:
    """The folders of papers' tables: `experiments` of the working folder, and the project's."""
    package = Path(kd.__file__).parent
    inside = package / "experiments"
    return [Path.cwd() / "experiments", inside if inside.is_dir() else package.parent / "experiments"]


def papers() -> dict[str, Path]:
    """The files of published numbers by the name of their folder."""
    found = {path.parent.name: path for folder in reversed(folders()) for path in folder.glob(f"*/{FILE}")}
    return dict(sorted(found.items()))


def read_published(name: str) -> Published:
    """The published table of `experiments/NAME`.

    Raises ValueError, in one sentence: there is none of that name, or its file is torn or contradicts itself.
    """
    known = papers()
    _among(f"paper={name}", name, known, f"experiments/*/{FILE}")
    path = known[name]
    try:
        page = yaml.load(path.read_text(encoding="utf-8"), LOADER)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())})") from None
    try:
        return Published.model_validate(_with_on(page))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{name}/{FILE}: {f'{where}: ' if where else ''}{what}") from None


def _with_on(node: Any) -> Any:
    """The content of a file with the key `on` of directions, which YAML reads as true."""
    if isinstance(node, Mapping):
        return {"on" if key is True else key: _with_on(value) for key, value in node.items()}
    return [_with_on(child) for child in node] if isinstance(node, list) else node


def _among(what: str, name: str, known: Mapping[str, Any], noun: str) -> None:
    if name in known:
        return
    near = get_close_matches(name, known, n=1, cutoff=0.4)
    meant = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"{what}: there is no such {noun}; {meant}there are {', '.join(known) or 'none'}")
