"""Generates docs/coverage.md: every leaf of both surveys, the command that runs it, its test, and what is missing.

`python -m kd.pages.coverage --check` compares instead of writing, and exits with 1 where the page is out of date.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

from kd.components.choices import CONF
from kd.pages.leaves import PARTS, Leaf
from kd.skills.grid import HUB, OWN, PROMPTS, Entry, by_leaf

PAGE = CONF.parent / "docs" / "coverage.md"
SKILLS = "tests/skills/test_grid.py::test_every_skill_accepts_its_references_and_refuses_others"
VISION_SKILLS = "tests/skills/test_vision_skills.py::test_an_image_is_in_one_split_alone_and_the_same_at_every_call"
HEAD = """\
# Coverage of the surveys

Made by `make docs` from `kd/pages/leaves.py`, `kd/pages/elicitation.py` and the files in `conf/skill`; change those.
A is *A Survey on Knowledge Distillation of Large Language Models* (arXiv 2402.13116), B is *Survey on Knowledge
Distillation for Large Language Models* (arXiv 2407.01885). A leaf has a command, which composes with the defaults,
and a test, or what is missing is named, or both. The methods since the surveys are in [methods.md](methods.md), all
terms in [objectives.md](objectives.md), all skills in [grid.md](grid.md).
"""


def parts() -> dict[str, tuple[Leaf, ...]]:
    """All leaves by part of a survey: those of `kd.pages.leaves`, and those of the grid of skills."""
    skills = tuple(_of_skills(title, entries) for title, entries in by_leaf() if title != OWN)
    return {**PARTS, "A and B · skills and verticals": skills}


def page() -> str:
    """The page as it should be."""
    every = [leaf for leaves in parts().values() for leaf in leaves]
    run = [leaf for leaf in every if leaf.words]
    whole = [leaf for leaf in run if not leaf.missing]
    count = (
        f"{len(every)} leaves: {len(whole)} run, {len(run) - len(whole)} run in part, {len(every) - len(run)} do not.\n"
    )
    return "\n".join([HEAD, count, *_tables(), ""])


def command(leaf: Leaf) -> str:
    """The command line of a leaf that runs."""
    return f"python run.py {leaf.words}"


def _tables() -> Iterator[str]:
    for title, leaves in parts().items():
        yield f"## {title}\n"
        yield "| leaf | command | test | missing |"
        yield "|---|---|---|---|"
        yield from map(_row, leaves)
        yield ""


def _row(leaf: Leaf) -> str:
    path, _, name = leaf.test.partition("::")
    test = f"[{name or path.rpartition('/')[2]}](../{path})" if path else ""
    return f"| {leaf.name} | {f'`{command(leaf)}`' if leaf.words else ''} | {test} | {leaf.missing} |"


def _of_skills(title: str, entries: Sequence[Entry]) -> Leaf:
    """The leaf of a group of skills, which its first one with references runs whose data need no permission."""
    free = [one for one in entries if not one.name.startswith(HUB) and not any("sdist:" in s for s in one.sources)]
    if not free:
        return Leaf(title, missing="embedded data")
    first = next((one for one in free if not one.name.startswith(PROMPTS)), free[0])
    words = [f"skill={first.name}"]
    if first.images:
        words = ["teacher=images/tiny", "student=images/tiny", *words]
    if first.name.startswith(PROMPTS):
        words += ["rollout=on_policy", "objective=rkl"]
    return Leaf(title, " ".join(words), VISION_SKILLS if first.images else SKILLS)


def main(arguments: list[str] | None = None) -> None:
    """Command line of `python -m kd.pages.coverage`."""
    parser = argparse.ArgumentParser(prog="python -m kd.pages.coverage", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, and exit with 1 where the page differs")
    if not parser.parse_args(arguments).check:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE} is out of date; run `make docs`")


if __name__ == "__main__":
    main()
