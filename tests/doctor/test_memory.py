"""The estimate of peak memory.

Run: python -m pytest tests/doctor/test_memory.py
"""

import copy
import mmap
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kd.doctor import memory, room
from kd.doctor.measure import ResidentPeak, resident
from kd.doctor.peaks import check_room
from kd.doctor.subject import admit
from kd.rollouts.on_policy import OnPolicy
from kd.teachers.white_box import WhiteBox
from kd.types import Models
from tests.doctor.subjects import TINY, altered, toy
from tests.tiny import tiny

ROOT = Path(__file__).parents[2]
SHARDED = ("trainer.strategy=fsdp2", "trainer.devices=2", "optim.window=10")  # so that each has the window's half


# --- memory ---


def test_tied_weights_count_once_and_adapters_alone_are_trained(subject):
    """64 wide, 192 inside, 2 layers, 261 ids, in float32; the head is the embeddings.

    Embeddings 261 x 64 = 16704; a layer 4 x 64 x 64 + 3 x 64 x 192 + 2 x 64 = 53376; the last norm 64;
    beside the weights, two buffers of rotary frequencies with 8 numbers each.
    """
    weights = 4 * (16704 + 2 * 53376 + 64)
    sizes = {item.name: item.size for item in memory.estimate(subject)}
    assert sizes["student"] - weights in (0, 4 * 8, 2 * 4 * 8)
    assert sizes["gradients"] == weights
    assert sizes["AdamW"] == 2 * weights
    assert sizes["last.ckpt"] == 3 * weights
    items = [memory.Item("a", 3, ""), memory.Item("b", 4, "", held=False)]
    assert memory.peak(items) == 3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_activations_are_those_that_a_longer_row_keeps(attention):
    """Counted at 32, 64 and 128 tokens, estimated for 200: also where attention keeps a square."""
    student = tiny(dtype="float32")
    student.network.config._attn_implementation = attention
    expected = memory.saved_bytes(student, 200, "32-true")
    assert memory.activations(student, memory.Load(1, 200), "32-true") == pytest.approx(expected, rel=0.02)
    twice = memory.activations(student, memory.Load(2, 200), "32-true")
    assert twice == pytest.approx(2 * expected, rel=0.02)
    if attention == "eager":
        assert expected > 2.5 * memory.saved_bytes(student, 100, "32-true")


def sizes_of(*overrides: str) -> tuple[dict[str, int], memory.Load]:
    with toy(*overrides) as cfg:
        found = admit(cfg)
        return {item.name: item.size for item in memory.estimate(found)}, memory.heaviest(found)


def test_projections_have_gradients_and_moments_too(subject):
    """One from 64 to 128, in float32; the teacher gives five hidden states of its four layers."""
    plain = {item.name: item.size for item in memory.estimate(subject)}
    sizes, load = sizes_of("objective=hidden_mse", "objective.hidden_mse.loss.projection=linear")
    projection = 4 * 64 * 128
    assert sizes["terms"] == projection
    assert "terms" not in plain
    assert sizes["gradients"] - plain["gradients"] == projection
    assert sizes["AdamW"] - plain["AdamW"] == 2 * projection
    assert sizes["last.ckpt"] - plain["last.ckpt"] == 3 * projection
    assert sizes["frozen features"] == 5 * load.tokens * 128 * 4
    assert "frozen features" not in plain


def test_attention_that_is_compared_keeps_its_squares(subject):
    """2 layers of 4 heads: the student's probabilities, for the backward pass. 4 of 4: the teacher's, for the term."""
    plain = {item.name: item.size for item in memory.estimate(subject)}
    sizes, load = sizes_of("objective=attention_kl")
    squares = 2 * 4 * load.rows * load.length**2 * 4
    assert sizes["frozen features"] == 2 * squares
    assert sizes["activations"] - plain["activations"] > 0.9 * squares
    with_vectors, _ = sizes_of("objective=minilm")
    assert with_vectors["frozen features"] == 4 * 3 * load.tokens * 128 * 4


@pytest.mark.parametrize(
    ("objective", "times"),
    [
        ("fkl", 0),  # chunked
        ("selected_hardest", 1),
        ("uld", 1),
        ("[uld,selected_hardest,fkl]", 2),
    ],
)
def test_terms_that_are_not_chunked_make_whole_logits(objective, times):
    """Of both models, 261 ids each, and four more like the student's for the backward pass."""
    sizes, load = sizes_of(f"objective={objective}")
    assert sizes.get("whole logits", 0) == times * (1 + 1 + 4) * load.tokens * 261 * 4


def test_a_reference_is_one_more_student(subject):
    found = replace(subject, parts=replace(subject.parts, module=copy.copy(subject.parts.module)))
    found.parts.module.models = Models(
        found.parts.module.student, None, WhiteBox(copy.deepcopy(subject.parts.module.student))
    )
    sizes = {item.name: item.size for item in memory.estimate(found)}
    assert sizes["reference"] == sizes["student"]
    assert "reference" not in {item.name for item in memory.estimate(subject)}


def test_oneself_as_the_teacher_is_one_more_of_what_is_trained():
    assert (sizes := sizes_of("teacher=own")[0])["own teacher"] == sizes["student"]
    assert "own teacher" not in sizes_of("teacher=own", "teacher.mode=live")[0]


def test_the_heaviest_micro_batch_is_bounded_by_tokens_and_by_the_window(subject, monkeypatch):
    encoder = subject.parts.encoder
    longest = max(len(row.ids) - 1 for r in subject.parts.data.train for row in encoder.encode(r) or ())
    assert 40 < longest < 128
    assert memory.heaviest(subject) == memory.Load(128 // longest, longest)
    wide = altered(subject, "data.max_tokens=99999")
    assert memory.heaviest(wide) == memory.Load(5, longest)  # optim.window
    assert memory.heaviest(altered(wide, "trainer.devices=2")) == memory.Load(3, longest)  # its larger half
    assert memory.heaviest(altered(subject, "data.max_tokens=9")) == memory.Load(1, longest)  # a row is never split
    monkeypatch.setattr(subject.parts.module, "rollout", OnPolicy(samples=4, max_new_tokens=9))
    assert memory.heaviest(altered(wide, "data.max_length=100")) == memory.Load(20, 99)


def test_what_does_not_fit_fails_and_names_the_largest(subject):
    items = [memory.Item("activations", 70, ""), memory.Item("student", 30, "")]
    assert check_room({"train": items}, 1000, subject).verdict == "PASS"
    assert check_room({"train": items}, 110, subject).verdict == "WARN"
    finding = check_room({"train": items}, 90, subject)
    assert finding.verdict == "FAIL"
    assert finding.remedy == "most of it is activations: lower data.max_tokens"
    two = altered(subject, "trainer.devices=2")  # both on this machine
    assert check_room({"train": items}, 190, two).verdict == "FAIL"


def test_shards_count_and_the_first_process_keeps_whole_models(subject):
    """64 wide, 192 inside, 2 layers, 261 ids: a layer 53376, the rest 16704 + 64. The teacher: 128 wide, 384 inside, 4.

    Gathered: of the student its ends, two blocks, a block's gradient twice; of the teacher its ends and two blocks.
    """
    whole = altered(subject, "trainer.precision=32-true")
    plain = {item.name: item.size for item in memory.estimate(whole)}
    found = altered(whole, *SHARDED)
    items = memory.estimate(found)
    sizes = {item.name: item.size for item in items}
    for name in ("student", "teacher", "gradients", "AdamW"):
        assert sizes[name] == plain[name] // 2
    assert sizes["activations"] == plain["activations"]
    assert sizes["last.ckpt"] == plain["last.ckpt"]
    layer, rest = 4 * 128 * 128 + 3 * 128 * 384 + 2 * 128, 128 * 261 + 128
    gathered = 4 * (16704 + 64 + 4 * 53376 + rest + 2 * layer)
    assert gathered <= sizes["gathered"] <= gathered + 4 * (8 + 8 + 16 + 16)  # buffers of rotary frequencies
    assert sizes["whole models"] == plain["student"] + plain["teacher"]
    assert not {"gathered", "whole models"} & plain.keys()
    for once in ("gathered", "activations"):  # each process has its own
        assert not next(item for item in items if item.name == once).once
    both = 2 * memory.peak(items) - sizes["whole models"]
    assert check_room({"train": items}, both - 1, found).verdict == "FAIL"
    assert check_room({"train": items}, both + 1, found).verdict == "WARN"


def test_weights_that_are_gathered_in_bfloat16_are_not_cast_again(subject):
    mixed = [altered(subject, "trainer.precision=bf16-mixed", *more) for more in ((), SHARDED)]
    whole, parts = ({item.name: item.size for item in memory.estimate(each)} for each in mixed)
    copies = 2 * 2 * (53376 - 2 * 64)  # of the matrices of two layers
    assert 0 <= whole["activations"] - parts["activations"] - copies < 0.02 * copies


def test_the_responses_to_a_prompt_stay_together():
    """Rows of 100 tokens: four responses fill 400 of 1000, so that two prompts fit; eight are more, and still one."""
    assert memory.largest(100, 4, 9, 1000) == memory.Load(8, 100)
    assert memory.largest(100, 8, 9, 500) == memory.Load(8, 100)
    assert memory.largest(100, 4, 1, 1000) == memory.Load(4, 100)
    assert memory.largest(100, 1, 9, 10) == memory.Load(1, 100)


def test_a_containers_limit_counts(tmp_path):
    assert room._container_room(tmp_path) == []
    (tmp_path / "memory.current").write_text("30\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert room._container_room(tmp_path) == []
    (tmp_path / "memory.max").write_text("100\n")
    assert room._container_room(tmp_path) == [70]


def test_the_resident_peak_is_seen_after_it_is_gone():
    before = resident()
    with ResidentPeak() as grown, mmap.mmap(-1, 50 * 2**20) as block:  # new pages: freed memory may be used again
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        time.sleep(0.1)
    assert 45 * 2**20 < grown.size - before < 80 * 2**20


@pytest.mark.long
def test_the_estimate_is_within_a_factor_of_two_of_a_real_run():
    """A process of its own, some 250 MiB: what Python and its libraries take apart from that matters less."""
    sizes = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 5}
    student = [f"student.model.architecture.{name}={value}" for name, value in sizes.items()]
    few = ["skill=spell_backward", "skill.train=50", "skill.validation=10", "checkpoint.records=2"]
    size = ["optim.window=8", "data.max_tokens=2048"]
    command = [sys.executable, "-m", "kd.doctor", "-n", "0", "--measure", *TINY, *size, *student, *few]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    estimated, measured = (
        int(re.search(rf"{name} peak +([\d,]+) MiB", done.stdout)[1].replace(",", ""))  # type: ignore[index]
        for name in ("estimated", "measured")
    )
    assert estimated > 200
    assert 0.5 < measured / estimated < 2
