"""The 25 instructions of IFEval, each a function of an answer and of the settings that its prompt states.

Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models" (arXiv 2311.07911). Two rest on other
tools than the paper's: sentences are divided by `sentences`, not by NLTK's model, and languages are recognised by
py3langid.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from kd.metrics.instructions.sentences import sentences, words
from kd.metrics.instructions.treebank import tokens

Settings = Mapping[str, Any]
Check = Callable[[str, Settings], bool]


def at_least(count: int, wanted: int | float, relation: str = "at least") -> bool:
    """Whether a count is as wanted: "at least" or "less than"."""
    return count < wanted if relation == "less than" else count >= wanted


def _counted(count: int, s: Settings, key: str) -> bool:
    return at_least(count, s[key], s.get("relation", "at least"))


def keywords(text: str, s: Settings) -> bool:
    """All keywords, in any case."""
    return all(re.search(keyword, text, re.IGNORECASE) for keyword in s["keywords"])


def keyword_frequency(text: str, s: Settings) -> bool:
    """A keyword so often."""
    return _counted(len(re.findall(s["keyword"], text, re.IGNORECASE)), s, "frequency")


def forbidden_words(text: str, s: Settings) -> bool:
    """None of the forbidden words."""
    return not any(re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in s["forbidden_words"])


def letter_frequency(text: str, s: Settings) -> bool:
    """A letter so often."""
    return at_least(text.lower().count(s["letter"].lower()), s["let_frequency"], s.get("let_relation", "at least"))


def language(text: str) -> str | None:
    """The code of a text's language, as "en"; None for a text without letters, which counts as of any."""
    import py3langid

    if not any(map(str.isalpha, text)):
        return None
    return str(py3langid.classify(text.lower())[0])


def number_of_paragraphs(text: str, s: Settings) -> bool:
    """Paragraphs are divided by `***`; an empty one is allowed before the first and after the last mark alone."""
    found = re.split(r"\s?\*\*\*\s?", text)
    inner = found[1:-1]
    ends = [part for part in (found[0], *found[1:][-1:]) if part.strip()]
    return all(part.strip() for part in inner) and len(inner) + len(ends) == s["num_paragraphs"]


def first_word_of_paragraph(text: str, s: Settings) -> bool:
    """Paragraphs are divided by blank lines; the place counts empty ones, the number does not."""
    found = text.split("\n\n")
    count = sum(bool(part.strip()) for part in found)
    nth = int(s["nth_paragraph"])
    if count != s["num_paragraphs"] or nth > count or not found[nth - 1].strip():
        return False
    word = re.match(r"[^.,?!'\"]*", found[nth - 1].split()[0].lstrip("'").lstrip('"').lower())
    return word is not None and word[0] == s["first_word"].lower()


def bullets(text: str, s: Settings) -> bool:
    """Exactly so many bullet points."""
    found = (re.findall(pattern, text, re.MULTILINE) for pattern in (r"^\s*\*[^*].*$", r"^\s*-.*$"))
    return sum(map(len, found)) == s["num_bullets"]


def highlights(text: str, s: Settings) -> bool:
    """At least so many parts between asterisks."""
    single = [part for part in re.findall(r"\*[^\n*]*\*", text) if part.strip("*").strip()]
    double = [part for part in re.findall(r"\*\*[^\n*]*\*\*", text) if part[2:-2].strip()]
    return len(single) + len(double) >= s["num_highlights"]


def sections(text: str, s: Settings) -> bool:
    """At least so many numbered sections."""
    return len(re.split(rf"\s?{s['section_spliter']}\s?\d+\s?", text)) - 1 >= s["num_sections"]


def placeholders(text: str, s: Settings) -> bool:
    """At least so many words in square brackets."""
    return len(re.findall(r"\[.*?\]", text)) >= s["num_placeholders"]


def postscript(text: str, s: Settings) -> bool:
    """A postscript with its marker."""
    marker = s["postscript_marker"]
    pattern = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(marker, re.escape(marker.lower()))
    return re.search(pattern, text.lower()) is not None


def is_json(text: str, s: Settings) -> bool:
    """An answer that is JSON as a whole, alone or in a block of Markdown."""
    inner = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE).strip()
    try:
        json.loads(inner)
    except (ValueError, RecursionError):
        return False
    return True


def constrained(text: str, s: Settings) -> bool:
    """One of the three answers that the prompt of this instruction allows."""
    return any(f"My answer is {word}." in text for word in ("yes", "no", "maybe"))


def two_responses(text: str, s: Settings) -> bool:
    """Two different answers with six asterisks between them."""
    found = text.split("******")
    full = [part.strip() for part in found if part.strip()]
    return all(part.strip() for part in found[1:-1]) and len(full) == 2 and full[0] != full[1]


def repeats_prompt(text: str, s: Settings) -> bool:
    """The prompt repeated first."""
    return text.strip().lower().startswith(s["prompt_to_repeat"].strip().lower())


def ends(text: str, s: Settings) -> bool:
    """The phrase at the end."""
    return text.strip().strip('"').lower().endswith(s["end_phrase"].strip().lower())


def capital_words(text: str, s: Settings) -> bool:
    """So many words in capital letters."""
    count = sum(word.isupper() for word in tokens(text))
    return at_least(count, s["capital_frequency"], s.get("capital_relation", "at least"))


def quoted(text: str, s: Settings) -> bool:
    """The whole answer between double quotation marks."""
    inner = text.strip()
    return len(inner) > 1 and inner[0] == inner[-1] == '"'


CHECKS: dict[str, Check] = {
    "keywords:existence": keywords,
    "keywords:frequency": keyword_frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": lambda text, s: language(text) in (s["language"], None),
    "length_constraints:number_sentences": lambda text, s: _counted(len(sentences(text)), s, "num_sentences"),
    "length_constraints:number_words": lambda text, s: _counted(len(words(text)), s, "num_words"),
    "length_constraints:number_paragraphs": number_of_paragraphs,
    "length_constraints:nth_paragraph_first_word": first_word_of_paragraph,
    "detectable_content:number_placeholders": lambda text, s: (
        len(re.findall(r"\[.*?\]", text)) >= s["num_placeholders"]
    ),
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": bullets,
    "detectable_format:constrained_response": constrained,
    "detectable_format:number_highlighted_sections": highlights,
    "detectable_format:multiple_sections": sections,
    "detectable_format:json_format": is_json,
    "detectable_format:title": lambda text, s: any(
        title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", text)
    ),
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeats_prompt,
    "startend:end_checker": ends,
    "startend:quotation": quoted,
    "change_case:capital_word_frequency": capital_words,
    "change_case:english_capital": lambda text, s: text.isupper() and language(text) == "en",
    "change_case:english_lowercase": lambda text, s: text.islower() and language(text) == "en",
    "punctuation:no_comma": lambda text, s: "," not in text,
}
