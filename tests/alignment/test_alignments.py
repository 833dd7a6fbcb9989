"""What each alignment says of the teacher in the student's coordinates.

Run: python -m pytest tests/alignment/test_alignments.py
"""

import cProfile
import random

import pytest
import torch

from kd.alignment.edit_scan import Words
from kd.alignment.min_edit import MinEdit, edit_distance, one_to_one, warped
from kd.alignment.none import Unaligned
from kd.alignment.same import Same
from kd.alignment.shared_vocabulary import SharedVocabulary
from kd.alignment.spans import SpanAlignment
from kd.alignment.token_bytes import token_bytes
from kd.alignment.vocabulary import NOWHERE, nearest, same_bytes
from kd.kernels.logits import DenseLogits
from kd.kernels.mapped import MappedLogits
from kd.models.tokenizers import byte_tokenizer
from kd.objectives.divergence import forward_kl, log_probs
from kd.types import ModelOutput
from tests.alignment.test_byte_spans import ANSWERS, batches
from tests.alignment.tokenizers import byte_level, permuted, sentencepiece, smollm2

TRANSLATING = [SpanAlignment, SharedVocabulary, MinEdit]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def learnt(kind, student, teacher, **settings):
    alignment = kind(**settings)
    alignment.check(student, teacher)
    return alignment


def native(batch, teacher, seed: int = 1) -> ModelOutput:
    """Random logits of a teacher over its own ids, and its log-probabilities of its own labels."""
    mask = batch.teacher.mask
    z = draw(int(mask.sum()), 1 + max(teacher.get_vocab().values()), seed=seed)
    own = log_probs(z).gather(1, batch.teacher.labels[mask][:, None])[:, 0]
    return ModelOutput(DenseLogits(z), z.new_zeros(mask.shape).masked_scatter(mask, own))


def all_rows(logits):
    return logits.rows(slice(0, logits.n))


# ---- one tokenizer is no difference ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TRANSLATING)
def test_one_tokenizer_gives_the_identity(kind):
    student = byte_level()
    [batch] = batches(student, None, *ANSWERS)
    said = native(batch, student)
    alignment, same = learnt(kind, student, byte_level()), learnt(Same, student, student)
    aligned = alignment(said, batch)
    assert torch.equal(all_rows(aligned.logits), said.logits.values)
    assert aligned.aligned_mask.all()
    own = draw(*said.logits.values.shape, seed=5)
    expected = forward_kl(own, all_rows(same(said, batch).logits))
    torch.testing.assert_close(forward_kl(own, all_rows(aligned.logits)), expected, rtol=0, atol=0)
    for name in ("pairs", "id_map"):
        got, wanted = getattr(alignment, name)(batch), getattr(same, name)(batch)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert alignment.take_report()["aligned_tokens"] == (aligned.logits.n, aligned.logits.n)


@pytest.mark.parametrize("kind", [SpanAlignment, SharedVocabulary])
def test_one_tokenizer_gives_its_own_log_probabilities(kind):
    student = byte_level()
    [batch] = batches(student, None, *ANSWERS)
    said = native(batch, student)
    aligned = learnt(kind, student, byte_level())(ModelOutput(logprobs=said.logprobs), batch)
    torch.testing.assert_close(aligned.logprobs, said.logprobs, rtol=1e-12, atol=1e-12)
    assert aligned.aligned_mask.all()


# ---- ids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TRANSLATING)
def test_permuted_ids_change_nothing(kind):
    student, teacher = byte_level(), permuted(byte_level(), 17)
    [batch] = batches(student, teacher, *ANSWERS)
    [plain] = batches(student, None, *ANSWERS)
    z = draw(int(plain.student.mask.sum()), len(student))
    alignment = learnt(kind, student, teacher)
    ids = alignment.id_map(batch)
    assert torch.equal(ids, (torch.arange(len(student)) - 17) % len(student))
    aligned = alignment(ModelOutput(DenseLogits(z[:, ids])), batch)
    torch.testing.assert_close(
        forward_kl(draw(*z.shape, seed=3), all_rows(aligned.logits)),
        forward_kl(draw(*z.shape, seed=3), z),
        rtol=0,
        atol=0,
    )


def test_a_larger_vocabulary_of_the_same_family():
    """Two tokens more, as Qwen's sizes: their probability is lost, counted, and the rest renormalised."""
    student, teacher = byte_level(), permuted(byte_level(), 0, extra=("<think>", "</think>"))
    [batch] = batches(student, teacher, "12 apples")
    said = native(batch, teacher)
    alignment = learnt(SharedVocabulary, student, teacher)
    aligned = alignment(said, batch)
    p = said.logits.values.softmax(-1)
    made = all_rows(aligned.logits)
    assert made.shape[1] == len(student) == len(teacher) - 2
    torch.testing.assert_close(made.softmax(-1), p[:, :-2] / p[:, :-2].sum(-1, keepdim=True))
    lost, rows = alignment.take_report()["lost_teacher_mass"]
    assert lost / rows == pytest.approx(p[:, -2:].sum(-1).mean().item())
    assert alignment.take_report() == {}
    assert (
        alignment.summary
        == f"{len(student)} of the teacher's {len(teacher)} ids have a counterpart among the student's {len(student)}"
    )


def test_heads_that_are_padded_differently_are_read_up_to_the_tokens():
    student, teacher = byte_level(), byte_level()
    alignment = SharedVocabulary()
    alignment.check(student, teacher, (400, 410))  # the checkpoints' own, smaller than the tokenizer
    assert (len(alignment.map), alignment.size) == (410, 400)
    assert (alignment.map[400:] == NOWHERE).all()


def test_end_tokens_stand_for_each_other_and_special_tokens_for_none_that_is_plain():
    student, teacher = smollm2(), byte_tokenizer()
    ids = same_bytes(token_bytes(student), token_bytes(teacher))
    assert ids[teacher.eos_token_id] == student.eos_token_id
    assert ids[teacher.convert_tokens_to_ids("<|user|>")] == NOWHERE
    assert student.convert_ids_to_tokens(int(ids[teacher.convert_tokens_to_ids("a")])) == "a"
    never = {*b"\xc0\xc1\xf1\xf2", *range(0xF5, 0x100)}  # in UTF-8; and of planes where no character is
    lost = {token_bytes(teacher).pieces[i][0] for i in (ids[:256] == NOWHERE).nonzero()[:, 0].tolist()}
    assert lost <= never | set(range(32))  # SmolLM2 has no id for some control characters


def test_a_space_is_a_space_in_both_alphabets():
    student, teacher = byte_level(), sentencepiece()
    ids = same_bytes(token_bytes(student), token_bytes(teacher))
    assert ids[teacher.convert_tokens_to_ids("▁")] == student.convert_tokens_to_ids("Ġ")
    assert ids[teacher.convert_tokens_to_ids("a")] == student.convert_tokens_to_ids("a")
    assert ids[teacher.convert_tokens_to_ids("<0x61>")] == NOWHERE  # the same byte, and `a` has it
    assert ids[teacher.convert_tokens_to_ids("<0xE6>")] == student.convert_tokens_to_ids("æ")


def test_different_pieces_are_refused():
    with pytest.raises(ValueError, match=r"needs tokens in common.*alignment=spans"):
        learnt(SharedVocabulary, smollm2(), byte_tokenizer())


def test_an_end_token_that_is_another_token_elsewhere_is_refused():
    student, teacher = byte_level(), permuted(byte_level(), 0, extra=("<|im_end|>",))
    other = permuted(byte_level(), 0, extra=("<|im_end|>",))
    other.eos_token = "<|im_end|>"
    learnt(SharedVocabulary, student, other)  # the student does not know <|im_end|>: the two ends stand for each other
    with pytest.raises(ValueError, match=r"ends a response with '<\|endoftext\|>' and the teacher with '<\|im_end\|>'"):
        learnt(SharedVocabulary, teacher, other)


def test_same_refuses_heads_of_different_sizes():
    with pytest.raises(ValueError, match="416 ids and the teacher 400; take alignment=shared_vocabulary"):
        Same().check(byte_level(), byte_level(), (416, 400))


# ---- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SpanAlignment, MinEdit])
@pytest.mark.parametrize("teacher", [byte_level, sentencepiece, byte_tokenizer])
def test_a_compared_row_names_the_same_bytes_on_both_sides(kind, teacher):
    student, teacher = smollm2(), teacher()
    [batch] = batches(student, teacher, *ANSWERS)
    alignment = learnt(kind, student, teacher)
    where = alignment.where(batch)
    ours, theirs = (s.labels[s.mask] for s in (batch.student, batch.teacher))
    there = where >= 0
    assert 0 < there.sum() < len(where)
    assert torch.equal(alignment.id_map(batch)[theirs[where[there]]], ours[there])
    ends = (ours == student.eos_token_id).nonzero()[:, 0]
    assert (where[ends] >= 0).sum() >= len(ends) - 1  # every response ends alike ("" has no span but the end)
    aligned = alignment(native(batch, teacher), batch)
    made = all_rows(aligned.logits)
    assert made[there].logsumexp(-1).isfinite().all()
    assert (made[~there] == 0).all()
    assert torch.equal(aligned.aligned_mask, there)


@pytest.mark.parametrize("teacher", [byte_level, sentencepiece, byte_tokenizer])
def test_log_likelihoods_of_responses_survive(teacher):
    student, teacher = smollm2(), teacher()
    [batch] = batches(student, teacher, *ANSWERS)
    said = native(batch, teacher)
    aligned = learnt(SpanAlignment, student, teacher)(ModelOutput(logprobs=said.logprobs), batch)
    assert aligned.aligned_mask.all()
    torch.testing.assert_close(aligned.logprobs.sum(1), said.logprobs.sum(1))
    assert (aligned.logprobs[~batch.student.mask] == 0).all()


def test_a_span_is_shared_out_evenly():
    """ "個" is two tokens of the student over bytes (2 | 1) and three of the teacher: -1, -2 | -4."""
    student, teacher = smollm2(), byte_tokenizer()
    [batch] = batches(student, teacher, "個")
    logprobs = torch.zeros(batch.teacher.mask.shape).masked_scatter(
        batch.teacher.mask, torch.tensor([-1.0, -2, -4, -8])
    )
    aligned = learnt(SpanAlignment, student, teacher)(ModelOutput(logprobs=logprobs), batch)
    assert aligned.logprobs[batch.student.mask].tolist() == [-3.0, -4.0, -8.0]
    mirrored = learnt(SpanAlignment, teacher, student)
    [batch] = batches(teacher, student, "個")
    logprobs = torch.zeros(batch.teacher.mask.shape).masked_scatter(
        batch.teacher.mask, torch.tensor([-3.0, -4.0, -8.0])
    )
    assert mirrored(ModelOutput(logprobs=logprobs), batch).logprobs[batch.student.mask].tolist() == [-1.5, -1.5, -4, -8]


def test_padding_and_neighbours_change_nothing():
    student, teacher = smollm2(), byte_level()
    alignment = learnt(SpanAlignment, student, teacher)
    [together] = batches(student, teacher, *ANSWERS)
    where, at = alignment.where(together), [0, 0]
    for record, ours, theirs in zip(
        together.records, together.student.mask.sum(1).tolist(), together.teacher.mask.sum(1).tolist(), strict=True
    ):
        [alone] = batches(student, teacher, record.responses[0].text)
        own = alignment.where(alone)
        shifted = torch.where(own >= 0, own + at[1], -1)
        assert torch.equal(where[at[0] : at[0] + ours], shifted)
        at = [at[0] + ours, at[1] + theirs]


def test_none_pairs_the_first_rows_of_each_response():
    student, teacher = byte_tokenizer(), smollm2()
    [batch] = batches(student, teacher, "apples", "no")
    lengths = [s.mask.sum(1).tolist() for s in (batch.student, batch.teacher)]
    alignment = learnt(Unaligned, student, teacher)
    pairs = alignment.pairs(batch)
    expected = [
        (lengths[0][0] * b + k, lengths[1][0] * b + k, b)
        for b in (0, 1)
        for k in range(min(lengths[0][b], lengths[1][b]))
    ]
    assert list(zip(*(field.tolist() for field in pairs[:3]), strict=True)) == expected
    # smollm2 is done first, beside some letter of the bytes: the last pair of each response
    last = [b for _, _, b in expected]
    assert pairs.ends.tolist() == [a != b for a, b in zip(last, [*last[1:], None], strict=True)]
    assert alignment.take_report() == {"aligned_tokens": (len(expected), sum(lengths[0]))}
    assert alignment.take_report() == {}


@pytest.mark.parametrize("kind", [Same, *TRANSLATING])
def test_pairs_give_the_ends_of_responses(kind):
    student = byte_level()
    [batch] = batches(student, None, *ANSWERS)
    alignment = learnt(kind, student, student)
    pairs = alignment.pairs(batch)
    labels = batch.student.labels[batch.student.mask]
    assert labels[pairs.student[pairs.ends]].tolist() == [student.eos_token_id] * len(ANSWERS)
    assert not (labels[pairs.student[~pairs.ends]] == student.eos_token_id).any()


def test_a_response_that_was_cut_ends_nowhere():
    student, teacher = smollm2(), byte_tokenizer()
    [batch] = batches(student, teacher, "apples and pears and plums and nothing else", max_length=55)
    cut = learnt(SpanAlignment, student, teacher).pairs(batch)
    assert len(cut.ends)
    assert not cut.ends.any()


# ---- shared ids, and where tokenizers cut ---------------------------------------------------------------------------


def test_shared_ids_are_those_of_the_map():
    student, teacher = smollm2(), sentencepiece()
    alignment = learnt(SpanAlignment, student, teacher)
    ours, theirs = alignment.shared_ids()
    assert torch.equal(alignment.map[theirs], ours)
    assert len(ours) == int((alignment.map != NOWHERE).sum()) > 50
    pieces = [[token_bytes(t).pieces[i] for i in ids.tolist()] for t, ids in ((student, ours), (teacher, theirs))]
    assert pieces[0] == pieces[1]


def test_ids_that_no_token_has_are_not_shared():
    student = byte_level()
    alignment = Same()
    alignment.check(student, student, (len(student) + 3, len(student) + 3))
    ours, theirs = alignment.shared_ids()
    assert torch.equal(ours, theirs)
    assert ours.tolist() == sorted(student.get_vocab().values())
    alignment.check(student, student, (7, 7))
    assert alignment.shared_ids()[0].tolist() == list(range(7))


def test_boundaries_are_spaces_and_special_tokens():
    student, teacher = smollm2(), sentencepiece()
    [batch] = batches(student, teacher, "12 apples")
    found = learnt(SpanAlignment, student, teacher).boundaries(batch)
    assert (len(found.student), len(found.teacher)) == (len(token_bytes(student).pieces), len(teacher))
    for tokenizer, ids, yes, no in (
        (student, found.student, ["Ġthe", "Ġ", "Ċ", "ĉ", "<|im_end|>", "<|im_start|>"], ["the", "a", ".", "1"]),
        (teacher, found.teacher, ["▁", "<0x0A>", "<0x09>", "<s>", "</s>"], ["a", "<0x61>"]),
    ):
        for words, expected in ((yes, True), (no, False)):
            assert ids[tokenizer.convert_tokens_to_ids(words)].tolist() == [expected] * len(words)
    cut = SpanAlignment()
    cut.check(student, teacher, (300, 200))
    assert [len(ids) for ids in cut.boundaries(batch)] == [300, 200]
    same = learnt(Same, student, student)
    assert torch.equal(same.boundaries(batch).student, found.student)
    assert torch.equal(same.boundaries(batch).teacher, found.student)


# ---- lost mass ------------------------------------------------------------------------------------------------------


def test_mapped_rows_by_hand():
    """p = (.5, .3, .2) over a b c; the student has b a x: (.3, .5, 0), c's .2 lost, at rows 1, nowhere, 0."""
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], dtype=torch.float64)
    reports = []
    made = MappedLogits(
        DenseLogits(p.log() + 3),
        torch.tensor([1, 0, -1]),
        3,
        torch.tensor([1, -1, 0]),
        False,
        lambda m, n: reports.append((m, n)),
    )
    rows = all_rows(made).softmax(-1)
    torch.testing.assert_close(rows, torch.tensor([[0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3], [0.375, 0.625, 0]]).double())
    assert [(pytest.approx(1.0), 2)] == [(m.item(), n) for m, n in reports]  # .8 + .2
    made.spread = True
    expected = [[0.1 + 0.8 / 3, 0.1 + 0.8 / 3, 0.8 / 3], [1 / 3] * 3, [0.3 + 0.2 / 3, 0.5 + 0.2 / 3, 0.2 / 3]]
    torch.testing.assert_close(all_rows(made).softmax(-1), torch.tensor(expected).double())
    torch.testing.assert_close(made.rows(slice(2, 3)), all_rows(made)[2:])
    assert made.rows(slice(1, 2)).isfinite().all()


def test_ids_that_share_one_are_added_up():
    p = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    made = MappedLogits(DenseLogits(p.log() - 900), torch.tensor([0, 1, 0]), 2, torch.tensor([0]))
    torch.testing.assert_close(all_rows(made).softmax(-1), torch.tensor([[0.7, 0.3]]).double())


# ---- minimum edit distance ------------------------------------------------------------------------------------------


def test_warping_by_hand():
    assert [edit_distance(*pair) for pair in ((b"kitten", b"sitting"), (b"", b"ab"), (b"a", b"a"))] == [3, 2, 0]
    path = warped([b"There", b" are", b" 42"], [b"The", b"re", b" are", b" 42"])
    # There-The 2, " are"-re 2, then equal tokens for nothing: 4; with There-re 3 for " are"-re it is 5
    assert path == [(0, 0), (1, 1), (1, 2), (2, 3)]
    assert one_to_one(path) == [(0, 0), (2, 3)]
    assert one_to_one([(j, i) for i, j in path]) == [(0, 0), (3, 2)]  # whichever side has the finer tokens
    assert warped([], [b"a"]) == []


def test_many_edit_distances_at_once_are_those_of_one():
    draw = random.Random(0)

    def word(longest: int, letters: str) -> bytes:
        return "".join(draw.choices(letters, k=draw.randint(1, longest))).encode()

    for longest, letters in ((4, "ab"), (9, "abc"), (17, "abcdefé"), (40, "ab"), (64, "abcd")):
        many = {word(longest, letters): k for k in range(60)}
        words = Words(many)
        for looked_for in [word(longest, letters)[:64] for _ in range(12)] + [b"z" * longest]:
            distances = {k: edit_distance(looked_for, other) for other, k in many.items()}
            least = min(distances.values())
            expected = min(k for k, distance in distances.items() if distance == least)
            assert words.nearest(looked_for, None, otherwise=-1) == expected
            assert words.nearest(looked_for, least, otherwise=-1) == expected
            assert words.nearest(looked_for, least - 1, otherwise=-1) == -1
    assert Words({}).nearest(b"a", None, otherwise=-1) == -1


@pytest.mark.parametrize("distance", [0, 1, 2, 3, None])
def test_ids_up_to_a_distance(distance):
    """The nearest plain spelling, the lowest id of several; beyond the distance none."""
    student, teacher = token_bytes(byte_level()), token_bytes(sentencepiece())
    ids, exact = nearest(student, teacher, distance=distance), same_bytes(student, teacher)
    plain = [(i, piece) for piece, i in student.ids.items() if i not in student.special and len(piece) > 1]
    for i, piece in enumerate(teacher.pieces):
        if exact[i] != NOWHERE or i in teacher.special or len(piece or b"") < 3:
            assert ids[i] == exact[i]
            continue
        away, nearby = min((edit_distance(piece, other), j) for j, other in plain)
        assert ids[i] == (nearby if distance is None or away <= distance else NOWHERE)


def test_more_distance_loses_less_mass():
    student, teacher = byte_level(), sentencepiece()
    [batch] = batches(student, teacher, *ANSWERS)
    said, lost = native(batch, teacher), []
    for distance in (0, 1, 2, None):
        alignment = learnt(MinEdit, student, teacher, distance=distance)
        all_rows(alignment(said, batch).logits)
        total, rows = alignment.take_report()["lost_teacher_mass"]
        lost.append(total / rows)
    assert lost[0] > lost[1] > lost[2] > lost[3] > 0


def test_a_large_vocabulary_is_searched_a_byte_at_a_time():
    """50 000 words of 2 to 12 bytes, none of which has a byte of the one that is looked for: as many operations on
    arrays as for one word as long as the longest that may be near."""
    draw = random.Random(1)
    words = Words({bytes(draw.choices(range(97, 123), k=2 + k % 11)): k for k in range(50_000)})
    assert words.nearest(b"1234567", None, otherwise=-1) % 11 <= 5  # 7 edits make it of any word that is not longer
    assert operations(words, None) == operations(Words({b"twelve bytes": 0}), None)
    assert words.nearest(b"1234567", 2, otherwise=-1) == -1
    assert operations(words, 2) == operations(Words({b"9 letters": 0}), 2)  # longer ones are left out


def operations(words: Words, bound: int | None) -> int:
    """Calls of functions, Python's and C's, while the nearest word is looked for."""
    profile = cProfile.Profile()
    profile.runcall(words.nearest, b"1234567", bound, otherwise=-1)
    return sum(entry.callcount for entry in profile.getstats())


def test_the_nearest_spelling():
    student, teacher = byte_level(), sentencepiece()
    ours, theirs = token_bytes(student), token_bytes(teacher)
    ids, exact = nearest(ours, theirs), same_bytes(ours, theirs)
    assert torch.equal(ids[exact != NOWHERE], exact[exact != NOWHERE])
    gained = ((ids != NOWHERE) & (exact == NOWHERE)).nonzero()[:, 0].tolist()
    assert gained
    for i in gained:
        assert edit_distance(theirs.pieces[i], ours.pieces[ids[i]]) == 1
    plain = [j for j in range(len(ours.pieces)) if j not in ours.special]
    for i in ((ids == NOWHERE) & (exact == NOWHERE)).nonzero()[:, 0].tolist():
        piece = theirs.pieces[i]
        if i not in theirs.special and len(piece) >= 3:  # whatever is at a distance of 1 was found
            assert not any(len(ours.pieces[j]) > 1 and edit_distance(piece, ours.pieces[j]) == 1 for j in plain)
