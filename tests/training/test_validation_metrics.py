"""Validation scores whole references alone; the records that data.max_length leaves out or truncates are counted."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from kd.alignment.same import Same
from kd.data.sequences import Encoder, encode
from kd.data.windows import Data
from kd.evaluation.likelihood import score_references
from kd.evaluation.teacher_rows import teacher_rows
from kd.experiment.build import build
from kd.experiment.run import run
from kd.models.language_model import LanguageModel
from kd.reports.sweep import write_sweep
from kd.runs.positions import read_positions
from kd.sweeps.jobs import Job
from kd.teachers.white_box import WhiteBox
from kd.training import validation_metrics as validation
from tests import runs
from tests.tiny import record, tiny

ANSWERS = [20, 150, 180, 190, 240, 250, 300, 310, 400, 480, 600]  # bytes, and as many tokens
RECORDS = [record(i, "How long?", f"{i:x}" * n) for i, n in enumerate(ANSWERS)]
PROMPT = 1 + len("How long?") + 1 + 1  # tokens: the template's three and a byte each
WORDS = 261  # ids of the byte tokenizer


@pytest.fixture(scope="module")
def student() -> LanguageModel:
    return tiny(3, max_position_embeddings=1024)


def data(student: LanguageModel, max_length: int, records=RECORDS) -> Data:
    made = Data(
        RECORDS,
        records,
        Encoder(student.tokenizer, None, max_length=max_length, max_tokens=700),
        window=2,
        steps=2,
        seed=1,
    )
    made.trainer = SimpleNamespace(global_rank=0, world_size=1)
    return made


def validated(student: LanguageModel, made: Data) -> dict[str, float]:
    """What a run logs of its validation, over the batches that it reads."""
    batches = [batch for window in made.val_dataloader() for batch in window.batches]
    sums = sum(validation.sums(batch, student, None, Same()) for batch in batches)
    return validation.metrics(sums, compared=False)


def nats(student: LanguageModel, i: int) -> float:
    """-log q of the whole answer and its end token, from the network's own logits."""
    row = encode(RECORDS[i].prompt, RECORDS[i].responses[0].text, student.tokenizer, 10_000)
    ids = torch.tensor(row.ids)
    with torch.no_grad():
        q = student.network(ids[None]).logits[0, row.prompt - 1 : -1, : student.vocabulary].log_softmax(-1)
    return -q.gather(-1, ids[row.prompt :, None]).sum().item()


@pytest.mark.parametrize("max_length", [200, 256, 320, 512])
def test_bits_per_byte_is_a_property_of_the_references_that_fit(student, max_length):
    fitting = [i for i, n in enumerate(ANSWERS) if PROMPT + n + 1 <= max_length]
    made = data(student, max_length)
    assert [int(kept.id) for kept in made.references] == fitting
    expected = sum(nats(student, i) for i in fitting) / sum(ANSWERS[i] for i in fitting) / math.log(2)
    assert validated(student, made)["bits_per_byte"] == pytest.approx(expected, rel=1e-9)
    alone = data(student, 512, [RECORDS[i] for i in fitting])  # where nothing is left out
    assert validated(student, alone)["bits_per_byte"] == pytest.approx(expected, rel=1e-9)
    table = score_references(student, made.encoder, RECORDS)  # the evaluation's
    assert table["nll"].sum() / table["bytes"].sum() / math.log(2) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("max_length", [200, 320])
def test_a_uniform_model_by_hand(max_length):
    """log2(V) for each byte and each end token, over the bytes."""
    flat = tiny(0, tie_word_embeddings=False, max_position_embeddings=1024)
    torch.nn.init.zeros_(flat.network.lm_head.weight)
    values = validated(flat, data(flat, max_length))
    sizes = [n for n in ANSWERS if PROMPT + n + 1 <= max_length]
    assert flat.vocabulary == WORDS
    assert values["bits_per_byte"] == pytest.approx(
        math.log2(WORDS) * sum(n + 1 for n in sizes) / sum(sizes), rel=1e-12
    )
    assert values["nll"] == pytest.approx(math.log(WORDS), rel=1e-12)


def test_divergences_are_those_of_the_evaluation(student, tmp_path, monkeypatch):
    """Both ways, over the rows of all batches."""
    monkeypatch.setenv("KD_CACHE", str(tmp_path))
    teacher, made = tiny(4, max_position_embeddings=1024), data(student, 256)
    batches = [batch for window in made.val_dataloader() for batch in window.batches]
    sums = sum(validation.sums(batch, student, WhiteBox(teacher), Same()) for batch in batches)
    found = validation.metrics(sums, compared=True)
    kept = [RECORDS[int(one.id)] for one in made.references]
    table = score_references(
        student, made.encoder, kept, teacher_rows=teacher_rows(teacher, "a teacher", made.encoder, kept)
    )
    for name in ("forward_kl", "reverse_kl"):
        assert found[name] == pytest.approx(table[name].sum() / table["tokens"].sum(), rel=1e-9)
    assert found["forward_kl"] != pytest.approx(found["reverse_kl"], rel=1e-3)


def test_the_first_response_alone_is_scored(student):
    """As in the evaluation: a rejected response is no reference."""
    pairs = [record(i, "How long?", "4" * n, "never mind") for i, n in enumerate((20, 30))]
    firsts = [record(i, "How long?", "4" * n) for i, n in enumerate((20, 30))]
    assert validated(student, data(student, 512, pairs)) == validated(student, data(student, 512, firsts))


def test_validation_without_a_whole_reference_is_refused(student):
    with pytest.raises(ValueError, match=r"no reference of 10 records fits data\.max_length=100 whole"):
        data(student, 100, RECORDS[1:]).val_dataloader()


def test_what_is_left_out_and_truncated_is_counted(student):
    """A prompt leaves room below max_length, a whole answer takes its end token, too."""
    long_prompts = [record(100 + i, "?" * 300, "4") for i in range(2)]
    made = data(student, 256)
    made.train = [*RECORDS, *long_prompts]
    too_long = sum(PROMPT + n + 1 > 256 for n in ANSWERS)
    assert too_long == 6
    assert made.counts() == {
        "train": {"given": 13, "left_out": 2, "truncated": too_long},
        "validation": {"given": 11, "left_out": too_long},
    }


def test_what_an_augmentation_never_meets_is_counted_too(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_CACHE", str(tmp_path))
    labels = ("augmentation=labeling", "augmentation.stages.labeling.max_new_tokens=2", "checkpoint.records=24")
    prompts = [len(each.prompt[0]["content"]) + 3 for each in runs.Toy().load("train")]
    lost = sum(size >= 30 for size in prompts)
    assert 0 < lost < 24
    counts = build(runs.config(*labels, "data.max_length=30")).data.counts()["train"]
    assert (counts["given"], counts["left_out"]) == (24, lost)
    with pytest.raises(ValueError, match=r"^no record of 24 fits data\.max_length=4; raise data\.max_length$"):
        build(runs.config(*labels, "data.max_length=4"))


def test_records_without_a_response_are_no_lost_records(student):
    """They are named where nothing could be learnt, and are no references that do not fit."""
    prompts = [replace(each, responses=()) for each in RECORDS[:3]]
    made = data(student, 10_000, [*prompts, *RECORDS[3:5]])
    assert made.counts()["validation"] == {"given": 2, "left_out": 0}
    made.train = prompts
    with pytest.raises(ValueError, match=r"^none of 3 training records has a response; give each one"):
        made.windows()
    made.train = []
    with pytest.raises(ValueError, match=r"^there are no training records; raise the skill's number"):
        made.windows()


def test_a_run_states_what_it_loses_wherever_it_is_read(tmp_path, capsys):
    """In what it prints, in results.json, under its table, and in the table and the file of a sweep."""
    # prompts and answers of `runs.Toy` have 1 to 39 bytes; the prompt's template has three tokens more, an answer one
    limit = 30
    given = {split: runs.Toy().load(split) for split in ("train", "validation", "test")}
    sizes = {
        s: [(len(r.prompt[0]["content"]) + 3, len(r.responses[0].text) + 1) for r in rs] for s, rs in given.items()
    }
    lost = {split: sum(p + a > limit for p, a in pairs) for split, pairs in sizes.items()}
    dropped = sum(p >= limit for p, _ in sizes["train"])
    unanswered = sum(p >= limit for p, _ in sizes["test"])
    truncated = lost["train"] - dropped
    assert min(dropped, truncated, lost["validation"], lost["test"], unanswered) > 0

    sweep = tmp_path / "sweeps" / "today"
    cfg = runs.config(
        *("compare=null", "optim.steps=1", f"data.max_length={limit}", "checkpoint.records=24", f"run.root={tmp_path}"),
        *("evaluation=quick", "evaluation.items=null", "evaluation.answers=null", "evaluation.max_new_tokens=2"),
    )
    job = Job([], sweep, 0)
    run(cfg, job)
    job.end("done")
    printed = " ".join(capsys.readouterr().out.split())
    sentences = [
        f"train: {dropped} of 24 records leave no room for a response, {truncated} of 24 have a truncated response.",
        f"validation: {lost['validation']} of 24 records do not fit whole and are not scored.",
        f"test: {lost['test']} of 24 records do not fit whole and are not scored.",
        f"answers: {unanswered} of 24 records leave no room for a response and are not answered.",
    ]
    assert [printed.count(f"data.max_length, {sentence}") for sentence in sentences] == [
        2,
        2,
        2,
        2,
    ]  # and under the table
    (page,) = tmp_path.glob("*/results.json")
    assert json.loads(page.read_text())["records"] == {
        "train": {"given": 24, "left_out": dropped, "truncated": truncated},
        "validation": {"given": 24, "left_out": lost["validation"], "truncated": 0},
        "test": {"given": 24, "left_out": lost["test"], "truncated": 0},
        "answers": {"given": 24, "left_out": unanswered, "truncated": 0},
    }
    write_sweep(sweep)
    bins, found = read_positions(page.parent), json.loads(page.read_text())
    for name in ("top1", "forward_kl", "reverse_kl"):
        for system in ("before", "after"):
            own = [one for one in bins if (one.system, one.responses) == (system, "references")]
            mean = sum(one.n * getattr(one, name) for one in own) / sum(one.n for one in own)
            assert mean == pytest.approx(found["agreement"][name][system]["value"], rel=1e-9)
    assert {one.system for one in bins} == {"before", "after", "teacher", "floor", "uniform"}
    assert "positions.csv" in (page.parent / "DONE").read_text()
    assert found["elicitation"] is None
    cell = f"train {dropped} + {truncated} of 24<br>validation {lost['validation']} + 0 of 24"
    assert cell in (sweep / "sweep.md").read_text()
    assert f"answers {unanswered} + 0 of 24" in (sweep / "sweep.md").read_text()
    table = pd.read_csv(sweep / "sweep.csv")
    assert table["records.train.left_out"].tolist() == [dropped]
    assert table["records.answers.left_out"].tolist() == [unanswered]
