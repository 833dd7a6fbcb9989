import io
from copy import deepcopy

import pytest
import torch

from kd.composition.requirements import provided
from kd.data.sequences import Encoder
from kd.models.flops import training_flops
from kd.models.language_model import LanguageModel
from kd.rollouts import Rollout
from kd.rollouts.mixed import Mixed
from kd.rollouts.on_policy import OnPolicy
from kd.rollouts.replay import Replay
from kd.rollouts.teacher import ByTeacher
from kd.rollouts.teacher_mixed import TeacherMixed
from kd.rollouts.wrapping import records_of
from kd.seeding import seeded
from kd.teachers.white_box import WhiteBox
from kd.types import Models, Progress
from tests.rollouts.reported import Counting, facts, learnt, steps, texts
from tests.tiny import records, tiny

GIVEN = records(12)
STUDENT = tiny()
ENCODER = Encoder(STUDENT.tokenizer, None, max_length=200, max_tokens=400)
MODELS = Models(STUDENT)


def window(step, uses):
    """Two records, each window handed out `uses` times, as the data do."""
    first = 2 * (step // uses) % 12
    return ENCODER.batches(GIVEN[first : first + 2])


def told(batches):
    return sorted((facts(batch) for batch in batches), key=str)


def calls(rollout, count, uses):
    """At each step, by which call of the writer its responses were written."""
    found = []
    for now in steps(count):
        batches = rollout(window(now.step, uses), MODELS, now, ENCODER)
        assert len(records_of(batches)) == len({r.id for r in records_of(batches)})
        found.append(sorted(map(int, texts(batches).values())))
    return found


def test_each_of_the_uses_sees_the_very_same_responses():
    """And rewards, and log-probabilities, in the same groups: PPO's epochs."""
    rollout = Replay(Counting(samples=3), uses=3)
    seen = [told(rollout(window(now.step, 3), MODELS, now, ENCODER)) for now in steps(7)]
    assert seen[0] == seen[1] == seen[2]
    assert seen[3] == seen[4] == seen[5]
    assert seen[0] != seen[3] != seen[6]
    assert all(batch["rewards"] == [0, 1, 2] * len(batch["records"]) for batch in seen[1])
    assert all(batch["old_logprobs"] is not None for batch in seen[1])
    assert rollout.writer.calls == 3


def test_one_use_is_the_writer():
    rollout = Replay(OnPolicy(max_new_tokens=5), uses=1)
    assert isinstance(rollout, Rollout)
    for now in steps(3):
        batches = []
        for other in (rollout, OnPolicy(max_new_tokens=5)):
            with seeded(1, "step", now.step):
                batches.append(list(map(facts, other(window(now.step, 1), MODELS, now, ENCODER))))
        assert batches[0] == batches[1]


def test_a_larger_buffer_hands_out_what_it_has_in_as_many_groups():
    """Windows of 2, room for 6: from the fifth step on (three windows written) the oldest go, the first window's."""
    torch.manual_seed(0)
    found = calls(Replay(Counting(), uses=2, capacity=6), 40, 2)
    assert found[0] == found[1] == [0, 0]
    assert all(len(numbers) == 2 for numbers in found)
    assert all(numbers == [step // 2] * 2 for step, numbers in enumerate(found) if step % 2 == 0)
    replayed = [(step // 2 - number) for step, numbers in enumerate(found) if step % 2 for number in numbers]
    assert set(replayed) == {0, 1, 2}  # windows ago


def test_what_is_too_old_is_written_again():
    """An age of one step at the most: 0 writes, 1 reads, 2 writes, 3 reads; 4 writes for the next window."""
    rollout = Replay(Counting(), uses=4, max_age=1)
    assert calls(rollout, 8, 4) == [[0] * 2, [0] * 2, [1] * 2, [1] * 2, [2] * 2, [2] * 2, [3] * 2, [3] * 2]


def test_nothing_older_than_the_limit_is_handed_out():
    """Room for all, windows of two steps, two steps old at the most: step 3 may not see step 0's any more."""
    rollout = Replay(Counting(), uses=2, capacity=100, max_age=2)
    assert calls(rollout, 8, 2)[3::2] == [[1, 1], [2, 2], [3, 3]]
    assert len(calls(Replay(Counting(), uses=3, max_age=0), 6, 3)) == 6


def test_an_age_of_nothing_writes_every_time():
    rollout = Replay(Counting(), uses=3, max_age=0)
    calls(rollout, 6, 3)
    assert rollout.writer.calls == 6


def test_staleness_is_logged():
    """Uses of 3: ages 0, 1, 2 of two sequences each; a mean of 1."""
    rollout = Replay(Counting(), uses=3)
    calls(rollout, 3, 3)
    assert rollout.take_report() == {"calls": (1.0, 1.0), "staleness": (6.0, 6.0)}
    assert rollout.take_report()["staleness"] == (0.0, 0.0)


def moved_student(amount=0.05):
    """A student that was another one when it wrote."""
    student = tiny()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(amount * torch.randn_like(parameter))
    return student


def by_hand(student, batch):
    """log q of each label by the plain network, one sequence at a time, without padding."""
    found = torch.zeros(batch.student.mask.shape, dtype=torch.float64)
    for row, length in enumerate(batch.student.lengths.tolist()):
        tokens = batch.student.tokens[row : row + 1, :length]
        logits = student.network(input_ids=tokens).logits[0, :, : student.vocabulary]
        logprobs = logits.log_softmax(-1).gather(1, batch.student.labels[row, :length, None])[:, 0]
        found[row, :length] = logprobs
    return found * batch.student.mask


def test_weights_are_the_ratio_of_now_and_then():
    rollout, student = Replay(OnPolicy(max_new_tokens=6, samples=2), uses=2, importance_bound=1.3), tiny()
    with seeded(1):
        fresh = rollout(window(0, 2), Models(student), Progress(0, 10), ENCODER)
        later = moved_student()
    assert all(batch.importance_weights is None for batch in fresh)
    batches = rollout(window(0, 2), Models(later), Progress(1, 10), ENCODER)
    seen = []
    for batch in batches:
        with torch.no_grad():
            ratio = (by_hand(later, batch) - by_hand(student, batch)).exp()
        expected = ratio.clamp(max=1.3) * batch.student.mask
        torch.testing.assert_close(batch.importance_weights.double(), expected, atol=1e-5, rtol=1e-5)
        assert not batch.importance_weights.requires_grad
        assert not batch.importance_weights[~batch.student.mask].any()
        seen += ratio[batch.student.mask].tolist()
    assert min(seen) < 0.9
    assert max(seen) > 1.3  # so the bound did something


def test_the_writers_own_weight_is_not_lost():
    """q then over p~ times q now over q then, which is q now over p~, bounded as a whole."""
    student, teacher = tiny(), tiny(1)
    rollout = Replay(TeacherMixed(alpha=0.5, max_new_tokens=6, samples=2), uses=2, importance_bound=1.2)
    with seeded(1):
        fresh = rollout(window(0, 2), Models(student, WhiteBox(teacher)), Progress(0, 10), ENCODER)
        later = moved_student(0.02)
    given = torch.cat([batch.importance_weights[batch.student.mask] for batch in fresh])
    assert given.min() < 0.9
    assert given.max() == pytest.approx(1.2)  # the first use is bounded, too
    seen = []
    for batch in rollout(window(0, 2), Models(later, WhiteBox(teacher)), Progress(1, 10), ENCODER):
        with torch.no_grad():
            own, theirs, now = (by_hand(model, batch).exp() for model in (student, teacher, later))
        expected = (now / (0.5 * own + 0.5 * theirs)) * batch.student.mask
        torch.testing.assert_close(batch.importance_weights.double(), expected.clamp(max=1.2), atol=1e-4, rtol=1e-4)
        seen += expected[batch.student.mask].tolist()
    assert min(seen) < 0.9
    assert max(seen) > 1.2


def test_a_student_that_has_not_moved_has_weights_of_one():
    """Without dropout, as when it wrote, although it is in training."""
    student = tiny(attention_dropout=0.5).train()
    rollout = Replay(OnPolicy(max_new_tokens=6), uses=2, importance_bound=10.0)
    for now in steps(2):
        batches = rollout(window(0, 2), Models(student), now, ENCODER)
    for batch in batches:
        torch.testing.assert_close(batch.importance_weights, batch.student.mask.float(), atol=1e-5, rtol=0)
    assert all(module.training for module in student.modules())


def test_reading_for_the_weights_is_paid_for(meter):
    """A forward pass over the real tokens and loss rows is a third of training on them."""
    rollout = Replay(OnPolicy(max_new_tokens=6), uses=2, importance_bound=10.0)
    rollout(window(0, 2), MODELS, Progress(0, 10), ENCODER)
    wrote = meter.spent
    batches = rollout(window(0, 2), MODELS, Progress(1, 10), ENCODER)
    spent = meter.spent
    assert (spent.generated_tokens, spent.teacher_tokens) == (wrote.generated_tokens, 0)
    added = spent.decoding_flops - wrote.decoding_flops
    assert 3 * added == sum(training_flops(STUDENT, batch.student) for batch in batches)


def test_weights_need_the_log_probabilities_of_the_behaviour():
    teacher = Models(STUDENT, WhiteBox(tiny(1)))
    rollout = Replay(ByTeacher(max_new_tokens=3), uses=2, importance_bound=2.0)
    with pytest.raises(ValueError, match=r"rollout.importance_bound=2.0 needs .* ByTeacher does not"):
        rollout(window(0, 2), teacher, Progress(0, 10), ENCODER)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"uses": 0}, "rollout.uses=0"),
        ({"max_age": -1}, "rollout.max_age=-1"),
        ({"capacity": 0}, "rollout.capacity=0"),
        ({"importance_bound": 0.0}, "rollout.importance_bound=0.0"),
        ({"writer": Replay(Counting())}, "Replay replays whole windows"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Replay(**{"writer": Counting(), **settings})


def test_it_provides_what_its_writer_does_and_weights():
    """So that an objective is told before any weight is loaded (kd.composition.requirements)."""
    writers = ("kd.rollouts.on_policy.OnPolicy", "kd.rollouts.teacher.ByTeacher", "kd.rollouts.mixed.Mixed")
    given = []
    for writer in writers:
        inner = {"_target_": writer, "writer": {"_target_": writers[0]}} if "mixed" in writer else {"_target_": writer}
        given.append(provided("rollout", {"_target_": "kd.rollouts.replay.Replay", "writer": inner}))
    own = {"group_size", "written_by", "importance_weights"}
    assert given == [own | {"behaviour_logprobs", "old_logprobs"}, own, own]


def test_it_stands_outermost():
    assert Replay(Mixed(Counting(), seed=1), uses=5).uses == 5


# ---- state -----------------------------------------------------------------------------------------------------------

USES, END = 3, 11
KINDS = {
    "epochs": {"uses": USES},
    "buffer": {"uses": USES, "capacity": 7, "importance_bound": 2.0},
    "aged": {"uses": USES, "capacity": 7, "max_age": 1},
}


def ran(rollout, first, last):
    """What is learnt from at each step, by a student that moves in between, and what is told of it."""
    found = []
    for step in range(first, last):
        with seeded(4, "student", step):
            student: LanguageModel = moved_student(0.02)
        with seeded(4, "step", step):
            batches = rollout(window(step, USES), Models(student), Progress(step, END), ENCODER)
        found.append(([facts(batch) for batch in batches], rollout.take_report()))
    return found


def cut_at(kind, step):
    """What is to come after `step`, and the state that a checkpoint holds then."""
    whole, first = (Replay(OnPolicy(max_new_tokens=5, samples=2), **KINDS[kind]) for _ in range(2))
    expected = ran(whole, 0, END)[step:]
    ran(first, 0, step)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    return expected, torch.load(file, weights_only=True)


@pytest.mark.parametrize("step", [4, 5, 6])  # within the replay of a window, at its end, and before a new one
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_goes_on_is_the_run_that_was_not_cut(kind, step):
    expected, state = cut_at(kind, step)
    resumed = Replay(OnPolicy(max_new_tokens=5, samples=2), **KINDS[kind])
    resumed.load_state_dict(state)
    assert ran(resumed, step, END) == expected


MISSING = {"wrote_at": None, "buffer_capacity": 1, "buffer": []}


@pytest.mark.parametrize("name", MISSING)
def test_a_piece_that_is_missing_is_missed(name):
    expected, state = cut_at("buffer", 4)
    assert set(state) == {"attributes", "writer", "buffer_capacity", "buffer"}
    state, resumed = deepcopy(state), Replay(OnPolicy(max_new_tokens=5, samples=2), **KINDS["buffer"])
    (state["attributes"] if name in state["attributes"] else state)[name] = MISSING[name]
    resumed.load_state_dict(state)
    try:
        found = ran(resumed, 4, END)
    except ValueError:
        return
    assert found != expected


def test_a_mixture_is_replayed_with_its_coins():
    """The writer inside may itself be a mixture: what was given is given again."""
    rollout = Replay(Mixed(Counting(), seed=2, per="sequence"), uses=2)
    for now in steps(4):
        batches = rollout(window(now.step, 2), MODELS, now, ENCODER)
        if now.step % 2 == 0:
            fresh = learnt(batches)
        assert learnt(batches) == fresh
