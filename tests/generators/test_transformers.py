"""The library's `generate` behind our interface: what it writes, what it says of it, what it reads, what it refuses."""

import itertools
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import chisquare
from transformers import GenerationConfig

from kd.data.sequences import Encoder
from kd.generators import Generator
from kd.generators.account import metered
from kd.generators.generation import end_ids
from kd.generators.rescoring import read_responses
from kd.generators.sampling import Sampled
from kd.generators.settings import Decoding
from kd.generators.torch import Torch
from kd.generators.transformers import Transformers
from kd.models.flops import decoding_flops
from kd.models.language_model import LanguageModel
from kd.rollouts.on_policy import OnPolicy
from kd.rollouts.teacher import ByTeacher
from kd.seeding import seeded
from kd.teachers.white_box import WhiteBox
from kd.types import Models, Progress
from tests import runs
from tests.generators.completions import ids_of
from tests.generators.test_generation import die as die
from tests.generators.test_generation import prompts_of
from tests.rollouts.test_rollouts import responses
from tests.tiny import records, tiny
from tests.training.test_resume import ON_POLICY, ran

GREEDY, SAMPLED = Sampled(0.0), Sampled(1.0)
SEARCH = {"num_beams": 5, "length_penalty": 0.0, "early_stopping": "never"}


def asked(generator, model, prompts=None, sampled=GREEDY, samples=1, new=12, batch_size=3, source="student"):
    return generator(
        model,
        prompts_of() if prompts is None else prompts,
        decoding=Decoding(new, samples, sampled.temperature, sampled.top_p, batch_size),
        source=source,
        version=0,
    )


def library(**options):
    return Transformers(options=options)


def flat(groups):
    return [one for group in groups for one in group]


def logits_after(model, ids):
    with torch.no_grad():
        return model.network(torch.tensor([ids]), use_cache=False).logits[0, -1, : model.vocabulary].float()


# ---- greedy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_greedy_text_is_that_of_our_own_engine(family):
    model = tiny(family=family)
    assert isinstance(library(), Generator)
    ours, theirs = (asked(engine, model, new=30) for engine in (Torch(), library()))
    assert ids_of(theirs) == ids_of(ours)
    for own, other in zip(flat(ours), flat(theirs), strict=True):
        assert (other.truncated, other.source) == (own.truncated, own.source)
        torch.testing.assert_close(other.old_logprobs, own.old_logprobs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(other.behaviour_logprobs, own.behaviour_logprobs)


def test_responses_end_at_any_end_token_and_carry_no_padding():
    model = tiny()
    stop = asked(Torch(), model)[1][0].ids[5]
    model.network.generation_config.eos_token_id = [stop, model.tokenizer.eos_token_id]
    written = flat(asked(library(), model))
    assert ids_of([written]) == ids_of([flat(asked(Torch(), model))])
    assert {one.truncated for one in written} == {True, False}
    for one in written:
        assert (one.ids[-1] in end_ids(model)) is not one.truncated
        assert not set(one.ids[:-1]) & end_ids(model)
        assert len(one.old_logprobs) == len(one.behaviour_logprobs) == len(one.ids)


def test_nothing_of_a_checkpoints_saved_settings_counts_and_the_model_is_left_as_it_was():
    model = tiny(attention_dropout=0.9)
    expected = ids_of(asked(library(), model))
    saved = GenerationConfig(do_sample=True, repetition_penalty=5.0, no_repeat_ngram_size=1, num_beams=3, max_length=4)
    model.network.generation_config = saved
    model.train()
    model.network.model.norm.eval()
    model.network.config.use_cache = False
    modes = {name: module.training for name, module in model.named_modules()}
    with torch.enable_grad():
        assert ids_of(asked(library(), model)) == expected
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert model.network.generation_config is saved
    assert model.network.config.use_cache is False
    assert torch.is_grad_enabled()
    model.network(torch.tensor([[1, 2, 3]])).logits.sum().backward()


def test_a_student_with_lora_writes_what_its_adapted_weights_say():
    model = tiny()
    before = ids_of(asked(library(), model))
    with seeded(0, "lora"):
        network = get_peft_model(model.network, LoraConfig(r=2, target_modules=["q_proj", "lm_head"])).get_base_model()
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(0))
    student = LanguageModel(network, model.tokenizer)
    assert ids_of(asked(library(), student)) == ids_of(asked(Torch(), student)) != before


def test_under_autocast_it_reads_as_training_does():
    model = tiny(dtype="float32")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = (flat(asked(engine, model, new=1)) for engine in (Torch(), library()))
    exact = flat(asked(library(), model, new=1))
    told = [torch.cat([one.old_logprobs for one in written]) for written in (ours, theirs, exact)]
    torch.testing.assert_close(told[1], told[0], atol=0.1, rtol=0.1)
    assert not torch.equal(told[1], told[2])


# ---- what it was drawn from ------------------------------------------------------------------------------------------


def by_hand(model, ids, temperature, penalty):
    """log softmax(z'), z' = z / penalty where z > 0 and z * penalty elsewhere for ids there already, then tempered."""
    logits = logits_after(model, ids)
    for i in set(ids):
        logits[i] = logits[i] / penalty if logits[i] > 0 else logits[i] * penalty
    return (logits / temperature).log_softmax(-1)


def test_behaviour_is_what_was_drawn_from_and_old_what_the_model_states(die):
    prompts = [[1, 3, 2], [4], [0, 5]]  # of different lengths: padding is no text
    torch.manual_seed(0)
    written = asked(library(repetition_penalty=1.7), die, prompts, Sampled(0.8), samples=4, new=6)
    assert len({one.ids for one in flat(written)}) > 6
    for prompt, group in zip(prompts, written, strict=True):
        assert len(group) == 4
        for one in group:
            drawn = [by_hand(die, [*prompt, *one.ids[:t]], 0.8, 1.7)[one.ids[t]] for t in range(len(one.ids))]
            own = [logits_after(die, [*prompt, *one.ids[:t]]).log_softmax(-1)[one.ids[t]] for t in range(len(one.ids))]
            torch.testing.assert_close(one.behaviour_logprobs, torch.stack(drawn), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(one.old_logprobs, torch.stack(own), atol=1e-5, rtol=1e-5)


def test_first_tokens_come_as_often_as_their_probability_states(die):
    prompt, draws = [1, 3, 3], 4000
    with seeded(5, "draws"):
        written = asked(library(repetition_penalty=1.5), die, [prompt], SAMPLED, samples=draws, new=1, batch_size=1000)
    seen = torch.tensor([one.ids[0] for one in written[0]]).bincount(minlength=8)
    assert seen.shape == (8,)  # the padded rows of the head are never written
    assert chisquare(seen, by_hand(die, prompt, 1.0, 1.5).double().softmax(-1) * draws).pvalue > 0.001


def test_without_options_every_id_may_be_drawn():
    """Unless told otherwise, the library samples from the 50 likeliest."""
    with seeded(1, "draws"):
        written = asked(library(), tiny(), [[1, 2]], Sampled(9.0), samples=1000, new=1, batch_size=1000)
    assert len(set(ids_of(written)[0])) > 150


def test_samples_are_a_function_of_the_seed():
    def draw(seed):
        with seeded(seed, "rollout"):
            return ids_of(asked(library(), tiny(), sampled=Sampled(1.0, 0.9), samples=2))

    state = torch.get_rng_state()
    assert draw(1) == draw(1) != draw(2)
    assert torch.equal(torch.get_rng_state(), state)


OPTIONS = (
    *({"no_repeat_ngram_size": 2}, {"repetition_penalty": 2.0}, {"min_new_tokens": 3}, {"top_k": 3}, {"min_p": 0.2}),
    *(
        {"top_h": 0.5},
        {"typical_p": 0.6},
        {"epsilon_cutoff": 0.1},
        {"eta_cutoff": 0.2},
        {"bad_words_ids": [[3], [1, 2]]},
    ),
    *({"suppress_tokens": [2, 3]}, {"begin_suppress_tokens": [4]}, {"sequence_bias": [[[1], -2.0], [[2, 3], 4.0]]}),
    *({"exponential_decay_length_penalty": [1, 1.5]}, {"renormalize_logits": True}),
)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options)))
def test_with_every_option_old_is_the_models_own_and_padding_changes_nothing(die, options):
    prompts = [[1, 3, 2, 3, 1, 2], [4], [0, 5], [2, 3]]
    torch.manual_seed(1)
    groups = asked(library(**options), die, prompts, SAMPLED, samples=3, new=5, batch_size=100)
    pairs = [(prompt, one.ids) for prompt, group in zip(prompts, groups, strict=True) for one in group]
    for one, told in zip(flat(groups), read_responses(die, pairs, GREEDY, batch_size=16), strict=True):
        assert max(one.ids) < die.vocabulary
        assert bool((one.behaviour_logprobs <= 0).all())
        torch.testing.assert_close(one.old_logprobs, told.own, atol=1e-5, rtol=1e-5)
    cutting = {"top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"}
    for more in ({}, {"num_beams": 2}) if not cutting & set(options) else ():
        alone, together = (asked(library(**options, **more), die, prompts, new=5, batch_size=n) for n in (1, 100))
        assert ids_of(alone) == ids_of(together)


# ---- bans ------------------------------------------------------------------------------------------------------------


def ngrams(ids, n):
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]


@pytest.mark.parametrize("beams", [1, 3])
def test_a_banned_ngram_comes_once_and_is_banned_for_no_padding(die, beams):
    prompts = [[1, 3, 2, 3, 3], [3], [7, 0]]  # one ends with the end token, as earlier turns do
    for prompt, (free,), (banned,) in zip(
        prompts,
        asked(library(), die, prompts, new=20),
        asked(library(no_repeat_ngram_size=3, num_beams=beams), die, prompts, new=20),
        strict=True,
    ):
        told = ngrams([*prompt, *banned.ids], 3)
        assert len(told) == len(set(told))
        if free.truncated:  # a tiny model goes round in circles
            before = ngrams([*prompt, *free.ids], 3)
            assert len(before) > len(set(before))


def test_a_greedy_step_under_a_ban_is_the_likeliest_id_that_is_left(die):
    prompt = [1, 3, 2]
    (written,) = asked(library(no_repeat_ngram_size=2), die, [prompt], new=12)[0]
    ids = list(prompt)
    for token in written.ids:
        logits = logits_after(die, ids)
        for a, b in ngrams(ids, 2):
            if a == ids[-1]:
                logits[b] = -torch.inf
        assert token == int(logits.argmax())
        ids.append(token)


def test_padding_is_no_text_that_a_ban_or_a_bias_would_see(die):
    """The bigram (0, 0) was not there before, nor the 0 before the 3, though rows are filled up with zeros."""
    long = [1] * 8
    bans = library(no_repeat_ngram_size=2, sequence_bias=[[[0], 50.0]])
    assert ids_of(asked(bans, die, [[3, 0], long], new=1))[0] == [(0,)]
    biased = library(sequence_bias=[[[0, 3, 4], 50.0]])
    after = {prompt: int(logits_after(die, list(prompt)).argmax()) for prompt in ((3,), (1, 3))}
    assert 4 not in after.values()
    given = [[3], [1, 3], [0, 3], long]
    assert ids_of(asked(biased, die, given, new=1, batch_size=4))[:3] == [[(after[3,],)], [(after[1, 3],)], [(4,)]]


def test_a_row_that_has_ended_may_have_nothing_left(die):
    """Each id once: after 0 to 6 there is the end alone, and after it nothing, while the other row goes on."""
    (ended,), (other,) = asked(library(no_repeat_ngram_size=1), die, [[0, 1, 2, 3, 4, 5, 6], [1, 2]], new=3)
    assert (ended.ids, ended.truncated) == ((7,), False)
    assert len(other.ids) > 1


def test_a_ban_of_everything_is_reported(die):
    with pytest.raises(ValueError, match="leave no id to be written after 0 tokens; let them ban less"):
        asked(library(suppress_tokens=list(range(8))), die, [[1]], SAMPLED)


def test_logits_that_are_no_numbers():
    model = tiny()
    model.network.model.norm.weight.data.fill_(torch.nan)
    for sampled in (GREEDY, SAMPLED):
        with pytest.raises(FloatingPointError, match="it has diverged"):
            asked(library(), model, sampled=sampled)


# ---- beams -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coin(die) -> LanguageModel:
    """Three ids, of which the last one ends a text."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"a": 0, "b": 1, "<end>": 2}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="a")), pad_token="<end>", eos_token="<end>"
    )
    shape = {"vocab_size": 5, "pad_token_id": 2, "eos_token_id": 2, "bos_token_id": None, "hidden_size": 16}
    return LanguageModel(tiny(seed=2, **shape).network, tokenizer)


def texts(steps):
    """All responses of at most that many ids: 2 ends each, but those that are cut."""
    for length in range(1, steps + 1):
        for ids in itertools.product(range(3), repeat=length):
            if 2 not in ids[:-1] and (ids[-1] == 2 or length == steps):
                yield ids


def score(model, prompt, ids):
    logits = [logits_after(model, [*prompt, *ids[:t]]).log_softmax(-1)[ids[t]] for t in range(len(ids))]
    return float(sum(logits))


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_search_wide_enough_finds_the_best_of_all_texts(coin, penalty):
    """1 + 2 + 4 * 3 = 15 texts of three steps; 12 beams hold every prefix."""
    prompts = [[0], [1, 0, 1], [1, 1]]
    search = library(num_beams=12, length_penalty=penalty, early_stopping="never")
    for prompt, group in zip(prompts, asked(search, coin, prompts, samples=4, new=3, batch_size=100), strict=True):
        ranked = sorted(texts(3), key=lambda ids: -score(coin, prompt, ids) / len(ids) ** penalty)
        assert len(ranked) == 15
        assert [one.ids for one in group] == ranked[:4]
        for one in group:
            assert float(one.old_logprobs.sum()) == pytest.approx(score(coin, prompt, one.ids), abs=1e-4)
            assert not one.behaviour_logprobs.any()
            assert len(one.behaviour_logprobs) == len(one.ids)


def test_a_search_never_finds_less_than_greedy_does(die):
    prompts = prompts_of((3, 1, 5, 2), seed=3)
    prompts = [[i % 8 for i in prompt] for prompt in prompts]
    found = [flat(asked(engine, die, prompts, new=6)) for engine in (library(), library(**SEARCH))]
    gains = [float(s.old_logprobs.sum() - g.old_logprobs.sum()) for g, s in zip(*found, strict=True)]
    assert min(gains) > -1e-4
    assert max(gains) > 0.01


@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
def test_a_search_is_the_same_in_every_batch(die, batch_size):
    prompts = [[1, 3, 2], [4], [0, 5], [2, 2]]
    expected = ids_of(asked(library(**SEARCH), die, prompts, samples=2, batch_size=1000))
    assert ids_of(asked(library(**SEARCH), die, prompts, samples=2, batch_size=batch_size)) == expected


def test_a_batch_holds_so_many_beams(die):
    """Two prompts of five beams each in ten or eleven rows, one in nine; a prompt's own beams stay together."""

    def batches(size):
        told = []
        library(**SEARCH)(
            die,
            [[1, 3, 2], [4], [0, 5], [2, 2]],
            decoding=Decoding(2, samples=2, temperature=0.0, batch_size=size),
            progress=told.append,
        )
        return told

    assert [batches(size) for size in (2, 9, 10, 11, 15)] == [[1] * 4, [1] * 4, [2, 2], [2, 2], [3, 1]]


def test_a_search_goes_on_with_the_beams_that_have_something_left(coin):
    """After 0 there is nothing, so a beam with it has come to its end without one."""
    [group] = asked(library(num_beams=3, bad_words_ids=[[0, 0], [0, 1], [0, 2]]), coin, [[1]], samples=3, new=3)
    assert len({one.ids for one in group}) == 3
    assert all(0 not in one.ids[:-1] for one in group)
    with pytest.raises(ValueError, match="leave no id to be written after 0 tokens"):
        asked(library(num_beams=2, suppress_tokens=[0, 1, 2]), coin, [[0]], new=3)


# ---- budget ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def reading():
    """A model, and the tokens that went through it, those of padding aside."""
    model, read = tiny(), []

    def count(_, args, named):
        ids, mask = named["input_ids"], named.get("attention_mask")
        whole = ids.shape[1] > 1 and mask is not None and mask.dim() == 2
        read.append(int(mask.sum()) if whole else ids.numel())

    model.network.model.register_forward_pre_hook(count, with_kwargs=True)
    return model, read


@pytest.mark.parametrize("options", [{}, SEARCH, {"num_beams": 3}], ids=["greedy", "five", "three"])
def test_teacher_tokens_are_those_that_it_read(reading, options):
    """Unbroken by an end token, as all rows are here, each forward pass reads one id of each row or beam."""
    model, read = reading
    encoder = Encoder(model.tokenizer, None, max_length=200, max_tokens=400)
    rollout = ByTeacher(max_new_tokens=5, temperature=0.0, generator=library(**options))
    window = encoder.batches(records(4))
    read.clear()
    with metered() as meter:
        batches = rollout(window, Models(tiny(seed=1), WhiteBox(model)), Progress(0, 1), encoder)
    assert meter.spent.teacher_tokens == sum(read)
    assert meter.spent.generated_tokens == meter.spent.decoding_flops == 0
    assert responses(batches)


@pytest.mark.parametrize(("options", "temperature", "samples"), [({}, 1.0, 3), ({"num_beams": 3}, 0.0, 2)])
def test_a_students_writing_is_counted_row_by_row(options, temperature, samples):
    student = tiny()
    encoder = Encoder(student.tokenizer, None, max_length=200, max_tokens=400)
    rollout = OnPolicy(max_new_tokens=4, temperature=temperature, samples=samples, generator=library(**options))
    with metered() as meter:
        batches = rollout(encoder.batches(records(3)), Models(student), Progress(0, 1), encoder)
    prompts, written = [], []
    for batch in batches:
        rows = batch.student.mask.sum(1)
        written += rows.tolist()
        prompts += (batch.student.lengths - rows + 1).tolist()
    each = [decoding_flops(student, [n], [length]) for n, length in zip(prompts, written, strict=True)]
    if options:  # three beams for each prompt to the bound, and both of what they found read once more
        assert set(written) == {4}
        expected = sum(each) + sum(3 * flops for flops in each[::2])
    else:  # a prompt is read for each sample
        expected = sum(each)
    assert meter.spent.decoding_flops == expected
    assert meter.spent.generated_tokens == sum(written)
    assert meter.spent.teacher_tokens == 0


# ---- a run -----------------------------------------------------------------------------------------------------------


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path):
    engine = {"_target_": "kd.generators.transformers.Transformers", "_convert_": "all"}
    inner = {**ON_POLICY, "generator": {**engine, "options": {"repetition_penalty": 1.3, "top_k": 40}}}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    ran(whole, rollout=runs.scripted(whole, inner=inner))
    ran(cut, rollout=runs.scripted(cut, (5, 0, "SIGTERM"), inner=inner))
    assert runs.checkpoint(cut)["distillation"]["step"] == 5
    ran(cut, rollout=runs.scripted(cut, inner=inner))
    assert runs.differences(whole, cut) == []


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "settings", "sentence"),
    [
        (SEARCH, {"temperature": 0.7}, "num_beams=5 with temperature=0.7: a beam search looks for the likeliest text"),
        (SEARCH, {"samples": 6}, "samples=6, but generator.options.num_beams=5"),
        ({}, {"samples": 2}, "samples=2 at temperature=0 are all the same"),
        ({"top_k": 5}, {}, "options.top_k=5 cuts what is drawn from, but temperature=0 draws nothing"),
        (SEARCH, {"max_new_tokens": 0}, "max_new_tokens=0 leaves no room"),
    ],
)
def test_what_it_would_not_write(options, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        OnPolicy(**{"max_new_tokens": 4, "temperature": 0.0, **settings}, generator=library(**options))


@pytest.mark.parametrize("options", [{"length_penalty": 2.0}, {"early_stopping": True}])
def test_options_of_a_search_without_one(options):
    with pytest.raises(ValueError, match=f"options.{next(iter(options))}=.* is for beam search, but there is one beam"):
        library(**options)


def test_a_search_draws_no_random_numbers_and_no_prompts_have_no_responses(die):
    state = torch.get_rng_state()
    assert asked(library(**SEARCH), die, []) == []
    asked(library(**SEARCH), die, [[1, 2]])
    assert torch.equal(torch.get_rng_state(), state)
    assert math.isfinite(flat(asked(library(**SEARCH), die, [[1, 2]]))[0].old_logprobs.sum())
