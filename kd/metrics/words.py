"""Texts as the words that metrics compare: without case, punctuation and, where papers drop them, articles.

Languages that are written without spaces (Chinese, Japanese) have no words here: each of their characters is one.
"""

import re
import unicodedata
from typing import Literal

Normalisation = Literal["squad", "spaces", "none"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_UNSPACED = "\u2e80-\u2fdf\u3005-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_WORDS = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_CHARACTERS = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def normalised(text: str, how: Normalisation = "squad") -> str:
    """The text in the form in which two answers are the same.

    how: `squad` drops case, punctuation and the articles a, an, the (Rajpurkar et al. 2016, arXiv 1606.05250), but for
        a text of nothing else; `spaces` joins words by single spaces; `none` changes nothing.
    """
    if how == "none":
        return text
    plain = " ".join(unicodedata.normalize("NFC", text).split())
    if how == "spaces":
        return plain
    bare = "".join(c for c in plain.lower() if not _is_punctuation(c))
    return " ".join(_ARTICLES.sub(" ", bare).split()) or " ".join(bare.split()) or plain.lower()


def answer_tokens(text: str) -> list[str]:
    """The words of a `squad`-normalised text."""
    return _CHARACTERS.findall(normalised(text))


def rouge_tokens(text: str, *, stemmer: bool = False) -> list[str]:
    """Runs of letters and digits in lower case, as in the package rouge-score, which keeps a-z and 0-9 alone.

    stemmer: words of more than three letters are cut to their stems (Porter 1980), which requires the package nltk.
    """
    words = _WORDS.findall(text.lower())
    if not stemmer:
        return words
    from nltk.stem.porter import PorterStemmer

    stem = PorterStemmer().stem
    return [stem(word) if len(word) > 3 else word for word in words]


def _is_punctuation(character: str) -> bool:
    """ASCII's 32 marks, as the evaluation script of SQuAD has it, and other scripts' punctuation."""
    if character.isascii():
        return character.isprintable() and not character.isalnum() and character != " "
    return unicodedata.category(character).startswith("P")
