"""The findings of checks: one line each, with a remedy where something is wrong."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.table import Table
from rich.text import Text

Verdict = Literal["PASS", "WARN", "FAIL"]
COLOURS: dict[Verdict, str] = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red"}


@dataclass(frozen=True)
class Finding:
    """The outcome of one check. A FAIL makes the run's numbers wrong; a WARN should be examined."""

    verdict: Verdict
    check: str
    fact: str
    remedy: str = ""


def worst(findings: Iterable[Finding]) -> Verdict:
    """The gravest verdict; PASS where there is none."""
    order: list[Verdict] = ["PASS", "WARN", "FAIL"]
    return max((finding.verdict for finding in findings), key=order.index, default="PASS")


def findings_table(findings: Sequence[Finding]) -> Table:
    """One row per check."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for finding in findings:
        line = f"{finding.fact}; {finding.remedy}" if finding.remedy else finding.fact
        table.add_row(Text(finding.verdict, COLOURS[finding.verdict]), Text(finding.check), Text(line))
    return table
