"""The table of a run's variants: skills and variants down, systems across."""

from collections.abc import Mapping
from typing import Any

from kd.metrics.table import of_results
from kd.reports.grid import Grid, interval, number, share
from kd.reports.table import NAMES, systems_in


def robustness_grid(results: Mapping[str, Any]) -> Grid | None:
    """The metric that stands first, of each skill and variant; None where the run has no variants."""
    rows, notes = list[tuple[list[str], Mapping[str, Any]]](), list[str]()
    for skill, variants in (results.get("robustness") or {}).items():
        for variant, found in variants.items():
            notes += _left_out(skill, variant, found)
            for metric, systems in list(found["metrics"].items())[:1]:
                heading = f"{skill}\n{of_results(results, metric).title}"
                rows.append(([heading, f"{variant}\nn={found['items']}"], systems))
    if not rows:
        return None
    systems = systems_in([row for _, row in rows])
    body = [[*names, *(_cell(row.get(name)) for name in systems)] for names, row in rows]
    notes.append("Each cell: score on the changed items, how much worse than on the same items as they are, flips.")
    notes.append("Intervals are of paired differences; other metrics and attack success are in results.json.")
    header = ["skill", "variant", *(NAMES.get(one, f"{one}, equal steps") for one in systems)]
    return Grid("Robustness", header, body, notes, labels=2)


def _cell(pair: Mapping[str, Any] | None) -> str:
    if pair is None or pair["varied"]["value"] is None:
        return "–"
    drop = f"drop {number(pair['drop']['value'])} {interval(pair['drop'])}".strip()
    return f"{number(pair['varied']['value'])} ({drop})\n{share(pair['flipped']['value'])} flip"


def _left_out(skill: str, variant: str, found: Mapping[str, Any]) -> list[str]:
    """A sentence on the items that are not measured, by the reason."""
    same, too_long = found["left_out"], found.get("too_long", 0)
    parts = [f"leaves {same} as they are"] if same else []
    parts += [f"makes {too_long} too long for an answer"] if too_long else []
    given = found["items"] + same + too_long
    what = f"{skill}: {variant} {' and '.join(parts)}"
    return [f"{what}, of {given} items; these are in no number here."] if parts else []
