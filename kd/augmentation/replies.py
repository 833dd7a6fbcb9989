"""Replies as structures: lists of items, and texts under headings, as templates of prompts require them.

Example:
    >>> items("Here they are:\\n1. Name a river.\\n2) Sort\\n   these words.")
    ['Name a river.', 'Sort these words.']
    >>> blocks("Question: 2 + 2?\\n**Answer:** 4\\nQuestion: 3?", "question", "answer")
    [{'question': '2 + 2?', 'answer': '4'}, {'question': '3?'}]
"""

import re

_MARK = re.compile(r"^[ \t]*(?:[-*•]|(?:task[ \t]*)?\d{1,4}[ \t]*[.):])(?:[ \t]+|$)", re.IGNORECASE)


def items(text: str, *, finished: bool = True) -> list[str]:
    """The items of a list, one line each: those that begin with a number or a bullet, else all lines.

    Lines after a marked one belong to it; those before the first are an introduction.

    finished: whether the text ended by itself; else its last item may be cut off, and is left out.
    """
    lines = text.splitlines()
    if any(map(_MARK.match, lines)):
        found = list[list[str]]()
        for line in lines:
            if mark := _MARK.match(line):
                found.append([line[mark.end() :]])
            elif found and line.strip():
                found[-1].append(line)
        every = [" ".join(" ".join(part).split()) for part in found]
    else:
        every = [" ".join(line.split()) for line in lines]
    kept = [item for item in every if item]
    return kept if finished else kept[:-1]


def blocks(text: str, *names: str) -> list[dict[str, str]]:
    """The texts after headings such as `Question:` at the beginning of a line, by name.

    A heading that occurs again begins the next block, and so does the first of `names`. What stands before the first
    heading is left out.
    """
    heading = re.compile(rf"^[ \t*#>]*({'|'.join(names)})[ \t*]*:[ \t*]*", re.IGNORECASE | re.MULTILINE)
    found = list[dict[str, str]]()
    marks = [*heading.finditer(text)]
    ends = [*(mark.start() for mark in marks[1:]), len(text)][: len(marks)]
    for mark, end in zip(marks, ends, strict=True):
        name = mark[1].lower()
        if not found or name in found[-1] or name == names[0]:
            found.append({})
        found[-1][name] = text[mark.end() : end].strip()
    return found


def block(text: str, *names: str) -> dict[str, str] | None:
    """The first block with a text under every heading; None where there is none."""
    return next((found for found in blocks(text, *names) if all(found.get(name) for name in names)), None)
