"""Curation: each stage with a teacher that follows a rule, so that its records are known, and one that it rejects.

Run: python -m pytest tests/augmentation/test_curation.py
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from kd.augmentation.curation.dialogues import SimulatedUser, closing, transcript
from kd.augmentation.curation.snippets import snippet
from kd.augmentation.documents import passages
from kd.augmentation.labeling import Labeling
from kd.augmentation.new_records import PARENTS
from kd.components.choices import content
from kd.data.chat_template import encode_prompt
from kd.data.prompt_templates import template_text
from kd.data.sequences import Encoder
from kd.doctor.subject import composed
from kd.experiment.elicitation import elicit
from kd.experiment.run import as_read
from kd.generators.settings import Decoding
from kd.teachers.interface import Answers
from kd.teachers.white_box import WhiteBox
from kd.types import Record, Response
from tests.augmentation.rules import Rule, after, configured, record, run, shown, starts
from tests.tiny import tiny

GIVEN = [record("a", "What is salt?", "A mineral."), record("b", "What is snow?", "Frozen water.")]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KD_CACHE", str(tmp_path))
    return tmp_path


# --- topics ---


def tree(text: str) -> str:
    if text.startswith(starts("topics_subtopics")):
        return "1. Salt\n2. snow\n3. Ice" if "weather" in text else "- Snow\n- Wind"
    if text.startswith(starts("topics_questions")):
        return f"1. Why {text.split()[4].rstrip(',')}?\n2. What is it?\n3. How so?"
    return "It is." if "?" in text else "no"


def test_topics_by_hand():
    """The two subtopics of weather; of travel only Wind is new. "What is it?" is a question of the first alone."""
    stage = configured("topics", topics=["weather", "travel"], subtopics=2, questions=2)
    made, account = run(stage, GIVEN, tree)
    assert shown(made) == [
        ("toy/topic1", "Why Salt?", ("It is.",)),
        ("toy/topic2", "What is it?", ("It is.",)),
        ("toy/topic3", "Why snow?", ("It is.",)),
        ("toy/topic4", "Why Wind?", ("It is.",)),
    ]
    assert made[3].meta == {PARENTS: [], "topic": "travel", "subtopic": "Wind"}
    assert account.dropped == {"repeated subtopic": 1, "repeated question": 2}
    assert account.prompts == 2 + 3 + 4


def test_prompts_alone_are_answered_by_a_later_stage():
    stage = configured("topics", topics=["weather"], subtopics=1, questions=1, answers=False, keep_given=True)
    made, account = run(stage, GIVEN, tree)
    assert [one.responses for one in made] == [GIVEN[0].responses, GIVEN[1].responses, ()]
    assert account.prompts == 2
    labelled, _ = run(Labeling(max_new_tokens=9, temperature=0.0), made, lambda text: f"Label of {text}")
    assert labelled[2].responses == (Response("Label of Why Salt?", "teacher"),)
    assert labelled[2].provenance == ("topic", "labeling")


# --- dialogues ---


def test_a_transcript_ends_where_turns_do_not_alternate():
    text = "Intro\n[AI] Hi\n**[Human]** One?\n[AI]: Yes.\nIndeed [Human].\n[human] Two?\n[AI] No.\n[AI] No!\n[Human] x"
    talk = [("user", "One?"), ("assistant", "Yes.\nIndeed [Human]."), ("user", "Two?"), ("assistant", "No.")]
    assert [(message["role"], message["content"]) for message in transcript(text)] == talk
    assert transcript("no markers") == transcript("[AI] Hi") == []


def test_self_chat_by_hand():
    """The second dialogue has one reply alone. The last reply is the response, the turns before it are the prompt."""

    def reply(text: str) -> str:
        longer = "\n[Human] And ice?\n[AI] Cold.\n[Human] Thanks!" if text.endswith("salt?") else ""
        return f"[Human] {after(text, 'The first question:')}\n[AI] It is.{longer}"

    made, account = run(configured("baize"), GIVEN, reply)
    (one,) = made
    told = [("user", "What is salt?"), ("assistant", "It is."), ("user", "And ice?")]
    assert [(message["role"], message["content"]) for message in one.prompt] == told
    assert (one.id, one.responses, one.meta) == ("a/self_chat1", (Response("Cold.", "teacher"),), {PARENTS: ["a"]})
    assert account.dropped == {"short dialogue": 1}


def talking(text: str) -> str:
    """Answers to questions; in the user's place three further ones, or thanks after the answer on snow."""
    if not text.startswith(starts("simulated_user")):
        return f"{text[:-1]}: so."
    said = text.count("User: ")
    return "Thank you, that helps a lot!" if "snow" in text else f"Question {said + 1}?"


def test_a_simulated_user_by_hand():
    """Three replies on salt; on snow the user thanks, which ends the dialogue after one reply."""
    given = [record("a", "What is salt?"), record("b", "What is snow?")]
    told = {"role": "system", "content": "Be brief."}
    given[0] = Record("a", "toy", (told, *given[0].prompt))
    teacher = Rule(talking)
    made, account = run(configured("ultrachat", "dialogues"), given, teacher)
    (one,) = made
    assert one.prompt[0] == told
    assert [message["role"] for message in one.prompt[1:]] == ["user", "assistant"] * 2 + ["user"]
    assert [message["content"] for message in one.prompt[1::2]] == ["What is salt?", "Question 2?", "Question 3?"]
    assert one.responses == (Response("Question 3: so.", "teacher"),)
    assert account.dropped == {"short dialogue": 1}
    assert teacher.read[-1] == list(one.prompt)  # what the assistant reads is what the record holds
    assert account.prompts == 2 + 2 + 1 + 1 + 1
    made, _ = run(configured("ultrachat", "dialogues", least=1), given, talking)
    assert [one.id for one in made] == ["a/dialogue1", "b/dialogue1"]


def test_every_reply_of_a_dialogue_is_learnt():
    """`data.loss_on=all`: the tokens of both replies, and no others, have a loss."""
    (one,), _ = run(configured("ultrachat", "dialogues", turns=2), [record("a", "What is salt?")], talking)
    tokenizer = tiny().tokenizer
    encoder = Encoder(tokenizer, None, max_length=256, max_tokens=256, every_turn=True)
    (batch,) = encoder.batches([one])
    learnt = tokenizer.decode(batch.student.labels[batch.student.mask], skip_special_tokens=True)
    assert "What is salt: so." in learnt
    assert "Question 2: so." in learnt
    assert "?" not in learnt


def test_what_closes_a_dialogue():
    assert closing("Thanks a lot!")
    assert closing("Goodbye.")
    assert not closing("Thank you. And what is ice?")
    assert not closing("Tell me more about it.")


# --- textbooks and personas ---


def test_textbooks_by_hand():
    sections = {"children": "the bridge " * 5, "adults": "too short, bridge", "all": "no drawn word " * 5}
    stage = configured(
        "textbooks", topics=["ice"], audiences=[*sections], each=1, words=["Bridge"], drawn=1, shortest=8
    )
    made, account = run(stage, GIVEN, lambda text: sections[after(text, "about ice for").partition(".")[0]])
    prompt = "Write a section of a textbook about ice for children."
    assert shown(made) == [("toy/textbook1", prompt, (("the bridge " * 5).strip(),))]
    assert made[0].meta == {PARENTS: [], "topic": "ice", "audience": "children"}
    assert account.dropped == {"short text": 1, "text without the drawn words": 1}


def test_personas_by_hand():
    stage = configured("personas", personas=["a baker", "a nurse"], each=1, constraints=["End with a dot."], drawn=1)
    made, account = run(stage, GIVEN, lambda text: "Help." if text.startswith(starts("persona")) else f"To: {text}")
    assert shown(made) == [("toy/persona1", "Help.\n\nEnd with a dot.", ("To: Help.\n\nEnd with a dot.",))]
    assert account.dropped == {"repeated record": 1}
    with pytest.raises(ValueError, match=r"drawn=2 of 1 constraints cannot be drawn"):
        configured("personas", constraints=["x"], drawn=2)


# --- labels ---


def test_zerogen_by_hand():
    """As many texts of each label; what both have is dropped from both."""
    texts = iter(["Fine film", "So-so", "So-so", "Bad film"])
    stage = configured("zerogen", each=2, prompt="{text} | which?")
    made, account = run(stage, GIVEN, lambda _: next(texts))
    assert shown(made) == [
        ("toy/positive1/zerogen1", "Fine film | which?", ("positive",)),
        ("toy/negative2/zerogen1", "Bad film | which?", ("negative",)),
    ]
    assert made[1].meta == {PARENTS: [], "choices": ["positive", "negative"], "answer_index": 1}
    assert account.dropped == {"text of two labels": 2}


# --- documents ---

CODE = "def double(x):\n    return 2 * x\n\n\nprint(double(3))\n"


def test_snippets_are_lines_of_the_code():
    found = {snippet(CODE, 3, seed) for seed in range(60)}
    assert all(own and own in CODE and 1 <= len(own.split("\n")) <= 3 for own in found)
    assert {"def double(x):\n    return 2 * x", "print(double(3))"} <= found
    assert snippet("x", 15, 0) == "x"


def test_snippets_by_hand():
    given = [record("a", "?", "x = 1"), record("b", "?", "x = 1"), record("c", "?", "y = 2"), record("d", "?", "z = 3")]

    def reply(text: str) -> str:
        if "x = 1" in text:
            return "Problem: Print one.\nSolution:\nprint(1)"
        return "Problem: Explain the snippet.\nSolution: It is y." if "y = 2" in text else "I cannot."

    made, account = run(configured("oss_instruct"), given, reply)
    assert shown(made) == [("a/snippet1", "Print one.", ("print(1)",))]
    reasons = ("repeated snippet", "problem about an unseen snippet", "reply without problem and solution")
    assert account.dropped == dict.fromkeys(reasons, 1)


def test_queries_by_hand():
    given = [record("a", "Salt is a mineral of the sea."), record("b", "Hm.")]
    stage = configured("inpars", shortest=10, prompt="Q: {query}")
    made, account = run(stage, given, lambda _: "what is\n salt")
    assert shown(made) == [("a/query1", "Q: what is salt", ("Salt is a mineral of the sea.",))]
    assert made[0].responses[0].source == "reference"
    assert made[0].meta == {PARENTS: ["a"], "query": "what is salt"}
    assert account.dropped == {"short document": 1}
    with pytest.raises(ValueError, match=r"share=0.5 requires log-probabilities, but teacher Rule provides none"):
        run(configured("inpars", shortest=1, share=0.5), given, lambda _: "what")


class Weighed(WhiteBox):
    """A byte model whose answers follow from the prompt by a rule; log-probabilities are its own."""

    def generate(self, records: Sequence[Record], *, decoding: Decoding, **settings: Any) -> list[Answers]:
        """The last word of the document."""
        return Rule(lambda text: text.split()[-1]).generate(records, decoding=decoding)


def test_the_likeliest_queries_stay():
    """Of three documents two; the mean log-probability of the query's bytes and the end token, after the request."""
    given = [record(name, f"A document about {name}", "x") for name in ("salt", "q", "zz zebra")]
    model, stage = tiny(), configured("inpars", shortest=1, share=0.67)
    made, account = run(stage, given, Weighed(model))
    means = {}
    for own in given:
        text = own.prompt[0]["content"]
        asked = [{"role": "user", "content": template_text("template", "queries").replace("{document}", text).strip()}]
        prompt = encode_prompt(asked, model.tokenizer)
        query = [*model.tokenizer.encode(text.split()[-1], add_special_tokens=False), model.tokenizer.eos_token_id]
        ids = torch.tensor([prompt + query])
        logprobs = model.network(input_ids=ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        means[own.id] = logprobs[torch.arange(len(query)), torch.tensor(query)].mean().item()
    worst = min(means, key=means.__getitem__)
    assert [one.meta[PARENTS] for one in made] == [[own.id] for own in given if own.id != worst]
    assert [one.meta["mean_logprob"] for one in made] == pytest.approx([means[one.meta[PARENTS][0]] for one in made])
    assert account.dropped == {"unlikely query": 1}


def test_domain_questions_by_hand():
    given = [record("a", "Ice is frozen water.", "x", meta={"answer": "x"}), record("b", "Hm.")]

    def reply(text: str) -> str:
        if "Hm." in text:
            return "Nothing to ask."
        return (
            "Question: What is ice?\nAnswer: Frozen\nwater.\nQuestion: What does the text say of ice?\nAnswer: Cold."
            "\nQuestion: Unanswered?\nQuestion: Is it wet?\nAnswer: No.\nQuestion: Fourth?\nAnswer: Yes."
        )

    made, account = run(configured("domain_questions"), given, reply)
    assert shown(made) == [
        ("a/domain1", "What is ice?", ("Frozen\nwater.",)),
        ("a/domain2", "Is it wet?", ("No.",)),
    ]
    assert made[0].meta == {PARENTS: ["a"]}
    assert account.dropped == {"question about an unseen text": 1, "reply without question and answer": 1}
    made, account = run(configured("domain_questions", open_book=True, count=2), given[:1], reply)
    assert [one.prompt[0]["content"] for one in made] == [
        "Ice is frozen water.\n\nWhat is ice?",
        "Ice is frozen water.\n\nWhat does the text say of ice?",
    ]


def test_a_part_of_meta_is_a_document():
    given = [record("a", "?", meta={"passage": "Ice is frozen water."})]
    stage = configured("domain_questions", part="passage")
    made, _ = run(stage, given, lambda text: f"Question: {'Ice' if 'Ice is' in text else 'no'}?\nAnswer: Yes.")
    assert [one.prompt[0]["content"] for one in made] == ["Ice?"]
    with pytest.raises(ValueError, match=r"record b has no passage in its meta, which part=passage reads"):
        run(stage, [record("b", "?")], lambda _: "")


def test_passages_hold_every_word_once():
    text = "  one two\n\nthree  four five "
    assert passages(text, 2) == ["one two", "three  four", "five"]
    assert passages(text, None) == [text]
    assert passages(" ", 2) == passages("", None) == []


def test_the_turns_of_a_dialogue_are_read_again():
    """Of two replies and a question between them, the question reads 10 tokens and the second reply 20."""
    settings = content("augmentation", "ultrachat")["stages"]["dialogues"]
    settings |= {"turns": 2, "max_new_tokens": 10}
    assert SimulatedUser.expected(5, settings) == (5, 15, 15, 150, 5 * (10 + 20))


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ultrachat", ("topics.topics=[ice,cats,oil]", "topics.subtopics=1", "dialogues.turns=1", "dialogues.least=1")),
        ("inpars", ("inpars.shortest=1", "inpars.share=0.5")),
    ],
)
def test_a_real_teacher(name, words):
    """Each text is SmolLM2-135M's; the skill's own records are gone."""
    lengths = [f"{stage}.max_new_tokens=320" for stage in content("augmentation", name)["stages"]]
    given = [f"augmentation.stages.{word}" for word in (*words, *lengths)]
    own = [f"augmentation={name}", "teacher=smollm2_135m", "skill=gsm_symbolic", "skill.train=8", "trainer=cpu"]
    with composed([*own, *given]) as config:
        made = elicit(as_read(config))
    assert all(PARENTS in one.meta and one.responses[0].text for one in made.records)
    assert len({one.id for one in made.records}) == len(made.records) > 0
    assert [bool(stage.dropped) or stage.kept > 0 for stage in made.stages] == [True] * len(made.stages)
