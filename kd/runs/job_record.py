"""The record `jobs/<num>.json` that a job of a sweep leaves (`docs/run_folder.md`), checked when it is read."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, NonNegativeInt, ValidationError

Status = Literal["waiting", "running", "done", "skipped", "failed", "interrupted"]


class JobRecord(BaseModel):
    """The content of a record; keys that a later version adds are left out."""

    num: NonNegativeInt
    overrides: list[str]
    status: Status
    run_folder: str | None  # relative to the sweep folder
    reason: str | None
    seconds: float | None
    objective: float | None = None
    omits: list[str] | None = None
    started: float = 0.0  # unix seconds


def read_record(path: Path) -> dict[str, Any]:
    """The content of a job's record, with defaults filled in.

    Raises:
        ValueError: in one sentence, which names the file: it cannot be read, is torn, is no record, or another job's.
    """
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:  # a folder of that name, no permission
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    except ValueError as error:  # also of bytes that are no text
        raise ValueError(f"{path} is torn ({error})") from None
    try:
        record = JobRecord.model_validate(page)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = (
            f"it has no {where}" if first["type"] == "missing" else f"{where}: {first['msg']}" if where else "no keys"
        )
        raise ValueError(f"{path} is no record of a job: {what}") from None
    if path.stem != str(record.num):
        raise ValueError(f"{path} is the record of job {record.num}, and its name that of job {path.stem}")
    return record.model_dump()
