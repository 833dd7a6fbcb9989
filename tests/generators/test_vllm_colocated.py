"""vLLM in this process: our half of it against a double of `vllm.LLM` with our own engine; the other half on a GPU."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kd.generators.generation import write
from kd.generators.rescoring import read_responses
from kd.generators.sampling import Sampled
from kd.generators.torch import Torch
from kd.generators.vllm_colocated import Colocated
from kd.models.language_model import LanguageModel
from tests.generators.completions import ids_of
from tests.generators.test_vllm_server import GREEDY, asked, moved
from tests.tiny import tiny


class LLM:
    """As much of vLLM's engine as is used; asleep it does nothing."""

    def __init__(self, *, model, logprobs_mode, generation_config, enable_sleep_mode, **_):
        assert (logprobs_mode, generation_config) == ("processed_logprobs", "vllm")
        network = AutoModelForCausalLM.from_pretrained(model, dtype="auto").eval()
        self.model = LanguageModel(network, AutoTokenizer.from_pretrained(model))
        self.calls, self.asleep, self.can_sleep = [], False, enable_sleep_mode

    def collective_rpc(self, method, kwargs):
        assert not self.asleep
        self.calls.append(method)
        network = AutoModelForCausalLM.from_pretrained(kwargs["weights_path"], dtype="auto")
        self.model.network.load_state_dict(network.state_dict())

    def reset_prefix_cache(self):
        self.calls.append("reset")

    def sleep(self, level):
        assert self.can_sleep
        self.asleep = True
        self.calls.append("sleep")

    def wake_up(self):
        assert self.asleep
        self.asleep = False

    def generate(self, prompts, settings, use_tqdm):
        assert not self.asleep
        if hasattr(settings[0], "prompt_logprobs"):
            return [self._scored(**prompts[0])]
        return [SimpleNamespace(outputs=self._outputs(*both)) for both in zip(prompts, settings, strict=True)]

    def _scored(self, prompt_token_ids):
        ids = prompt_token_ids
        [read] = read_responses(self.model, [(ids[:1], ids[1:])], Sampled(1.0), batch_size=1)
        said = [{i: SimpleNamespace(logprob=x)} for i, x in zip(ids[1:], read.own.tolist(), strict=True)]
        return SimpleNamespace(prompt_logprobs=[None, *said])

    def _outputs(self, prompt, settings):
        torch.manual_seed(settings.seed)
        sampled = Sampled(settings.temperature, settings.top_p)
        ids, bound = prompt["prompt_token_ids"], settings.max_tokens
        (found,) = write([self.model], [ids], samples=settings.n, max_new_tokens=bound, choose=sampled, batch_size=9)
        told = [one.behaviour_logprobs if sampled.temperature else one.old_logprobs for one in found]
        outputs = []
        for index, (one, logprobs) in enumerate(zip(found, told, strict=True)):
            pairs = zip(one.ids, logprobs.tolist(), strict=True)
            said = [{i: SimpleNamespace(logprob=x)} for i, x in pairs]
            outputs.append(SimpleNamespace(index=index, token_ids=one.ids, logprobs=said))
        return outputs[::-1]


@pytest.fixture
def vllm(monkeypatch):
    double = ModuleType("vllm")
    double.LLM, double.SamplingParams = LLM, lambda **settings: SimpleNamespace(**settings)
    monkeypatch.setitem(sys.modules, "vllm", double)


@pytest.mark.parametrize("sleep", [True, False])
def test_it_writes_as_our_own_engine_and_takes_each_steps_weights(vllm, tmp_path, sleep):
    student, generator = tiny(), Colocated(weights=str(tmp_path), sleep=sleep)
    for step in range(2):
        assert ids_of(asked(generator, student, version=step)) == ids_of(asked(Torch(), student))
        asked(generator, student, sampled=Sampled(0.7, 0.9), samples=3, version=step)
        moved(student)
    asleep = ["sleep"] * sleep
    assert generator._engine.calls == 2 * ["reload_weights", "reset", *asleep, *asleep]


def test_without_the_extra_its_installation_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[vllm\]', or take generator=torch"):
        Colocated(weights=str(tmp_path))


@pytest.mark.parametrize("settings", [{"memory": 1.0}, {"staleness": None}])
def test_settings_that_leave_nothing(vllm, tmp_path, settings):
    with pytest.raises(ValueError, match=f"generator.{next(iter(settings))}="):
        Colocated(weights=str(tmp_path), **settings)


@pytest.mark.gpu
def test_with_vllm_itself(tmp_path):
    pytest.importorskip("vllm", reason="needs the extra vllm")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    student = tiny(dtype="bfloat16", hidden_size=128, head_dim=32).to("cuda")
    generator = Colocated(weights=str(tmp_path), memory=0.2)
    for step in range(2):
        asked(generator, student, sampled=Sampled(1.0), samples=8, version=step)
        asked(generator, student, sampled=GREEDY, version=step)
        moved(student)
    distance, tokens = generator.take_report()["sampler_mismatch"]
    assert tokens > 0
    assert distance / tokens < 0.05  # nats per token, bfloat16 on either side
