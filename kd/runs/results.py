"""The schema of `results.json`, the last page of a run folder (`docs/run_folder.md`).

Units, ranges and directions of metrics are in the file itself (`metrics`); the rest is in bytes and seconds. A number
that does not exist (NaN, infinite) is null.
"""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    ValidationError,
    field_validator,
    model_validator,
)

from kd.artifacts import file_sha256
from kd.metrics.table import ON_TEACHER, Subject
from kd.runs.costs import Budget, Efficiency, Elicitation, Verdicts
from kd.runs.estimates import Estimate, VariantScores

SCHEMA_VERSION: Final = 1
SYSTEMS = ("uniform", "floor", "before", "sft", "after", "teacher")  # in the order of a report's rows

ConfigHash = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]


class _Page(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SystemScores(_Page):
    """The scores of one metric, for the student before and after and for the systems that it is compared with.

    A student of equal steps under another objective than sft may be added under that objective's name.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Estimate | None]

    before: Estimate
    after: Estimate
    uniform: Estimate | None = None
    floor: Estimate | None = None
    sft: Estimate | None = None
    teacher: Estimate | None = None


class StudentAgreement(_Page):
    """The agreement of each student with the teacher on the same positions; other objectives' as in SystemScores."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Estimate | None]

    before: Estimate
    after: Estimate
    sft: Estimate | None = None


class MetricFacts(_Page):
    """The facts of a metric (`kd.metrics.table.Metric`); an end of the range that is infinite is null."""

    heading: str
    unit: str
    low: float | None
    high: float | None
    higher_is_better: bool
    of: Subject


Agreement = dict[str, StudentAgreement]  # by metric of ON_TEACHER


class Digests(_Page):
    """Content hashes that must agree between runs which are to be compared; more may be added by name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, str]

    initial_weights: str
    data_order: str
    evaluation_items: str


class SplitRecords(_Page):
    """Numbers of a split's records, by the effect of `data.max_length`.

    given: all. left_out: in training and answers, those whose prompt leaves no room for a response; in validation and
    test, those whose first response does not fit whole, which are not scored. truncated: in training, the others with a
    response that is truncated.
    """

    given: NonNegativeInt
    left_out: NonNegativeInt
    truncated: NonNegativeInt = 0


class Records(_Page):
    """The records of a run: those that it may learn from, the references that are scored, the prompts answered."""

    train: SplitRecords
    validation: SplitRecords
    test: SplitRecords
    answers: SplitRecords = SplitRecords(given=0, left_out=0)  # prompts of the test split


class Origin(_Page):
    """The data, a teacher, or the student's first weights: a name or address, and the licence, which may be unknown."""

    which: str
    licence: str


class Overlap(_Page):
    """Items of a split, and the ids of those that share text with a training record."""

    items: NonNegativeInt
    overlapping: list[str]


class Contamination(_Page):
    """The overlap of the splits in use with the training records, by as many words in a row."""

    words: NonNegativeInt
    splits: dict[str, Overlap]


class SkippedRows(_Page):
    """Rows of a skill's files that could not be read and were skipped; the first of them, with file and line."""

    count: NonNegativeInt
    first: list[str]


class Judge(_Page):
    """How far the verdicts of a judge can be trusted; its fields are in docs/run_folder.md.

    model: digests of its weights and tokenizer; of a panel, its judges. metrics: those that are made of its verdicts.
    voting: of a panel, the judges with a verdict on an item. left_out, labelled_left_out: items, and labelled pairs,
    that do not fit it. cost: of a panel none, for its judges have theirs; nor from before it was counted.
    """

    model: str
    verdict: Literal["text", "likelihood", "majority"]
    version: int
    metrics: list[str]
    labelled: str | None
    agreement: Estimate | None
    kappa: Estimate | None
    unparsable: Estimate | None
    position_bias: Estimate | None
    shown_first: Estimate | None
    longer: Estimate | None
    between: Estimate | None
    voting: Estimate | None = None
    left_out: NonNegativeInt
    labelled_left_out: NonNegativeInt = 0
    cost: Verdicts | None = None


class Results(_Page):
    """`results.json` of a run that reached its end."""

    schema_version: Literal[1] = SCHEMA_VERSION
    status: Literal["done"] = "done"
    config_hash: ConfigHash
    seed: int
    family: ConfigHash | None = None  # shared by runs that differ in their seed alone; None: not recorded
    baseline: ConfigHash | None = None  # the run beside it (`compare`); None: there was none, or it was not recorded
    scores: dict[str, dict[str, SystemScores]]
    gap_closed: dict[str, dict[str, float | None]]
    robustness: dict[str, dict[str, VariantScores]] = {}  # by skill and variant
    metrics: dict[str, MetricFacts] = {}  # of each metric; none: from before they were recorded
    agreement: Agreement | None = None  # without a teacher there is none
    budget: Budget
    digests: Digests
    omits: list[str] = []  # parts of its paper that the method lacks
    code: str | None = None  # digest of kd's syntax trees; None: from before it was recorded
    versions: dict[str, int | str] = {}  # of the components that it depends on (`kd.versions.versions`)
    records: Records | None = None  # None: from before they were counted
    sandbox: Literal["bubblewrap", "landlock", "none"] | None = None  # of verifiers; None: none was needed
    verifier_errors: dict[str, NonNegativeInt] = {}  # system -> answers on which the verifier failed, counted as wrong
    undecided: dict[str, dict[str, dict[str, NonNegativeInt]]] = {}  # skill, metric, system -> without a verdict
    origins: dict[str, Origin] = {}  # by role; none: from before they were recorded
    efficiency: dict[Literal["student", "teacher"], Efficiency] = {}
    elicitation: Elicitation | None = None  # None: there was no stage, or from before it was recorded
    contamination: Contamination | None = None
    skipped_rows: dict[str, SkippedRows] = {}  # by skill
    judges: dict[str, Judge] = {}  # by name
    cautions: list[str] = []  # features of the run that may not be intended

    @field_validator("agreement")
    @classmethod
    def _whole(cls, agreement: Agreement | None) -> Agreement | None:
        if agreement is not None and set(agreement) != set(ON_TEACHER):
            raise ValueError(f"agreement has {', '.join(sorted(agreement))} instead of {', '.join(ON_TEACHER)}")
        return agreement

    @model_validator(mode="after")
    def _described(self) -> "Results":
        found = {name for metrics in self.scores.values() for name in metrics} | set(self.agreement or ())
        if self.metrics and (lacking := sorted(found - self.metrics.keys())):
            raise ValueError(f"metrics has no facts of {', '.join(lacking)}")
        return self


class Failure(_Page):
    """`results.json` of a run that raised; the traceback lies beside it."""

    schema_version: Literal[1] = SCHEMA_VERSION
    status: Literal["failed"] = "failed"
    config_hash: str
    reason: str


def validated(results: dict[str, Any]) -> dict[str, Any]:
    """`results` with non-finite numbers as None and defaults filled in, ready for json.

    Raises:
        ValueError: names the first field that does not fit the schema.
    """
    return _checked(Results, finite(results))


def read_results(folder: Path) -> dict[str, Any]:
    """The content of a run folder's results.json, of a finished or of a failed run, with defaults filled in.

    Raises:
        ValueError: in one sentence, which names the file: it is missing, torn, of another schema, or of another run
            than its folder.
    """
    path = folder / "results.json"
    try:
        text = path.read_bytes()
        if (found := _whole(text)) is not None:
            _check_hash(folder, found["config_hash"], text)
            return found
        page = json.loads(text.decode("utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except OSError as error:  # a folder of that name, no permission
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    except ValueError as error:  # also of bytes that are no text
        raise ValueError(f"{path} is torn ({error})") from None
    version = page.get("schema_version") if isinstance(page, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path} has schema_version {version}, and this version of kd reads {SCHEMA_VERSION}")
    try:
        page = _checked(Failure if page.get("status") == "failed" else Results, page)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    _check_hash(folder, page["config_hash"], text)
    return page


def _whole(text: bytes) -> dict[str, Any] | None:
    """The content of a finished run's file; None where it is anything else."""
    try:
        return Results.model_validate_json(text).model_dump()
    except ValidationError:
        return None


def check_page(folder: Path, name: str) -> None:
    """Raises ValueError if the file `name` of a run that is DONE is missing, or other than when the run ended."""
    path, marks = folder / name, _marks(folder)
    if name not in marks:  # DONE of before it was recorded, or no DONE
        return
    again = "to make it again, run the same command with run.force=true"
    if not path.is_file():
        raise ValueError(f"{path} is missing, though the run is DONE; {again}")
    if file_sha256(path) != marks[marks.index(name) - 1]:
        raise ValueError(f"{path} was changed or damaged since the run ended; {again}")


def _marks(folder: Path) -> list[str]:
    """The words of DONE: the hash, the sha256 of results.json, and pairs of sha256 and name; without DONE none."""
    done = folder / "DONE"
    return done.read_text(encoding="utf-8", errors="replace").split() if done.is_file() else []


def _check_hash(folder: Path, found: str, text: bytes) -> None:
    """Against the folder's name, where that ends with a hash, and its DONE, which has the sha256 of the file, too."""
    path = folder / "results.json"
    named = re.search(r"-([0-9a-f]{12})(\.old-\d+)?$", folder.absolute().name)
    marks = _marks(folder) if (folder / "DONE").exists() else [found]
    for where, expected in (("the folder's name", named[1] if named else found), ("DONE", "".join(marks[:1]))):
        if expected != found:
            raise ValueError(f"{path} is of the run {found}, and {where} of {expected or 'none'}")
    if len(marks) > 1 and marks[1] != hashlib.sha256(text).hexdigest():
        raise ValueError(f"{path} was changed or damaged since the run ended")


def _checked(schema: type[BaseModel], page: dict[str, Any]) -> dict[str, Any]:
    try:
        return schema.model_validate(page).model_dump(mode="json", exclude_none=False)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ValueError(f"results.json: {where}: {first['msg']}{more}; see docs/run_folder.md") from None


def finite(value: Any) -> Any:
    """`value` with every NaN and infinity replaced by None: json has no such numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
