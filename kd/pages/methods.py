"""docs/methods.md, made of the comments, choices and settings of the files in conf/method.

The comment at the head of a file has one block for each sentence that begins a line: the method and its authors,
`Beside ...` the difference from its neighbours, `Theirs: ...` the authors' settings, `Read: ...` the code in which they
were read, and what else a user needs.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from kd.components.axes import AXES
from kd.components.choices import CONF, axes, choices
from kd.components.signatures import shown
from kd.composition.formula import sources, typeset
from kd.composition.suggestions import flattened

PAGE = CONF.parent / "docs" / "methods.md"
COLUMNS = ("objective", "rollout", "reward", "augmentation")
HEAD = """\
# Methods

Made by `make docs` from the files in `conf/method`; change those.

A method is a point of the axes and some values, nothing else: `method=NAME` makes the choices in its row, and any other
combination is a run, too. Beside a method, a choice that would make it another one is refused. No method sets the
optimizer, its steps and window, lengths of texts, the models, or which checkpoint is kept: those are the run's, and a
student that was tuned before is `student.prepare`.

*Theirs* are the authors' settings, each with how it was found: [code] read in released code, [read] read in the paper
or in another public source about it, [unconfirmed] remembered, a hint and no more. *Read* names the repository, commit
and files; where none of the authors' could be read, this is stated. *Set* are the values of this project, made to run
on a small pair too; the comment on each in the method's file names the place that it comes from.
"""


class Source(NamedTuple):
    """A commit of a public repository that a method was checked against."""

    repository: str  # owner/name on GitHub
    commit: str  # its first digits

    @property
    def link(self) -> str:
        """The link in Markdown."""
        name = self.repository.partition("/")[2]
        return f"[{name}@{self.commit}](https://github.com/{self.repository}/commit/{self.commit})"


def page(conf: Path = CONF) -> str:
    """The whole of docs/methods.md."""
    names = choices("method", conf)
    return "\n".join([HEAD, _overview(names, conf), *(_section(name, conf) for name in names)])


def comment(name: str, conf: Path = CONF) -> list[str]:
    """The blocks of the comment at the head of a method's file."""
    blocks: list[str] = []
    for line in _path(name, conf).read_text(encoding="utf-8").splitlines()[1:]:  # after @package
        if not line.startswith("#"):
            break
        if blocks and not blocks[-1].endswith("."):
            blocks[-1] += " " + line.lstrip("# ")
        else:
            blocks.append(line.lstrip("# "))
    return blocks


def sources_read(name: str, conf: Path = CONF) -> list[Source]:
    """The commits that the block `Read: ...` names; none where no code could be read."""
    read = " ".join(block for block in comment(name, conf) if block.startswith("Read: "))
    return [Source(*found) for found in re.findall(r"([\w.-]+/[\w.-]+) at ([0-9a-f]{7,40})\b", read)]


def settings(name: str, conf: Path = CONF) -> dict[str, Any]:
    """The values that the file sets beside its choices, by dotted path."""
    own = {key: value for key, value in _content(name, conf).items() if key not in ("defaults", "omits")}
    return {path: value for path, value in flattened(own).items() if not isinstance(value, Mapping)}


def omissions(name: str, conf: Path = CONF) -> list[str]:
    """The parts of the paper that the method omits."""
    return list(_content(name, conf).get("omits") or [])


def _content(name: str, conf: Path) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(_path(name, conf)), resolve=False)  # type: ignore[return-value]


def _path(name: str, conf: Path) -> Path:
    return conf / "method" / f"{name}.yaml"


def _overview(names: list[str], conf: Path) -> str:
    rows = [f"| method | paper | read | {' | '.join(COLUMNS)} | omits |", "|---" * (len(COLUMNS) + 4) + "|"]
    for name in names:
        chosen = axes("method", name, conf)
        cells = [" + ".join(f"`{file}`" for file in chosen.get(axis, ())) or "–" for axis in COLUMNS]
        omits = "; ".join(omissions(name, conf)) or "nothing"
        read = ", ".join(source.link for source in sources_read(name, conf)) or "no code"
        rows.append(f"| [{name}](#{name}) | {_paper(name, conf)} | {read} | {' | '.join(cells)} | {_cell(omits)} |")
    return "\n".join(rows) + "\n"


def _paper(name: str, conf: Path) -> str:
    """The first paper that the comment cites; for one in no archive, the sentence that cites it."""
    first = comment(name, conf)[0]
    if (found := next(iter(sources(first)), "")) and found[0].isdigit():
        return f"[arXiv {found}](https://arxiv.org/abs/{found})"
    return _cell(first.rstrip(".").split(". ")[-1])


def _section(name: str, conf: Path) -> str:
    first, *others = map(typeset, comment(name, conf))
    chosen = axes("method", name, conf)
    also = ", ".join(f"`{axis}={'+'.join(chosen[axis])}`" for axis in AXES if axis in chosen and axis not in COLUMNS)
    values = ", ".join(f"`{path}={shown(value)}`" for path, value in settings(name, conf).items())
    lines = [f"## {name}", "", first, "", *(f"- {block}" for block in others)]
    lines += [f"- Also chosen: {also}."] if also else []
    lines += [f"- Set: {values}."] if values else []
    lines += [f"- Omits: {typeset(sentence)}." for sentence in omissions(name, conf)]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """The text with bars escaped, for a cell of a table."""
    return typeset(text).replace("|", "\\|")
