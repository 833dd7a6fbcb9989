"""Messages of GNU gettext's `.po` files: a text of a program in English, and its translation."""

import ast
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from kd.skills.readers.json_values import Row, members
from kd.sources.archives import members_of

KEYWORD = re.compile(r'(msgctxt|msgid|msgid_plural|msgstr(?:\[\d\])?)\s+(".*")$')
PLACEHOLDER = re.compile(r"%\(|%[sd]|\{|<|&\w+;")  # of a program's, whose translation is to be copied
LEAST_WORDS = 3  # shorter messages are labels of buttons, ambiguous without their place


def french(path: Path) -> Iterator[Row]:
    """English and French messages of a wheel."""
    return of_wheel(path, "fr")


def german(path: Path) -> Iterator[Row]:
    """English and German messages of a wheel."""
    return of_wheel(path, "de")


def of_wheel(path: Path, language: str) -> Iterator[Row]:
    """Rows with `source`, `target` and `id`, of at least three words, without placeholders, each source once.

    Left out: fuzzy entries (translated by a program, not yet read by a person), obsolete ones, plural forms, and those
    whose translation is missing or the same as the source.
    """
    package, _, _ = path.name.partition("-")
    names = [name for name in members_of(path) if f"/locale/{language}/" in name and name.endswith(".po")]
    seen = set()
    for text in members(path, *names):
        for entry in entries(text):
            source, target = entry.get("msgid", "").strip(), entry.get("msgstr", "").strip()
            if not target or source == target or source in seen or not _plain(source):
                continue
            seen.add(source)
            number = hashlib.sha256(source.encode()).hexdigest()[:12]
            yield {"id": f"{package}-{number}", "source": source, "target": target}


def _plain(text: str) -> bool:
    return len(text.split()) >= LEAST_WORDS and not PLACEHOLDER.search(text)


def entries(text: str) -> Iterator[dict[str, str]]:
    """The entries, keyword to text; without those that are fuzzy."""
    for block in _blocks(text.splitlines()):
        if not any(line.startswith("#,") and "fuzzy" in line for line in block):
            yield _entry(block)


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """The lines of each entry, its comments included: a comment or keyword after a translation begins the next."""
    block: list[str] = []
    translated = False
    for line in lines:
        if translated and line.startswith(("#", "msgid", "msgctxt")):
            yield block
            block, translated = [], False
        translated = translated or line.startswith("msgstr")
        block.append(line)
    yield block


def _entry(block: list[str]) -> dict[str, str]:
    entry: dict[str, str] = {}
    keyword = ""
    for line in block:
        if match := KEYWORD.match(line):
            keyword = match[1]
            entry[keyword] = ast.literal_eval(match[2])
        elif line.startswith('"') and keyword:
            entry[keyword] += ast.literal_eval(line)
    return entry
