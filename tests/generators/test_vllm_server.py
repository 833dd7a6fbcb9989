"""The client of a vLLM server, against a real server of the same protocol that has our own engine behind it."""

import copy
import json
import socket

import pytest
import torch

from kd.data.sequences import Encoder
from kd.generators import Generator
from kd.generators.account import Meter, metered
from kd.generators.sampling import Sampled
from kd.generators.settings import Decoding
from kd.generators.torch import Torch
from kd.generators.vllm_server import Server
from kd.rollouts.on_policy import OnPolicy
from kd.rollouts.paired import Paired
from kd.rollouts.teacher import ByTeacher
from kd.seeding import seeded
from kd.teachers.white_box import WhiteBox
from kd.types import Models, Progress
from tests.generators.completions import Served, ids_of, serving
from tests.rollouts.test_rollouts import responses
from tests.tiny import records, tiny
from tests.training.test_module import LORA

GREEDY, SAMPLED = Sampled(0.0), Sampled(1.0)
PROMPTS = [[5, 6, 7], [9] * 12, [30, 31], [40]]


@pytest.fixture
def student():
    return tiny()


@pytest.fixture
def served(student):
    """A server that was started from another model of the same shape."""
    with serving(Served(tiny(seed=1))) as found:
        yield found


@pytest.fixture
def connect(served, tmp_path):
    def made(**settings):
        return Server(**{"url": served.url, "weights": str(tmp_path / "weights"), "retries": 0, **settings})

    return made


def asked(generator, model, prompts=PROMPTS, sampled=GREEDY, samples=1, version=0, max_new_tokens=12):
    return generator(
        model,
        prompts,
        decoding=Decoding(max_new_tokens, samples, sampled.temperature, sampled.top_p, batch_size=3),
        source="student",
        version=version,
    )


def moved(model, seed=3, size=0.2):
    """One step of some optimizer."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn_like(parameter)


def flat(groups):
    return [one for group in groups for one in group]


# ---- the same responses ----------------------------------------------------------------------------------------------


def test_greedy_text_and_log_probabilities_are_those_of_our_own_engine(connect, student):
    generator = connect()
    assert isinstance(generator, Generator)
    ours, theirs = asked(Torch(), student), asked(generator, student)
    assert ids_of(theirs) == ids_of(ours)
    for own, other in zip(flat(ours), flat(theirs), strict=True):
        assert other.truncated == own.truncated
        assert other.source == "student"
        torch.testing.assert_close(other.old_logprobs, own.old_logprobs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(other.behaviour_logprobs, own.behaviour_logprobs)


def test_responses_end_at_the_end_token_or_at_the_bound(connect, student):
    written = flat(asked(connect(), student, sampled=SAMPLED, samples=20, max_new_tokens=40))
    end = student.tokenizer.eos_token_id
    assert {one.truncated for one in written} == {True, False}
    for one in written:
        assert (one.ids[-1] == end) is not one.truncated
        assert end not in one.ids[:-1]
        assert not one.truncated or len(one.ids) == 40


@pytest.mark.parametrize("sampled", [SAMPLED, Sampled(0.6), Sampled(0.8, 0.7)], ids=["1", "0.6", "0.8, 0.7"])
def test_samples_are_grouped_and_their_log_probabilities_are_what_they_were_drawn_from(
    connect, served, student, sampled
):
    generator = connect()
    torch.manual_seed(0)
    written = asked(generator, student, sampled=sampled, samples=3)
    for prompt, group in zip(PROMPTS, written, strict=True):
        (body,) = [body for path, body in served.asked if path == "/v1/completions" and body["prompt"] == prompt]
        torch.manual_seed(body["seed"])
        ours = Torch()(student, [prompt], decoding=Decoding(12, 3, sampled.temperature, sampled.top_p))
        assert ids_of([group]) == ids_of(ours)
        for one, own in zip(group, flat(ours), strict=True):
            torch.testing.assert_close(one.behaviour_logprobs, own.behaviour_logprobs, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(one.old_logprobs, own.old_logprobs, atol=1e-5, rtol=1e-5)
    distance, tokens = generator.take_report()["sampler_mismatch"]
    assert tokens == sum(len(one.ids) for one in flat(written))
    assert distance / tokens < 1e-5
    assert generator.take_report()["sampler_mismatch"] == (0, 0)


def test_each_prompt_has_a_seed_and_all_of_them_come_from_the_runs_generator(connect, served, student):
    generator = connect()
    found = []
    for seed in (1, 1, 2):
        with seeded(seed, "rollout"):
            found.append(ids_of(asked(generator, student, [[5, 6]] * 4, SAMPLED)))
    assert found[0] == found[1] != found[2]
    assert len({group[0] for group in found[0]}) > 1


def test_what_a_checkpoint_would_add_to_the_sampling_is_off(connect, served, student):
    asked(connect(), student, PROMPTS[:1], SAMPLED)
    (body,) = [body for path, body in served.asked if "n" in body]
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (0, 0, 1)


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_weights_are_given_once_for_each_step_and_the_next_text_is_theirs(connect, served, student):
    generator = connect()
    before = asked(generator, student)
    asked(generator, student)
    assert served.paths().count("/collective_rpc") == 1
    moved(student)
    after = asked(generator, student, version=1)
    assert served.paths().count("/collective_rpc") == served.paths().count("/reset_prefix_cache") == 2
    assert ids_of(after) == ids_of(asked(Torch(), student)) != ids_of(before)
    assert generator.version == 1
    assert generator.take_report()["sampler_staleness"] == (0, 3 * len(PROMPTS))


def test_the_students_weights_may_be_ahead_and_the_distance_is_logged(connect, served, student):
    generator = connect(staleness=1)
    first = copy.deepcopy(student)
    asked(generator, student)
    generator.take_report()
    moved(student)
    written = asked(generator, student, version=1)
    assert ids_of(written) == ids_of(asked(Torch(), first))
    told = generator.take_report()
    assert told["sampler_staleness"] == (len(PROMPTS), len(PROMPTS))
    own = torch.cat([one.old_logprobs for one in flat(written)])
    theirs = torch.cat([one.old_logprobs for one in flat(asked(Torch(), first))])
    assert told["sampler_mismatch"][0] == pytest.approx((own - theirs).abs().sum().item(), rel=1e-4)
    assert told["sampler_mismatch"][0] > 1
    moved(student)
    assert ids_of(asked(generator, student, version=2)) == ids_of(asked(Torch(), student))


def test_what_it_held_outlives_a_run_that_goes_on_without_writing(connect, served, student, tmp_path):
    """Saved, loaded, saved again before anything was written, loaded: then it writes with those weights."""
    generator = connect(staleness=2)
    expected = ids_of(asked(generator, student))
    states = [generator.state_dict()]
    for folder in ("again", "once more"):
        generator = connect(staleness=2, weights=str(tmp_path / folder))
        generator.load_state_dict(states[-1])
        states.append(generator.state_dict())
    moved(student)
    moved(served.model)
    assert ids_of(asked(generator, student, version=2)) == expected
    assert ids_of(asked(generator, student, version=3)) == ids_of(asked(Torch(), student)) != expected
    assert connect().state_dict() == {}  # without staleness there is nothing to hold


def test_adapters_are_given_merged(connect, served, tmp_path):
    from kd.models.networks import pretrained

    base = tiny()
    base.network.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    student = pretrained(source={"address": f"local:{tmp_path / 'base'}"}, dtype="float64", lora=LORA).eval()
    moved(student)
    assert ids_of(asked(connect(), student)) == ids_of(asked(Torch(), student))


def test_a_push_that_does_nothing_is_noticed(connect, served, student):
    served.loads = False
    with pytest.raises(ValueError, match=r"scores the id \d+ of a fixed prompt .* nats away .*at most 0.01.*arrived"):
        asked(connect(), student)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_tied_head_arrives(served, connect, family):
    """The server keeps a head that its checkpoint says is tied, and still answers that all went well."""
    student = tiny(family=family, tie_word_embeddings=True)
    served.model = tiny(seed=1, family=family, tie_word_embeddings=True)
    generator = connect()
    for step in range(2):
        assert ids_of(asked(generator, student, version=step)) == ids_of(asked(Torch(), student))
        moved(student)
    config = json.loads((generator.folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert student.network.config.tie_word_embeddings  # its own stays
    head, embedding = student.network.get_output_embeddings(), student.network.get_input_embeddings()
    assert head.weight is embedding.weight


def test_a_head_that_stays_behind_is_seen_where_a_mean_hides_it(served, connect, monkeypatch):
    """After a small step the mean over what was written is within the tolerance, a single token beyond exactness."""
    student = tiny(tie_word_embeddings=True)
    monkeypatch.setattr(
        "kd.generators.external_engine.save_untied", lambda network, folder: network.save_pretrained(folder)
    )
    served.model = copy.deepcopy(student)
    asked(connect(), student)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    with pytest.raises(ValueError, match="so not all of them have arrived"):
        asked(connect(), student)
    unchecked = connect(exactness=100.0)
    asked(unchecked, student)
    distance, tokens = unchecked.take_report()["sampler_mismatch"]
    assert 0.001 < distance / tokens < unchecked.tolerance


def test_a_model_that_is_never_given_weights_has_to_be_there(connect, served):
    generator = connect(staleness=None)
    asked(generator, tiny(seed=1))
    assert "/collective_rpc" not in served.paths()
    with pytest.raises(ValueError, match="another model"):
        asked(generator, tiny(seed=2))


def test_ranks_without_prompts_give_weights_all_the_same(connect, served, student):
    assert asked(connect(), student, []) == []
    assert served.paths() == ["/v1/models", "/collective_rpc", "/reset_prefix_cache", "/v1/completions"]


@pytest.mark.parametrize("failed", [0.0, 1.0])
def test_other_ranks_end_with_a_sentence_where_the_first_transfers_nothing(connect, student, monkeypatch, failed):
    """The stub is the sum that a second rank receives; it sends no request of its own for the transfer."""
    monkeypatch.setattr("kd.generators.vllm_server._is_first_rank", lambda: False)
    monkeypatch.setattr("kd.generators.vllm_server.sum_over_ranks", lambda values: values + failed)
    generator = connect()
    if failed:
        with pytest.raises(RuntimeError, match=r"the first rank could not transfer its weights to http://.*; its mess"):
            generator.load(student)
    else:
        generator.load(student)
    assert not generator.folder.exists()


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_no_server(student, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        generator = Server(url=url, weights=str(tmp_path / "here"), retries=1)
        with pytest.raises(ConnectionError, match=rf"no vLLM server answers at {url}.*vllm serve {tmp_path}/here"):
            asked(generator, student)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in (tmp_path / "here").iterdir()}


REFUSED = {
    "another model": ({"names": ["other"]}, {"model": "mine"}, "serves other, not generator.model=mine"),
    "two models": ({"names": ["a", "b"]}, {}, "serves a, b; name one with generator.model"),
    "no developer mode": ({"developer_mode": False}, {}, "VLLM_SERVER_DEV_MODE=1"),
    "no ids": ({"token_ids": False}, {}, "without token ids"),
    "no room": ({"room": 20}, {}, r"may take 24 tokens.*takes 20.*--max-model-len"),
}


@pytest.mark.parametrize(("server", "client", "said"), REFUSED.values(), ids=REFUSED)
def test_what_a_server_lacks_is_reported(connect, served, student, server, client, said):
    for name, value in server.items():
        setattr(served, name, value)
    with pytest.raises(ValueError, match=said):
        asked(connect(**client), student)


def test_log_probabilities_from_before_the_temperature_are_refused(connect, served, student):
    served.processed = False
    asked(connect(), student, sampled=SAMPLED)  # the same there
    with pytest.raises(ValueError, match="--logprobs-mode processed_logprobs"):
        asked(connect(), student, sampled=Sampled(0.9))


def test_ids_beyond_the_vocabulary(connect, served, student, monkeypatch):
    there = Served.choices

    def beyond(self, body):
        return [{**one, "token_ids": [student.vocabulary, *one["token_ids"][1:]]} for one in there(self, body)]

    monkeypatch.setattr(Served, "choices", beyond)
    with pytest.raises(ValueError, match=f"wrote the id {student.vocabulary}, but the tokenizer has"):
        asked(connect(), student)


def test_a_response_that_ends_for_a_reason_of_the_servers(connect, served, student, monkeypatch):
    there = Served.choices

    def shorter(self, body):
        return there(self, {**body, "max_tokens": 2})

    monkeypatch.setattr(Served, "choices", shorter)
    with pytest.raises(ValueError, match="ended a response after 2 of 12 tokens"):
        asked(connect(), student)


def test_a_server_that_is_too_slow(connect, served, student):
    served.delay = 0.5
    with pytest.raises(TimeoutError, match=r"did not answer /v1/models within generator.timeout=0.1 s"):
        asked(connect(timeout=0.1), student)


# ---- rollouts --------------------------------------------------------------------------------------------------------


@pytest.fixture
def encoder(student):
    return Encoder(student.tokenizer, None, max_length=200, max_tokens=400)


def test_the_student_learns_on_what_the_server_wrote(connect, student, encoder):
    given, settings = records(5), {"max_new_tokens": 10, "temperature": 0.0}
    window, models = encoder.batches(given), Models(student)
    ours, theirs = OnPolicy(**settings), OnPolicy(**settings, generator=connect())
    own, engine = Meter(), Meter()
    for step in range(2):
        with metered(own):
            expected = ours(window, models, Progress(step, 4), encoder)
        with metered(engine):
            batches = theirs(window, models, Progress(step, 4), encoder)
        assert responses(batches) == responses(expected)
        moved(student)
    assert theirs.take_report()["response_length"] == ours.take_report()["response_length"]
    assert engine.spent.generated_tokens == own.spent.generated_tokens
    assert engine.spent.decoding_flops == 2 * own.spent.decoding_flops  # read once more, by the student
    assert theirs.take_report().keys() == {
        *ours.take_report(),
        "sampler_mismatch",
        "sampler_staleness",
    }


def test_a_frozen_writer_is_given_its_weights_once(connect, served, student, encoder):
    window = encoder.batches(records(3))
    teacher = WhiteBox(tiny(seed=4))
    for rollout, models in (
        (ByTeacher(max_new_tokens=5, generator=connect()), Models(student, teacher)),
        (Paired(max_new_tokens=5, opponent="reference", generator=connect()), Models(student, reference=teacher)),
    ):
        served.asked.clear()
        for step in range(3):
            rollout(window, models, Progress(step, 4), encoder)
        assert served.paths().count("/collective_rpc") == 1
