"""`write`: samples, log-probabilities, several readers, and the two ways of decoding against each other."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from kd.generators.decoding import CachedDecoder, LogitsHead
from kd.generators.generation import end_ids, generate, write
from kd.generators.llama_decoder import LlamaDecoder, Weights, readable
from kd.generators.sampling import Choose, Sampled
from kd.models.language_model import LanguageModel
from kd.seeding import seeded
from kd.types import Written
from tests.generators.test_generation import prompts_of
from tests.tiny import tiny

GREEDY = Sampled(0.0)
MISTRAL = {"model_type": "mistral", "sliding_window": None}
QWEN2 = {"model_type": "qwen2"}  # biases of queries, keys and values
LLAMA3 = {
    "rope_parameters": {
        **{"rope_type": "llama3", "rope_theta": 10.0, "factor": 4.0, "low_freq_factor": 1.0},
        **{"high_freq_factor": 4.0, "original_max_position_embeddings": 16},
    }
}
BIASES = {"attention_bias": True, "mlp_bias": True}
GEMMA3 = {
    "model_type": "gemma3_text",
    "head_dim": 8,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention"],
}
ARCHITECTURES = {
    **{"llama": {}, "qwen2": QWEN2, "mistral": MISTRAL, "llama3": LLAMA3, "biases": BIASES},
    **{"sliding": {"model_type": "mistral", "sliding_window": 5}, "gemma3": GEMMA3},
    **{name: {"family": name} for name in ("qwen3", "gpt2", "cohere")},
    "opt": {"model_type": "opt", "ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.3},
    "bloom": {"model_type": "bloom", "n_layer": 2, "n_head": 4},
    "neox": {"model_type": "gpt_neox"},
}
LEAN = ("llama", "qwen2", "mistral", "llama3", "biases", "qwen3")


def of(name: str, **changes) -> LanguageModel:
    # eager attention in float64 (Bloom) makes NaN of rows that are padding alone, as its softmax is in float32
    model = tiny(dtype="float32" if name == "bloom" else "float64", **{**ARCHITECTURES[name], **changes})
    for parameter in model.network.parameters():  # biases and gains that are not 0 and 1
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return model


def forced(model: LanguageModel, prompt: list[int], ids: tuple[int, ...]) -> Tensor:
    """Logits at each id of a response, by one pass without a cache."""
    with torch.no_grad():
        logits = model.network(torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0, :, : model.vocabulary]
    return logits[len(prompt) - 1 : -1].double()


def at(logits: Tensor, ids: tuple[int, ...]) -> Tensor:
    return logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]


def written(model: LanguageModel, prompts: list[list[int]], seed: int = 0, **settings) -> list[list[Written]]:
    with seeded(seed, "rollout"):
        return write([model], prompts, **{"max_new_tokens": 12, "choose": Sampled(), "batch_size": 4, **settings})


def ids_of(groups: list[list[Written]]) -> list[list[tuple[int, ...]]]:
    return [[response.ids for response in group] for group in groups]


# --- greedy, against the library ---


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_equals_the_librarys_generate(name):
    """Ragged prompts, padded on the left, end tokens of base and chat model."""
    model, prompts = of(name), prompts_of()
    chat_end = generate(model, prompts, max_new_tokens=12)[1][4]
    model.network.generation_config.eos_token_id = ends = [model.tokenizer.eos_token_id, chat_end]
    theirs = []
    for prompt in prompts:
        out = model.network.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=12, do_sample=False,
            eos_token_id=ends, pad_token_id=0,
        )  # fmt: skip
        theirs.append(out[0, len(prompt) :].tolist())
    assert min(map(len, theirs)) < 12
    groups = write([model], prompts, max_new_tokens=12, choose=GREEDY, batch_size=3)
    assert [list(response.ids) for (response,) in groups] == theirs


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logprobs_are_those_of_one_pass_over_the_text(name):
    """Though rows come and go meanwhile: prompts of all lengths, three samples each, many ends."""
    model = of(name)
    stop = generate(model, prompts_of(), max_new_tokens=3)[2][1]
    model.network.generation_config.eos_token_id = [stop, *range(30)]
    groups = written(model, prompts_of(), samples=3, batch_size=9, choose=Sampled(1.3, top_p=0.9))
    assert len({len(response.ids) for group in groups for response in group}) > 3
    for prompt, group in zip(prompts_of(), groups, strict=True):
        for response in group:
            logits = forced(model, prompt, response.ids)
            assert torch.allclose(response.old_logprobs.double(), at(logits, response.ids), atol=1e-5)
            tempered = (logits / 1.3).softmax(-1)
            likelier = (tempered * (tempered > tempered.gather(1, torch.tensor(response.ids)[:, None]))).sum(-1)
            assert (likelier < 0.9).all()  # inside the nucleus
            inside = response.behaviour_logprobs.double() - at(logits / 1.3, response.ids)
            assert ((inside > -1e-5) & (inside < -torch.log(torch.tensor(0.9)) + 1e-5)).all()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.0, 0.6), (0.7, 1.0), (0.0, 1.0)])
def test_the_models_own_logprobs_know_nothing_of_the_sampling(temperature, top_p):
    model = tiny()
    for prompt, group in zip(
        prompts_of(), written(model, prompts_of(), samples=1, choose=Sampled(temperature, top_p)), strict=True
    ):
        own = at(forced(model, prompt, group[0].ids), group[0].ids)
        torch.testing.assert_close(group[0].old_logprobs.double(), own, atol=1e-5, rtol=1e-5)
        assert torch.allclose(group[0].behaviour_logprobs.double(), own, atol=1e-5) == (temperature == top_p == 1)


# --- what a response carries ---


def test_one_that_ends_keeps_its_end_token_and_one_that_does_not_is_truncated():
    model = tiny()
    model.network.generation_config.eos_token_id = [*range(20), model.tokenizer.eos_token_id]
    ends = end_ids(model)
    responses = [response for group in written(model, prompts_of(), samples=4, max_new_tokens=9) for response in group]
    assert {response.truncated for response in responses} == {True, False}
    for response in responses:
        assert not set(response.ids[:-1]) & ends
        assert (response.ids[-1] in ends) is not response.truncated
        assert len(response.ids) == 9 or not response.truncated
        assert len(response.ids) == len(response.old_logprobs) == len(response.behaviour_logprobs)
        assert response.old_logprobs.dtype == response.behaviour_logprobs.dtype == torch.float32
        assert response.source == "student"


def test_greedy_ids_were_certain_though_the_model_was_not():
    ((response,),) = written(tiny(), [[1, 2, 3]], choose=GREEDY, source="teacher")
    assert response.behaviour_logprobs.tolist() == [0.0] * len(response.ids)
    assert torch.allclose(response.old_logprobs.double(), at(forced(tiny(), [1, 2, 3], response.ids), response.ids))
    assert response.source == "teacher"


# --- samples ---


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 21])
def test_samples_of_a_prompt_continue_it(name, batch_size):
    """Greedily, all are what one alone would be: cache rows are of the right prompt, whatever shares a batch."""
    model, prompts = of(name), prompts_of((40, 3, 19, 7))
    alone = [written(model, [prompt], max_new_tokens=8, choose=GREEDY)[0][0].ids for prompt in prompts]
    together = written(model, prompts, samples=3, batch_size=batch_size, max_new_tokens=8, choose=GREEDY)
    assert ids_of(together) == [[ids] * 3 for ids in alone]


def test_samples_differ_and_are_the_seeds():
    groups = ids_of(written(tiny(), prompts_of(), samples=3))
    assert all(len(set(group)) == 3 for group in groups)
    assert groups == ids_of(written(tiny(), prompts_of(), samples=3))
    assert groups != ids_of(written(tiny(), prompts_of(), seed=1, samples=3))


def test_two_tokens_come_as_often_as_the_model_states():
    """All 16 texts of two tokens over four ids, exactly, against 8000 draws in groups; a right engine fails 1e-3."""
    model = tiny(vocab_size=4, eos_token_id=3, pad_token_id=0, bos_token_id=None)
    model.vocabulary = 4
    model.tokenizer.eos_token = chr(3)
    prompt, draws = [1, 2, 1], 8000
    model.tokenizer.convert_tokens_to_ids = lambda token: 3
    texts = {}
    for first in range(4):
        first_p = forced(model, prompt, (first,)).softmax(-1)[0, first]
        for second in range(4) if first != 3 else ():
            texts[first, second] = float(first_p * forced(model, prompt, (first, second)).softmax(-1)[1, second])
        if first == 3:
            texts[(3,)] = float(first_p)
    assert sum(texts.values()) == pytest.approx(1)
    groups = written(model, [prompt] * 4, samples=draws // 4, batch_size=draws, max_new_tokens=2)
    seen = [ids for group in ids_of(groups) for ids in group]
    chi2 = sum((seen.count(text) - draws * p) ** 2 / (draws * p) for text, p in texts.items())
    assert chi2 < 32.9  # 0.999 quantile of chi-square with 12 degrees of freedom


# --- several readers ---


def test_all_readers_read_what_was_chosen():
    student, teacher = of("llama"), of("gpt2", n_embd=32)
    heard: list[list[Tensor]] = []

    class LikeliestOfBoth(Choose):
        def __call__(self, logits):
            heard.append([one.clone() for one in logits])
            return (logits[0] + logits[1]).argmax(-1), torch.zeros(len(logits[0]))

    prompt = [7, 9, 200, 31]
    ((response,),) = write([student, teacher], [prompt], max_new_tokens=6, choose=LikeliestOfBoth(), batch_size=1)
    for reader, model in enumerate((student, teacher)):
        expected = forced(model, prompt, response.ids)
        assert torch.allclose(torch.cat([step[reader] for step in heard]), expected, atol=1e-9)
    both = forced(student, prompt, response.ids) + forced(teacher, prompt, response.ids)
    assert list(response.ids) == both.argmax(-1).tolist()
    assert torch.allclose(response.old_logprobs.double(), at(forced(student, prompt, response.ids), response.ids))


def test_an_end_token_of_any_reader_ends_a_response():
    student, teacher = tiny(), tiny(1)
    (ids,) = generate(student, [[1, 2, 3]], max_new_tokens=8)
    teacher.network.generation_config.eos_token_id = [ids[4]]
    ((response,),) = write([student, teacher], [[1, 2, 3]], max_new_tokens=8, choose=GREEDY, batch_size=1)
    assert list(response.ids) == ids[: ids.index(ids[4]) + 1]
    assert not response.truncated


# --- in the middle of training ---


def test_what_is_written_in_inference_mode_may_be_trained_on():
    model = tiny(dtype="float32").train()
    with torch.inference_mode():
        ((response,),) = written(model, [[1, 2, 3]])
    weight = torch.ones((), requires_grad=True)
    (weight * response.old_logprobs).square().sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_writing_under_autocast_leaves_the_gradients_of_the_step_alone(name):
    """Autocast remembers the weights that it has cast, and those cast here have no gradient."""
    model = of(name).float().train()
    with torch.autocast("cpu", torch.bfloat16):
        written(model, [[1, 2, 3]])
        model.network(torch.tensor([[1, 2, 3]])).logits.float().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# --- the lean way ---


def both_ways(model: LanguageModel, prompts: list[list[int]], steps: int, *, pack: bool = False) -> list[list[Tensor]]:
    """Logits after the prompts and after each of some ids, some rows repeated and dropped in between."""
    with torch.no_grad():
        logits_head = LogitsHead(model, model.vocabulary, pack=pack)
        decoders = [
            CachedDecoder(model, logits_head, room=80),
            LlamaDecoder(Weights(model, pack=pack), logits_head, room=80),
        ]
        said = [[decoder.start(prompts)] for decoder in decoders]
        for step in range(steps):
            for decoder, logits in zip(decoders, said, strict=True):
                if step == 2:
                    decoder.keep(torch.tensor([0, 0, 1, 1, 2, 2]))
                if step == 4:
                    decoder.keep(torch.tensor([0, 5, 2]))
                count = {2: 6, 3: 6}.get(step, 3)
                logits.append(decoder.step(torch.arange(40 + step, 40 + step + count)))
    return said


@pytest.mark.parametrize("lengths", [(9, 9, 9), (12, 3, 7)])
@pytest.mark.parametrize("name", LEAN)
def test_the_lean_way_equals_the_librarys_own_forward(name, lengths):
    model = of(name)
    assert readable(model)
    for theirs, ours in zip(*both_ways(model, prompts_of(lengths), 7), strict=True):
        assert (theirs - ours).abs().max() < 1e-5 * theirs.abs().max()  # norms are in float32, also in the library


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LEAN)
def test_the_lean_way_is_as_exact_in_lower_precision(name, dtype, pack):
    """Under autocast, from float32 weights, as in training: no further from float64 than the library is."""
    model = of(name)
    exact, _ = both_ways(model, prompts_of((12, 3, 7)), 7)
    model.float()
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        theirs, ours = both_ways(model, prompts_of((12, 3, 7)), 7, pack=pack)
    error = [torch.cat([(a - b).flatten() for a, b in zip(x, exact, strict=True)]).norm() for x in (theirs, ours)]
    assert error[1] < 1.5 * error[0]


def test_the_lean_way_is_taken_for_what_it_supports():
    for name in ARCHITECTURES:
        assert readable(of(name)) is (name in LEAN)


def test_the_lean_way_is_left_where_the_network_was_changed():
    hooked, replaced, patched, dynamic = (tiny() for _ in range(4))
    hooked.network.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    replaced.network.model.layers[1].mlp.act_fn = torch.nn.GELU()
    patched.network.model.forward = lambda **_: None
    dynamic = tiny(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    gelu = tiny(hidden_act="gelu")
    assert not any(readable(model) for model in (hooked, replaced, patched, dynamic, gelu))


@pytest.mark.parametrize("dora", [False, True])
def test_lora_is_read_and_its_other_sorts_are_left_to_the_library(dora):
    model = tiny(dtype="float64")
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], use_dora=dora, init_lora_weights=False)
    with seeded(0, "lora"):
        network = get_peft_model(model.network, config).get_base_model().double().eval()
    adapted = LanguageModel(network, model.tokenizer)
    assert readable(adapted) is not dora
    if not dora:
        for theirs, ours in zip(*both_ways(adapted, prompts_of((12, 3, 7)), 5), strict=True):
            assert (theirs - ours).abs().max() < 1e-5 * theirs.abs().max()


def test_weights_are_read_as_they_are_now():
    model = tiny()
    before = generate(model, prompts_of(), max_new_tokens=8)
    model.network.model.layers[0].self_attn.q_proj.weight.data.mul_(-2)
    assert generate(model, prompts_of(), max_new_tokens=8) != before


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_has_diverged_writes_nothing(temperature):
    model = tiny()
    model.network.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"has diverged; lower optim\.lr"):
        write([model], [[1, 2, 3]], max_new_tokens=3, choose=Sampled(temperature), batch_size=2)
