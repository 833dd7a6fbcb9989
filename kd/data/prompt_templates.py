"""Templates of prompts: a text with fields in braces, given as it stands, as a file, or by the name of one of ours.

A judge's puts each judged text between fences that no text can close (`filled`), a stage's puts texts in as they are
(`inserted`). What stands in a text is never read as a field.

Example:
    >>> print(filled("Which is better?\\n{answer_a}\\n{answer_b}", {"answer_a": "4", "answer_b": "====="}))
    Which is better?
    ======
    4
    ======
    ======
    =====
    ======
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Formatter

import kd
from kd.data.columns import check, fields
from kd.types import Record

SHORTEST = 5  # signs of a fence
OURS = Path(kd.__file__).parent / "augmentation" / "prompts"


def template_text(where: str, template: str) -> str:
    """The template itself, or the content of the file that it names: a path, or a name of `kd/augmentation/prompts`.

    Raises ValueError if it is none of them.
    """
    if "{" in template or "\n" in template:
        return template
    for path in (OURS / f"{template}.txt", Path(template).expanduser()):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise ValueError(f"{where}={template!r} is neither a file nor a template (it has no {{field}}); give one of them")


def inserted(template: str, texts: Mapping[str, str]) -> str:
    """The template with the texts in it as they are, without the white space around the whole."""
    parts = Formatter().parse(template)
    return "".join(text + ("" if name is None else texts[name]) for text, name, _, _ in parts).strip()


def check_template(where: str, template: str, *, required: Sequence[str], optional: Sequence[str]) -> None:
    """Raises ValueError for a template that lacks a required field, or has one that is not filled."""
    check(where, template)
    found = fields(template)
    known = (*required, *optional)
    if lacking := [name for name in required if name not in found]:
        raise ValueError(f"{where} has no {{{lacking[0]}}}, so the model would not read it; add it")
    if unknown := [name for name in found if name not in known]:
        raise ValueError(f"{where} has {{{unknown[0]}}}, which is none of its fields; they are {', '.join(known)}")


def filled(template: str, texts: Mapping[str, str], plain: Mapping[str, str] | None = None) -> str:
    """The template with the texts in it, each between two fences, and with the `plain` ones as they are.

    A fence is a line of its own, of `=`, longer than any run of that sign in the texts. What stands in a text is never
    read as a field.
    """
    longest = max((len(run) for text in texts.values() for run in re.findall("=+", text)), default=0)
    fence = "=" * max(SHORTEST, longest + 1)
    written = ""
    for text, name, _, _ in Formatter().parse(template):
        written += text if not written.endswith(fence) or text.startswith("\n") else f"\n{text}"
        if name is not None and name in texts:
            written += "" if not written or written.endswith("\n") else "\n"
            written += f"{fence}\n{texts[name]}\n{fence}"
        elif name is not None:
            written += (plain or {})[name]
    return written


def question(record: Record) -> str:
    """The prompt of a record as one text: of a conversation, each message after its role."""
    if len(record.prompt) == 1:
        return str(record.prompt[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in record.prompt)
