import pytest
import torch

from kd.data.chat_template import encode_prompt
from kd.data.sequences import Encoder
from kd.generators.generation import generate
from kd.models.tokenizers import byte_tokenizer
from kd.rollouts import Rollout
from kd.rollouts.offline import Offline
from kd.rollouts.on_policy import OnPolicy
from kd.seeding import seeded
from kd.signals import FROM_ROLLOUT
from kd.types import Models, Progress, Written
from tests.tiny import record, records, tiny

GIVEN = records(11)
NOW = Progress(step=0, total=10)


@pytest.fixture
def student():
    return tiny()


@pytest.fixture
def encoder(student):
    return Encoder(student.tokenizer, None, max_length=200, max_tokens=400)


def responses(batches) -> dict[str, list[list[int]]]:
    """record id -> the ids that are learnt, of each response."""
    found = {}
    for batch in batches:
        for i, kept in enumerate(batch.records):
            group = range(i * batch.group_size, (i + 1) * batch.group_size)
            found[kept.id] = [batch.student.labels[row][batch.student.mask[row]].tolist() for row in group]
    return found


def prompts(batches) -> dict[str, list[int]]:
    found = {}
    for batch in batches:
        for i, kept in enumerate(batch.records):
            row = i * batch.group_size
            first = int(batch.student.mask[row].int().argmax())
            found[kept.id] = batch.student.tokens[row, : first + 1].tolist()
    return found


@pytest.mark.parametrize("rollout", [Offline(), OnPolicy(max_new_tokens=3)])
def test_what_is_provided_is_known_and_filled(rollout, student, encoder):
    assert isinstance(rollout, Rollout)
    assert rollout.provides <= FROM_ROLLOUT
    assert rollout.requires == frozenset()
    for batch in rollout(encoder.batches(GIVEN), Models(student), NOW, encoder):
        assert all(getattr(batch, name) is not None for name in rollout.provides)


def test_offline_is_the_identity(encoder):
    window = encoder.batches(GIVEN)
    assert Offline()(window, Models(None), NOW, encoder) is window


def test_the_student_writes_what_it_learns_on(student, encoder):
    rollout = OnPolicy(max_new_tokens=9, temperature=0.0)
    window = encoder.batches(GIVEN)
    batches = rollout(window, Models(student.train()), NOW, encoder)
    asked = {kept.id: encode_prompt(kept.prompt, student.tokenizer) for kept in GIVEN}
    expected = generate(student, list(asked.values()), max_new_tokens=9)
    assert len(set(map(tuple, expected))) > 1
    assert responses(batches) == {name: [ids] for name, ids in zip(asked, expected, strict=True)}
    assert prompts(batches) == asked
    assert student.training
    assert {r.source for batch in batches for kept in batch.records for r in kept.responses} == {"student"}


def test_an_end_token_is_learnt_even_if_it_is_all_there_is(student, encoder, meter):
    end = student.tokenizer.eos_token_id
    head = student.network.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(head.out_features, dtype=torch.float64))
    head.bias.data[end] = 1e6
    rollout = OnPolicy(max_new_tokens=9, samples=2)
    batches = rollout(encoder.batches(GIVEN), Models(student), NOW, encoder)
    assert responses(batches) == {kept.id: [[end], [end]] for kept in GIVEN}
    assert {r.text for batch in batches for kept in batch.records for r in kept.responses} == {""}
    assert meter.spent.generated_tokens == 2 * len(GIVEN)


def test_samples_of_a_prompt_are_a_group(student, encoder):
    rollout = OnPolicy(max_new_tokens=6, samples=3)
    with seeded(1, "step", 0):
        batches = rollout(encoder.batches(GIVEN), Models(student), NOW, encoder)
    assert {batch.group_size for batch in batches} == {3}
    found = responses(batches)
    assert set(found) == {kept.id for kept in GIVEN}
    assert all(len({tuple(ids) for ids in group}) == 3 for group in found.values())  # drawn one by one
    for batch in batches:
        assert batch.student.tokens.numel() <= 400
        for i, kept in enumerate(batch.records):
            head = encode_prompt(kept.prompt, student.tokenizer)
            for row in range(3 * i, 3 * i + 3):
                assert batch.student.tokens[row, : len(head)].tolist() == head
            assert len(kept.responses) == 3


def test_samples_follow_their_own_prompt(student, encoder):
    rollout = OnPolicy(max_new_tokens=6, samples=2, temperature=1e-6)  # so cold that both are the greedy response
    batches = rollout(encoder.batches(GIVEN), Models(student), NOW, encoder)
    greedy = generate(student, [encode_prompt(kept.prompt, student.tokenizer) for kept in GIVEN], max_new_tokens=6)
    assert responses(batches) == {kept.id: [ids, ids] for kept, ids in zip(GIVEN, greedy, strict=True)}


def test_the_window_decides_what_is_written_not_its_micro_batches(student):
    """All prompts meet the generator together, so how the window was cut for training does not show."""
    written = []
    for max_tokens in (60, 4000):
        encoder = Encoder(student.tokenizer, None, max_length=200, max_tokens=max_tokens, max_padding=1.0)
        window = encoder.batches(GIVEN)
        assert (len(window) == 1) == (max_tokens == 4000)
        with seeded(1, "step", 0):
            written.append(responses(OnPolicy(max_new_tokens=6)(window, Models(student), NOW, encoder)))
    assert written[0] == written[1]


def test_tokens_are_counted_over_steps(student, encoder, meter):
    rollout = OnPolicy(max_new_tokens=5)
    counts = []
    for _ in range(3):
        batches = rollout(encoder.batches(GIVEN), Models(student), NOW, encoder)
        counts.append(sum(len(ids) for group in responses(batches).values() for ids in group))
    assert meter.spent.generated_tokens == sum(counts)


def test_nothing_is_written_that_would_be_cut_off(student, meter):
    longest = max(len(encode_prompt(kept.prompt, student.tokenizer)) for kept in GIVEN)
    encoder = Encoder(student.tokenizer, None, max_length=longest + 4, max_tokens=400)
    rollout = OnPolicy(max_new_tokens=50, samples=2)
    [batch] = rollout(
        encoder.batches([max(GIVEN, key=lambda r: len(r.prompt[0]["content"]))]), Models(student), NOW, encoder
    )
    assert batch.student.mask.sum() <= meter.spent.generated_tokens <= 2 * 4


def test_a_teacher_with_other_tokens_reads_what_was_written(student):
    teacher = byte_tokenizer()
    teacher.chat_template = "Now. " + teacher.chat_template
    encoder = Encoder(student.tokenizer, teacher, max_length=200, max_tokens=400)
    answer = [*student.tokenizer("seven", add_special_tokens=False)["input_ids"], student.tokenizer.eos_token_id]
    [batch] = encoder.written([record(0)], [[Written(tuple(answer))]])
    assert batch.teacher.labels[batch.teacher.mask].tolist() == answer
    assert batch.teacher.tokens.shape[1] == batch.student.tokens.shape[1] + len("Now. ")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"samples": 0}, "samples=0 requests no response"),
        ({"samples": 2, "temperature": 0.0}, "samples=2 at temperature=0 are all the same"),
        ({"top_p": 2.0}, "top_p=2.0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
    ],
)
def test_settings_are_checked_before_any_model_is_there(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        OnPolicy(**{"max_new_tokens": 4, **settings})
