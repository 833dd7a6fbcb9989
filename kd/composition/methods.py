"""docs/methods.md, made of the comments of the files in conf/method and of what they choose and set.

The comment at the head of a file is one block for each sentence that begins a line: what it is and whose, `Beside ...`
what distinguishes it from its neighbours, `Theirs: ...` the authors' settings, and what else a user should know.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kd.composition.choices import CONF, axes, choices
from kd.composition.formula import sources, typeset
from kd.composition.overrides import flattened
from kd.composition.signatures import shown

PAGE = CONF.parent / "docs" / "methods.md"
COLUMNS = ("objective", "rollout", "reward", "augmentation")
ELSEWHERE = ("teacher", "generator", "alignment", "corpus")  # axes that few methods choose
HEAD = """\
# Methods

Made by `make docs` from the files in `conf/method`; change those.

A method is a point of the axes and some values, nothing else: `method=NAME` chooses what its row says, and any other
combination is a run, too. Beside a method, a choice that would make it another one is refused. Most papers start from a
student that was tuned on the references; here that is `student.prepare`, and not counted as an omission.

*Theirs* are the authors' settings, each with how it was found: [code] read in released code, [read] read in the paper
or in another public source about it, [unconfirmed] remembered, a hint and no more. *Set* are the values of this
project, made to run on a small pair too.
"""


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


def settings(name: str, conf: Path = CONF) -> dict[str, Any]:
    """What the file sets beside its choices, by dotted path."""
    own = {key: value for key, value in _content(name, conf).items() if key not in ("defaults", "omits")}
    return {path: value for path, value in flattened(own).items() if not isinstance(value, Mapping)}


def omissions(name: str, conf: Path = CONF) -> list[str]:
    """What the method lacks of its paper."""
    return list(_content(name, conf).get("omits") or [])


def _content(name: str, conf: Path) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(_path(name, conf)), resolve=False)  # type: ignore[return-value]


def _path(name: str, conf: Path) -> Path:
    return conf / "method" / f"{name}.yaml"


def _overview(names: list[str], conf: Path) -> str:
    rows = [f"| method | paper | {' | '.join(COLUMNS)} | omits |", "|---" * (len(COLUMNS) + 3) + "|"]
    for name in names:
        chosen = axes("method", name, conf)
        cells = [" + ".join(f"`{file}`" for file in chosen.get(axis, ())) or "–" for axis in COLUMNS]
        omits = "; ".join(omissions(name, conf)) or "nothing"
        rows.append(f"| [{name}](#{name}) | {_paper(name, conf)} | {' | '.join(cells)} | {_cell(omits)} |")
    return "\n".join(rows) + "\n"


def _paper(name: str, conf: Path) -> str:
    """The first that its comment names; of what is in no archive, the sentence that does."""
    first = comment(name, conf)[0]
    if found := next(iter(sources(first)), None):
        return f"[arXiv {found}](https://arxiv.org/abs/{found})"
    return _cell(first.rstrip(".").split(". ")[-1])


def _section(name: str, conf: Path) -> str:
    first, *others = map(typeset, comment(name, conf))
    chosen = axes("method", name, conf)
    also = ", ".join(f"`{axis}={'+'.join(chosen[axis])}`" for axis in ELSEWHERE if axis in chosen)
    values = ", ".join(f"`{path}={shown(value)}`" for path, value in settings(name, conf).items())
    lines = [f"## {name}", "", first, "", *(f"- {block}" for block in others)]
    lines += [f"- Also chosen: {also}."] if also else []
    lines += [f"- Set: {values}."] if values else []
    lines += [f"- Omits: {typeset(sentence)}." for sentence in omissions(name, conf)]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """For a table, whose columns a bar would break."""
    return typeset(text).replace("|", "\\|")
