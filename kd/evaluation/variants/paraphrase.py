"""The wording of an instruction in other words, by a table of phrases that mean the same."""

import re
from collections.abc import Mapping

from kd.evaluation.variants.editable import VERBATIM, answer_texts, question, with_question
from kd.types import Record

VERSION = 1


def paraphrase(record: Record, seed: int, *, phrases: Mapping[str, str]) -> Record | None:
    """The question with each phrase of the table replaced, outside of code and quotes; None where it has none.

    A phrase is matched in whole words, whatever the case of its first letter, which is kept. One that occurs in the
    answer stays. Where two phrases overlap, the one that begins first is replaced, of these the longest.

    phrases: phrase -> one that means the same wherever the first may stand.
    """
    text, answers = question(record), [one.casefold() for one in answer_texts(record)]
    known = {old.casefold(): new for old, new in phrases.items() if not any(old.casefold() in one for one in answers)}
    if not known:
        return None
    verbatim = [match.span() for match in VERBATIM.finditer(text)]
    either = "|".join(re.escape(old) for old in sorted(known, key=len, reverse=True))

    def replaced(match: re.Match[str]) -> str:
        old = match[0]
        if any(start < match.end() and match.start() < end for start, end in verbatim) or old.isupper():
            return old
        new = known[old.casefold()]
        return new[0].upper() + new[1:] if old[0].isupper() else new[0].lower() + new[1:]

    return with_question(record, re.sub(rf"(?<!\w)(?:{either})(?!\w)", replaced, text, flags=re.IGNORECASE))
