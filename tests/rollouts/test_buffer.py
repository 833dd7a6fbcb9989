import io
import math
from copy import deepcopy
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from kd.data.sequences import Encoder
from kd.models.tokenizers import byte_tokenizer
from kd.rollouts.buffer import Buffer, merge, split, without_logprobs
from kd.types import Written
from tests.rollouts.reported import Counting, facts, learnt, texts
from tests.tiny import record, records

STUDENT = byte_tokenizer()
GIVEN = records(9)


TEACHER = byte_tokenizer()
TEACHER.chat_template = "Now. " + TEACHER.chat_template


def encoder(teacher=None, max_tokens=200):
    return Encoder(STUDENT, teacher, max_length=120, max_tokens=max_tokens)


def roomy(max_tokens, teacher=None):
    """One that does not mind padding."""
    return Encoder(STUDENT, teacher, max_length=200, max_tokens=max_tokens, max_padding=1.0)


def group(i, *lengths, encoder=None, teacher_prompt=None):
    """One record's responses of these lengths, with everything said of them that can be."""
    encoder = encoder or roomy(200)
    answers = []
    for n in lengths:
        ids = (*STUDENT("abcdefghij"[i] * (n - 1), add_special_tokens=False)["input_ids"], STUDENT.eos_token_id)
        answers.append(Written(ids, "student", -torch.rand(n), -torch.rand(n)))
    prompts = None if teacher_prompt is None else [teacher_prompt]
    [batch] = encoder.written([record(i, f"question {i}")], [answers], prompts)
    batch.rewards = torch.rand(len(lengths))
    batch.advantages = torch.rand(batch.student.mask.shape) * batch.student.mask
    batch.importance_weights = torch.rand(batch.student.mask.shape) * batch.student.mask
    return batch


def by_record(batches):
    """Each record's rows and what was said of them, padding cut off."""
    return {batch.records[0].id: facts(batch) for batch in split(batches)}


def test_what_is_split_and_merged_is_the_same_rows():
    batches = [group(0, 3, 9), group(1, 20, 2), group(2, 5, 5), group(3, 4, 8)]
    merged = merge([alone for batch in batches for alone in split([batch])], roomy(100))
    assert 1 < len(merged) < 4  # several micro-batches, and one with several groups
    assert by_record(merged) == by_record(batches)
    for batch in merged:
        mask, real = batch.student.mask, batch.student.real
        assert batch.teacher is batch.student
        assert not (mask & ~real).any()
        for name in ("advantages", "behaviour_logprobs", "old_logprobs", "importance_weights"):
            value = getattr(batch, name)
            assert value.shape == mask.shape
            assert not value[~mask].any()
            assert value[mask].any()


def test_micro_batches_are_cut_as_the_encoder_cuts_them():
    made = encoder().batches(GIVEN)
    again = merge(split(made), encoder())
    assert len(made) > 2
    assert list(map(facts, again)) == list(map(facts, made))


def test_a_teacher_that_reads_otherwise_keeps_its_own_sequences():
    """Another template, or another prompt; what the longer of the two readings takes counts for the micro-batch."""
    other = roomy(400, TEACHER)
    prompt = ({"role": "user", "content": "a much longer question, with the answer in it"},)
    cases = [
        [group(0, 3, encoder=other), group(1, 6, encoder=other)],
        [group(0, 3, teacher_prompt=prompt), group(1, 6, teacher_prompt=prompt)],
    ]
    for batches in cases:
        [merged] = merge(split(batches), roomy(400))
        assert merged.teacher is not merged.student
        assert by_record([merged]) == by_record(batches)
        ours, theirs = merged.student, merged.teacher
        assert theirs.lengths.max() > ours.lengths.max()
        assert ours.labels[ours.mask].tolist() == theirs.labels[theirs.mask].tolist()
        width = int(theirs.lengths.max())
        assert len(merge(split(batches), roomy(2 * width - 1))) == 2


def test_a_signal_that_some_groups_lack_is_left_out():
    whole = group(1, 4)
    bare = without_logprobs(whole)
    assert bare.behaviour_logprobs is bare.old_logprobs is bare.importance_weights is None
    assert bare.rewards is whole.rewards
    assert bare.written_by.tolist() == [2]
    [merged] = merge(split([group(0, 4), bare]), encoder())
    assert merged.old_logprobs is None
    assert len(merged.rewards) == 2
    assert merged.written_by.tolist() == [2, 2]


def test_the_oldest_groups_make_room_as_a_whole():
    """Five sequences hold two groups of two: the sixth sequence pushes out the first group, not one of its rows."""
    buffer = Buffer(5)
    for step in range(4):
        buffer.add([group(step, 2, 3)], step)
        assert len(buffer) == min(2 * (step + 1), 4)
    assert [(kept.step, kept.batch.records[0].id) for kept in buffer.groups] == [(2, "2"), (3, "3")]
    assert not buffer.has_room(2)
    assert buffer.has_room(1)


def test_a_batch_of_many_groups_is_added_in_its_order():
    buffer = Buffer(3)
    batches = Counting()(encoder().batches(GIVEN), None, None, encoder())
    order = [kept.id for batch in batches for kept in batch.records]
    buffer.add(batches, 7)
    assert [kept.batch.records[0].id for kept in buffer.groups] == order[-3:]
    assert {kept.step for kept in buffer.groups} == {7}


def test_what_is_too_old_goes():
    buffer = Buffer(100)
    for step in range(5):
        buffer.add([group(step, 2)], step)
    buffer.expire(3)
    assert [kept.step for kept in buffer.groups] == [3, 4]


def test_a_group_larger_than_the_buffer_is_refused():
    with pytest.raises(ValueError, match=r"rollout.capacity=2 is less than the 3 responses to one prompt"):
        Buffer(2).add([group(0, 2, 2, 2)], 0)
    with pytest.raises(ValueError, match=r"rollout.capacity=0 keeps nothing"):
        Buffer(0)


def test_groups_are_drawn_evenly_and_not_twice():
    buffer = Buffer(6)
    for step in range(6):
        buffer.add([group(step, 2)], step)
    torch.manual_seed(0)
    times, seen = 600, [0] * 6
    for _ in range(times):
        drawn = [kept.step for kept in buffer.sample(2)]
        assert len(set(drawn)) == 2
        for step in drawn:
            seen[step] += 1
    # each is drawn with probability 1/3; P(|count - 200| > 60) < 2 exp(-2 * 60^2 / 600) = 1.2e-5 (Hoeffding)
    assert all(abs(count - times / 3) <= 60 for count in seen)


def test_all_are_given_in_their_order_without_a_draw():
    buffer = Buffer(6)
    for step in range(3):
        buffer.add([group(step, 2)], step)
    before = torch.get_rng_state()
    assert [kept.step for kept in buffer.sample(3)] == [kept.step for kept in buffer.sample(9)] == [0, 1, 2]
    assert torch.equal(torch.get_rng_state(), before)


def test_of_a_long_batch_only_the_groups_that_are_kept_are_kept():
    """No view of it, which would keep all of it in memory and in the checkpoint."""
    buffer = Buffer(1)
    buffer.add([group(0, 2), group(1, 90)], 0)
    buffer.add(merge(split([group(2, 3), group(3, 100)]), roomy(1000))[:1], 1)
    [kept] = buffer.state_dict()
    assert kept["student"].pop("pixels") == []  # no images
    for tensor in [*kept["student"].values(), *kept["signals"].values()]:
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


# ---- state -----------------------------------------------------------------------------------------------------------


def full():
    """A buffer in which every field of every type has something in it."""
    torch.manual_seed(3)
    buffer = Buffer(40)
    buffer.add([group(0, 3, 9), group(1, 20, 2)], 4)
    buffer.add([group(2, 3, 4, encoder=roomy(400, TEACHER))], 6)
    told = {"answer": "4", "numbers": [1, 2.5, None, True], "nested": {"by": (1, 2)}}
    for kept in buffer.groups:
        one = kept.batch.records[0]
        scored = tuple(replace(response, score=0.5) for response in one.responses)
        kept.batch.records = (replace(one, meta=told, provenance=("labeling", "mine"), responses=scored),)
    return buffer


def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def contents(buffer):
    return [(kept.step, facts(kept.batch)) for kept in buffer.groups]


def test_state_is_plain_and_comes_back_whole():
    whole, other = full(), Buffer(40)
    other.add([group(9, 2)], 1)  # which is to go
    other.load_state_dict(saved(whole.state_dict()))
    assert contents(other) == contents(whole)
    assert [kept.batch.teacher is kept.batch.student for kept in other.groups] == [True, True, False]
    assert other.groups[0].batch.records[0].meta["nested"] == {"by": (1, 2)}
    for one, two in zip(other.groups, whole.groups, strict=True):
        assert one.batch.old_logprobs.dtype == two.batch.old_logprobs.dtype
        assert type(one.batch.records[0].prompt) is tuple


def places(node, path=()):
    """Where something stands in a state."""
    keys = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in keys:
        yield (*path, key)
        yield from places(node[key], (*path, key))


def spoilt(value):
    if isinstance(value, torch.Tensor):
        return ~value if value.dtype == torch.bool else value + 1
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if value is None:
        return {}
    return type(value)()


def at(node, path):
    for key in path:
        node = node[key]
    return node


FULL = full()
PLACES = [path for path in places(FULL.state_dict()) if at(FULL.state_dict(), path) not in ((), [], {}, None, "")]


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)))
def test_every_piece_of_the_state_is_needed(path):
    """A piece that is changed shows in what is learnt, or stops the run."""
    state, other = deepcopy(FULL.state_dict()), Buffer(40)
    at(state, path[:-1])[path[-1]] = spoilt(at(state, path))
    try:
        other.load_state_dict(state)
    except (TypeError, KeyError, AttributeError):
        return
    assert contents(other) != contents(FULL)


def test_what_no_checkpoint_can_hold_is_left_behind():
    """A skill's own objects would stop the run when it is resumed; they are gone before, so nothing differs then."""
    odd = {"fraction": Fraction(1, 3), "number": np.float64(0.5), "list": [1, {2}], "answer": "4"}
    batch = group(0, 3)
    batch.records = (replace(batch.records[0], meta=odd),)
    buffer, other = Buffer(4), Buffer(4)
    buffer.add([batch], 0)
    assert buffer.groups[0].batch.records[0].meta == {"answer": "4"}
    other.load_state_dict(saved(buffer.state_dict()))
    assert contents(other) == contents(buffer)


def test_the_double_is_what_it_seems_to_be():
    """Calls and variants can be told apart in what is learnt."""
    writer = Counting(samples=2)
    first, second = (writer(encoder().batches(GIVEN[:2]), None, None, encoder()) for _ in range(2))
    assert set(texts(first).values()) == {"0"}
    assert set(texts(second).values()) == {"1"}
    assert math.isclose(float(first[0].old_logprobs.sum()) / len(GIVEN[:2]), -(3 + 6) / 2)
    assert all(len(set(map(tuple, ids))) == 2 for ids in learnt(first).values())
