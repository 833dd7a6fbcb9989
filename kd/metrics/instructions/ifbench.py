"""The instructions of IFBench about words, sentences and form, each a function of an answer and its settings.

Pyatkin et al. 2025, "Generalizing Verifiable Instruction Following" (arXiv 2507.02833). Left out of the benchmark's 57:
those that a tagger (`words:start_verb`) or a dictionary of syllables (`words:odd_even_syllables`) decides. Sentences
are divided by `sentences`, and tokens by a regular expression in place of NLTK's.
"""

import re
from collections import Counter
from itertools import pairwise

from kd.metrics.instructions.ifeval import Check, Settings
from kd.metrics.instructions.sentences import bare, lines, mark, plain, sentences, tokens, words
from kd.metrics.instructions.vocabulary import CONJUNCTIONS, NAMES, PRONOUNS, STOP_WORDS

PRIMES = frozenset(n for n in range(2, 98) if all(n % k for k in range(2, n)))
CONSONANTS = re.compile("[bcdfghjklmnpqrstvwxyz]{2}")
JAPANESE = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")
EMOJI = re.compile(
    "[\U0001f000-\U0001faff\u2190-\u21ff\u2300-\u23ff\u2600-\u27bf\u2b00-\u2bff\u3030\u303d\u3297\u3299]"
)
BRACKETS = {")": "(", "]": "[", "}": "{"}


def keywords_multiple(text: str, s: Settings) -> bool:
    """Five keywords, once, twice, three, five and seven times."""
    wanted = zip((s[f"keyword{i}"] for i in range(1, 6)), (1, 2, 3, 5, 7), strict=True)
    return all(text.lower().count(keyword.lower()) == count for keyword, count in wanted)


def conjunctions(text: str, s: Settings) -> bool:
    """At least so many different coordinating conjunctions."""
    return len({bare(word).lower() for word in text.split()} & CONJUNCTIONS) >= s["small_n"]


def unique_words(text: str, s: Settings) -> bool:
    """At least so many different words."""
    return len({bare(word) for word in text.lower().split()}) >= s["N"]


def pronouns(text: str, s: Settings) -> bool:
    """At least so many pronouns."""
    return sum(word in PRONOUNS for word in plain(text.lower().replace("/", " "))) >= s["N"]


def punctuation(text: str, s: Settings) -> bool:
    """All of . , ! ? ; : and an interrobang beside them."""
    rest = re.sub(r"\?!|!\?|\u203d", "", text, count=1)
    return rest != text and set(".,!?;:") <= set(rest)


def japanese(text: str, s: Settings) -> bool:
    """Each N-th word is Japanese."""
    nth = [bare(word) for word in text.split()[int(s["N"]) - 1 :: int(s["N"])]]
    return all(JAPANESE.search(word) for word in nth if word and not word.isdigit())


def keyword_in_sentence(text: str, s: Settings) -> bool:
    """The N-th sentence has the keyword."""
    found = sentences(text)
    return len(found) >= s["N"] and s["word"].lower() in found[int(s["N"]) - 1].lower()


def keyword_at(text: str, s: Settings) -> bool:
    """The m-th token of the n-th sentence."""
    found = sentences(text)
    inside = tokens(found[int(s["n"]) - 1]) if len(found) >= s["n"] else []
    return len(inside) >= s["m"] and inside[int(s["m"]) - 1] == s["keyword"]


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
    count = Counter(map(mark, sentences(text)))
    return count["."] == 2 * count["?"]


def sentence_balance(text: str, s: Settings) -> bool:
    """As many statements as questions as exclamations."""
    count = Counter(map(mark, sentences(text)))
    return count["."] == count["?"] == count["!"]


def sentence_lengths(text: str, s: Settings) -> bool:
    """Three sentences of the same number of characters."""
    found = [len(sentence) for sentence in sentences(text)]
    return len(found) == 3 and len(set(found)) == 1


def alliteration(text: str, s: Settings) -> bool:
    """Each sentence has more words in runs of one first letter than the one before."""
    counts = []
    for sentence in sentences(text):
        same = [a == b for a, b in pairwise(word[0] for word in plain(sentence.lower()))]
        counts.append(sum(now or before for now, before in zip([*same, False], [False, *same], strict=True)))
    return all(a < b for a, b in pairwise(counts))


def growing_sentences(text: str, s: Settings) -> bool:
    """Each sentence has so many words more than the one before."""
    counts = [len(plain(sentence)) for sentence in sentences(text)]
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
    found = [plain(sentence.lower()) for sentence in sentences(text)]
    return all(a and b and a[-1] == b[0] for a, b in pairwise(found))


def framed_paragraphs(text: str, s: Settings) -> bool:
    """Each line that is not blank ends with the word that it began with."""
    found = [bare(line.strip().lower()).split() for line in lines(text)]
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
    found = sentences(text)
    following = [*found[1:], ""]
    return bool(found) and all(
        any(map(EMOJI.match, bare(sentence)[-2:])) or EMOJI.match(after) is not None
        for sentence, after in zip(found, following, strict=True)
        if not EMOJI.fullmatch(bare(sentence) or " ")
    )


def quotes_explained(text: str, s: Settings) -> bool:
    """No quotation directly after another, and none at the end."""
    joined = "".join(text.replace("\u201c", '"').replace("\u201d", '"').split())
    return '""' not in joined and not joined.rstrip("0123456789.,;:!?)").endswith('"')


def stairs(text: str, s: Settings) -> bool:
    """Each line is indented more than the one before."""
    indents = [len(line) - len(line.lstrip(" ")) for line in lines(text)]
    return all(a < b for a, b in pairwise(indents))


def thesis(text: str, s: Settings) -> bool:
    """A part in HTML's italics, and text after it."""
    match = re.search(r"<(i|em)>(.*?)</\1>(.*)", text, re.DOTALL)
    return match is not None and bool(match[2].strip()) and bool(match[3].strip())


def bullets_after_sentences(text: str, s: Settings) -> bool:
    """At least two sentences, then at least two lines that begin with `*`, and nothing after."""
    starred = [line.strip().startswith("*") for line in lines(text)]
    place = starred.index(True) if True in starred else len(starred)
    before = sum(len(sentences(line)) for line in lines(text)[:place])
    return before >= 2 and all(starred[place:]) and len(starred) - place >= 2


def title_case(text: str, s: Settings) -> bool:
    """Every word begins with a capital letter, and no other letter is one."""
    found = [word for word in tokens(text) if word[0].isalpha()]
    return all(word[0].isupper() and (len(word) == 1 or word[1:].islower()) for word in found)


def changed_first_word(text: str, s: Settings) -> bool:
    """The prompt repeated but for its first word."""
    given = s["prompt_to_repeat"]
    return text != given and text.split()[1:] == given.split()[1:]


def span(text: str, s: Settings) -> bool:
    """The words of the prompt between two places."""
    wanted = s["prompt_to_repeat"].lower().split()[int(s["n_start"]) : int(s["n_end"])]
    return text.lower().split() == wanted


def one_of(text: str, s: Settings) -> bool:
    """One of the options and nothing else, but for case and marks around it."""
    parts = re.split(r"/|, ?| or ", s["options"])
    return bare(text).lower() in {bare(option).lower() for option in parts}


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
    "format:newline": lambda text, s: all(len(plain(line)) <= 1 for line in lines(text)),
    "format:no_bullets_bullets": bullets_after_sentences,
    "format:no_whitespace": lambda text, s: not any(character.isspace() for character in text),
    "format:options": one_of,
    "format:output_template": lambda text, s: all(
        part in text for part in ("My Answer:", "My Conclusion:", "Future Outlook:")
    ),
    "format:parentheses": nested_brackets,
    "format:quote_unquote": quotes_explained,
    "format:quotes": nested_quotes,
    "format:sub-bullets": lambda text, s: "*" in text and all("-" in part for part in text.split("*")[1:]),
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
