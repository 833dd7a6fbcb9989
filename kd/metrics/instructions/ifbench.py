"""The instructions of IFBench about words, sentences and form, each a function of an answer and its settings.

Pyatkin et al. 2025, "Generalizing Verifiable Instruction Following" (arXiv 2507.02833). Left out: those that a
tagger (`words:start_verb`) or a dictionary of syllables (`words:odd_even_syllables`) decides, and those of one or two
prompts (`custom:...`, `repeat:repeat_simple`). The rest decide as the benchmark's own code does, oddities included.
"""

import re
import string
from collections import Counter
from itertools import pairwise

from kd.metrics.instructions.ifeval import Check, Settings
from kd.metrics.instructions.sentences import UNMARKED, bare, divided, lines, plain, words
from kd.metrics.instructions.treebank import tokens
from kd.metrics.instructions.vocabulary import CONJUNCTIONS, EMOJI, NAMES, PRONOUNS, STOP_WORDS

PRIMES = frozenset(n for n in range(2, 98) if all(n % k for k in range(2, n)))
CONSONANTS = re.compile("[bcdfghjklmnpqrstvwxyz]{2}")
JAPANESE = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")
BRACKETS = {")": "(", "]": "[", "}": "{"}


def keywords_multiple(text: str, s: Settings) -> bool:
    """Five keywords, once, twice, three, five and seven times."""
    wanted = zip((s[f"keyword{i}"] for i in range(1, 6)), (1, 2, 3, 5, 7), strict=True)
    return all(text.lower().count(keyword.lower()) == count for keyword, count in wanted)


def conjunctions(text: str, s: Settings) -> bool:
    """At least so many different coordinating conjunctions; `And` and `and,` differ from `and`."""
    return len({word for word in text.split() if bare(word).lower() in CONJUNCTIONS}) >= s["small_n"]


def unique_words(text: str, s: Settings) -> bool:
    """At least so many different words."""
    return len({bare(word) for word in text.lower().split()}) >= s["N"]


def pronouns(text: str, s: Settings) -> bool:
    """At least so many pronouns."""
    return sum(word in PRONOUNS for word in plain(text.lower().replace("/", " "))) >= s["N"]


def punctuation(text: str, s: Settings) -> bool:
    """All of . , ! ? ; : and an interrobang beside them."""
    mark = next((mark for mark in ("?!", "!?", "\u203d") if mark in text), None)
    return mark is not None and set(".,!?;:") <= set(text.replace(mark, "", 1))


def japanese(text: str, s: Settings) -> bool:
    """Each N-th word is Japanese."""
    nth = [bare(word) for word in text.split()[int(s["N"]) - 1 :: int(s["N"])]]
    return all(JAPANESE.search(word) for word in nth if word and not word.isdigit())


def keyword_in_sentence(text: str, s: Settings) -> bool:
    """The N-th sentence has the keyword."""
    found = divided(text)
    return len(found) >= s["N"] and s["word"].lower() in found[int(s["N"]) - 1].lower()


def keyword_at(text: str, s: Settings) -> bool:
    """The m-th token of the n-th sentence."""
    found = divided(text)
    inside = tokens(found[int(s["n"]) - 1]) if len(found) >= s["n"] else []
    return len(inside) >= s["m"] and inside[int(s["m"]) - 1] == s["keyword"].strip()


def keyword_at_both_ends(text: str, s: Settings) -> bool:
    """The second token and the last but one are the keyword."""
    found = tokens(text)
    return len(found) > 1 and found[1] == found[-2] == s["keyword"]


def stop_words(text: str, s: Settings) -> bool:
    """At most such a share of stop words."""
    found = words(text)
    return bool(found) and 100 * sum(word.lower() in STOP_WORDS for word in found) / len(found) <= s["percentage"]


def overlap(text: str, s: Settings) -> bool:
    """The share of the answer's trigrams of characters that the reference has, within two percent."""
    own, other = ({given[i : i + 3] for i in range(len(given) - 2)} for given in (text, s["reference_text"]))
    return bool(own) and abs(100 * len(own & other) / len(own) - s["percentage"]) <= 2


def sentence_types(text: str, s: Settings) -> bool:
    """Twice as many statements as questions."""
    count = _marks(text)
    return count["."] == 2 * count["?"]


def sentence_balance(text: str, s: Settings) -> bool:
    """As many statements as questions as exclamations."""
    count = _marks(text)
    return count["."] == count["?"] == count["!"]


def _marks(text: str) -> Counter[str]:
    """How many sentences end with each character."""
    return Counter(sentence[-1:] for sentence in divided(text))


def sentence_lengths(text: str, s: Settings) -> bool:
    """Three sentences of the same number of characters."""
    found = list(map(len, divided(text)))
    return len(found) == 3 and len(set(found)) == 1


def alliteration(text: str, s: Settings) -> bool:
    """Each sentence has more words in runs of one first letter than the one before."""
    counts = []
    for sentence in divided(text):
        same = [a == b for a, b in pairwise(word[0] for word in plain(sentence.lower()))]
        counts.append(sum(now or before for now, before in zip([*same, False], [False, *same], strict=True)))
    return all(a < b for a, b in pairwise(counts))


def growing_sentences(text: str, s: Settings) -> bool:
    """Each sentence has so many words more than the one before."""
    counts = [len(plain(sentence)) for sentence in divided(text)]
    return all(b - a == s["small_n"] for a, b in pairwise(counts))


def alphabet(text: str, s: Settings) -> bool:
    """Each word begins with the next letter of the alphabet, a after z."""
    first = [ord(word[0].lower()) - ord("a") for word in plain(text)]
    return bool(first) and 0 <= first[0] < 26 and all((a + 1) % 26 == b for a, b in pairwise(first))


def few_vowels(text: str, s: Settings) -> bool:
    """One paragraph with at most three different vowels."""
    return "\n" not in text.strip() and len(set(text.lower()) & set("aeiou")) <= 3


def palindromes(text: str, s: Settings) -> bool:
    """Ten palindromes of five letters or more."""
    return sum(len(word) >= 5 and word == word[::-1] for word in plain(text.lower())) >= 10


def chained_sentences(text: str, s: Settings) -> bool:
    """The last word of each sentence is the first of the next."""
    found = [bare(sentence).lower().split() for sentence in divided(text)]
    return all(a and b and a[-1] == b[0] for a, b in pairwise(found))


def framed_paragraphs(text: str, s: Settings) -> bool:
    """Each line that is not blank ends with the word that it began with."""
    found = [bare(line.strip()).lower().split() for line in lines(text)]
    return all(line and line[0] == line[-1] for line in found)


def nested_brackets(text: str, s: Settings) -> bool:
    """Five levels, and the innermost closed."""
    open_now: list[str] = []
    deepest = 0
    for character in text:
        if character in "([{":
            open_now.append(character)
            deepest = max(deepest, len(open_now))
        elif character in BRACKETS:
            if not open_now or open_now.pop() != BRACKETS[character]:
                open_now, deepest = [], 0
            elif deepest >= 5:
                return True
    return False


def nested_quotes(text: str, s: Settings) -> bool:
    """Three levels, double and single in turn, that are closed."""
    open_now: list[str] = []
    deepest = 0
    for character in re.findall("[\"']", text):
        if open_now and open_now[-1] == character:
            open_now.pop()
            if deepest - len(open_now) >= 3:
                return True
        else:
            open_now.append(character)
            deepest = max(deepest, len(open_now))
    return False


def emoji(text: str, s: Settings) -> bool:
    """Each sentence ends with an emoji, before or after its mark."""
    found = [sentence.translate(UNMARKED).strip() for sentence in divided(text)]
    ends = [any(map(EMOJI.fullmatch, sentence[-2:])) for sentence in found]
    follow = [bool(EMOJI.match(after)) for after in [*found[1:], ""]]
    return all(found) and all(end or after for end, after in zip(ends, follow, strict=True))


def quotes_explained(text: str, s: Settings) -> bool:
    """No quotation directly after another, and none at the end."""
    joined = "".join(re.sub("[\u201c\u201d]", '"', text).replace("'\"'", "").split())
    return '""' not in joined and not joined.rstrip(string.digits + string.punctuation.replace('"', "")).endswith('"')


def stairs(text: str, s: Settings) -> bool:
    """Each line is indented more than the one before. Of blank lines in a row, every second one counts, as there."""
    kept: list[str] = []
    removed = False  # the line after one that is removed is not looked at
    for line in text.split("\n"):
        removed = not line.strip() and not removed
        kept += [] if removed else [line]
    indents = [len(line) - len(line.lstrip(" ")) for line in kept]
    return all(a < b for a, b in pairwise(indents))


def thesis(text: str, s: Settings) -> bool:
    """A part in HTML's italics, and text after it."""
    start = next((text.find(mark) for mark in ("<i>", "<em>") if mark in text), None)
    inside = text[start:]
    end = next((inside.find(mark) for mark in ("</i>", "</em>") if mark in inside), None)
    return start is not None and end is not None and bool(inside[3:end].strip()) and bool(inside[end + 4 :].strip())


def newline(text: str, s: Settings) -> bool:
    """Each word on a line of its own."""
    text = text.translate(UNMARKED).strip()
    return sum(line != "" for line in text.split("\n")) == len(text.split())


def bullets_after_sentences(text: str, s: Settings) -> bool:
    """At least two sentences, then at least two lines that begin with `*`; after a blank line, those alone."""
    before, starred, open_now = 0, 0, True
    for line in text.split("\n"):
        if line.strip().startswith("*"):
            if before < 2:
                return False
            starred, open_now = starred + 1, False
        elif not open_now:
            return False
        else:
            found = len(divided(line.strip()))
            before, open_now = before + found, found > 0
    return starred >= 2


def title_case(text: str, s: Settings) -> bool:
    """No token begins with a small letter that others follow; of one letter, or in capitals, it passes."""
    return not any(token[0].islower() and (token[1:].isupper() or token[1:].islower()) for token in tokens(text))


def changed_first_word(text: str, s: Settings) -> bool:
    """The prompt repeated but for its first word."""
    given = s["prompt_to_repeat"]
    return text != given and text.split()[1:] == given.split()[1:]


def span(text: str, s: Settings) -> bool:
    """The words of the prompt between two places."""
    wanted = s["prompt_to_repeat"].lower().split()[int(s["n_start"]) : int(s["n_end"])]
    return text.lower().split() == wanted


def one_of(text: str, s: Settings) -> bool:
    """One of the options and nothing else; letters as they are, words in any case and with marks around them."""
    options = s["options"]
    parts = [part.strip() for part in options.split("/" if "/" in options else "or" if "or" in options else ",")]
    if re.match(r"\W*[aA]\W*[bB]\W*[cC]\W*", options):
        return text in parts
    return bare(text).lower() in {bare(part).lower() for part in parts}


CHECKS: dict[str, Check] = {
    "count:keywords_multiple": keywords_multiple,
    "count:conjunctions": conjunctions,
    "count:numbers": lambda text, s: len(re.findall(r"\d+", " ".join(plain(text)))) == s["N"],
    "count:unique_word_count": unique_words,
    "count:person_names": lambda text, s: sum(name in text for name in NAMES) >= s["N"],
    "count:pronouns": pronouns,
    "count:punctuation": punctuation,
    "count:word_count_range": lambda text, s: s["min_words"] <= len(words(text)) <= s["max_words"],
    "count:words_japanese": japanese,
    "format:emoji": emoji,
    "format:line_indent": stairs,
    "format:list": lambda text, s: text.count(s["sep"]) >= 2,
    "format:newline": newline,
    "format:no_bullets_bullets": bullets_after_sentences,
    "format:no_whitespace": lambda text, s: not any(character.isspace() for character in text),
    "format:options": one_of,
    "format:output_template": lambda text, s: all(
        part in text for part in ("My Answer:", "My Conclusion:", "Future Outlook:")
    ),
    "format:parentheses": nested_brackets,
    "format:quote_unquote": quotes_explained,
    "format:quotes": nested_quotes,
    "format:sub-bullets": lambda text, s: all("-" in part for part in text.split("*")[1:]),
    "format:thesis": thesis,
    "format:title_case": title_case,
    "ratio:overlap": overlap,
    "ratio:sentence_balance": sentence_balance,
    "ratio:sentence_type": sentence_types,
    "ratio:sentence_words": sentence_lengths,
    "ratio:stop_words": stop_words,
    "repeat:repeat_change": changed_first_word,
    "repeat:repeat_span": span,
    "sentence:alliteration_increment": alliteration,
    "sentence:increment": growing_sentences,
    "sentence:keyword": keyword_in_sentence,
    "words:alphabet": alphabet,
    "words:consonants": lambda text, s: all(CONSONANTS.search(word) for word in text.lower().split()),
    "words:keywords_specific_position": keyword_at,
    "words:last_first": chained_sentences,
    "words:no_consecutive": lambda text, s: all(a[0] != b[0] for a, b in pairwise(plain(text.lower()))),
    "words:palindrome": palindromes,
    "words:paragraph_last_first": framed_paragraphs,
    "words:prime_lengths": lambda text, s: all(len(word) in PRIMES for word in plain(text)),
    "words:repeats": lambda text, s: max(Counter(plain(text.lower())).values(), default=0) <= s["small_n"],
    "words:vowel": few_vowels,
    "words:words_position": keyword_at_both_ends,
}
