import logging

import pytest
import torch

from kd.data.chat_template import encode_prompt
from kd.data.sequences import Encoder
from kd.generators.account import Spent, metered
from kd.generators.sampling import Sampled
from kd.rollouts.on_policy import OnPolicy
from kd.seeding import seeded
from tests.tiny import records, tiny

GIVEN = records(6)
STUDENT, TEACHER = tiny(0), tiny(1)
ENCODER = Encoder(STUDENT.tokenizer, None, max_length=200, max_tokens=400)
PROMPTS = [len(encode_prompt(kept.prompt, STUDENT.tokenizer)) for kept in GIVEN]
SETTINGS = {"samples": 2, "max_new_tokens": 5, "batch_size": 8}


def end_at_once(model):
    """A model that writes its end token and nothing else."""
    head = model.network.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(head.out_features, dtype=torch.float64))
    head.bias.data[model.tokenizer.eos_token_id] = 1e6
    return model


def lengths(responses):
    return [[len(answer.ids) for answer in group] for group in responses]


def flops(model, tokens, squares, rows):
    """2 per weight and token; 4 x width x heads x layers per pair of places, half of which is masked; the head."""
    config, network = model.network.config, model.network
    weights = sum(p.numel() for p in network.parameters())
    weights -= network.get_input_embeddings().weight.numel() + network.get_output_embeddings().weight.numel()
    attention = 4 * config.num_hidden_layers * config.hidden_size * squares // 2
    return 2 * weights * tokens + attention + 2 * network.get_output_embeddings().weight.numel() * rows


def test_what_a_student_writes_is_counted(meter):
    """The samples of a prompt share one reading of it: P + (r1 - 1) + (r2 - 1) tokens; the first word of each is
    drawn from one row of logits; places attend to all before them, (P + r - 1)^2 in all for each, less P^2 once."""
    writing = OnPolicy(**SETTINGS)
    found = lengths(writing.by_one(STUDENT, GIVEN, ENCODER))
    assert [len(group) for group in found] == [2] * 6
    tokens = squares = rows = 0
    for prompt, (one, two) in zip(PROMPTS, found, strict=True):
        tokens += prompt + one - 1 + two - 1
        squares += (prompt + one - 1) ** 2 + (prompt + two - 1) ** 2 - prompt**2
        rows += 1 + one - 1 + two - 1
    written = sum(map(sum, found))
    assert meter.spent[:3] == (written, flops(STUDENT, tokens, squares, rows), 0)
    again = writing.by_one(STUDENT, GIVEN, ENCODER)
    assert meter.spent.generated_tokens == written + sum(map(sum, lengths(again)))


def test_what_a_teacher_reads_beside_the_student_is_counted(meter):
    writing, alone = OnPolicy(**SETTINGS), OnPolicy(max_new_tokens=5, temperature=0.0)
    found = lengths(writing.by_several([STUDENT, TEACHER], GIVEN, ENCODER, Sampled()))
    read = sum(PROMPTS) + sum(map(sum, found)) - 2 * len(GIVEN)
    assert meter.spent[:3:2] == (sum(map(sum, found)), read)
    with metered() as of_teacher:
        alone.by_one(TEACHER, GIVEN, ENCODER, source="teacher")
    assert of_teacher.spent[:2] == (0, 0)


def test_spending_adds_up():
    assert Spent(1, 2, 3, 0.5, 4).plus(Spent(10, 20, 30, 0.25, 40)) == Spent(11, 22, 33, 0.75, 44)
    assert Spent() == (0,) * 7


def test_lengths_and_truncations_are_logged():
    writing = OnPolicy(**SETTINGS)
    responses = writing.by_one(STUDENT, GIVEN, ENCODER)
    found = [length for group in lengths(responses) for length in group]
    end = STUDENT.tokenizer.eos_token_id
    cut = sum(answer.ids[-1] != end for group in responses for answer in group)
    assert cut > 0
    assert writing.take_report() == {"response_length": (sum(found), 12), "truncation_rate": (cut, 12)}
    assert writing.take_report() == {"response_length": (0, 0), "truncation_rate": (0, 0)}


def test_many_truncations_are_warned_of_once(caplog):
    writing = OnPolicy(**SETTINGS)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):  # 24 responses: too few to say
            writing.by_one(STUDENT, GIVEN, ENCODER)
        assert not caplog.records
        for _ in range(3):
            writing.by_one(STUDENT, GIVEN, ENCODER)
    [warning] = caplog.messages
    assert "of the last 36 responses were cut off before they ended, by rollout.max_new_tokens=5" in warning


def test_a_student_that_forgets_to_end_is_noticed_however_long_it_did(caplog):
    writing, student = OnPolicy(samples=64, max_new_tokens=5, batch_size=400), end_at_once(tiny())
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            writing.by_one(student, GIVEN, ENCODER)
        assert not caplog.records  # 1536 that ended
        writing.by_one(STUDENT, GIVEN[:1], ENCODER)
    assert len(caplog.records) == 1


def test_responses_that_end_are_not_warned_of(caplog):
    writing, student = OnPolicy(**SETTINGS), end_at_once(tiny())
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            writing.by_one(student, GIVEN, ENCODER)
    assert not caplog.records
    assert writing.take_report() == {"response_length": (48, 48), "truncation_rate": (0, 48)}


@pytest.mark.parametrize("room", [1, 3])
def test_nothing_is_written_beyond_the_room_there_is(room):
    encoder = Encoder(STUDENT.tokenizer, None, max_length=max(PROMPTS) + room, max_tokens=400)
    longest = [GIVEN[PROMPTS.index(max(PROMPTS))]]
    writing = OnPolicy(samples=2, max_new_tokens=50)
    [group] = writing.by_one(STUDENT, longest, encoder)
    assert max(len(answer.ids) for answer in group) <= room


def test_what_the_encoder_will_cut_off_is_counted_as_cut_off():
    """Written together, all are bounded by the room of the shortest prompt; a longer one has less."""
    encoder = Encoder(STUDENT.tokenizer, None, max_length=max(PROMPTS) + 1, max_tokens=400)
    writing = OnPolicy(samples=2, max_new_tokens=50, batch_size=12)
    with seeded(3, "cut"):  # in one draw of six none is so long
        responses = writing.by_one(STUDENT, GIVEN, encoder)
    rooms = [max(PROMPTS) + 1 - prompt for prompt in PROMPTS]
    assert any(
        len(a.ids) > room and not a.truncated for group, room in zip(responses, rooms, strict=True) for a in group
    )
    kept = [
        row
        for batch in encoder.written(GIVEN, responses)
        for row in batch.student.labels[batch.student.mask].split(batch.student.mask.sum(1).tolist())
    ]
    unended = sum(row[-1].item() != STUDENT.tokenizer.eos_token_id for row in kept)
    assert writing.take_report()["truncation_rate"] == (unended, 12)


def test_no_records_are_no_work(meter):
    writing = OnPolicy(**SETTINGS)
    assert writing.by_one(STUDENT, [], ENCODER) == []
    assert writing.by_several([STUDENT, TEACHER], [], ENCODER, Sampled()) == []
    assert meter.spent[:3] == (0, 0, 0)
