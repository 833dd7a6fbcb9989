"""Words and sentences of an English text, by regular expressions.

`sentences` stands for NLTK's trained model, by which IFEval counts sentences; `divided` is the rule that IFBench uses.
"""

import re
import string

_ABBREVIATIONS = "mr mrs ms dr st prof inc ltd jr sr co vs etc e.g i.e u.s u.k ph.d no fig cf approx"
ABBREVIATIONS = frozenset(_ABBREVIATIONS.split())
END = re.compile(r"""[.!?\u2026\u203d]+["'\u201d\u2019)\]*_]*(?=\s|$)""")
WORD = re.compile(r"\w+")
_STARTERS = (
    r"(Mr|Mrs|Ms|Dr|Prof|Capt|Cpt|Lt|He\s|She\s|It\s|They\s|Their\s|Our\s|We\s|But\s|However\s|That\s|This\s|Wherever)"
)
_RULES = (  # of IFBench's `split_into_sentences`: <prd> stands for a mark that ends no sentence
    (r"(Mr|St|Mrs|Ms|Dr)[.]", r"\1<prd>"),
    (r"[.](com|net|org|io|gov|edu|me)", r"<prd>\1"),
    (r"([0-9])[.]([0-9])", r"\1<prd>\2"),
    (r"\s([A-Za-z])[.] ", r" \1<prd> "),
    (rf"([A-Z][.][A-Z][.](?:[A-Z][.])?) {_STARTERS}", r"\1<stop> \2"),
    (r"([A-Za-z])[.]([A-Za-z])[.]([A-Za-z])[.]", r"\1<prd>\2<prd>\3<prd>"),
    (r"([A-Za-z])[.]([A-Za-z])[.]", r"\1<prd>\2<prd>"),
    (rf" (Inc|Ltd|Jr|Sr|Co)[.] {_STARTERS}", r" \1<stop> \2"),
    (r" (Inc|Ltd|Jr|Sr|Co)[.]", r" \1<prd>"),
    (r" ([A-Za-z])[.]", r" \1<prd>"),
)
RULES = tuple((re.compile(pattern), replacement) for pattern, replacement in _RULES)
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


def divided(text: str) -> list[str]:
    """The sentences by IFBench's rules: a mark ends one wherever it stands, but for titles, websites and initials.

    A mark before a quotation mark that closes is put after it.
    """
    text = f" {text}  ".replace("\n", " ")
    for pattern, replacement in RULES[:3]:
        text = pattern.sub(replacement, text)
    text = re.sub(r"\.{2,}", lambda dots: "<prd>" * len(dots[0]) + "<stop>", text).replace("Ph.D.", "Ph<prd>D<prd>")
    for pattern, replacement in RULES[3:]:
        text = pattern.sub(replacement, text)
    for inside, outside in ((".\u201d", "\u201d."), ('."', '".'), ('!"', '"!'), ('?"', '"?')):
        text = text.replace(inside, outside)
    text = re.sub(r"[.?!]", r"\g<0><stop>", text).replace("<prd>", ".")
    found = [part.strip() for part in text.split("<stop>")]
    return found if found[-1] else found[:-1]


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores."""
    return WORD.findall(text)


def plain(text: str) -> list[str]:
    """What stands between white space, after all ASCII punctuation is removed."""
    return text.translate(UNMARKED).split()


def bare(word: str) -> str:
    """A word without punctuation around it."""
    return word.strip(string.punctuation + " ")


def lines(text: str) -> list[str]:
    """The lines that are not blank."""
    return [line for line in text.split("\n") if line.strip()]
