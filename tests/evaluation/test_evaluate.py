import inspect
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

import kd
from kd.data.sequences import Encoder
from kd.evaluation.cache import content_key, remembered
from kd.evaluation.evaluate import Evaluation
from kd.evaluation.measured import gap_closed
from kd.intervals import proportion, ratio
from kd.models.language_model import LanguageModel
from kd.models.tokenizers import byte_tokenizer
from tests.evaluation.conftest import RECORDS, TenIntegers, record, silenced, tiny
from tests.evaluation.test_likelihood import full_log_probs

SETTINGS = {"items": None, "answers": None, "max_new_tokens": 4, "batch_size": 5}
TRAIN = [record(f"train/{i}", f"{i}?", str(i)) for i in range(20)]


@pytest.fixture(scope="module")
def skill(student):
    return TenIntegers(student, 4, right=(2, 3, 7))


@pytest.fixture(scope="module")
def test_records(skill):
    return skill.load("test")


@pytest.fixture
def session(skill, test_records, encoder, teacher):
    def start(teacher=teacher, skill=skill, test=test_records, train=TRAIN, encoder=encoder, **settings):
        return Evaluation(**{**SETTINGS, **settings}).session(
            skill=skill,
            train=train,
            test=test,
            encoder=encoder,
            teacher=teacher,
            teacher_identity=None if teacher is None else "teacher",
        )

    return start


def test_scores_by_hand(session, student, teacher, test_records):
    measured = session().measure(student, identity="student")
    nll = tokens = agreed = forward = 0.0
    for item in test_records:
        (q, ids), (p, _) = full_log_probs(student, item), full_log_probs(teacher, item)
        nll -= q[torch.arange(len(ids)), ids].sum().item()
        agreed += (p.argmax(-1) == q.argmax(-1)).sum().item()
        forward += (p.exp() * (p - q)).sum().item()
        tokens += len(ids)
    assert tokens == measured.tokens == 20  # ten digits, ten end tokens
    scores = measured.scores
    assert scores["bits_per_byte"].value == pytest.approx(nll / math.log(2) / 10)  # ten bytes
    assert scores["top1"].value == pytest.approx(agreed / 20)
    assert scores["forward_kl"].value == pytest.approx(forward / 20)
    assert scores["accuracy"] == proportion([1.0] * 3 + [0.0] * 7)
    assert list(scores) == ["bits_per_byte", "top1", "forward_kl", "reverse_kl", "accuracy"]
    assert {score.n for score in scores.values()} == {10}
    assert all(score.low <= score.value <= score.high for score in scores.values())
    assert measured.generated_tokens == sum(sample["tokens"] for sample in measured.samples)
    assert [sample["score"] for sample in measured.samples] == measured.answers["score"].tolist()


def test_second_time_no_model_runs(session, student, teacher):
    first = session()
    before, ceiling = first.measure(student, identity="student"), first.measure(teacher, identity="teacher")
    assert ceiling.scores["top1"].value == 1.0
    assert math.isnan(ceiling.scores["top1"].low)  # other problems would not change it
    again = session(teacher=silenced(teacher))
    for measured, model, name in ((before, student, "student"), (ceiling, teacher, "teacher")):
        repeated = again.measure(silenced(model), identity=name)
        assert repeated.scores == measured.scores
        assert repeated.samples == measured.samples
        assert repeated.seconds == measured.seconds > 0


@pytest.mark.parametrize(
    "change",
    [{"max_new_tokens": 3}, {"batch_size": 2}, {"test": [*RECORDS]}, {"answers": 3}, {"items": 3}, {"teacher": None}],
)
def test_other_settings_are_measured_again(session, student, change):
    session().measure(student, identity="student")
    with pytest.raises(AssertionError, match="forward"):
        session(**change).measure(silenced(student), identity="student")


def test_other_systems_are_measured_again(session, student, teacher):
    session().measure(student, identity="student")
    with pytest.raises(AssertionError, match="forward"):
        session().measure(silenced(student), identity="another")
    with pytest.raises(AssertionError, match="forward"):
        session().measure(silenced(student).bfloat16(), identity="student")


def test_a_mended_scorer_is_at_work_at_once(session, student, skill):
    session().measure(student, identity="student")

    class Mended(TenIntegers):
        def score(self, record, text):
            return 1 - super().score(record, text)

    mended = session(skill=Mended(student, 4, right=(2, 3, 7))).measure(silenced(student), identity="student")
    assert mended.scores["accuracy"].value == 0.7
    assert mended.samples[0]["score"] == 1.0


def test_teacher_reads_the_references_once_and_agrees_with_itself(session, teacher):
    calls = []
    hook = teacher.network.model.register_forward_hook(lambda *_: calls.append(1))
    try:
        started = session(answers=0)
        measured = started.measure(teacher, identity="teacher")
    finally:
        hook.remove()
    assert len(calls) == len(started.encoder.batches(started.items))
    assert measured.scores["top1"].value == 1.0
    assert measured.scores["forward_kl"].value == measured.scores["reverse_kl"].value == 0.0
    plain = session(answers=0, teacher=None).measure(teacher, identity="alone")
    assert measured.scores["bits_per_byte"].value == pytest.approx(plain.scores["bits_per_byte"].value)


def test_floor_is_the_unigram_of_the_training_references(session):
    floor = session().floor()
    # train: "0".."19" are 20 end tokens and 30 digits: "1" eleven + one times (10..19, 1, 11), "0" twice, others twice
    # ("2" in 2 and 12, ...); V = 261, N = 50. test: each digit once, ten end tokens
    ones, others, end = 12 + 1, 2 + 1, 20 + 1
    nll = 20 * math.log(50 + 261) - math.log(ones) - 9 * math.log(others) - 10 * math.log(end)
    assert floor.scores["bits_per_byte"].value == pytest.approx(nll / math.log(2) / 10, rel=1e-6)
    assert "accuracy" not in floor.scores
    assert floor.scores["forward_kl"].value > 0
    assert floor.generated_tokens == 0
    uniform = session().uniform()
    assert uniform.scores["bits_per_byte"].value == pytest.approx(2 * math.log2(261), rel=1e-6)
    assert session(baseline="uniform").floor().scores == uniform.scores
    assert session(baseline=None).floor() is None


def test_floor_is_cached_by_its_training_data(session, cache):
    session().floor()
    session().floor()
    assert len(list(cache.glob("references/*.artifact.json"))) == 1
    session(train=TRAIN[1:]).floor()
    assert len(list(cache.glob("references/*.artifact.json"))) == 2


def test_a_measurement_that_was_changed_since_is_named(session, student, cache):
    session().measure(student, identity="student")
    for path in (*cache.glob("references/*.json"), *cache.glob("answers/*.json")):
        if not path.name.endswith(".artifact.json"):
            path.write_text(path.read_text().replace("1", "2"))
    with pytest.raises(ValueError, match=r"json of a measurement was changed or damaged since it was written"):
        session().measure(student, identity="student")


def test_nothing_is_measured_that_was_not_requested(session, student, cache):
    measured = session(items=0, answers=0).measure(silenced(student), identity="student")
    assert (measured.scores, measured.samples, measured.tokens, measured.generated_tokens) == ({}, [], 0, 0)
    assert not list(cache.rglob("*.json"))


def test_first_items_and_answers(session, student):
    measured = session(items=3, answers=2).measure(student, identity="student")
    assert measured.references["id"].tolist() == ["ten/0", "ten/1", "ten/2"]
    assert measured.answers["id"].tolist() == ["ten/0", "ten/1"]
    assert measured.scores["bits_per_byte"].n == 3
    assert measured.scores["accuracy"].n == 2


def test_references_that_do_not_fit_are_counted(session, student):
    encoder = Encoder(student.tokenizer, None, max_length=59, max_tokens=100)  # test_likelihood
    started = session(test=RECORDS, encoder=encoder, answers=0)
    assert started.left_out == 1
    assert started.measure(student, identity="student").scores["bits_per_byte"].n == 3


def test_problems_of_one_source_are_resampled_together(session, student, test_records):
    even = [replace(item, meta={**item.meta, "parity": i % 2}) for i, item in enumerate(test_records)]
    alone = session().measure(student, identity="student")
    grouped = session(test=even).measure(student, identity="student")
    table = alone.references
    assert grouped.scores["bits_per_byte"] == ratio(
        table["nll"] / math.log(2), table["bytes"], [i % 2 for i in range(10)]
    )
    assert grouped.scores["bits_per_byte"].value == pytest.approx(alone.scores["bits_per_byte"].value)
    # right are 2 of the even ones, 3 and 7 of the odd ones
    assert grouped.scores["accuracy"] == proportion(alone.answers["score"], [i % 2 for i in range(10)])


def test_problems_whose_source_is_none_stand_for_themselves(session, student, test_records):
    """Nor is a source whose name is that of a record the same as this record."""
    none = [replace(item, meta={**item.meta, "parity": None}) for item in test_records]
    alone, found = (session(test=items).measure(student, identity="student") for items in (test_records, none))
    assert found.scores == alone.scores
    first, second, *others = test_records
    named = [first, replace(second, meta={**second.meta, "parity": first.id}), *others]
    assert session(test=named).measure(student, identity="student").scores == alone.scores


def test_a_teacher_with_other_tokens_is_measured_in_its_own(session, student):
    """`What is` is one token of this tokenizer, and `12` another; bytes are the same for both."""
    words = byte_tokenizer()
    words.add_tokens(["What is", "12"])
    teacher = LanguageModel(tiny(4, vocab_size=len(words)).network, words)
    # max_length is what both need: the student writes "12" in two tokens
    encoder = Encoder(student.tokenizer, words, max_length=200, max_tokens=100)
    records = [record("a", "What is a dozen?", "12 or 1 2"), record("b", "What is two?", "2")]
    started = session(test=records, encoder=encoder, teacher=teacher, answers=0)
    ours, theirs = started.measure(student, identity="student"), started.measure(teacher, identity="teacher")
    assert list(ours.scores) == list(theirs.scores) == ["bits_per_byte"]
    assert (ours.tokens, theirs.tokens) == (12, 11)
    assert ours.references["bytes"].tolist() == theirs.references["bytes"].tolist() == [9, 1]
    assert "forward_kl" not in started.floor().scores


def test_what_fits_the_student_is_measured_for_everyone(session, student):
    """22 tokens hold prompt and reference of a student that has words, and not those of a system over bytes."""
    words = byte_tokenizer()
    words.add_tokens(["What is", "12"])
    encoder = Encoder(words, student.tokenizer, max_length=22, max_tokens=100)
    records = [record("a", "What is a dozen?", "12 or 1 2")]
    started = session(test=records, encoder=encoder, teacher=None, answers=0)
    bits = started.measure(student, identity="bytes").scores["bits_per_byte"]
    logs, ids = full_log_probs(student, records[0])
    assert bits.value == pytest.approx(-logs[torch.arange(10), ids].sum().item() / math.log(2) / 9)


def test_the_digest_of_items_covers_the_prompts(session, test_records):
    digest = session().items_digest
    assert session(teacher=None, batch_size=1).items_digest == digest
    assert session(answers=9).items_digest != digest
    changed = [record("ten/0", "What is the number 0?", "zero"), *test_records[1:]]
    assert session(test=changed).items_digest != digest


def test_a_teacher_needs_an_identity(skill, test_records, encoder, teacher):
    with pytest.raises(ValueError, match="teacher_identity"):
        Evaluation(**SETTINGS).session(skill=skill, train=TRAIN, test=test_records, encoder=encoder, teacher=teacher)


@pytest.mark.parametrize(
    ("floor", "teacher", "student", "higher", "share"),
    [
        (4.0, 2.0, 3.0, False, 0.5),
        (4.0, 2.0, 4.0, False, 0.0),
        (4.0, 2.0, 1.0, False, 1.5),  # beyond the teacher
        (4.0, 2.0, 5.0, False, -0.5),  # below the floor
        (0.1, 0.5, 0.2, True, 0.25),
        (2.0, 2.0, 1.0, False, None),  # no gap
        (2.0, 3.0, 1.0, False, None),  # a teacher that is worse than the floor
        (0.5, 0.4, 0.9, True, None),
        (math.nan, 2.0, 1.0, False, None),
        (4.0, math.nan, 1.0, False, None),
        (4.0, 2.0, math.nan, False, None),
        (None, 2.0, 1.0, False, None),
        (4.0, None, 1.0, False, None),
        (4.0, 2.0, None, False, None),
    ],
)
def test_gap_closed(floor, teacher, student, higher, share):
    value = gap_closed(floor, teacher, student, higher_is_better=higher)
    assert value == (None if share is None else pytest.approx(share))


CONFIGS = sorted((Path(kd.__file__).parents[1] / "conf" / "evaluation").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_state_all_that_can_be_set(path):
    """`none` leaves out what is not measured by default: it is in the identity of every prepared model."""
    config, parameters = OmegaConf.load(path), inspect.signature(Evaluation).parameters
    missing = parameters.keys() - config.keys()
    assert config.keys() - {"_target_"} == parameters.keys() - missing
    assert not missing or path.stem == "none"
    assert not any(parameters[name].default for name in missing)
    assert isinstance(instantiate(config), Evaluation)


def test_tables_survive_the_cache():
    table = pd.DataFrame({"id": ["a", "é\n"], "n": [1, 2], "x": [0.1 + 0.2, math.nan], "cut": [True, False]})
    for _ in range(2):
        read, _ = remembered("tables", {"a": 1}, lambda: table)
        pd.testing.assert_frame_equal(read, table)


def test_keys_go_by_content():
    assert content_key({"a": [1, (2, 3)], "b": "x"}) == content_key({"b": "x", "a": [1, [2, 3]]})
    assert content_key({"a": 1}) != content_key({"a": 2})


def test_prompts_without_room_for_an_answer_are_left_out_and_counted(session, student, test_records):
    long = replace(test_records[0], id="long", prompt=({"role": "user", "content": "x" * 10**6},))
    started = session(test=[long, *test_records], items=0)
    assert started.prompts == list(test_records)
    assert started.prompts_left_out == 1
    answers = started.measure(student, identity="student").answers
    assert answers["id"].tolist() == [record.id for record in test_records]
