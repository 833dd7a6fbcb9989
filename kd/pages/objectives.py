"""Generates docs/objectives.md from docstrings and conf/objective, and docs/methods.md (`kd.pages.methods`).

`python -m kd.pages.objectives --check` compares instead of writing, and exits with 1 where a page is out of date.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from inspect import Parameter
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kd.components.choices import CONF, axes, choices
from kd.components.instantiation import instantiate
from kd.components.signatures import in_words, located, shown
from kd.composition.formula import formula, gradient, in_short, prose, sources, typeset
from kd.composition.terms import signals_of
from kd.pages import methods as method_pages
from kd.signals import domain, is_row_wise, requires

PAGE = CONF.parent / "docs" / "objectives.md"
PEERS = PAGE.with_name("conversion.md")  # written by hand: our settings for the losses of other projects
OVER = {"*n": "a response token", "B T": "a token", "B": "a response", "P": "a pair or prompt"}
HEAD = """\
# Objectives

Made by `make docs` from the docstrings in `kd/objectives` and the files in `conf/objective`; change those.

Choose one with `objective=NAME`, several with `'objective=[NAME,NAME]'`; the run prints the composed formula first.
Defaults are those of the file; what is *shared* is set once at the top level of the config (`temperature=2`) for every
term. A *chunked* term runs through the head a few rows at a time, so that logits of the whole vocabulary never exist
for all tokens of a batch.
"""


@dataclass(frozen=True)
class Entry:
    """One term of one file of conf/objective."""

    file: str
    name: str
    beside: tuple[str, ...]  # files that it includes
    node: Mapping[str, Any]  # interpolations as they are
    known: DictConfig  # a config in which they can be followed
    text: str  # of the yaml file

    @cached_property
    def callee(self) -> Callable:
        """The function, or the class, that `_target_` names."""
        return located(f"objective.{self.name}.loss", self.node["loss"]["_target_"])

    @property
    def heading(self) -> str:
        """The name on the command line, and the term's where the file has another for it."""
        return self.file if self.file == self.name else f"{self.file}: {self.name}"

    @property
    def comment(self) -> str:
        """The comment in the first lines of the file."""
        lines = []
        for line in self.text.splitlines():
            if not line.startswith("#"):
                break
            lines.append(line.lstrip("# "))
        return typeset(" ".join(lines))

    @property
    def papers(self) -> dict[str, str]:
        """arXiv number -> equation or section."""
        return sources(prose(self.callee), self.comment, *re.findall("# (.*)", self.text))

    @property
    def papers_of_parts(self) -> dict[str, str]:
        """The papers of the functions that are its hyperparameters."""
        _, *parts = _calls(self.node["loss"])
        return sources(*(prose(located(self.name, node["_target_"])) for node in parts))

    @cached_property
    def chunked(self) -> bool:
        """True if the head runs in chunks under this term; a class is instantiated for the tiny models."""
        loss = self.callee if not inspect.isclass(self.callee) else instantiate(self._resolved, _convert_="all")
        return is_row_wise(loss)

    @cached_property
    def _resolved(self) -> Any:
        return OmegaConf.select(self.known, f"objective.{self.name}.loss")

    def settings(self) -> Iterator[tuple[str, str, str, str, str]]:
        """Hyperparameters: name, type, default, the docstring's words on it, and the file's on the default."""
        explained = arguments(prose(self.callee))
        for key, parameter in inspect.signature(self.callee).parameters.items():
            if not inspect.isclass(self.callee) and parameter.kind is not Parameter.KEYWORD_ONLY:
                continue
            default = self._default(key, parameter)
            yield key, in_words(parameter.annotation), default, explained.get(key, ""), self._comment_of(key)

    def _default(self, key: str, parameter: Parameter) -> str:
        given = self.node["loss"].get(key, parameter.default)
        if given is Parameter.empty:
            return "none: to be given"
        if isinstance(given, Mapping) and "_target_" in given:
            return f"`{in_short(OmegaConf.to_container(self._resolved[key], resolve=True))}`"  # type: ignore[arg-type]
        if isinstance(given, str) and "${" in given:
            value = self._resolved[key]
            top = re.fullmatch(r"\$\{(\w+)\}", given)
            return f"`{shown(value)}`, shared: `{top[1]}`" if top else f"`{given}`"
        return f"`{shown(given)}`"

    def _comment_of(self, key: str) -> str:
        found = re.search(rf"^ +{key}:[^#\n]*# (.*)$", self.text, re.MULTILINE)
        return found[1] if found else ""


def entries(conf: Path = CONF) -> list[Entry]:
    """Every term of every file of `conf`/objective, by file name."""
    top: Any = OmegaConf.to_container(OmegaConf.load(conf / "config.yaml"), resolve=False)
    shared = {key: value for key, value in top.items() if key not in ("defaults", "hydra")}
    shared |= {group: OmegaConf.load(conf / group / "tiny.yaml") for group in ("teacher", "student")}
    return [entry for name in choices("objective", conf) for entry in _entries(name, shared, conf)]


def _entries(name: str, shared: Mapping[str, Any], conf: Path) -> Iterator[Entry]:
    path = conf / "objective" / f"{name}.yaml"
    terms: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    beside = tuple(base for base in terms.pop("defaults", ()) if base != "_self_")
    known = OmegaConf.create({**shared, "objective": terms})
    for term, node in terms.items():
        yield Entry(name, term, beside, node, known, path.read_text(encoding="utf-8"))


def _calls(node: Any) -> Iterator[Mapping[str, Any]]:
    """Every node with a `_target_` in `node`, itself first."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield node
        for child in node.values():
            yield from _calls(child)


def methods(conf: Path = CONF) -> dict[str, list[str]]:
    """The files of `conf`/method that choose each objective, by objective."""
    chosen = {name: axes("method", name, conf).get("objective", ()) for name in choices("method", conf)}
    return {
        objective: [name for name, theirs in chosen.items() if objective in theirs]
        for objective in {one for theirs in chosen.values() for one in theirs}
    }


def arguments(docstring: str) -> dict[str, str]:
    """The lines "name: words" under "Args:", by name."""
    _, _, block = docstring.partition("Args:\n")
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", block.partition("\n\n")[0], re.MULTILINE)
    return {name: " ".join(words.split()) for name, words in found}


def page(conf: Path = CONF, peers: Path = PEERS) -> str:
    """The whole of docs/objectives.md."""
    every, using = entries(conf), methods(conf)
    rooms = dict.fromkeys(sys.modules[entry.callee.__module__] for entry in every)
    parts = [HEAD, _overview(every)]
    for room in sorted(rooms, key=lambda room: room.__name__):
        inside = [entry for entry in every if entry.callee.__module__ == room.__name__]
        parts += [f"## {room.__name__.rpartition('.')[2]}\n\n{_paragraphs(inspect.cleandoc(room.__doc__ or ''))}\n"]
        parts += [_section(entry, using.get(entry.file, [])) for entry in inside]
    if peers.exists():
        parts.append(f"## The same loss elsewhere\n\n{_below(peers.read_text(encoding='utf-8'))}\n")
    return "\n".join(parts)


def _below(page: str) -> str:
    """A page without its title, its headings one level down."""
    return page.partition("\n")[2].strip().replace("\n## ", "\n### ")


def _overview(every: list[Entry]) -> str:
    rows = ["| objective | formula | kind | chunked | source |", "|---|---|---|---|---|"]
    for entry in every:
        link = f"[{entry.heading}](#{re.sub('[^a-z0-9_ -]', '', entry.heading.lower()).replace(' ', '-')})"
        short = _cell(formula(entry.callee).replace("`", ""))
        papers = ", ".join(map(_link, entry.papers or entry.papers_of_parts))
        cells = [link, f"`{short}`", entry.node.get("kind", ""), "yes" if entry.chunked else "no", papers]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _section(entry: Entry, using: list[str]) -> str:
    papers = _cited(entry.papers) or f"of its parts: {_cited(entry.papers_of_parts)}"
    each = OVER[domain(signals_of(entry.callee))]
    facts = {
        "Gradient": gradient(entry.callee),
        "Needs": ", ".join(f"`{name}`" for name in sorted(requires(signals_of(entry.callee)))),
        "Kind": f"{entry.node.get('kind', '')}, a value for each {each.partition(' ')[2]}",
        "Chunked": "yes" if entry.chunked else "no",
        "Source": papers,
        "With": ", ".join(f"[{name}](#{name})" for name in entry.beside),
        "Used by": ", ".join(f"`method={name}`" for name in using),
        "Code": f"`{entry.node['loss']['_target_']}`",
    }
    lines = [f"### {entry.heading}", "", entry.comment, "", f"    {formula(entry.callee)}", ""]
    lines += [f"- **{name}**: {value}" for name, value in facts.items() if value]
    return "\n".join([*lines, "", *_table(entry), _rest(entry.callee)]).rstrip() + "\n"


def _cited(papers: Mapping[str, str]) -> str:
    return "; ".join(f"{_link(paper)}, {place}" if place else _link(paper) for paper, place in papers.items())


def _link(paper: str) -> str:
    return f"[arXiv {paper}](https://arxiv.org/abs/{paper})" if paper[0].isdigit() else paper


def _table(entry: Entry) -> list[str]:
    rows = [
        f"| `{name}` | {takes} | {default} | {_cell(words)} | {_cell(note)} |"
        for name, takes, default, words, note in entry.settings()
    ]
    return (
        ["| hyperparameter | takes | default | | of the default |", "|---|---|---|---|---|", *rows, ""] if rows else []
    )


def _cell(text: str) -> str:
    """The text with bars escaped, for a cell of a table."""
    return typeset(text).replace("|", "\\|")


def _rest(callee: Callable) -> str:
    """The docstring without its first sentence, which stands above, and without Args and Raises."""
    text = re.split(r"^(?:Args|Raises):$", prose(callee), maxsplit=1, flags=re.MULTILINE)[0]
    paragraphs = text.split("\n\n")[1:]
    return _paragraphs("\n\n".join(text for text in paragraphs if not re.match("phi' = |φ′ = |dL/d", text)))


def _paragraphs(text: str) -> str:
    """Typeset, lines and indented blocks kept as they are; an example that runs becomes a block of code."""
    paragraphs = text.strip("\n").split("\n\n")
    return "\n\n".join(f"```python\n{part}\n```" if part.startswith(">>> ") else typeset(part) for part in paragraphs)


def main(arguments: list[str] | None = None) -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(prog="python -m kd.pages.objectives", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args(arguments).check
    pages = {PAGE: page(), method_pages.PAGE: method_pages.page()}
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if check:
            print(f"{path.name} is out of date with the docstrings and conf; run make docs", file=sys.stderr)
        else:
            path.write_text(pages[path], encoding="utf-8")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
