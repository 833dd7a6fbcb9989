import itertools
import math
from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import chisquare
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GenerationConfig, PreTrainedTokenizerFast

from kd.generators.generation import end_ids, generate, write
from kd.generators.llama_decoder import LlamaDecoder
from kd.generators.sampling import Sampled
from kd.generators.sheet import filled_up
from kd.models.language_model import LanguageModel
from kd.seeding import seeded
from kd.teachers.white_box import WhiteBox
from tests.tiny import tiny

LENGTHS = (3, 19, 7, 1, 19, 30, 8)


def prompts_of(lengths=LENGTHS, seed=0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]


def by_hand(model: LanguageModel, prompt: list[int], new: int, ends: frozenset[int]) -> list[int]:
    """The likeliest token again and again: one prompt, no padding, no cache."""
    ids = list(prompt)
    for _ in range(new):
        with torch.no_grad():
            logits = model.network(torch.tensor([ids]), use_cache=False).logits[0, -1, : model.vocabulary]
        ids.append(int(logits.argmax()))
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


@pytest.fixture
def model() -> LanguageModel:
    return tiny()


@pytest.fixture
def expected(model) -> list[list[int]]:
    return [by_hand(model, prompt, 12, frozenset()) for prompt in prompts_of()]


FAMILIES = ["llama", "qwen3", "gemma2", "granite", "cohere", "gpt2"]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_the_likeliest_token_each_time(family):
    # eager attention in float64 (Gemma 2) makes NaN of rows that are padding alone, as its softmax is in float32
    model = tiny(family=family, dtype="float32" if family == "gemma2" else "float64")
    expected = [by_hand(model, prompt, 12, end_ids(model)) for prompt in prompts_of()]
    assert generate(model, prompts_of(), max_new_tokens=12) == expected


def test_padding_is_found_by_length_where_it_is_the_end_token_too(model):
    end = model.tokenizer.eos_token_id
    model.tokenizer.pad_token = model.tokenizer.eos_token
    prompts = [[end, *prompt, end, 65] for prompt in prompts_of()]  # as earlier turns of a conversation end
    expected = [by_hand(model, prompt, 12, end_ids(model)) for prompt in prompts]
    assert generate(model, prompts, max_new_tokens=12) == expected


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_the_batch_size_changes_nothing(model, expected, batch_size):
    assert generate(model, prompts_of(), max_new_tokens=12, batch_size=batch_size) == expected


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("lengths", [LENGTHS, (5, 5, 5, 5, 5)])  # with and without padding after what is shared
def test_what_all_prompts_begin_with_is_read_once(family, lengths, monkeypatch):
    model, read, original = tiny(family=family), list[int](), LlamaDecoder._hidden

    def hidden(self, tokens):
        read.append(tokens.numel())
        return original(self, tokens)

    monkeypatch.setattr(LlamaDecoder, "_hidden", hidden)
    (shared,) = prompts_of((17,), seed=9)
    prompts = [shared + prompt for prompt in prompts_of(lengths)]
    expected = [by_hand(model, prompt, 12, end_ids(model)) for prompt in prompts]
    assert generate(model, prompts, max_new_tokens=12, batch_size=100) == expected
    assert read[:2] == [17, len(prompts) * max(lengths)]
    read.clear()
    assert generate(model, [shared] * 9, max_new_tokens=3) == [by_hand(model, shared, 3, end_ids(model))] * 9
    assert read[:2] == [16, 9]  # the last token's logits are those of each row


def test_several_samples_of_prompts_that_begin_alike(model):
    (shared,) = prompts_of((20,), seed=9)
    prompts = [shared + prompt for prompt in prompts_of()]
    written = write([model], prompts, samples=2, max_new_tokens=6, choose=Sampled(0.0), batch_size=100)
    expected = [[by_hand(model, prompt, 6, end_ids(model))] * 2 for prompt in prompts]
    assert [[list(one.ids) for one in two] for two in written] == expected


def test_an_end_token_ends_a_response_and_is_its_last_id(model, expected):
    end, stop = model.tokenizer.eos_token_id, expected[1][5]
    head = model.network.get_output_embeddings().weight.data
    head[[end, stop]] = head[[stop, end]]  # now the end token is written where `stop` was
    cut = [[*ids[: ids.index(stop)], end] if stop in ids else ids for ids in expected]
    assert any(len(ids) < 12 for ids in cut)
    assert any(len(ids) == 12 for ids in cut)  # another of the batch goes on
    assert generate(model, prompts_of(), max_new_tokens=12) == cut


def test_every_end_token_that_a_checkpoint_lists_ends_a_response(model, expected):
    stop = expected[1][5]
    model.network.generation_config.eos_token_id = [stop, 999]
    assert end_ids(model) == {stop, 999, model.tokenizer.eos_token_id}
    cut = [ids[: ids.index(stop) + 1] if stop in ids else ids for ids in expected]
    assert generate(model, prompts_of(), max_new_tokens=12) == cut
    model.network.generation_config.eos_token_id = stop  # a single one is not believed
    assert generate(model, prompts_of(), max_new_tokens=12) == expected


def test_nothing_of_a_checkpoints_saved_settings_counts(model, expected):
    saved = GenerationConfig(
        do_sample=True,
        temperature=9.0,
        top_k=3,
        repetition_penalty=5.0,
        no_repeat_ngram_size=1,
        num_beams=3,
        max_length=4,
        min_new_tokens=20,
        suppress_tokens=[expected[0][0], expected[1][0]],
        forced_eos_token_id=7,
        use_cache=False,
    )
    model.network.generation_config = saved
    assert generate(model, prompts_of(), max_new_tokens=12) == expected
    assert model.network.generation_config is saved


def test_a_student_is_left_as_it_was(expected):
    model = tiny(attention_dropout=0.9).train()
    model.network.config.use_cache = False
    model.network.model.norm.eval()
    model.network.activation_checkpointing_enable()
    modes = {name: module.training for name, module in model.named_modules()}
    with torch.enable_grad():
        assert generate(model, prompts_of(), max_new_tokens=12) == expected  # dropout was off
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert model.network.config.use_cache is False
    assert all(parameter.grad is None for parameter in model.parameters())
    model.network(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.network.model.layers.parameters())


def test_a_student_is_left_as_it_was_when_decoding_fails(model):
    saved = model.network.generation_config

    def fail(*_, **__):
        raise RuntimeError("no memory")

    model.train()
    model.network.model.forward = fail
    with pytest.raises(RuntimeError, match="no memory"):
        generate(model, prompts_of(), max_new_tokens=2)
    assert all(module.training for module in model.modules())
    assert model.network.generation_config is saved


def test_a_frozen_teacher_writes_and_stays_in_eval_mode(model, expected):
    teacher = WhiteBox(model)
    assert generate(teacher.model, prompts_of(), max_new_tokens=12) == expected
    assert not any(module.training for module in teacher.modules())


def test_a_student_with_lora_writes_what_its_adapted_weights_say(model, expected):
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj", "lm_head"], lora_dropout=0.5)
    with seeded(0, "lora"):
        network = get_peft_model(model.network, config).get_base_model()
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(0))
    student = LanguageModel(network, model.tokenizer)
    by_loop = [by_hand(student.eval(), prompt, 12, end_ids(student)) for prompt in prompts_of()]
    assert generate(student.train(), prompts_of(), max_new_tokens=12) == by_loop != expected


def test_progress_counts_prompts(model):
    done: list[int] = []
    generate(model, prompts_of(), max_new_tokens=1, batch_size=3, progress=done.append)
    assert done == [3, 3, 1]


def test_no_prompts_no_responses(model):
    assert generate(model, [], max_new_tokens=3) == []


# --- sampling ---


@pytest.fixture(scope="module")
def die() -> LanguageModel:
    """Eight words under a head that is padded to twelve."""
    words = {word: i for i, word in enumerate([*"abcdef", "<pad>", "<end>"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="a")), pad_token="<pad>", eos_token="<end>"
    )
    network = tiny(vocab_size=12, pad_token_id=6, eos_token_id=7, bos_token_id=None, hidden_size=16).network
    return LanguageModel(network, tokenizer)


def first_tokens(die: LanguageModel, prompt: list[int], draws: int, **settings: float) -> Counter:
    with seeded(5, "draws"):
        written = generate(die, [prompt] * draws, max_new_tokens=1, batch_size=1000, **settings)
    return Counter(ids[0] for ids in written)


def test_the_die_is_not_uniform(die):
    with torch.no_grad():
        p = die.network(torch.tensor([[1, 3, 2]])).logits[0, -1, :8].softmax(-1)
    assert -(p * p.log()).sum() < math.log(8) - 0.1  # else a forgotten temperature would not show


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.5])
def test_first_tokens_come_as_often_as_their_probability_states(die, temperature):
    prompt, draws = [1, 3, 2], 6000
    with torch.no_grad():
        logits = die.network(torch.tensor([prompt])).logits[0, -1, :8]  # padded rows have no probability
    probabilities = (logits / temperature).softmax(-1)
    assert probabilities.min() * draws > 5
    seen = first_tokens(die, prompt, draws, temperature=temperature)
    assert set(seen) <= set(range(8))
    assert chisquare([seen[i] for i in range(8)], probabilities * draws).pvalue > 0.001


def test_a_nucleus_is_the_fewest_tokens_that_reach_its_share(die):
    prompt, draws = [1, 3, 2], 6000
    with torch.no_grad():
        probabilities = die.network(torch.tensor([prompt])).logits[0, -1, :8].softmax(-1)
    ordered, nucleus = probabilities.argsort(descending=True).tolist(), []
    while probabilities[nucleus].sum() < 0.7:
        nucleus.append(ordered[len(nucleus)])
    assert 1 < len(nucleus) < 8
    seen = first_tokens(die, prompt, draws, temperature=1.0, top_p=0.7)
    assert set(seen) == set(nucleus)
    shares = probabilities[nucleus] / probabilities[nucleus].sum()
    assert chisquare([seen[i] for i in nucleus], shares * draws).pvalue > 0.001


def test_every_token_may_be_drawn(model):
    """Unless told otherwise, the library samples from the 50 likeliest."""
    assert len(first_tokens(model, [1, 3, 2], 2000, temperature=9.0)) > 150


def test_samples_are_the_same_under_the_same_seed_only(model):
    def draw(seed: int) -> list[list[int]]:
        with seeded(seed, "rollout"):
            return generate(model, prompts_of(), max_new_tokens=8, temperature=1.0, batch_size=3)

    state = torch.get_rng_state()
    assert draw(1) == draw(1) != draw(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_greedy_draws_no_random_numbers(model):
    state = torch.get_rng_state()
    generate(model, prompts_of(), max_new_tokens=3)
    assert torch.equal(torch.get_rng_state(), state)


# --- bad inputs ---


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 leaves no room"),
        ({"temperature": -0.5}, "temperature=-0.5 is negative"),
        ({"top_p": 0.0}, "top_p=0.0 is not a share"),
        ({"top_p": 1.5}, "top_p=1.5 is not a share"),
        ({"batch_size": 0}, "batch_size=0 decodes nothing"),
    ],
)
def test_settings_out_of_range_are_refused(model, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        generate(model, prompts_of(), **{"max_new_tokens": 2, **settings})


def test_an_empty_prompt_is_refused(model):
    with pytest.raises(ValueError, match="prompt 1 has no ids"):
        generate(model, [[1], []], max_new_tokens=2)


def test_a_tokenizer_without_an_end_token_is_refused(model):
    """Neither of its own nor in its template, whose end of a turn would do."""
    prompts = prompts_of()
    model.tokenizer.eos_token = None
    assert end_ids(model) == {model.tokenizer.convert_tokens_to_ids("<|end|>")}
    model.tokenizer.chat_template = model.tokenizer.chat_template.replace("<|end|>", "\n")
    with pytest.raises(ValueError, match="set eos_token"):
        generate(model, prompts, max_new_tokens=2)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_row_that_goes_on_does_so_once_and_the_others_keep_their_place(count):
    """For every way in which rows may end at once: none is lost or written twice."""
    for ended in range(2**count):
        going = torch.tensor([not ended >> row & 1 for row in range(count)])
        kept = filled_up(going).tolist()
        assert sorted(kept) == going.nonzero()[:, 0].tolist()
        assert all(kept[row] == row for row in range(len(kept)) if going[row])


# --- prompts that wait take the places of finished rows ---


def ending(model: LanguageModel, stops: list[int]) -> LanguageModel:
    """The model with further end tokens, so that its responses have many lengths."""
    model.network.generation_config.eos_token_id = [*stops, model.tokenizer.eos_token_id]
    return model


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("beginning", [0, 31])
def test_waiting_prompts_take_the_places_of_finished_rows(family, beginning, monkeypatch):
    lengths = [2 + 7 * i % 23 for i in range(40)]
    (shared,) = prompts_of((beginning,), seed=9)
    prompts = [shared + prompt for prompt in prompts_of(lengths, seed=3)]
    plain = tiny(family=family)
    free = [by_hand(plain, prompt, 24, frozenset()) for prompt in prompts]
    model = ending(plain, [token for token, _ in Counter(itertools.chain(*free)).most_common(3)])
    expected = [by_hand(model, prompt, 24, end_ids(model)) for prompt in prompts]
    assert len(set(map(len, expected))) > 4  # of many lengths, of which some are truncated
    rows, read, original = list[int](), list[int](), LlamaDecoder._hidden

    def hidden(self, tokens):
        (rows if tokens.shape[1] == 1 else read).append(tokens.numel())
        return original(self, tokens)

    monkeypatch.setattr(LlamaDecoder, "_hidden", hidden)
    done = list[int]()
    assert generate(model, prompts, max_new_tokens=24, batch_size=8, progress=done.append) == expected
    assert sum(done) == 40
    steps = sum(len(ids) - 1 for ids in expected)
    assert (max(rows), sum(rows)) == (8, steps)
    longest = sorted(range(40), key=lambda i: -lengths[i])
    in_turn = [max(len(expected[i]) for i in longest[start : start + 8]) - 1 for start in range(0, 40, 8)]
    assert len(rows) < 0.7 * sum(in_turn)  # one batch after another
    assert read.count(beginning) == (beginning > 0)  # read once for all forty


def test_drawn_responses_come_in_batches_as_they_are(model):
    """The random numbers of a row depend on the rows beside it."""
    choose = Sampled(1.0)
    assert not choose.certain
    with seeded(3, "here"):
        whole = write([model], prompts_of(), max_new_tokens=6, choose=choose, batch_size=3)
    order = sorted(range(len(LENGTHS)), key=lambda i: (-LENGTHS[i], i))
    found = {}
    with seeded(3, "here"):
        for start in range(0, len(order), 3):
            group = order[start : start + 3]
            few = write([model], [prompts_of()[i] for i in group], max_new_tokens=6, choose=choose, batch_size=3)
            found |= dict(zip(group, few, strict=True))
    assert [one.ids for (one,) in whole] == [found[i][0].ids for i in range(len(order))]
