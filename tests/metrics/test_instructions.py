"""Checks of verifiable instructions: an answer that follows each, and one that does not, written by hand.

Run: python -m pytest tests/metrics/test_instructions.py
"""

import json
from pathlib import Path

import pytest
from nltk.tokenize import NLTKWordTokenizer

from kd.metrics.instructions import ifbench, ifeval
from kd.metrics.instructions.followed import CHECKS, instructions_followed
from kd.metrics.instructions.sentences import sentences
from kd.metrics.instructions.treebank import tokens

ENGLISH = "the cat is on the mat and it is very happy there"
FOLLOWED = {  # instruction: (settings, an answer that follows it, one that does not)
    "keywords:existence": ({"keywords": ["cat", "mat"]}, "A Cat on a mat.", "A cat."),
    "keywords:frequency": ({"keyword": "cat", "frequency": 2, "relation": "at least"}, "cat, Cat", "cat"),
    "keywords:forbidden_words": ({"forbidden_words": ["cat"]}, "a catalogue", "a cat"),
    "keywords:letter_frequency": ({"letter": "a", "let_frequency": 2, "let_relation": "less than"}, "Ab", "aA"),
    "language:response_language": ({"language": "de"}, "Das Haus ist groß und der Hund schläft.", "The house is big."),
    "length_constraints:number_sentences": ({"num_sentences": 2, "relation": "less than"}, "One.", "One. Two."),
    "length_constraints:number_words": ({"num_words": 3, "relation": "at least"}, "one two three", "one two"),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "one\n***\ntwo", "one\n***\n***\ntwo"),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"},
        "One.\n\nSo, two.",
        "So.\n\nOne.",
    ),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, "[name] of [town]", "[name]"),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, "Bye.\nP.S. More.", "Bye."),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* one\n- two", "* one"),
    "detectable_format:constrained_response": ({}, "My answer is maybe.", "Maybe."),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 1}, "a *b* c", "a ** c"),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Part", "num_sections": 2},
        "Part 1\na\nPart 2\nb",
        "Part 1\na",
    ),
    "detectable_format:json_format": ({}, '```json\n{"a": 1}\n```', "{a: 1}"),
    "detectable_format:title": ({}, "<<A title>>\ntext", "<< >> text"),
    "combination:two_responses": ({}, "one\n******\ntwo", "one\n******\none"),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Say it."}, "say it. I do.", "I say it."),
    "startend:end_checker": ({"end_phrase": "The end."}, "Well. the end.", "The end. Well"),
    "startend:quotation": ({}, '"all of it"', '"some" of it'),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 1, "capital_relation": "at least"},
        "a BIG one",
        "a b",
    ),
    "change_case:english_capital": ({}, ENGLISH.upper(), ENGLISH),
    "change_case:english_lowercase": ({}, ENGLISH, ENGLISH.title()),
    "punctuation:no_comma": ({}, "one and two", "one, two"),
    "count:keywords_multiple": (
        {"keyword1": "a", "keyword2": "b", "keyword3": "c", "keyword4": "d", "keyword5": "e"},
        "a bb ccc ddddd eeeeeee",
        "a bb ccc ddddd eeeeee",
    ),
    "count:conjunctions": ({"small_n": 2}, "this and that, but no", "this and that and those"),
    "count:numbers": ({"N": 2}, "1,200 of 3.", "1 200 of 3"),
    "count:unique_word_count": ({"N": 2}, "one two one", "one One."),
    "count:person_names": ({"N": 2}, "Emma met Liam.", "Emma met Max."),
    "count:pronouns": ({"N": 3}, "she/her/hers", "she, the cat, her"),
    "count:punctuation": ({}, "Why?! No, yes; so: it. Go! Who?", "Why?! No, yes; so it. Go! Who?"),
    "count:word_count_range": ({"min_words": 2, "max_words": 3}, "one two", "one"),
    "count:words_japanese": ({"N": 2}, "one 猫 three 犬", "one two"),
    "format:emoji": ({}, "Good 😀. Fine 🎉!", "Good 😀. Fine!"),
    "format:line_indent": ({}, "a\n b\n  c", "a\n b\n c"),
    "format:list": ({"sep": "!?"}, "!? one\n!? two", "!? one"),
    "format:newline": ({}, "one\ntwo.", "one two"),
    "format:no_bullets_bullets": ({}, "One. Two.\n* a\n* b", "One.\n* a\n* b"),
    "format:no_whitespace": ({}, "oneword", "two words"),
    "format:options": ({"options": "yes/no/maybe"}, "Maybe.", "perhaps"),
    "format:output_template": ({}, "My Answer: a My Conclusion: b Future Outlook: c", "My Answer: a"),
    "format:parentheses": ({}, "([{([a])}])", "(((a)))"),
    "format:quote_unquote": ({}, 'He said "go" and left.', 'He said "go"'),
    "format:quotes": ({}, '"a \'b "c" d\' e"', "\"a 'b' c\""),
    "format:sub-bullets": ({}, "* a\n - b", "* a\n* b"),
    "format:thesis": ({}, "<i>Claim</i> and why", "<i>Claim</i>"),
    "format:title_case": ({}, "A Good Day", "A good Day"),
    "ratio:overlap": ({"percentage": 50, "reference_text": "abcd"}, "abcdxy", "abcd"),
    "ratio:sentence_balance": ({}, "One. Two? Three!", "One. Two?"),
    "ratio:sentence_type": ({}, "One. Two. Three?", "One. Two?"),
    "ratio:sentence_words": ({}, "One as. Two by. Six in.", "One as. Two by. Three in."),
    "ratio:stop_words": ({"percentage": 50}, "the cat", "the cat is"),
    "repeat:repeat_change": ({"prompt_to_repeat": "Write a poem"}, "Draw a poem", "Write a poem"),
    "repeat:repeat_span": ({"prompt_to_repeat": "Write a long poem", "n_start": 1, "n_end": 3}, "a long", "long poem"),
    "sentence:alliteration_increment": ({}, "One two. Big bad wolf.", "Big bad wolf. One two."),
    "sentence:increment": ({"small_n": 1}, "One. Two words. Three words here.", "One. Two."),
    "sentence:keyword": ({"N": 2, "word": "cat"}, "One. A cat.", "A cat. One."),
    "words:alphabet": ({}, "Yes, zebras all.", "Yes all."),
    "words:consonants": ({}, "strong cliffs", "strong sea"),
    "words:keywords_specific_position": ({"n": 2, "m": 2, "keyword": "cat"}, "One. A cat.", "A cat. One."),
    "words:last_first": ({}, "I like cats. Cats like me.", "I like cats. Dogs too."),
    "words:no_consecutive": ({}, "one two", "two tall"),
    "words:palindrome": ({}, " ".join(["level"] * 10), " ".join(["level"] * 9)),
    "words:paragraph_last_first": ({}, "One is one.\nTwo or two.", "One is two."),
    "words:prime_lengths": ({}, "it was", "four"),
    "words:repeats": ({"small_n": 2}, "a b a", "a A a"),
    "words:vowel": ({}, "a tree is", "a tree is out"),
    "words:words_position": ({"keyword": "cat"}, "a cat or cat b", "cat a b cat"),
}


def test_every_check_has_a_case():
    assert FOLLOWED.keys() == CHECKS.keys()
    assert len(ifeval.CHECKS) == 25  # all of the paper's
    assert not ifeval.CHECKS.keys() & ifbench.CHECKS.keys()


@pytest.mark.parametrize("name", FOLLOWED)
def test_an_answer_that_follows_is_distinguished_from_one_that_does_not(name):
    settings, good, bad = FOLLOWED[name]
    meta = {"instruction_id_list": [name], "kwargs": [settings]}
    assert instructions_followed(good, meta) == 1.0
    assert instructions_followed(bad, meta) == 0.0


OFFICIAL = json.loads((Path(__file__).parent / "official_instructions.json").read_text(encoding="utf-8"))


def test_held_answers_are_judged_as_by_the_official_code():
    """All instructions but those that a model of languages or of sentences decides, which here is another."""
    wrong = [
        (case["instruction"], case["settings"], text)
        for case in OFFICIAL["cases"]
        for followed in (True, False)
        for text in case["followed" if followed else "not_followed"]
        if CHECKS[case["instruction"]](text, case["settings"]) != followed
    ]
    assert wrong == []
    by_model = {"language:response_language", "change_case:english_capital", "change_case:english_lowercase"}
    held = {case["instruction"] for case in OFFICIAL["cases"]}
    assert CHECKS.keys() - held == by_model | {"length_constraints:number_sentences"}


def test_tokens_are_those_of_nltk():
    nltk = NLTKWordTokenizer()
    for text in {text for case in OFFICIAL["cases"] for text in (*case["followed"], *case["not_followed"])}:
        assert tokens(text) == [token for sentence in sentences(text) for token in nltk.tokenize(sentence)]


def test_levels_and_loose_reading():
    meta = {
        "instruction_id_list": ["punctuation:no_comma", "startend:quotation"],
        "kwargs": [{}, {}],
    }
    assert instructions_followed("no comma", meta, level="instruction") == 0.5
    assert instructions_followed("no comma", meta) == 0.0
    assert instructions_followed("", meta, level="instruction") == 0.0  # an empty answer follows nothing
    assert instructions_followed('Sure, here it is:\n"no comma"', meta) == 0.0
    assert instructions_followed('Sure, here it is:\n"no comma"', meta, loose=True) == 1.0  # without the first line
    indented = {"instruction_id_list": ["format:line_indent"], "kwargs": [{}]}
    assert instructions_followed("  a\n   b", indented, loose=True) == 1.0  # the answer itself is not stripped
    assert (
        instructions_followed("  b\n a\n", indented, loose=True) == 1.0
    )  # after the first line is removed, ' a' is left


def test_an_unknown_instruction_is_named():
    with pytest.raises(ValueError, match="instruction words:start_verb has no check here"):
        instructions_followed("Go.", {"instruction_id_list": ["words:start_verb"], "kwargs": [{}]})


def test_sentences():
    text = 'Dr. Smith, e.g. J. Doe, paid $3.50. "Why?" he asked... Then (at last!) it ended'
    assert sentences(text) == [
        "Dr. Smith, e.g. J. Doe, paid $3.50.",
        '"Why?"',
        "he asked...",
        "Then (at last!)",
        "it ended",
    ]
