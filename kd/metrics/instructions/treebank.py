"""Tokens as NLTK's `word_tokenize` has them: the conventions of the Penn Treebank, on sentences of `sentences`."""

import re

from kd.metrics.instructions.sentences import sentences

_CONTRACTIONS = ("can)(not", "d)('ye", "gim)(me", "gon)(na", "got)(ta", "lem)(me", "more)('n")
_RULES = (  # those of NLTK's NLTKWordTokenizer, in its order
    ("([«“‘„]|`+)", r" \1 "),
    (r"^\"", "``"),
    ("(``)", r" \1 "),
    (r"([ \(\[{<])(\"|'{2})", r"\1 `` "),
    (r"(?i)(?<!\w)(')(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", r"\1 "),
    (r"([^\.])(\.)([\]\)}>\"'»”’ ]*)\s*$", r"\1 \2 \3 "),
    (r"([:,])([^\d])", r" \1 \2"),
    (r"([:,])$", r" \1 "),
    (r"\.{2,}", r" \g<0> "),
    (r"[;@#$%&]", r" \g<0> "),
    (r"[\u2012-\u2015]", r" \g<0> "),
    (r"([^\.])(\.)([\]\)}>\"']*)\s*$", r"\1 \2\3 "),
    (r"[?!]", r" \g<0> "),
    (r"([^'])' ", r"\1 ' "),
    (r"[*]", r" \g<0> "),
    (r"[\]\[\(\)\{\}\<\>]", r" \g<0> "),
    ("--", " -- "),
    (r"\A|\Z", " "),
    ("([»”’])", r" \1 "),
    ("''", " '' "),
    ('"', " '' "),
    (r"\s+", " "),
    (r"([^' ])('[sS]|'[mM]|'[dD]|') ", r"\1 \2 "),
    (r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", r"\1 \2 "),
    *((rf"(?i)\b({parts})\b", r" \1 \2 ") for parts in _CONTRACTIONS),
    (r"(?i)\b(wan)(na)(?=\s)", r" \1 \2 "),
    (r"(?i) ('t)(is)\b", r" \1 \2 "),
    (r"(?i) ('t)(was)\b", r" \1 \2 "),
)
RULES = tuple((re.compile(pattern), replacement) for pattern, replacement in _RULES)


def tokens(text: str) -> list[str]:
    """Words and marks: `Don't go.` has the four tokens Do, n't, go and a full stop; double quotes become `` and ''."""
    return [token for sentence in sentences(text) for token in _tokens(sentence)]


def _tokens(sentence: str) -> list[str]:
    for pattern, replacement in RULES:
        sentence = pattern.sub(replacement, sentence)
    return sentence.split()
