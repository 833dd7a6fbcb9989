import logging
import os
import threading
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from kd.artifacts import cache_root, remove
from kd.augmentation import Account, Resources, Stage, answering
from kd.augmentation.labeling import Labeling
from kd.data.chat_template import encode_prompt, response_text
from kd.data.rows import tokenizer_digest
from kd.experiment.build import build
from kd.generators.account import metered
from kd.generators.generation import generate
from kd.generators.settings import Decoding
from kd.generators.transformers import Transformers
from kd.seeding import seeded
from kd.skills.records import load
from kd.teachers.white_box import WhiteBox
from kd.types import Response
from tests import runs
from tests.tiny import record, records, tiny

GIVEN = records(5)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def teacher():
    return tiny()


@pytest.fixture
def mute():
    """A teacher that must not be asked."""
    model = tiny()

    def refuse(*_, **__):
        raise AssertionError("the teacher was asked")

    model.network.model.forward = refuse
    return model


def label(teacher, given=GIVEN, teacher_id: str = "t", seed: int = 0, **settings):
    stage = Labeling(**{"max_new_tokens": 6, "temperature": 0.0, **settings})
    assert isinstance(stage, Stage)
    return list(stage(iter(given), Resources(seed=seed, teacher=teacher and WhiteBox(teacher), teacher_id=teacher_id)))


def texts(labelled) -> list[tuple[str, ...]]:
    return [tuple(response.text for response in kept.responses) for kept in labelled]


def test_the_teachers_text_replaces_the_references(teacher):
    prompts = [encode_prompt(kept.prompt, teacher.tokenizer) for kept in GIVEN]
    expected = [response_text(ids, teacher.tokenizer) for ids in generate(teacher, prompts, max_new_tokens=6)]
    labelled = label(teacher)
    assert len(set(expected)) > 1
    assert [kept.responses for kept in labelled] == [(Response(text, "teacher"),) for text in expected]
    for before, after in zip(GIVEN, labelled, strict=True):
        assert (after.id, after.skill, after.prompt, after.meta) == (
            before.id,
            before.skill,
            before.prompt,
            before.meta,
        )
        assert after.provenance == (*before.provenance, "labeling")


def test_references_stay_before_the_teachers_where_kept(teacher):
    for before, after in zip(GIVEN, label(teacher, keep_reference=True), strict=True):
        assert after.responses[:1] == before.responses
        assert [response.source for response in after.responses] == ["reference", "teacher"]


def test_samples_are_drawn_from_the_seed(teacher):
    first = label(teacher, samples=3, temperature=1.0)
    assert all(len(set(answers)) == 3 for answers in texts(first))
    assert texts(label(teacher, samples=3, temperature=1.0, seed=1)) != texts(first)


def test_samples_depend_on_nothing_but_the_seed(teacher, tmp_path, monkeypatch):
    drawn = []
    for start in (1, 2):
        monkeypatch.setenv("KD_CACHE", str(tmp_path / str(start)))
        torch.manual_seed(start)
        state = torch.get_rng_state()
        drawn.append(texts(label(teacher, samples=3, temperature=1.0)))
        assert torch.equal(torch.get_rng_state(), state)
    assert drawn[0] == drawn[1]


def test_what_it_costs_the_teacher(teacher, mute):
    """Each prompt is read for each sample, and each token but the last as well; the same when the disk answers."""
    prompts = [encode_prompt(kept.prompt, teacher.tokenizer) for kept in GIVEN]
    written = generate(teacher, prompts, max_new_tokens=6)
    cost = sum(len(prompt) + len(ids) - 1 for prompt, ids in zip(prompts, written, strict=True))
    for asked in (teacher, mute):
        stage = Labeling(max_new_tokens=6, temperature=0.0)
        with metered() as meter:
            list(stage(GIVEN, Resources(seed=0, teacher=WhiteBox(asked), teacher_id="t")))
        assert meter.spent.teacher_tokens == cost


def test_text_is_generated_again_where_a_prompt_became_other_tokens(cache):
    """Of the same weights: under another chat template, and where control tokens in a record are tokens."""
    plain = "{% for m in messages %}{{ m.content }}{% endfor %}"
    roles = ("teacher", "student")
    found = []
    for words in ([], [f"{role}.model.chat_template='{plain}'" for role in roles]):
        labels = ("augmentation=labeling", "augmentation.stages.labeling.max_new_tokens=4")
        built = build(runs.config(*words, *labels))
        direct = label(built.teacher, load(built.skill, "train"), teacher_id=f"direct {words}", max_new_tokens=4)
        assert texts(built.data.train) == texts(direct)
        found.append(texts(direct))
    assert found[0] != found[1]


def test_a_tokenizer_is_the_same_after_it_was_written(tmp_path):
    """A run whose teacher is cached has only that."""
    tokenizer = tiny().tokenizer
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_digest(AutoTokenizer.from_pretrained(tmp_path)) == tokenizer_digest(tokenizer)


SEARCH = {"num_beams": 3, "length_penalty": 0.0}


def test_a_search_writes_what_the_teacher_finds_likelier_and_counts_its_beams(teacher):
    """Each of three beams reads each prompt, and each id but the last, as long as a batch of five goes on."""
    prompts = [encode_prompt(kept.prompt, teacher.tokenizer) for kept in GIVEN]
    engine = Transformers(options=SEARCH)
    read = []
    teacher.network.model.register_forward_pre_hook(
        lambda _, args, named: read.append(
            int(named["attention_mask"].sum()) if named["input_ids"].shape[1] > 1 else len(named["input_ids"])
        ),
        with_kwargs=True,
    )
    stage = Labeling(max_new_tokens=6, temperature=0.0, samples=2, generator=engine, batch_size=15)
    with metered() as meter:
        labelled = list(stage(GIVEN, Resources(seed=0, teacher=WhiteBox(teacher), teacher_id="t")))
    assert meter.spent.teacher_tokens == sum(read)
    found = engine(teacher, prompts, decoding=Decoding(6, 2, temperature=0.0, batch_size=15), source="teacher")
    assert texts(labelled) == [tuple(response_text(one.ids, teacher.tokenizer) for one in group) for group in found]
    assert texts(labelled) != texts(label(teacher))


@pytest.mark.parametrize("other", [None, {"num_beams": 4, "length_penalty": 0.0}, {"num_beams": 3}])
def test_another_search_generates_again(teacher, mute, other):
    first = label(teacher, generator=Transformers(options=SEARCH))
    assert label(mute, generator=Transformers(options={**SEARCH, "top_k": 0}), seed=1) == first
    with pytest.raises(AssertionError, match="the teacher was asked"):
        label(mute, generator=None if other is None else Transformers(options=other))


def test_samples_of_the_librarys_engine_are_counted_one_by_one(teacher):
    engine = Transformers(options={"top_k": 40})
    stage = Labeling(max_new_tokens=6, temperature=1.0, samples=2, generator=engine)
    with metered() as meter:
        labelled = list(stage(GIVEN, Resources(seed=0, teacher=WhiteBox(teacher), teacher_id="t")))
    assert all(len(set(answers)) == 2 for answers in texts(labelled))
    twice = [prompt for kept in GIVEN for prompt in [encode_prompt(kept.prompt, teacher.tokenizer)] * 2]
    with seeded(0, "augmentation", "labels", 0):
        written = engine(teacher, twice, decoding=Decoding(6))
    assert meter.spent.teacher_tokens == sum(
        len(n) + len(one.ids) - 1 for n, (one,) in zip(twice, written, strict=True)
    )


# --- the disk ---


def test_the_second_call_generates_nothing(teacher, mute, cache):
    first = label(teacher, samples=2, temperature=0.8)
    assert cache_root() == cache
    assert len(list((cache / "augmentation").glob("*.jsonl"))) == 1
    assert label(mute, samples=2, temperature=0.8) == first
    assert label(None, samples=2, temperature=0.8) == first


@pytest.mark.parametrize(
    "other",
    [
        {"teacher_id": "another"},
        {"seed": 1},
        {"samples": 1},
        {"max_new_tokens": 5},
        {"temperature": 0.7},
        {"top_p": 0.9},
        {"given": GIVEN[:4]},
        {"given": GIVEN[::-1]},
        {"given": [record(0, "another question"), *GIVEN[1:]]},
        {"given": [record(99, GIVEN[0].prompt[0]["content"]), *GIVEN[1:]]},
        {"given": [replace(given, control_tokens=True) for given in GIVEN]},
    ],
    ids=lambda other: next(iter(other)),
)
def test_other_settings_generate_again(teacher, mute, other):
    settings = {"samples": 2, "temperature": 0.8}
    label(teacher, **settings)
    with pytest.raises(AssertionError, match="the teacher was asked"):
        label(mute, **{**settings, **other})


@pytest.mark.parametrize("other", [{"seed": 1}, {"keep_reference": True}, {"batch_size": 2}, {"drop_unfinished": True}])
def test_what_does_not_change_the_text_shares_it(teacher, mute, other):
    first = label(teacher)
    again = label(mute, **other)
    if "drop_unfinished" not in other:
        assert [answers[-1:] for answers in texts(again)] == texts(first)


def test_other_references_and_scores_share_the_text(teacher, mute):
    first = label(teacher)
    changed = [record(int(kept.id), kept.prompt[0]["content"], "another reference") for kept in GIVEN]
    assert texts(label(mute, changed)) == texts(first)


def test_a_call_that_fails_leaves_nothing_behind(mute, teacher, cache):
    with pytest.raises(AssertionError):
        label(mute)
    assert not list((cache / "augmentation").glob("*.jsonl"))
    assert len(label(teacher)) == len(GIVEN)


def test_what_was_left_half_written_is_not_taken_for_whole(teacher, cache):
    first = label(teacher)
    path = next((cache / "augmentation").glob("*.jsonl"))
    whole = path.read_text()
    remove(path)
    path.with_name(f".{path.name}.{os.getpid()}.part").write_text(whole[: len(whole) // 2])
    assert label(teacher) == first
    assert path.read_text() == whole


@pytest.mark.parametrize("killed", range(1, 4))
def test_what_was_generated_before_a_kill_is_not_generated_again(teacher, cache, monkeypatch, killed):
    """Two prompts at a time are kept; the restart reads those and gives the same texts at the same cost."""
    monkeypatch.setattr(answering, "TOGETHER", 4)
    settings = {"samples": 2, "temperature": 1.0}
    with metered() as whole:
        expected = label(teacher, **settings)
    files = sorted((cache / "augmentation").glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    assert len(files) == 3  # of 2, 2 and 1 prompts
    for path in files[killed:]:
        remove(path)
    read = []
    teacher.network.model.register_forward_pre_hook(
        lambda _, args, named: read.append(len(named["input_ids"])) if named["input_ids"].shape[1] > 1 else None,
        with_kwargs=True,
    )
    with metered() as again:
        assert label(teacher, **settings) == expected
    assert sum(read) == {1: 6, 2: 2, 3: 0}[killed]  # rows: two samples of each prompt that is missing
    assert again.spent.teacher_tokens == whole.spent.teacher_tokens


def test_a_prompt_without_room_is_not_answered(teacher):
    lengths = [len(encode_prompt(kept.prompt, teacher.tokenizer)) for kept in GIVEN]
    room = sorted(lengths)[2]
    given = Resources(seed=0, teacher=WhiteBox(teacher), teacher_id="t", max_length=room)
    found = given.generate("teacher", GIVEN, Decoding(6, temperature=0.0), what="labels")
    assert [answer.tokens > 0 for answer in found] == [length < room for length in lengths]
    assert all((answer.texts, answer.finished) == (("",), (False,)) for answer in found if not answer.tokens)
    assert given.account.prompts == 5
    stage = Labeling(max_new_tokens=6, temperature=0.0)
    labelled = list(stage(iter(GIVEN), given))
    assert [kept.id for kept in labelled] == [kept.id for kept, n in zip(GIVEN, lengths, strict=True) if n < room]
    assert given.account.dropped == {"no response": sum(n >= room for n in lengths)}


def test_a_text_that_was_changed_since_is_not_taught(teacher, cache):
    label(teacher)
    path = next((cache / "augmentation").glob("*.jsonl"))
    path.write_text(path.read_text().replace("0", "1", 1))
    with pytest.raises(ValueError, match=r"jsonl of a set of answers was changed or damaged"):
        label(teacher)


def test_two_processes_at_once_let_the_teacher_generate_once(teacher):
    asked, results = [], []
    teacher.network.model.register_forward_pre_hook(
        lambda _, args, named: asked.append(1) if named["input_ids"].shape[1] > 1 else None, with_kwargs=True
    )
    threads = [threading.Thread(target=lambda: results.append(label(teacher))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1
    assert results[0] == results[1]


# --- responses without an end ---


def test_cut_responses_are_counted_and_may_be_left_out(teacher, caplog):
    head = teacher.network.get_output_embeddings().weight.data
    prompts = [encode_prompt(kept.prompt, teacher.tokenizer) for kept in GIVEN]
    written = generate(teacher, prompts, max_new_tokens=6)
    early = min(token for ids in written for token in ids if any(token not in other for other in written))
    end = teacher.tokenizer.eos_token_id
    head[[end, early]] = head[[early, end]]  # some responses now end
    whole = [ids[-1] == end for ids in generate(teacher, prompts, max_new_tokens=6)]
    assert any(whole)
    assert not all(whole)
    with caplog.at_level(logging.WARNING, "kd"):
        everything = label(teacher)
    assert len(everything) == len(GIVEN)
    assert f"{whole.count(False)} of 5 responses of the teacher reached max_new_tokens=6" in caplog.text
    account = Account()
    stage = Labeling(max_new_tokens=6, temperature=0.0, drop_unfinished=True)
    kept = list(stage(iter(GIVEN), Resources(0, WhiteBox(teacher), "t", account=account)))
    assert account.dropped == {"truncated response": whole.count(False)}
    assert kept == [labelled for labelled, ended in zip(everything, whole, strict=True) if ended]


# --- bad inputs ---


def test_without_a_teacher():
    with pytest.raises(ValueError, match="the augmentation needs a teacher that generates"):
        label(None)


def test_settings_are_checked_at_once():
    with pytest.raises(ValueError, match="samples=4 at temperature=0 are all the same"):
        Labeling(samples=4, max_new_tokens=8, temperature=0.0)
