"""Responses that are generated for later steps, with weights of a bounded age."""

import io
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from kd.data.sequences import Encoder, prompt_ids
from kd.generators import Begun, Generator
from kd.generators.account import metered
from kd.generators.settings import Decoding
from kd.generators.torch import Torch
from kd.generators.vllm_server import Server
from kd.models.flops import training_flops
from kd.models.language_model import LanguageModel
from kd.rollouts.mixed import Mixed
from kd.rollouts.on_policy import Asynchronous, OnPolicy
from kd.rollouts.wrapping import records_of
from kd.seeding import seeded
from kd.types import Models, Progress, Source, Written
from tests.generators.completions import Served, serving
from tests.generators.test_vllm_server import moved
from tests.rollouts.reported import facts, learnt, texts
from tests.rollouts.test_replay import by_hand, moved_student
from tests.tiny import records, tiny

GIVEN = records(12)
STUDENT = tiny()
ENCODER = Encoder(STUDENT.tokenizer, None, max_length=200, max_tokens=400)
TOTAL = 6


class Versioned(Generator):
    """Answers every prompt with the number of steps that the weights have made."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []  # version, prompts

    def generate(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        *,
        decoding: Decoding,
        source: Source,
        version: int,
        progress: Callable[[int], None] | None,
    ) -> list[list[Written]]:
        self.calls.append((version, len(prompts)))
        ids = (*model.tokenizer(str(version), add_special_tokens=False)["input_ids"], model.tokenizer.eos_token_id)
        drawn = -torch.arange(1.0, len(ids) + 1)
        return [[Written(ids, source, drawn) for _ in range(decoding.samples)] for _ in prompts]


def window(step: int) -> list[Any]:
    """Two records."""
    return ENCODER.batches(GIVEN[2 * step % 12 :][:2])


def at(rollout: Any, step: int, student: LanguageModel = STUDENT, *, total: int = TOTAL, seed: int = 4) -> list[Any]:
    """The batches of a step, as a run has them made."""
    rollout.foresee([window(later) for later in range(step + 1, min(step + 1 + rollout.ahead, total))])
    with seeded(seed, "step", step):
        return rollout(window(step), Models(student), Progress(step, total), ENCODER)


def versions(staleness: int, total: int = TOTAL) -> list[int]:
    """The version of the weights of the responses that each step learns from."""
    rollout = Asynchronous(staleness=staleness, max_new_tokens=4, generator=Versioned())
    found = []
    for step in range(total):
        (version,) = {int(text) for text in texts(at(rollout, step, total=total)).values()}
        found.append(version)
    assert rollout._drafts == {}  # nothing was generated that no step learns from
    return found


@pytest.mark.parametrize(
    ("staleness", "expected"),
    [
        (0, [0, 1, 2, 3, 4, 5]),
        (1, [0, 0, 1, 2, 3, 4]),
        (2, [0, 0, 0, 2, 2, 4]),  # weights at 0, 2, 4
        (4, [0, 0, 0, 0, 0, 4]),
        (9, [0, 0, 0, 0, 0, 0]),
    ],
)
def test_weights_are_as_old_as_allowed_and_no_older(staleness, expected):
    assert versions(staleness) == expected


def test_the_age_is_logged():
    """Of k = 2: ages 0, 1, 2, 1, 2, 1 of two responses each."""
    rollout = Asynchronous(staleness=2, max_new_tokens=4, generator=Versioned())
    for step in range(TOTAL):
        at(rollout, step)
    report = rollout.take_report()
    assert report["staleness"] == (14.0, 12.0)
    assert report["generation_wait"][1] == 5  # steps that took what was begun before
    assert report["response_length"] == (24.0, 12.0)
    assert rollout.take_report()["staleness"] == (0.0, 0.0)


def test_without_staleness_it_is_on_policy_to_the_last_digit():
    settings: dict[str, Any] = {"max_new_tokens": 6, "samples": 2, "temperature": 0.8}
    rollout, other = Asynchronous(staleness=0, **settings), OnPolicy(**settings)
    for step in range(3):
        student = moved_student(0.02 * step)
        with metered() as own:
            found = list(map(facts, at(rollout, step, student)))
        with metered() as theirs:
            assert list(map(facts, at(other, step, student))) == found
        assert own.spent._replace(seconds=0.0) == theirs.spent._replace(seconds=0.0)
    assert other.take_report().items() <= rollout.take_report().items()
    assert rollout.state_dict().keys() == other.state_dict().keys()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_probabilities_are_those_it_was_drawn_with_and_those_at_the_beginning_of_the_step(temperature):
    """And the weight is their ratio, bounded: q now over b."""
    rollout = Asynchronous(max_new_tokens=6, samples=2, temperature=temperature, importance_bound=1.3)
    with seeded(3):
        before, now = tiny(), moved_student(0.1)
    at(rollout, 0, before)
    begun = dict(zip(rollout._drafts[1].records, rollout._drafts[1].begun.result(), strict=True))
    seen = []
    for batch in at(rollout, 1, now):
        with torch.no_grad():
            old = by_hand(now, batch)
        torch.testing.assert_close(batch.old_logprobs.double(), old, atol=1e-5, rtol=1e-5)
        drawn = [one for record in batch.records for one in begun[record.id]]
        for one, row, mask, given in zip(
            drawn, batch.student.labels, batch.student.mask, batch.behaviour_logprobs, strict=True
        ):
            assert tuple(row[mask].tolist()) == one.ids
            torch.testing.assert_close(given[mask], one.behaviour_logprobs)
        ratio = (old - batch.behaviour_logprobs).exp()
        expected = ratio.clamp(max=1.3) * batch.student.mask
        torch.testing.assert_close(batch.importance_weights.double(), expected, atol=1e-4, rtol=1e-4)
        seen += ratio[batch.student.mask].tolist()
    assert min(seen) < 0.9
    assert max(seen) > 1.3  # so that the bound had an effect


def test_reading_again_is_paid_for(meter):
    """One forward pass over what is learnt from, a third of training on it, beside what generating it at once costs."""
    rollout = Asynchronous(max_new_tokens=6)
    at(rollout, 0)
    before = meter.spent
    batches = at(rollout, 1, total=2)  # the last step, after which nothing is begun
    spent = meter.spent.less(before)
    own, models = OnPolicy(max_new_tokens=6), Models(STUDENT)
    with seeded(4, "step", 0):
        own(window(0), models, Progress(0, 2), ENCODER)
        with metered() as at_once:
            assert learnt(own(window(1), models, Progress(0, 2), ENCODER)) == learnt(batches)
    assert spent.generated_tokens == at_once.spent.generated_tokens
    reading = sum(training_flops(STUDENT, batch.student) for batch in batches)
    assert 3 * (spent.decoding_flops - at_once.spent.decoding_flops) == reading


# ---- an engine elsewhere ---------------------------------------------------------------------------------------------


@pytest.fixture
def served():
    with serving(Served(tiny(seed=1))) as found:
        yield found


@pytest.fixture
def connect(served, tmp_path):
    def made(**settings):
        return Server(**{"url": served.url, "weights": str(tmp_path / "weights"), "retries": 0, **settings})

    return made


def test_the_text_of_a_server_is_that_of_the_weights_of_the_step_before(connect, served):
    student = tiny()
    rollout = Asynchronous(max_new_tokens=8, temperature=0.0, generator=connect())
    at(rollout, 0, student)
    expected = learnt(OnPolicy(max_new_tokens=8, temperature=0.0)(window(1), Models(student), Progress(1, 6), ENCODER))
    moved(student)
    now = learnt(OnPolicy(max_new_tokens=8, temperature=0.0)(window(1), Models(student), Progress(1, 6), ENCODER))
    assert learnt(at(rollout, 1, student)) == expected != now
    assert served.paths().count("/collective_rpc") == 2
    report = rollout.take_report()
    assert report["sampler_staleness"] == (2.0, 4.0)  # two responses of no age, two of one step
    assert report["staleness"] == (2.0, 4.0)


def test_weights_are_transferred_once_for_so_many_steps(connect, served):
    student = tiny()
    rollout = Asynchronous(staleness=3, max_new_tokens=4, temperature=0.0, generator=connect())
    for step in range(TOTAL):
        at(rollout, step, student)
        moved(student, seed=step)
    assert served.paths().count("/collective_rpc") == 2  # at steps 0 and 3
    assert rollout.take_report()["staleness"] == (2.0 * (1 + 2 + 3 + 1 + 2), 12.0)


def test_what_a_server_generates_is_generated_while_the_step_goes_on(connect, served):
    """Two requests of half a second each, during a step of two seconds, and during one of none."""
    waits = []
    for seconds in (2.0, 0.0):
        rollout = Asynchronous(max_new_tokens=4, temperature=0.0, generator=connect())
        at(rollout, 0)
        rollout._drafts[1].begun.result()
        served.delay = 0.5
        at(rollout, 1)
        assert not rollout._drafts[2].begun.done()
        rollout.take_report()
        time.sleep(seconds)  # the step
        at(rollout, 2, total=3)
        served.delay = 0.0
        waited, steps = rollout.take_report()["generation_wait"]
        assert steps == 1
        waits.append(waited)
    assert waits[0] < 0.4 < waits[1]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_cost_is_charged_where_the_responses_are_learnt_from(connect, meter, elsewhere):
    student = tiny()
    rollout = Asynchronous(max_new_tokens=4, temperature=0.0, generator=connect() if elsewhere else Torch())
    first = sum(int(batch.student.mask.sum()) for batch in at(rollout, 0, student))
    assert meter.spent.generated_tokens == first
    second = sum(int(batch.student.mask.sum()) for batch in at(rollout, 1, student))
    assert meter.spent.generated_tokens == first + second


@pytest.mark.parametrize("concurrency", [1, 2])
def test_so_many_requests_are_under_way_and_no_more_those_of_the_next_step_first(connect, served, concurrency):
    """Four windows of two prompts are begun together."""
    rollout = Asynchronous(staleness=4, max_new_tokens=4, temperature=0.0, generator=connect(concurrency=concurrency))
    served.delay = 0.1
    at(rollout, 0)
    threads = [thread for thread in threading.enumerate() if thread.name in ("request", "generation")]
    assert threads
    assert all(thread.daemon for thread in threads)  # a run that ends with an error waits for none
    for draft in rollout._drafts.values():
        draft.begun.result()
    assert served.most_at_once == concurrency
    found = [tuple(body["prompt"]) for path, body in served.asked if "n" in body]
    each = [[tuple(prompt_ids(record, STUDENT.tokenizer)) for record in records_of(window(n))] for n in range(5)]
    assert [sorted(found[i : i + 2]) for i in range(0, 10, 2)] == [sorted(prompts) for prompts in each] or (
        concurrency > 1 and sorted(found) == sorted(prompt for prompts in each for prompt in prompts)
    )


@pytest.mark.parametrize("processed", [True, False])
def test_a_run_that_goes_on_compares_before_it_learns(connect, served, processed):
    """Only step 0 learns from responses of its own weights. A server that was started again, without processed
    log-probabilities, would give wrong weights unseen."""
    settings: dict[str, Any] = {"max_new_tokens": 6, "temperature": 0.5, "importance_bound": 2.0}
    cut, resumed = (Asynchronous(**settings, generator=connect()) for _ in range(2))
    at(cut, 0)
    at(cut, 1)
    drawn = [body for path, body in served.asked if path == "/v1/completions" and "n" in body]
    assert {body["n"] for body in drawn} == {1}  # step 0 was compared
    resumed.load_state_dict(stored(cut.state_dict()))
    served.processed = processed
    if not processed:
        with pytest.raises(ValueError, match="from before temperature and top_p"):
            at(resumed, 2)
        return
    at(resumed, 2)
    at(resumed, 3)
    (body,) = [body for path, body in served.asked if body.get("n", 1) > 1]
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.5, 1.0, 6)


def test_a_checkpoint_does_not_depend_on_the_server(connect, served, caplog):
    """What it failed to generate is generated again, with the weights of the step that learns from it."""
    student = tiny()
    cut, resumed = (Asynchronous(max_new_tokens=8, temperature=0.0, generator=connect()) for _ in range(2))
    at(cut, 0, student)
    cut._drafts[1].begun.result()
    served.token_ids = False
    at(cut, 1, student)
    state = stored(cut.state_dict())
    assert "no responses for the steps 3 (ValueError: http" in caplog.text
    served.token_ids = True
    resumed.load_state_dict(state)
    moved(student)
    own = OnPolicy(max_new_tokens=8, temperature=0.0)
    expected = learnt(own(window(2), Models(student), Progress(2, TOTAL), ENCODER))
    resumed.take_report()
    assert learnt(at(resumed, 2, student)) == expected
    assert resumed.take_report()["staleness"] == (0.0, 2.0)
    at(resumed, 3, student)
    assert resumed.take_report()["staleness"] == (2.0, 2.0)


def test_a_checkpoint_waits_so_long_and_no_longer(caplog):
    rollout = Asynchronous(max_new_tokens=4, staleness=3, generator=Versioned(), checkpoint_wait=0.3)
    at(rollout, 0)
    rollout.take_report()
    rollout._drafts[2] = replace(rollout._drafts[2], begun=Begun())
    started = time.perf_counter()
    state = stored(rollout.state_dict())
    assert time.perf_counter() - started >= 0.3
    assert [step for step, draft in state["buffer"].items() if draft["responses"] is None] == [2]
    assert "no responses for the steps 3 (they are under way still)" in caplog.text
    assert rollout.take_report()["generation_wait"][0] >= 0.3
    resumed = Asynchronous(max_new_tokens=4, staleness=3, generator=Versioned())
    resumed.load_state_dict(state)
    found = [texts(at(resumed, step)) for step in (1, 2, 3)]
    assert [{int(text) for text in answers.values()} for answers in found] == [{0}, {2}, {0}]


def test_what_one_rank_lacks_all_ranks_generate_again(caplog, monkeypatch):
    """For ranks transfer weights together. The stub adds another rank, which lacks the responses of the first draft."""
    rollout = Asynchronous(max_new_tokens=4, staleness=2, generator=Versioned())
    at(rollout, 0)
    monkeypatch.setattr("kd.rollouts.on_policy.sum_over_hosts", lambda own: own + torch.tensor([1.0, 0.0]))
    state = rollout.state_dict()
    assert [step for step, draft in state["buffer"].items() if draft["responses"] is None] == [1]
    assert "no responses for the steps 2 (another rank has none)" in caplog.text


def test_an_error_of_the_server_is_raised_by_the_step_that_needs_its_responses(connect, served):
    rollout = Asynchronous(max_new_tokens=4, temperature=0.0, generator=connect())
    at(rollout, 0)
    rollout._drafts[1].begun.result()
    served.token_ids = False
    at(rollout, 1)
    with pytest.raises(ValueError, match="gives text without token ids"):
        at(rollout, 2)


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_weights_of_an_age_of_their_own_are_refused(connect):
    with pytest.raises(ValueError, match=r"rollout.staleness=1 determines .* generator.staleness=2 would keep others"):
        Asynchronous(max_new_tokens=4, generator=connect(staleness=2))
    with pytest.raises(ValueError, match=r"generator.staleness=null would keep others; set generator.staleness=0"):
        Asynchronous(max_new_tokens=4, generator=connect(staleness=None))
    Asynchronous(max_new_tokens=4, staleness=0, generator=connect(staleness=2))


def test_greedy_responses_are_not_weighed():
    with pytest.raises(ValueError, match=r"at rollout.temperature=0 nothing is drawn"):
        Asynchronous(max_new_tokens=4, temperature=0.0, importance_bound=2.0)


def test_responses_without_probabilities_are_not_weighed():
    class Unknown(Versioned):
        def generate(self, *given: Any, **settings: Any) -> list[list[Written]]:
            groups = super().generate(*given, **settings)
            return [[Written(one.ids, one.source) for one in group] for group in groups]

    rollout = Asynchronous(max_new_tokens=4, importance_bound=2.0, generator=Unknown())
    with pytest.raises(ValueError, match=r"rollout.importance_bound=2.0 needs .* which generator Unknown does not"):
        at(rollout, 0)


def test_it_is_the_outermost_rollout():
    with pytest.raises(ValueError, match=r"rollout.writer Asynchronous generates for the 1 next windows"):
        Mixed(Asynchronous(max_new_tokens=4), seed=1)
    Mixed(Asynchronous(max_new_tokens=4, staleness=0), seed=1)


def test_windows_that_did_not_come_are_missed():
    rollout = Asynchronous(max_new_tokens=4, staleness=2)
    with pytest.raises(ValueError, match=r"the next 2 windows, of which it has received 0; call its foresee"):
        rollout(window(0), Models(STUDENT), Progress(0, TOTAL), ENCODER)


def test_responses_to_other_records_are_refused():
    rollout = Asynchronous(max_new_tokens=4)
    at(rollout, 0)
    rollout.foresee([window(2)])
    with pytest.raises(ValueError, match="are to other records than the step's"):
        rollout(window(3), Models(STUDENT), Progress(1, TOTAL), ENCODER)


# ---- state -----------------------------------------------------------------------------------------------------------


def ran(rollout: Any, first: int, last: int) -> list[Any]:
    """What is learnt from at each step, by a student that moves in between, and the reports without seconds."""
    found = []
    for step in range(first, last):
        with seeded(4, "student", step):
            student = moved_student(0.02)
        batches = list(map(facts, at(rollout, step, student)))
        reports = {k: v for k, v in rollout.take_report().items() if k not in ("generation_wait", "sampler_mismatch")}
        found.append((batches, reports))
    return found


def stored(state: Mapping[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("step", [1, 3, 4])  # k = 3: within a cycle, at its end, after new weights
def test_a_run_that_goes_on_is_the_run_that_was_not_cut(step, elsewhere, connect):
    """Also from a checkpoint that was written while a server generated (greedily, for its double draws from the
    generator of this process)."""

    def made() -> Asynchronous:
        settings: dict[str, Any] = {"max_new_tokens": 5, "staleness": 3}
        if elsewhere:
            return Asynchronous(**settings, temperature=0.0, generator=connect())
        return Asynchronous(**settings, importance_bound=2.0, generator=Torch())

    expected = ran(made(), 0, TOTAL)[step:]
    cut, resumed = made(), made()
    ran(cut, 0, step)
    resumed.load_state_dict(stored(cut.state_dict()))
    assert ran(resumed, step, TOTAL) == expected


def test_responses_for_later_steps_are_in_the_state():
    rollout = Asynchronous(max_new_tokens=5, staleness=3)
    ran(rollout, 0, 2)
    state = rollout.state_dict()
    assert sorted(state["buffer"]) == [2, 3]
    assert state["buffer"][2]["records"] == [record.id for record in records_of(window(2))]
