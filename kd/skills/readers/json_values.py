"""JSON values one after another, in lines or not, of a file or of members of an archive."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kd.sources.archives import read

Row = dict[str, Any]


def values(path: Path) -> Iterator[Row]:
    """The objects of a file in their order; a list of objects counts as its elements.

    Raises:
        ValueError: what follows is no JSON; the sentence has the file and the line.
    """
    yield from parsed(path.read_text(encoding="utf-8-sig"), str(path))


def parsed(text: str, where: str) -> Iterator[Row]:
    """The objects of a text as `values` yields them. (A split into lines would cut one at U+2028.)"""
    decoder, place = json.JSONDecoder(), 0
    while place < len(text):
        if text[place] in " \t\r\n":
            place += 1
            continue
        try:
            value, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            line = text.count("\n", 0, error.pos) + 1
            raise ValueError(f"{where}, line {line}: this is no JSON ({error.msg}); correct the file") from error
        yield from value if isinstance(value, list) else [value]


def members(archive: Path, *names: str) -> list[str]:
    """The texts of members of an archive.

    Raises:
        ValueError: there is no such member.
    """
    return [stream.read().decode("utf-8-sig") for stream in read(archive, names)]


def merged(archive: Path, *names: str, key: str) -> Iterator[Row]:
    """The rows of several members as one: those with the same value under `key` are one row with the columns of all."""
    rows: defaultdict[Any, Row] = defaultdict(dict)
    for name, text in zip(names, members(archive, *names), strict=True):
        for row in parsed(text, name):
            rows[row[key]].update(row)
    yield from rows.values()
