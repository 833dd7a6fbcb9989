"""A teacher's targets on disk: written once and whole, found by content, and as good as the teacher itself."""

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import kd.cache
from kd.augmentation import Stage
from kd.data.sequences import Encoder, collate
from kd.experiment import preparation
from kd.experiment import run as experiment
from kd.experiment.build import build
from kd.experiment.plan import Plan, baseline
from kd.experiment.preparation import targets_folder
from kd.kernels.logits import HeadLogits
from kd.kernels.sparse import SparseLogits
from kd.sweeps.jobs import Job
from kd.teachers.cached import Cached
from kd.teachers.target_store import TargetStore, keys_of
from kd.types import Record, Response, Sequences, Split
from tests import runs
from tests.tiny import record, records

TOPK = ("targets=topk", "targets.k=6", "targets.dtype=float32")
KINDS = {
    "topk": TOPK,
    "sampled": ("targets=sampled", "targets.draws=20", "targets.dtype=float32"),
    "hidden": ("targets=hidden", "targets.dtype=float32"),
}
CACHED = "targets.cached=true"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def held(logits: SparseLogits | HeadLogits) -> list[torch.Tensor]:
    if isinstance(logits, HeadLogits):
        return [logits.hidden]
    return [logits.ids, logits.everything(), logits.target()]


@pytest.mark.parametrize("kind", KINDS)
def test_training_from_the_cache_is_training_with_the_teacher(kind, tmp_path):
    """In float64 but for what is stored in float32. What is drawn is fixed by the cache, so it is not compared."""
    words = [*KINDS[kind], *runs.EXACT]
    kd.cache.write(runs.config(*words))
    trained = runs.train(runs.config(*words, CACHED), tmp_path / "cached")
    losses = runs.metrics(tmp_path / "cached")
    assert trained.module.models.teacher.readings == 0
    if kind == "sampled":
        return
    live = runs.train(runs.config(*words), tmp_path / "live")
    for name, weight in live.module.student.state_dict().items():
        torch.testing.assert_close(trained.module.student.state_dict()[name], weight, rtol=1e-4, atol=1e-6)
    met = {record.id: record for record in trained.data.met()}
    once = sum(int(b.teacher.lengths.sum()) for b in trained.encoder.batches(list(met.values())))
    assert trained.module.budget.teacher_tokens == once < live.module.budget.teacher_tokens  # which meets some again
    for key, value in runs.metrics(tmp_path / "live").items():
        if key.split(",")[2] not in ("forward_kl",) and "fkl" in key:
            assert float(losses[key]) == pytest.approx(float(value), rel=1e-4), key


@pytest.mark.parametrize("kind", KINDS)
def test_no_network_of_the_teacher_is_built(kind, monkeypatch):
    kd.cache.write(runs.config(*KINDS[kind]))
    built = []
    monkeypatch.setattr(
        AutoModelForCausalLM,
        "from_config",
        lambda config, _original=AutoModelForCausalLM.from_config, **more: (
            built.append(config) or _original(config, **more)
        ),
    )
    build(runs.config(*KINDS[kind]))
    assert len(built) >= 1
    del built[:]
    from kd.experiment.loading import _shared_teacher

    _shared_teacher.cache_clear()
    parts = build(runs.config(*KINDS[kind], CACHED))
    assert len(built) == 1  # the student's
    assert parts.teacher is None
    assert isinstance(parts.module.models.teacher, Cached)
    assert not list(parts.module.models.teacher.parameters())


@pytest.mark.parametrize("kind", ["topk", "hidden"])
def test_lookup_does_not_depend_on_order_or_padding(kind):
    kd.cache.write(runs.config(*KINDS[kind]))
    live, cached = (build(runs.config(*KINDS[kind], *more)) for more in ((), (CACHED,)))
    parts = live.encoder
    other = Encoder(parts.student, None, max_length=parts.max_length, max_tokens=100000, max_padding=0.9)
    batches = [b for e, rows in ((parts, live.data.train), (other, live.data.train[::-1])) for b in e.batches(rows)]
    assert len({batch.teacher.tokens.shape for batch in batches}) > 3
    for batch in batches:
        expected, got = (
            part.module.models.teacher.read(batch, frozenset({"logits"})).logits for part in (live, cached)
        )
        for one, two in zip(held(expected), held(got), strict=True):
            torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)


def test_a_key_is_what_a_sequence_holds():
    encoder = build(runs.config()).encoder
    rows = [row for i in records(6) for row in encoder.encode(i)]
    alone = [key for row in rows for key in keys_of(collate([row], 0))]
    assert keys_of(collate(rows, 7)) == alone
    assert keys_of(collate(rows, 3, padding_side="left", multiple=64)) == alone
    assert len(set(alone)) == 6
    sequences = collate(rows[:1], 0)
    changed = Sequences(*(x.clone() for x in (sequences.tokens, sequences.labels, sequences.mask, sequences.lengths)))
    changed.mask[0, -2:] = False
    assert keys_of(changed) != alone[:1]
    changed = Sequences(*(x.clone() for x in (sequences.tokens, sequences.labels, sequences.mask, sequences.lengths)))
    changed.labels[0, sequences.lengths[0] - 1] += 1
    assert keys_of(changed) != alone[:1]


def test_a_draw_depends_on_the_sequence_alone():
    teacher = build(runs.config(*KINDS["sampled"])).module.models.teacher
    encoder = build(runs.config("data.max_tokens=1000")).encoder
    encoder.max_padding = 0.9
    (together,) = encoder.batches(records(2))
    apart = [batch for i in records(2) for batch in encoder.batches([i])]
    first = dict(kd.cache.targets_of(teacher, together))
    again = {key: columns for batch in apart for key, columns in kd.cache.targets_of(teacher, batch)}
    assert first.keys() == again.keys()
    for key, columns in first.items():
        assert torch.equal(columns["ids"], again[key]["ids"])
        assert columns["held"].sum() == len(columns["ids"])


def test_one_cache_serves_every_tail_rule_and_no_other_teacher():
    folder = targets_folder(runs.config(*TOPK))
    assert targets_folder(runs.config(*TOPK, "targets.tail=zero", CACHED, "targets.audit=null")) == folder
    others = ("targets.k=7", "targets.dtype=float16", "temperature=2.0", "+teacher.model.architecture.vocab_size=300")
    for word in others:
        assert targets_folder(runs.config(*TOPK, word)) != folder, word


def test_more_records_are_added_and_none_is_computed_twice(monkeypatch):
    cfg = runs.config(*TOPK, "optim.steps=1")
    assert "7 sequences (7 new" in kd.cache.write(cfg.copy(), this_run=True)  # five of the step's, two of the audit's
    done = []
    original = kd.cache.targets_of
    monkeypatch.setattr(kd.cache, "targets_of", lambda teacher, batch: done.append(batch) or original(teacher, batch))
    assert "26 sequences (19 new" in kd.cache.write(cfg.copy())
    assert done
    del done[:]
    assert "26 sequences (0 new" in kd.cache.write(cfg.copy())
    assert done == []


def test_a_record_that_is_missing_is_named():
    cfg = runs.config(*TOPK, "optim.steps=1")
    kd.cache.write(cfg.copy(), this_run=True)
    cfg.optim.steps, cfg.targets.cached = 5, True
    with pytest.raises(ValueError, match=r"targets of record \d+ of toy are not in .* run `python -m kd.cache` with"):
        build(cfg)


def test_a_response_that_is_missing_is_shown():
    kd.cache.write(runs.config(*TOPK))
    parts = build(runs.config(*TOPK, CACHED))
    (batch,) = parts.encoder.batches([record(0, "what?", "never seen")])
    with pytest.raises(ValueError, match=r"targets of the response 'never seen.*' are not in"):
        parts.module.models.teacher(batch.teacher, frozenset({"logits"}))


def test_an_empty_cache_names_the_command():
    with pytest.raises(
        FileNotFoundError, match=r"nothing was cached .* run `python -m kd.cache` with the same overrides"
    ):
        build(runs.config(*TOPK, CACHED))


class OtherToy(runs.Toy):
    """Another skill under the same teacher: other records."""

    def load(self, split: Split) -> list:
        return records(24, seed=3 + ("train", "validation", "test").index(split))


OTHER = {"skill": {"_target_": f"{__name__}.OtherToy"}}


def test_the_probes_of_one_skill_stay_when_another_is_written():
    kd.cache.write(runs.config(*TOPK))
    first = build(runs.config(*TOPK, CACHED))
    store = first.module.models.teacher.store
    probed, content = store.probed(), load_file(store.probe)
    assert len(probed) == 2
    kd.cache.write(runs.config(*TOPK, **OTHER))
    kd.cache.write(runs.config(*TOPK, "targets.audit.records=5"))
    assert len(store.probed()) == 2 + 2 + 3
    assert store.probed() > probed
    after = load_file(store.probe)
    assert all(torch.equal(after[name], tensor) for name, tensor in content.items())
    for cfg in (runs.config(*TOPK, CACHED, "targets.audit.records=5"), runs.config(*TOPK, CACHED, **OTHER)):
        parts = build(cfg)
        for batch in parts.encoder.batches(parts.data.validation[: cfg.targets.audit.records]):
            kept, full = parts.module.models.teacher.probe(batch)
            assert kept.n == full.n


@pytest.mark.parametrize("words", [("targets.audit.records=3",), ("data.max_length=40",)])
def test_a_probe_that_is_missing_is_reported_when_the_run_is_built(words):
    """Not at the first audit, which may be the last step. Where a response is cut, it is another sequence."""
    kd.cache.write(runs.config(*TOPK, "targets.audit.records=2"))
    kd.cache.write(runs.config(*TOPK, *words, "targets.audit=null"))
    with pytest.raises(ValueError, match=r"audit .* record \d+ of toy, .* not in .*`python -m kd.cache`.*audit=null"):
        build(runs.config(*TOPK, *words, CACHED))
    build(runs.config(*TOPK, *words, CACHED, "targets.audit.every=null"))
    kd.cache.write(runs.config(*TOPK, *words))
    build(runs.config(*TOPK, *words, CACHED))


class Shouted(Stage):
    """An augmentation after which no training record is what it was."""

    requires = frozenset()

    def __call__(self, records: Iterable[Record], *_: object) -> Iterator[Record]:
        for given in records:
            yield replace(given, responses=tuple(Response(x.text.upper() + "!") for x in given.responses))


BESIDE = (*TOPK, "temperature=2.0", "optim.steps=2", "checkpoint.validate=2", "evaluation=quick")
SHOUTED = {"augmentation": {"stages": {"shouted": {"_target_": f"{__name__}.Shouted"}}}}


@contextmanager
def composing() -> Iterator[None]:
    """A command line's Hydra, for files that are looked up later."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(runs.CONF), version_base="1.3"):
        yield


def baseline_of(cfg: DictConfig) -> DictConfig:
    with composing():
        return baseline(cfg)


@pytest.mark.long
def test_a_cached_run_beside_sft(tmp_path):
    """At another temperature than 1 and on responses that this run alone has: sft reads no teacher."""
    nodes = {"skill": {"_target_": "tests.runs.Toy"}, **SHOUTED}
    kd.cache.write(runs.config(*BESIDE, **nodes))
    cfg = runs.config(*BESIDE, CACHED, f"run.root={tmp_path}", **nodes)
    with composing():
        experiment.run(cfg, Job([]))
        plan = Plan.of(cfg)
        run, beside = plan.folder, plan.beside.folder
    (table,) = run.results()["scores"].values()
    (own,) = beside.results()["scores"].values()
    assert table["bits_per_byte"]["sft"] == own["bits_per_byte"]["after"]
    assert own["bits_per_byte"].get("teacher") is None
    assert beside.results()["budget"]["teacher_tokens"] == 0
    assert list(build(plan.beside.cfg).data.train) == runs.Toy().load("train")


@pytest.mark.long
def test_cached_runs_share_a_baseline_whatever_is_kept():
    def beside(*words: str) -> str:
        return preparation.identity(baseline_of(runs.config(*words, CACHED)))

    first = beside(*TOPK)
    others = ("targets.k=7", "targets.tail=zero", "temperature=3", "targets.audit.every=1", "targets.dtype=float16")
    for word in others:
        assert beside(*TOPK, word) == first, word
    assert beside("targets=sampled") == first
    assert beside(*TOPK, "optim.lr=0.5") != first


def test_beside_a_cached_teacher_with_other_tokens_the_cache_is_open_but_not_searched():
    """For records have to fit in both; hidden states are the one kind that goes with another alignment."""
    words = ("targets=hidden", "alignment=none", "objective=uld")
    kd.cache.write(runs.config(*words, **SHOUTED))
    cfg = runs.config(*words, CACHED, **SHOUTED)
    build(cfg)
    parts = build(baseline_of(cfg))
    assert isinstance(parts.module.models.teacher, Cached)
    assert not parts.module.teacher_fields


def test_a_baseline_with_a_teacher_reads_what_its_neighbour_reads():
    cfg = runs.config(*TOPK, CACHED, "temperature=2.0", "objective=rkl", "compare=fkl")
    beside = baseline_of(cfg)
    assert beside.targets == cfg.targets
    assert beside.objective.fkl.loss.temperature == 2.0


KILLED = """
import os, signal, sys
import kd.cache, kd.teachers.target_store as store
from tests import runs
kd.cache.SHARD = 5
original, calls = store.save_file, []
def save(tensors, path):
    calls.append(path)
    if len(calls) == 3:
        path.write_bytes(b"half a shard")
        os.kill(os.getpid(), signal.SIGKILL)
    original(tensors, path)
store.save_file = save
kd.cache.write(runs.config(*sys.argv[1:]))
"""


@pytest.mark.long
def test_a_killed_writer_goes_on_where_it_was(cache, monkeypatch):
    monkeypatch.setattr(kd.cache, "SHARD", 5)
    words = [*KINDS["sampled"]]
    done = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = targets_folder(runs.config(*words))
    kept = sorted(folder.glob("shard-*.safetensors"))
    contents = [path.read_bytes() for path in kept]
    found = len(TargetStore(folder))
    assert len(kept) == 2
    assert 10 <= found < 26
    assert f"26 sequences ({26 - found} new" in kd.cache.write(runs.config(*words))
    assert [path.read_bytes() for path in kept] == contents
    resumed = TargetStore(folder)
    folder.rename(cache / "aside")
    kd.cache.write(runs.config(*words))
    whole, resumed = TargetStore(folder), TargetStore(cache / "aside")
    assert whole.where.keys() == resumed.where.keys()
    for key in whole.where:
        for name, column in whole.columns([key]).items():
            assert torch.equal(column, resumed.columns([key])[name])


PARTS = {"topk": ["targets.json", "tokenizer/tokenizer.json", "shard"], "hidden": ["head.safetensors", "shard"]}


@pytest.mark.parametrize(("kind", "part"), [(kind, part) for kind, parts in PARTS.items() for part in parts])
def test_a_part_with_a_flipped_bit_is_named_before_a_step_is_taken(kind, part, tmp_path):
    kd.cache.write(runs.config(*KINDS[kind]))
    folder = targets_folder(runs.config(*KINDS[kind]))
    path = next(folder.glob("shard-*.safetensors")) if part == "shard" else folder / part
    content = bytearray(path.read_bytes())
    content[-7] ^= 1  # a value, not a header
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path.name} of a cache of the teacher's targets was changed or damaged"):
        runs.train(runs.config(*KINDS[kind], CACHED), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_summary_counts_bytes(tmp_path):
    cfg = runs.config("targets=topk", "targets.k=6")
    summary = kd.cache.write(cfg)
    store = TargetStore(targets_folder(cfg))
    rows = sum(len(store.columns([key])["tail"]) for key in store.where)
    size = sum(path.stat().st_size for path in store.folder.glob("shard-*.safetensors"))
    assert f"{rows} response tokens" in summary
    assert f"{size / rows:.0f} bytes per token" in summary
    columns = store.columns(list(itertools.islice(store.where, 3)))
    assert sum(c.element_size() * c.numel() for c in columns.values()) == len(columns["tail"]) * (6 * 4 + 2)
    assert "tail" not in json.loads((store.folder / "targets.json").read_text())


def test_a_wrong_command_line_is_one_sentence(capsys):
    assert kd.cache.main(["teacher=tiny", "student=tiny", "skill=spell_backward"]) == 1
    assert "targets=full keeps nothing that could be cached" in capsys.readouterr().err
    assert not list(Path.cwd().glob("targets"))
