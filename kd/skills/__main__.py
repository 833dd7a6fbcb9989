"""Shows the skills: `python -m kd.skills` lists them, `python -m kd.skills gsm_symbolic -n 2` prints records, and
`python -m kd.skills inspect dataset path=mine.jsonl --student tiny` counts, measures and compares them.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.markup import escape

from kd.components.allowed import KEY, allow_typed
from kd.components.choices import CONF, SEARCHED, choices, content, file_of, parsed
from kd.components.signatures import located
from kd.composition.overrides import started
from kd.errors import in_one_sentence
from kd.skills.grid import notes, tables
from kd.types import Record, Skill


def members() -> dict[str, Path]:
    """The skill files, by name."""
    return {name: file_of("skill", name) for name in choices("skill")}


def read(name: str, overrides: list[str]) -> dict[str, Any]:
    """One skill's settings, with `key=value` overrides.

    Raises:
        ValueError: there is no such skill or setting, or a setting has no value yet.
    """
    known = members()
    if name not in known:
        raise ValueError(f"there is no skill {name!r}; the nearest name is {_nearest(name, known)!r}.")
    config, changes = OmegaConf.create(content("skill", name)), OmegaConf.from_dotlist(overrides)
    for key in map(str, changes):
        if key not in config.keys():  # noqa: SIM118 - `in` is False for a value that is still missing
            raise ValueError(f"skill {name} has no setting {key!r}; the nearest is {_nearest(key, config)!r}.")
    merged = OmegaConf.merge(config, changes)
    for key in OmegaConf.missing_keys(merged):
        raise ValueError(f"skill {name} needs a value for {key!r}; add {key}=...")
    settings: Any = OmegaConf.to_container(merged, resolve=True)
    return settings


def build(settings: dict[str, Any]) -> Skill:
    """The skill that the settings describe; its errors arrive as they are, where Hydra would wrap them."""
    arguments = {key: value for key, value in settings.items() if key not in ("_target_", "_convert_")}
    return located("skill", settings["_target_"])(**arguments)


def _nearest(name: str, known: Iterable[Any]) -> str:
    return get_close_matches(name, map(str, known), n=1, cutoff=0.0)[0]


def show(console: Console, record: Record) -> None:
    """Prints one record in full."""
    console.rule(record.id)
    parts = [(message["role"], message["content"]) for message in record.prompt]
    parts += [(response.source, response.text) for response in record.responses]
    for role, text in parts:
        console.print(f"[bold]{role}[/]\n{escape(text)}", highlight=False, soft_wrap=True)
    console.print(f"[dim]{escape(str(dict(record.meta)))}[/]", highlight=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> None:
    """Command line of `python -m kd.skills`."""
    parser = argparse.ArgumentParser(prog="python -m kd.skills", description=__doc__)
    parser.add_argument("skill", nargs="?", help="a file in conf/skill; without it all are listed")
    parser.add_argument("overrides", nargs="*", help="settings of the skill, as in task=gcd options.max_value=9")
    parser.add_argument("--split", choices=("train", "validation", "test"), default="train")
    parser.add_argument("-n", type=int, default=3, help="number of records to print")
    parser.add_argument("--config-dir", metavar="DIR", help="a folder of your own yamls beside conf/, as for kd")
    parser.add_argument("--student", help="inspect: the model by a file of conf/student, or by its address")
    parser.add_argument("--teacher", help="inspect: the model by a file of conf/teacher, or by its address")
    parser.add_argument("--max-length", type=int, default=512, help="inspect: data.max_length, in tokens")
    options = parser.parse_intermixed_args(arguments)
    console = Console() if sys.stdout.isatty() else Console(width=120)
    words = [word for word in (options.skill, *options.overrides) if word is not None]
    with in_one_sentence(), started(CONF, options.config_dir, words):
        _print(console, words, options)


def _inspect(console: Console, chosen: Sequence[str], options: argparse.Namespace) -> None:
    """The report on one skill, in the tokens of the models that are named."""
    from kd.models.tokenizers import tokenizers_of
    from kd.skills.inspection import inspected

    if not chosen:
        raise ValueError("inspect needs a skill, as in python -m kd.skills inspect dataset path=mine.jsonl")
    tokenizers = tokenizers_of(student=options.student, teacher=options.teacher)
    for line in inspected(build(read(chosen[0], list(chosen[1:]))), tokenizers, options.max_length):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _print(console: Console, words: Sequence[str], options: argparse.Namespace) -> None:
    """The list, or records of one skill."""
    allow_typed(parsed(word) for word in words if word.startswith(f"{KEY}="))
    chosen = [word for word in words if not word.startswith((f"{KEY}=", f"{SEARCHED}="))]
    if not chosen:
        for table in tables(console.width):
            console.print(table)
        console.print(notes(), highlight=False)
        return
    if chosen[0] == "inspect":
        _inspect(console, chosen[1:], options)
        return
    name, *overrides = chosen
    skill = build(read(name, overrides))
    for record in skill.load(options.split)[: options.n]:
        show(console, record)


if __name__ == "__main__":
    main()
