"""Running text from documentation: the rules that leave out parts of documents, and whole documents."""

import re

SHORTEST = 200  # characters; what is shorter is a label rather than a text
KEPT = 0.5  # a document that loses more of its characters than this share to code is left out
LETTERS = 0.75  # least share of letters and spaces: tables and diagrams have fewer
NOVEL = 0.5  # least share of characters in paragraphs that no document before had

NOTICE = re.compile(
    r"\bcopyright +(?:\(c\) *)?\d{4}|\ball rights reserved\b", re.IGNORECASE
)  # perhaps under other terms than the rest
CODE_BLOCK = re.compile(r"^```.*?^```[^\n]*\n?", re.MULTILINE | re.DOTALL)
MARKUP_LINE = re.compile(r"^\s*(?:<[/!a-z].*|\[?!\[.*|\|.*|\.\. image::.*)$\n?", re.MULTILINE | re.IGNORECASE)
CODE = re.compile(r">>>|%\(\w+\)s")  # doctests, and places where text is put in when the program runs
HEADING = re.compile(r"^[^\n]+\n([-=~^])\1{2,}$")


def prose(document: str) -> str | None:
    """The document without its code and markup, or None if too little is left, or no running text.

    None too where it bears a copyright notice of its own: other terms may hold for it than for its package.

    A paragraph with a doctest or a placeholder in it is removed whole, and so are fenced code, tables, images and
    lines of HTML.
    """
    whole = document.strip()
    text = MARKUP_LINE.sub("", CODE_BLOCK.sub("", whole))
    kept = [part for part in paragraphs(text) if not CODE.search(part) and any(map(str.isalpha, part))]
    while kept and HEADING.match(kept[-1]):  # of a removed part
        kept.pop()
    text = "\n\n".join(kept)
    if len(text) < max(SHORTEST, KEPT * len(whole)) or NOTICE.search(whole):
        return None
    return text if sum(c.isalpha() or c.isspace() for c in text) >= LETTERS * len(text) else None


def paragraphs(text: str) -> list[str]:
    """The parts between blank lines, indented as they were, without spaces at the ends of lines."""
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return [part.strip("\n") for part in re.split(r"\n{2,}", lines) if part.strip()]


class Novelty:
    """Detects documents that are mostly new, so that text pasted into many docstrings is learnt once."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, text: str) -> bool:
        """Return whether at least the share `NOVEL` of the text's paragraphs, by characters, was in none before."""
        parts = [" ".join(part.split()) for part in paragraphs(text)]
        new = sum(len(part) for part in parts if part not in self._seen)
        self._seen.update(parts)
        return new > 0 and new >= NOVEL * sum(map(len, parts))
