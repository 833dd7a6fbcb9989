"""Who writes, by which rule, and what a policy learns from it, method by method, on three ids or a few bytes.

Run: python -m pytest tests/methods/test_samples.py
"""

from math import exp, log

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from kd.augmentation import Resources
from kd.rollouts.teacher_mixed import weigh
from kd.seeding import seeded, uniform
from kd.signals import introduce
from kd.teachers.interface import Teacher
from kd.teachers.self_teacher import Own
from kd.teachers.white_box import WhiteBox
from kd.training.terms import Term
from kd.types import WRITERS, Batch, ModelOutput, Models, Sequences
from tests.methods.points import P, Q, at, logprobs, point, reward, rollout, term, weight, written
from tests.objectives.alone import values_of
from tests.objectives.cases import logits_of
from tests.tiny import record, records, tiny

GIVEN = records(4)
SHORT = "rollout.max_new_tokens=5"
SHORT_WRITER = "rollout.writer.max_new_tokens=5"
ALWAYS = ("rollout.share=1.0", "rollout.final_share=null", "rollout.shape=linear")  # the student writes


@pytest.fixture(scope="module")
def models():
    return Models(tiny(0), WhiteBox(tiny(1)))


def writers(batches: list[Batch]) -> list[list[str]]:
    """Who wrote each response, group by group."""
    return [
        [WRITERS[i] for i in group]
        for batch in batches
        for group in batch.written_by.view(-1, batch.group_size).tolist()
    ]


# ---- whose text it is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sft", "kd", "abkd", "akl", "taid", "dskd", "uld", "babyllama", "minilm", "pkd"])
def test_offline_methods_leave_the_responses_as_they_are(method, models):
    assert writers(written(rollout(method), models, GIVEN, at(5))) == [["reference"]] * 4
    assert point(method).augmentation.stages == {}


@pytest.mark.parametrize("method", ["seqkd", "fdistill", "distillm2", "gad"])
def test_the_teachers_text_stands_in_for_the_references(method, tmp_path, monkeypatch):
    monkeypatch.setenv("KD_CACHE", str(tmp_path))
    [node] = point(method).augmentation.stages.values()
    node.max_new_tokens = 3
    made = list(instantiate(node)(GIVEN, Resources(seed=1, teacher=WhiteBox(tiny(1)), teacher_id="t")))
    assert [[response.source for response in kept.responses] for kept in made] == [["teacher"]] * 4


def test_distillm2s_texts_are_both_drawn_from_the_nucleus():
    """At temperature 0.8 and top-p 0.95, by one script of the release: generate/generate_vllm.py."""
    stage = instantiate(point("distillm2").augmentation.stages.nucleus_sampling)
    student, teacher = rollout("distillm2").decoding.sampled, stage.decoding.sampled
    assert (teacher.temperature, teacher.top_p) == (student.temperature, student.top_p) == (0.8, 0.95)


def test_gkds_coin_falls_for_the_student_in_a_share_of_steps(models):
    """lambda = 1: always; 0: never, which is distillation on given responses; 0.5: at about half of the steps."""
    always, never, half = (rollout("gkd", SHORT_WRITER, f"rollout.share={share}") for share in (1.0, 0.0, 0.5))
    assert rollout("gkd", SHORT_WRITER).share(at(0)) == 1
    assert writers(written(always, models, GIVEN, at(3))) == [["student"]] * 4
    assert writers(written(never, models, GIVEN, at(3))) == [["reference"]] * 4
    steps = [half.writes(GIVEN[0], at(step, 400)) for step in range(400)]
    assert sum(steps) == pytest.approx(200, abs=40)  # four deviations of a fair coin
    assert all(half.writes(given, at(7)) == half.writes(GIVEN[0], at(7)) for given in GIVEN)  # one for the whole step


def test_imitkd_goes_from_given_text_to_the_students():
    """The share of what is given is r^(step / steps), r = 1/200: 1, .0707, .005. gkd's stays."""
    mixed = rollout("imitkd", SHORT_WRITER)
    assert [mixed.share(at(step)) for step in (0, 5, 10)] == pytest.approx([0, 1 - 200**-0.5, 1 - 1 / 200])
    assert not any(mixed.writes(given, at(0)) for given in GIVEN)
    assert len({mixed.writes(given, at(step)) for given in GIVEN for step in range(1, 4)}) == 2  # each its own coin


def test_imitkds_student_writes_greedily(models):
    """Whatever the draws are, its text is the same; gkd's is not."""

    def texts(method: str, seed: int) -> list[list[int]]:
        with seeded(seed, "draws"):
            made = written(rollout(method, SHORT_WRITER, *ALWAYS), models, GIVEN, at(0))
        return [batch.student.labels.tolist() for batch in made]

    assert texts("imitkd", 1) == texts("imitkd", 2)
    assert texts("gkd", 1) != texts("gkd", 2)


def test_distillms_threshold_rises_where_validation_is_worse_by_a_tenth():
    adaptive = rollout("distillm", "rollout.initial=0.0")  # theirs
    assert (adaptive.buffer.capacity, adaptive.threshold) == (1000, 0.0)
    told = []
    # the level is 2.0, then 2.11 (2.11 >= 2.1); 2.2 < 2.21 leaves it; a better one does not lower it; 2.21 raises again
    for nll in (2.0, 2.09, 2.11, 2.2, 1.0, 2.21):
        adaptive.after_validation({"nll": nll})
        told.append(adaptive.threshold)
    assert told == pytest.approx([0.0, 0.0, 0.1, 0.1, 0.1, 0.2])
    # step 5 of 10: psi = .2 (1 - .5) = .1; the empty buffer is filled before it is read
    assert [adaptive.branch(u, at(4)) for u in (0.09, 0.15, 0.2)] == ["write", "write", "given"]


def test_distillm_writes_from_the_first_step_on_also_where_validation_never_gets_worse():
    """phi = 0.5 and an empty buffer: about half of 400 steps, as gkd."""
    adaptive = rollout("distillm")
    for nll in (2.0, 1.9, 1.8):
        adaptive.after_validation({"nll": nll})
    branches = [adaptive.branch(uniform(1, "adaptive", step), at(step, 400)) for step in range(400)]
    assert branches.count("write") == pytest.approx(200, abs=40)  # four deviations of a fair coin


@pytest.mark.parametrize("method", ["fdistill", "distillm2", "spin"])
def test_pairs_are_headed_by_the_response_that_was_given(method, models):
    models = models._replace(reference=models.teacher)
    found = writers(written(rollout(method, SHORT), models, GIVEN, at(0)))
    assert found == [["reference", "student"]] * 4


def test_spins_opponent_is_the_student_of_before(models):
    """What the reference writes, though the student is another model by now."""
    then = models.teacher  # stands for the student before the first step
    with seeded(1, "draws"):
        [found] = written(rollout("spin", SHORT), Models(models.student, None, then), GIVEN[:1], at(5))
    with seeded(1, "draws"):
        own = rollout("spin", SHORT, "rollout.opponent=student")
        [expected] = written(own, Models(then.model), GIVEN[:1], at(5))
    torch.testing.assert_close(found.student.labels[1], expected.student.labels[1])


def test_skd_lets_stand_what_is_among_the_teachers_25_likeliest():
    """30 ids, the teacher's order 0, 1, 2, ...: the 25th likeliest is id 24. The student proposes 24, or 25."""
    teacher = -torch.arange(30.0)[None]
    choose = rollout("skd").choose
    for proposed, expected in ((24, 24), (25, 0)):  # a replacement is the teacher's likeliest: .2 and top-p .5
        student = torch.full((1, 30), -50.0).index_fill(1, torch.tensor([proposed]), 50.0)
        ids, _ = choose([student, teacher])
        assert ids.item() == expected
    assert choose.take_kept() == (1.0, 2)
    assert (choose.student, choose.teacher) == ((0.5, 0.5), (0.2, 0.5))


def test_sdfts_teacher_sees_the_answer_and_follows_slowly(models):
    asked = record(0, "2 + 2 = ?", "4")
    [shown] = rollout("sdft").privileged(asked)
    assert "2 + 2 = ?" in shown["content"]
    assert "\n4\n" in shown["content"]
    [batch] = written(rollout("sdft", SHORT), models, [asked], at(0))
    text = [models.student.tokenizer.decode(s.tokens[0]) for s in (batch.teacher, batch.student)]
    assert "good answer" in text[0]
    assert "good answer" not in text[1]
    student = tiny(2)
    average = Own(**_settings("sdft"))
    average.bind(student)
    name, moved = next(iter(student.named_parameters()))
    with torch.no_grad():
        moved += 1.0
    average.after_step(student)
    # phi <- .95 phi + .05 (phi + 1)
    torch.testing.assert_close(dict(average.model.named_parameters())[name], moved - 0.95)


def _settings(method: str) -> dict:
    return {key: point(method).teacher[key] for key in ("mode", "decay")}


# ---- what is learnt from it ------------------------------------------------------------------------------------------


def test_minillms_mixture_and_its_weights():
    """p~ = .2 p + .8 q = (.46, .36, .18), so w = q/p~ = (.4/.46, .4/.36, .2/.18)."""
    choose = rollout("minillm").writer.choose
    many = 4000
    with seeded(0, "draws"):
        ids, behaviour = choose([logits_of(*[Q] * many), logits_of(*[P] * many)])
    mixture = torch.tensor([0.46, 0.36, 0.18], dtype=torch.float64)
    torch.testing.assert_close(behaviour.exp().double(), mixture[ids])
    assert torch.bincount(ids).div(many).tolist() == pytest.approx(mixture.tolist(), abs=0.03)
    mask = torch.ones(1, 3, dtype=torch.bool)
    own = Sequences(torch.zeros(1, 3).long(), torch.tensor([[0, 1, 2]]), mask, torch.tensor([3]))
    batch = Batch(own, own, old_logprobs=torch.tensor([Q]).log(), behaviour_logprobs=mixture.log()[None].float())
    weigh(batch)
    assert batch.importance_weights[0].tolist() == pytest.approx([0.4 / 0.46, 0.4 / 0.36, 0.2 / 0.18])


class Told(nn.Module, Teacher):
    """A teacher that knows what it says of each label."""

    def __init__(self, said: Tensor):
        super().__init__()
        self.said = said

    def identity(self) -> str:
        return "told"

    def forward(self, sequences: Sequences, wanted: frozenset[str]) -> ModelOutput:
        return ModelOutput(logprobs=self.said)


def test_minillms_returns_are_the_authors_codes():
    """r = (log p - log q_old)/.5 = 2, 4, 12; discounted by .95 from each token on, over 3, 2 and 1 terms: 5.54333, 7.7,
    12; mean 8.41444, variance 7.20331. The last token's own reward is all that judges it.
    """
    mask = torch.ones(1, 3, dtype=torch.bool)
    own = Sequences(torch.zeros(1, 3).long(), torch.zeros(1, 3).long(), mask, torch.tensor([3]))
    batch = Batch(own, own, old_logprobs=torch.zeros(1, 3).double())

    def judged(*rewards: float) -> list[float]:
        teacher = Told(torch.tensor([rewards], dtype=torch.float64))
        return reward("minillm")([batch], Models(tiny(), teacher))[0].advantages[0].tolist()

    assert judged(1.0, 2.0, 6.0) == pytest.approx([x / 7.20331**0.5 for x in (-2.87111, -0.71444, 3.58556)], abs=1e-4)
    assert judged(1.0, 2.0, -6.0)[-1] < 0
    assert judged(-1.0, -2.0, 6.0)[-1] > 0


def test_minillms_long_part_is_clipped_and_learnt_from_four_times():
    # rho = 1.5 with A = 1: -min(1.5, 1.2); with A = -1: -min(-1.5, -1.2) = 1.5
    behaviour, student = torch.tensor([0.2, 0.2]).log(), torch.tensor([0.3, 0.3]).log()
    long = values_of(term("minillm", "minillm_long"))
    values = long(student, behaviour, torch.tensor([1.0, -1.0]), torch.zeros(2, 3))
    assert values.tolist() == pytest.approx([-1.2, 1.5])
    assert rollout("minillm").uses == 4
    weights = {name.removeprefix("minillm_"): term.weight for name, term in point("minillm").objective.items()}
    assert weights == {"single": 1.0, "long": 1.0, "lm": 0.5, "lm_teacher": 0.5}  # kd_ratio 0.5


def test_minillms_single_step_is_not_weighted():
    """The authors' code multiplies by q/p~ in the long part alone."""
    chances, mask = torch.ones(3), torch.ones(1, 3, dtype=torch.bool)
    own = Sequences(torch.zeros(1, 3).long(), torch.zeros(1, 3).long(), mask, torch.tensor([3]))
    batch = Batch(own, own, importance_weights=torch.tensor([[0.5, 2.0, 1.0]]))
    for weighted, found in ((False, [1, 1, 1]), (True, [0.5, 2, 1])):
        single = point("minillm", f"objective.minillm_single.importance_weighted={weighted}").objective.minillm_single
        term = Term(instantiate(single.loss), kind=single.kind, importance_weighted=single.importance_weighted)
        assert term.row_weights(chances, None, batch).tolist() == found
    assert not point("minillm").objective.minillm_single.importance_weighted


def test_opd_is_the_ratio_times_the_teachers_advantage():
    """p(y) = .7, q_old = b = .4, q = .5 now: -(.5/.4) (ln .7 - ln .4), negative, for the teacher thinks more of y."""
    student, old = torch.tensor([0.5]).log(), logprobs(Q, [0])
    now = torch.tensor([[0.5, 0.5]]).log()
    opd = values_of(term("opd", "opd"))
    found = opd(student, logprobs(P, [0]), old, old, now)
    assert found.item() == pytest.approx(-(0.5 / 0.4) * log(0.7 / 0.4), rel=1e-5)
    # and positive where it thinks less of it: p = .2 of id 1, where q_old = q = .4
    assert opd(*[logprobs(d, [1]) for d in (Q, P, Q, Q)], now).item() == pytest.approx(-log(0.2 / 0.4))


def test_kdrl_is_grpo_and_a_little_of_k2():
    """Rewards 1 and 0 of a group of two: A = (r - 1/2)/std, std = 1/sqrt(2), so +-.7071; k2 = (ln q/p)^2/2."""
    grpo, kdrl = values_of(term("kdrl", "grpo")), term("kdrl", "kdrl")
    student = torch.tensor([[0.4], [0.2]]).log()
    policy = grpo(student, student, student, torch.tensor([1.0, 0.0]), 2)
    k2 = kdrl(student[:, 0], torch.tensor([0.7, 0.1]).log(), student[:, 0])
    assert policy[:, 0].tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5], abs=1e-3)
    assert k2.tolist() == pytest.approx([log(0.4 / 0.7) ** 2 / 2, log(0.2 / 0.1) ** 2 / 2])
    assert weight("kdrl", "grpo") == 1.0
    assert [weight("kdrl", "kdrl", at(step)) for step in (0, 5, 10)] == pytest.approx([5e-3, 3e-3, 1e-3])
    assert rollout("kdrl").samples > 1


def test_spins_lambda_is_a_tenth():
    """h = ln(.4/.2) of the given response + ln(.4/.2) of the own one, likelier before: -ln sigma(.1 * 2 ln 2)."""
    student = torch.tensor([[0.4], [0.2]]).log()
    before = torch.tensor([[0.2], [0.4]]).log()
    found = values_of(term("spin", "spin"))(student, before, torch.ones(2, 1, dtype=torch.bool), 2)
    assert found.item() == pytest.approx(log(1 + exp(-0.1 * 2 * log(2))), rel=1e-5)


def test_gads_reward_is_what_the_discriminator_learns(models):
    """-ln sigma(D(teacher's) - D(own)), the mean over the own; the policy's rewards are the D of the own."""
    loss = term("gad", "discriminator")
    introduce(loss, models.student, None)
    loss = loss.double()
    batches = written(rollout("gad", SHORT), models, GIVEN[:1], at(0))
    [batch] = batches
    assert writers(batches) == [["reference", *["student"] * 4]]
    s = batch.student
    d = loss.judge(s).tolist()
    expected = sum(log(1 + exp(-(d[0] - own))) for own in d[1:]) / 4
    assert values_of(loss)(s.tokens, s.labels, s.mask, s.real, batch.group_size).item() == pytest.approx(expected)
    judge = reward("gad")
    judge.bind({"discriminator": loss})
    [judged] = judge([batch], models)
    assert judged.rewards.tolist()[1:] == pytest.approx(d[1:])
    assert judged.rewards[0].item() == pytest.approx(sum(d[1:]) / 4)  # no advantage for what it did not write


def test_gads_advantages_are_among_the_students_own():
    """Rewards 1 to 4 of the four own responses: mean 2.5, deviation 1.291, so +-1.162 and +-.387; the teacher's 0."""
    zeros = torch.zeros(5, 1)
    rewards, written_by = torch.tensor([2.5, 1.0, 2.0, 3.0, 4.0]), torch.tensor([1, 2, 2, 2, 2])
    values = values_of(term("gad", "grpo"))(zeros, zeros, zeros, rewards, written_by, 5)
    assert values[:, 0].tolist() == pytest.approx([0.0, 1.162, 0.387, -0.387, -1.162], abs=1e-3)


def test_gads_players_warm_up_before_they_play():
    """For one epoch of four, the first three of ten steps, the student is tuned on the teacher's text.

    The discriminator learns in all of them.
    """
    names = ("sft", "discriminator", "grpo", "gad_kl")
    assert [weight("gad", name, at(2)) for name in names] == [1, 1, 0, 0]
    assert [weight("gad", name, at(3)) for name in names] == [0, 1, 1, 1e-3]
    objective = point("gad").objective
    assert [objective[name].get("responses") for name in names] == ["other", None, "student", "student"]
