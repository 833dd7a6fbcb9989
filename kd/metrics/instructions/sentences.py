"""Words and sentences of an English text, by regular expressions."""

import re
import string

_ABBREVIATIONS = "mr mrs ms dr st prof inc ltd jr sr co vs etc e.g i.e u.s u.k ph.d no fig cf approx"
ABBREVIATIONS = frozenset(_ABBREVIATIONS.split())
END = re.compile(r"""[.!?\u2026\u203d]+["'\u201d\u2019)\]*_]*(?=\s|$)""")
CLOSING = "\"'\u201d\u2019)]*_ "
WORD = re.compile(r"\w+")
TOKEN = re.compile(r"\w+(?:['\u2019-]\w+)*|[^\w\s]")
UNMARKED = str.maketrans("", "", string.punctuation)


def sentences(text: str) -> list[str]:
    """The sentences: each ends with a mark before white space, but for abbreviations and initials."""
    text = " ".join(text.split())
    found, start = [], 0
    for match in END.finditer(text):
        last = text[start : match.start()].rsplit(" ", 1)[-1].strip("(\"'\u201c")
        initial = len(last) == 1 and last.isupper() and last != "I"
        if match[0].startswith(".") and (last.lower() in ABBREVIATIONS or initial) and match.end() < len(text):
            continue
        found.append(text[start : match.end()].strip())
        start = match.end()
    return [sentence for sentence in [*found, text[start:].strip()] if sentence]


def mark(sentence: str) -> str:
    """The mark that ends a sentence, before quotes and brackets that close; "" where there is none."""
    kept = sentence.rstrip(CLOSING)
    return kept[-1] if kept and kept[-1] in ".!?" else ""


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores."""
    return WORD.findall(text)


def tokens(text: str) -> list[str]:
    """Words and marks, each a token; an apostrophe or hyphen inside of a word does not divide it."""
    return TOKEN.findall(text)


def plain(text: str) -> list[str]:
    """What stands between white space, after all ASCII punctuation is removed."""
    return text.translate(UNMARKED).split()


def bare(word: str) -> str:
    """A word without punctuation around it."""
    return word.strip(string.punctuation + " ")


def lines(text: str) -> list[str]:
    """The lines that are not blank."""
    return [line for line in text.split("\n") if line.strip()]
