"""A rollout of a few lines is charged whatever it generates with, and one that would not be cannot run."""

from concurrent.futures import Future
from typing import Any

import pytest
import torch

from kd.data.sequences import Encoder, prompt_ids
from kd.generators import Generator
from kd.generators.account import Spent, charge, metered
from kd.generators.external_engine import ExternalEngine
from kd.generators.generation import decode, write
from kd.generators.rescoring import read_responses
from kd.generators.sampling import Sampled
from kd.generators.settings import Decoding
from kd.generators.vllm_answers import Completion, Order
from kd.models.flops import decoding_flops
from kd.models.language_model import LanguageModel
from kd.rollouts import Rollout
from kd.rollouts.wrapping import records_of
from kd.types import Batch, Models, Progress, Written
from tests import runs
from tests.tiny import records, tiny


class Eight(Rollout):
    """The student answers each prompt of the window once."""

    provides, requires = frozenset({"group_size", "written_by"}), frozenset[str]()

    def __init__(self, engine: Any):
        self.engine, self.calls, self.lengths = engine, 0, list[int]()

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        given = records_of(window)
        prompts = [prompt_ids(record, encoder.student) for record in given]
        groups = self.engine(models.student, prompts, decoding=Decoding(5, batch_size=8))
        self.calls, self.lengths = self.calls + 1, [*self.lengths, *(len(answer.ids) for (answer,) in groups)]
        return encoder.written(given, groups)


def directly(model: LanguageModel, prompts: list, *, decoding: Decoding) -> list[list[Written]]:
    """No engine, but the function that generates."""
    settings = {"max_new_tokens": decoding.max_new_tokens, "batch_size": decoding.batch_size}
    return write([model], prompts, choose=decoding.sampled, **settings)


class Outside(Generator):
    """An engine from outside the package, with what an engine has to have and nothing else."""

    def generate(self, model, prompts, *, decoding, source, version, progress):
        settings = {"max_new_tokens": decoding.max_new_tokens, "batch_size": decoding.batch_size}
        return decode([model], prompts, choose=decoding.sampled, source=source, **settings)


class Here(ExternalEngine):
    """An engine that is given weights and whose responses are read again; it stands in this process."""

    def open(self, model: LanguageModel) -> None:
        pass

    def load(self, model: LanguageModel) -> None:
        self.model = model

    def score(self, ids: list[int]) -> list[float]:
        (reading,) = read_responses(self.model, [(ids[:1], ids[1:])], Sampled(0.0), batch_size=1)
        return reading.own.tolist()

    def submit(self, order: Order) -> list[Future[list[Completion]]]:
        settings = {"max_new_tokens": order.decoding.max_new_tokens, "batch_size": 8}
        groups = decode([self.model], order.prompts, choose=order.decoding.sampled, **settings)
        found = [Future[list[Completion]]() for _ in groups]
        for future, group in zip(found, groups, strict=True):
            future.set_result([Completion(one.ids, tuple(one.behaviour_logprobs.tolist())) for one in group])
        return found


def by_the_library(model: LanguageModel, prompts: list, *, decoding: Decoding) -> list[list[Written]]:
    """Nothing of the package generates: `generate` of transformers does."""
    texts = []
    for prompt in prompts:
        ids = model.network.generate(torch.tensor([prompt]), max_new_tokens=decoding.max_new_tokens, do_sample=False)
        texts.append([Written(tuple(ids[0, len(prompt) :].tolist()))])
    return texts


ENGINES = {
    "write": {"_target_": f"{__name__}.directly", "_partial_": True},
    "torch": {"_target_": "kd.generators.torch.Torch"},
    "transformers": {"_target_": "kd.generators.transformers.Transformers", "options": {}},
    "outside": {"_target_": f"{__name__}.Outside"},
    "elsewhere": {"_target_": f"{__name__}.Here"},
}


def trained(engine: dict, path: Any) -> Any:
    node = {"_target_": f"{__name__}.Eight", "engine": engine}
    return runs.train(runs.config(*runs.EXACT, "optim.steps=2", "checkpoint.every=2", rollout=node), path).module


@pytest.mark.parametrize("name", ENGINES)
def test_a_rollout_of_eight_lines_is_charged(name, tmp_path):
    """Tokens as many as were learnt on; FLOPs of decoding by hand, from the lengths (and a reading, of `elsewhere`)."""
    engine = {**ENGINES[name], **({"weights": str(tmp_path / "weights")} if name == "elsewhere" else {})}
    module = trained(engine, tmp_path)
    lengths = module.rollout.lengths
    assert module.budget.generated_tokens == sum(lengths) == module.budget.rows > 0
    ids = [prompt for step in range(2) for prompt in _prompts(tmp_path, module, step)]
    once = sum(decoding_flops(module.student, [n], [length]) for n, length in zip(ids, lengths, strict=True))
    assert module.meter.spent.decoding_flops == (2 if name == "elsewhere" else 1) * once


def _prompts(path: Any, module: Any, step: int) -> list[int]:
    """Lengths of the prompts of a step's window, in the order in which the rollout saw them."""
    windows = runs.build(runs.config(*runs.EXACT, "optim.steps=2")).data.windows()
    return [len(prompt_ids(record, module.encoder.student)) for record in records_of(windows[step].batches)]


def test_what_nothing_counted_ends_the_run_at_its_first_step(tmp_path):
    with pytest.raises(ValueError, match=r"rollout Eight gives \d+ tokens of the student's, but none was generated by"):
        trained({"_target_": f"{__name__}.by_the_library", "_partial_": True}, tmp_path)


def test_state_that_a_rollout_forgets_to_name_is_in_the_checkpoint(tmp_path):
    trained(ENGINES["torch"], tmp_path)
    (state,) = runs.checkpoint(tmp_path)["distillation"]["rollout"]
    assert state["attributes"]["calls"] == 2
    fresh = Eight(None)
    fresh.load_state_dict(state)
    assert fresh.calls == 2
    assert len(fresh.lengths) == 10


def test_a_meter_counts_what_happens_inside_it_alone():
    model = tiny()
    prompts = [prompt_ids(record, model.tokenizer) for record in records(2)]
    with metered() as outer:
        charge(Spent(judge_flops=3))
        with metered() as inner:
            ((one,), (two,)) = write([model], prompts, max_new_tokens=3, choose=Sampled(0.0), batch_size=2)
    charge(Spent(judge_flops=5))
    assert inner.spent.generated_tokens == outer.spent.generated_tokens == len(one.ids) + len(two.ids)
    assert (outer.spent.judge_flops, inner.spent.judge_flops) == (3, 0)
