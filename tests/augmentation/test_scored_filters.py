"""Filters by what a model reads or rates: by hand on scripted models, and on real ones.

Run: python -m pytest tests/augmentation/test_scored_filters.py
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from kd.augmentation import Expected, Resources
from kd.augmentation.filters import Filter
from kd.augmentation.filters.coreset import Coreset, HiddenCoreset
from kd.augmentation.filters.deita import QualityComplexity
from kd.augmentation.filters.difference import DifferenceSampling, PerplexityRatio
from kd.augmentation.filters.embeddings import apart, hidden_vectors, k_centers, ngram_vectors, unit
from kd.augmentation.filters.ifd import IFD, Superfiltering
from kd.augmentation.filters.likelihood import likelihoods
from kd.components.choices import content
from kd.data.chat_template import encode_answer, encode_prompt
from kd.data.sequences import Encoder
from kd.experiment.elicitation import elicit
from kd.experiment.loading import load_teacher
from kd.generators.account import Spent, metered
from kd.models.flops import reading_flops
from kd.models.tokenizers import byte_tokenizer
from kd.teachers.interface import Answers, Teacher
from kd.teachers.white_box import StudentText, WhiteBox
from kd.types import Batch, ModelOutput, Record
from tests import runs
from tests.tiny import record, tiny

BYTES = byte_tokenizer()
NO_SCORE = "no response that fits whole"


class Stated(Teacher):
    """Each token of a response has the log-probability -nats(question); replies are a function of the last message."""

    provides = frozenset({"text", "logprobs"})

    def __init__(self, nats: Callable[[str], float] = lambda _: 1.0, reply: Callable[[str], str] = lambda _: ""):
        self.nats, self.reply = nats, reply

    @property
    def tokenizer(self):
        return BYTES

    def identity(self) -> str:
        return "stated"

    def generate(self, records: Sequence[Record], *, decoding, engine, progress=None) -> list[Answers]:
        texts = [self.reply(one.prompt[-1]["content"]) for one in records]
        return [Answers((text,) * decoding.samples, (True,) * decoding.samples, 1) for text in texts]

    def output(self, batch: Batch, wanted: frozenset[str]) -> ModelOutput:
        nats = torch.tensor([self.nats(one.prompt[-1]["content"]) for one in batch.records])
        return ModelOutput(logprobs=torch.where(batch.teacher.mask, -nats[:, None], 0.0))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_CACHE", str(tmp_path))


def applied(
    stage: Filter, given: Sequence[Record], *, max_length: int = 200, **models: Teacher
) -> tuple[str, Counter[str]]:
    used = Resources(seed=0, max_length=max_length, **models)
    kept = list(stage(iter(given), used))
    by_id = {one.id: one for one in given}
    assert kept == [replace(by_id[one.id], provenance=(stage.name,)) for one in kept]
    return " ".join(one.id for one in kept), used.account.dropped


# --- likelihood ---


def test_the_likelihood_is_that_of_the_network_on_the_whole_sequence() -> None:
    model = tiny()
    one = record(0, "2 + 2 = ?", "four", "It is 4.")
    (found,) = likelihoods(WhiteBox(model), [one], max_length=None)
    (alone,) = likelihoods(WhiteBox(model), [one], max_length=None, questions=False)
    for question, value in ((one.prompt, found), (({"role": "user", "content": ""},), alone)):
        nll, tokens = 0.0, 0
        for response in one.responses:
            prompt = encode_prompt(question, model.tokenizer)
            answer = encode_answer(question, response.text, model.tokenizer)
            logits = model.network(torch.tensor([[*prompt, *answer]])).logits[0, :, : model.vocabulary]
            logprobs = logits.log_softmax(-1)
            nll -= sum(logprobs[len(prompt) + i - 1, token].item() for i, token in enumerate(answer))
            tokens += len(answer)
        assert value == (pytest.approx(nll, rel=1e-9), tokens)
    assert abs(found.nll - alone.nll) > 0.1


def test_a_response_that_does_not_fit_whole_has_none() -> None:
    given = [record(0, "?", "four", "x" * 200), record(0, "?", "x" * 9), replace(record(2), responses=())]
    assert likelihoods(Stated(), given, max_length=200) == [None, (10.0, 10), None]
    assert likelihoods(Stated(), [], max_length=200) == []


def test_reading_is_charged_to_the_model_that_reads() -> None:
    model, given = tiny(), [record(i, "?" * i, "x" * (i + 3)) for i in range(4)]
    batches = Encoder(model.tokenizer, None, max_length=200, max_tokens=4096).batches(given)
    with metered() as meter:
        likelihoods(WhiteBox(model), given, max_length=200)
    assert meter.spent._replace(seconds=0.0) == Spent(teacher_tokens=sum(int(b.student.lengths.sum()) for b in batches))
    with metered() as meter:
        likelihoods(StudentText(model), given, max_length=200)
    assert meter.spent._replace(seconds=0.0) == Spent(
        decoding_flops=sum(reading_flops(model, b.student) for b in batches)
    )


# --- difference and ratio: gaps of a 0.5, b 2.0, c 0.0, d 1.0 nats a token, whatever the length ---

GAPS = {"1": 0.5, "2": 2.0, "3": 0.0, "4": 1.0}
FOUR = [record(int(n), n, "x" * (40 if n == "1" else 3)) for n in GAPS]


def of_gaps() -> dict[str, Teacher]:
    return {"teacher": Stated(), "student": Stated(lambda question: 1.0 + GAPS.get(question, 0.0))}


def test_difference_sampling_keeps_what_the_teacher_finds_likeliest_against_the_student() -> None:
    assert applied(DifferenceSampling(), FOUR, **of_gaps()) == ("2 4", {"small difference": 2})
    assert applied(DifferenceSampling(share=1.0), FOUR, **of_gaps()) == ("1 2 3 4", {})
    assert applied(DifferenceSampling(share=0.1), FOUR, **of_gaps()) == ("2", {"small difference": 3})
    empty = replace(record(5), responses=())
    assert applied(DifferenceSampling(), [empty, *FOUR], **of_gaps()) == ("2 4", {"small difference": 2, NO_SCORE: 1})
    assert applied(DifferenceSampling(), [empty], **of_gaps()) == ("", {NO_SCORE: 1})


def test_the_perplexity_ratio_has_bounds() -> None:
    stage = PerplexityRatio(lowest=math.exp(0.9), highest=math.exp(1.5))
    assert applied(stage, FOUR, **of_gaps()) == ("4", {"low perplexity ratio": 2, "high perplexity ratio": 1})
    assert applied(PerplexityRatio(), FOUR, **of_gaps()) == ("1 2 3 4", {})
    assert applied(PerplexityRatio(lowest=1.1), FOUR, **of_gaps()) == ("1 2 4", {"low perplexity ratio": 1})
    assert applied(PerplexityRatio(lowest=1.1), [FOUR[i] for i in (0, 1, 3)], **of_gaps()) == ("1 2 4", {})
    with pytest.raises(ValueError, match=r"lowest=2\.0 and highest=1\.0"):
        PerplexityRatio(lowest=2.0, highest=1.0)


# --- IFD: 2 nats a token without a question, and with it as many as it names ---


@pytest.mark.parametrize(("stage", "role"), [(IFD, "student"), (Superfiltering, "teacher")])
def test_ifd_keeps_what_the_question_helps_least_but_helps(stage, role) -> None:
    model = {role: Stated(lambda question: float(question or "2"))}
    given = [record(i, nats, "xyz") for i, nats in enumerate(["0.5", "1.5", "2", "1", "3"])]
    dropped = {"instruction that does not help": 2, "low difficulty": 1}
    assert applied(stage(share=0.4), given, **model) == ("1 3", dropped)
    assert applied(stage(share=1.0), given, **model) == ("0 1 3", {"instruction that does not help": 2})
    assert applied(stage(share=0.4, below=0.6), given, **model)[0] == "0 3"
    assert applied(stage(), given[2:3], **model) == ("", {"instruction that does not help": 1})


def test_ifd_is_a_ratio_of_losses_and_superfilterings_one_of_perplexities() -> None:
    given, model = [record(0, "0.5", "xyz"), record(1, "3")], Stated(lambda question: float(question or "2"))
    used = Resources(seed=0, student=model, teacher=model)
    assert IFD().difficulties(given, used) == [0.25, 1.5]
    assert Superfiltering().difficulties(given, used) == pytest.approx([math.exp(-1.5), math.e])


def test_a_student_that_finds_the_response_certain_has_nothing_to_learn() -> None:
    certain = Stated(lambda _: 0.0)
    assert IFD().difficulties([record(0)], Resources(seed=0, student=certain)) == [0.0]


# --- vectors ---


def at(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_k_centers_are_the_farthest_in_turn() -> None:
    assert k_centers(at(0, 10, 90, 180), 3) == [0, 3, 2]
    assert k_centers(at(0, 10), 5) == [0, 1]
    assert k_centers(at(0, 0, 0), 2) == [0, 1]  # of equally far ones the first
    assert k_centers(at(), 2) == k_centers(at(1), 0) == []


def test_alike_ones_are_passed_over_in_an_order() -> None:
    close = math.cos(math.radians(15))
    assert apart(at(0, 10, 90, 95, 180), [1, 0, 3, 2, 4], similarity=close, count=3) == [1, 3, 4]
    assert apart(at(0, 10, 90), [2, 1, 0], similarity=close, count=1) == [2]


def test_vectors_of_ngrams() -> None:
    given = [record(0, "one two three four"), record(1, "One two, three four!"), record(2, "five six seven", "8")]
    vectors = ngram_vectors([*given, Record("3", "s", ())])
    assert vectors[0] @ vectors[1] == pytest.approx(1.0, abs=1e-6)
    assert abs(vectors[0] @ vectors[2]) < 0.5
    assert not vectors[3].any()


def test_vectors_of_hidden_states_are_means_over_the_tokens() -> None:
    model = tiny()
    given = [record(0, "one", "two"), record(1, "a longer one", "three"), record(2, "x" * 300)]
    vectors = hidden_vectors(StudentText(model), given, max_length=200)
    for one, vector in zip(given[:2], vectors, strict=False):
        ids = [
            *encode_prompt(one.prompt, model.tokenizer),
            *encode_answer(one.prompt, one.responses[0].text, model.tokenizer),
        ]
        states = model.network(torch.tensor([ids[:-1]]), output_hidden_states=True).hidden_states[-1][0]
        expected = unit(states.mean(0, keepdim=True).detach().float().numpy())[0]
        np.testing.assert_allclose(vector, expected, atol=1e-5)
    assert not vectors[2].any()  # its prompt leaves no room


@pytest.mark.parametrize("stage", [Coreset(share=0.5), HiddenCoreset(share=0.5)], ids=lambda stage: stage.name)
def test_a_coreset_leaves_out_what_is_there_twice(stage) -> None:
    given = [
        record(i, text)
        for i, text in enumerate(["one two", "one two", "5 + 5", "five six seven eight nine", "5 + 5", "one two"])
    ]
    kept, dropped = applied(stage, given, student=StudentText(tiny()))
    assert kept == "0 2 3"
    assert dropped == {"covered by others": 3}


# --- DEITA ---

SHARED = " ".join(f"w{i}" for i in range(60))


def rating(prompt: str) -> str:
    """The number of a record's texts that the prompt asks for, in words around it."""
    name = "c" if "complexity score" in prompt else "q"
    found = re.search(rf"{name}=(\S+)", prompt)
    return f"I think so. Score: {found[1]}" if found else "I cannot rate it."


@pytest.mark.usefixtures("cache")
def test_deita_takes_the_best_that_are_unlike() -> None:
    """Products of 30, 25 (like the first), 16, 1; out of bounds; no response; no rating of its quality."""
    given = [
        record(0, f"c=5 {SHARED}", "q=6"),
        record(1, f"c=5 {SHARED}", "q=5"),
        record(2, "c=4 a river in Asia", "q=4 the Ganges"),
        record(3, "c=1 a city", "q=1 Oslo"),
        record(4, "c=9 a lake", "q=6"),
        replace(record(5, "c=6"), responses=()),
        record(6, "c=6 a mountain", "K2"),
    ]
    stage = QualityComplexity(share=0.3)
    reasons = {"like a better one": 1, "low complexity x quality": 1, "no rating": 3}
    assert applied(stage, given[::-1], max_length=2000, teacher=Stated(reply=rating)) == ("2 0", reasons)
    assert applied(stage, [], max_length=2000, teacher=Stated(reply=rating)) == ("", {})
    everything = QualityComplexity(share=1.0, similarity=1.0)
    assert applied(everything, given, max_length=2000, teacher=Stated(reply=rating)) == ("0 1 2 3", {"no rating": 3})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"similarity": 0.0}, "similarity=0.0"),
        ({"complexity_template": "no such file"}, "complexity_template='no such file'"),
        ({"quality_template": "deita_complexity"}, "quality_template has no {response}"),
        ({"complexity_template": "{question} {answer}"}, "complexity_template has {answer}"),
    ],
)
def test_its_settings_are_checked(settings, named) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        QualityComplexity(share=0.5, **settings)


def test_the_plan_knows_how_many_records_stay() -> None:
    assert [one.expected(25, {"share": 0.1}).records for one in (Coreset, IFD, DifferenceSampling)] == [3, 3, 3]
    assert QualityComplexity.expected(25, {"share": 0.01, "samples": 2, "max_new_tokens": 16}) == Expected(
        1, 50, 100, 1600
    )


# --- hostile records ---


@pytest.mark.usefixtures("cache")
def test_no_record_makes_a_filter_fail() -> None:
    hostile = ["", "\x00", "{question} {0} %s", "<|im_end|>", "日本語🙂" * 9, "x" * 500, "e\u0301" * 40]
    given = [record(i, question, answer) for i, question in enumerate(hostile) for answer in hostile[:2]]
    models = {"teacher": WhiteBox(tiny()), "student": StudentText(tiny(1))}
    places = {id(one.meta): i for i, one in enumerate(given)}
    stages = [DifferenceSampling(), PerplexityRatio(), IFD(share=0.5), HiddenCoreset(share=0.5), Coreset(share=0.5)]
    for stage in (*stages, QualityComplexity(share=0.5, max_new_tokens=2)):
        used = Resources(seed=0, max_length=1500, **models)
        kept = [places[id(one.meta)] for one in stage(iter(given), used)]
        assert kept == sorted(kept)
        assert len(kept) + used.account.dropped.total() == len(given)


# --- in a run, and with a real model ---


@pytest.mark.usefixtures("cache")
def test_each_filter_of_a_run_has_its_account() -> None:
    """Of the toy skill's 24 records half of a half stay; the student that reads them is charged."""
    cfg = runs.config(
        "augmentation=[exact_duplicates,hidden_coreset,ifd]",
        "augmentation.stages.hidden_coreset.share=0.5",
        "augmentation.stages.ifd.share=0.5",
        "augmentation.stages.ifd.below=99.0",
        "objective=sft",
    )
    found = elicit(cfg)
    assert [(one.name, one.given, one.kept, one.dropped) for one in found.stages] == [
        ("exact_duplicates", 24, 24, {}),
        ("hidden_coreset", 24, 12, {"covered by others": 12}),
        ("ifd", 12, 6, {"low difficulty": 6}),
    ]
    assert found.spent.decoding_flops > 0
    assert found.spent.teacher_tokens == 0
    names = ["exact_duplicates", "hidden_coreset", "ifd"]
    assert {tuple(name.split("@")[0] for name in one.provenance) for one in found.records} == {tuple(names)}
    given = [one.id for one in runs.Toy().load("train")]
    assert [one.id for one in found.records] == sorted((one.id for one in found.records), key=given.index)


@pytest.mark.long
def test_smollm2_finds_another_questions_answer_more_difficult() -> None:
    model = load_teacher(OmegaConf.create({"teacher": content("teacher", "smollm2_135m")}).teacher)
    facts = {
        "What is the capital of France?": "The capital of France is Paris.",
        "What is 2 + 2?": "2 + 2 is 4.",
        "Which animal says meow?": "A cat says meow.",
        "How many legs does a spider have?": "A spider has eight legs.",
    }
    right = [record(i, question, answer) for i, (question, answer) in enumerate(facts.items())]
    turned = [replace(one, responses=right[i - 1].responses) for i, one in enumerate(right)]
    stage = Superfiltering()
    found = [stage.difficulties(each, Resources(seed=0, teacher=model, max_length=256)) for each in (right, turned)]
    print(found)
    assert max(found[0]) < min(found[1])
    assert max(found[0]) < 0.7
