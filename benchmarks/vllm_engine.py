"""The section `vllm` of `benchmarks.gpu`: its engine on the model and prompts of `decode`, in its own environment."""

import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from benchmarks.scene import Row, Scene


def rows(scene: Scene) -> Iterator[Row]:
    """Tokens a second for each case of `decode`, with one engine."""
    engine: list[Any] = []
    for case in _cases(scene):
        yield scene.attempt(f"{case['rows']} rows", "vllm", partial(_measured, scene, case, engine))


def _cases(scene: Scene) -> list[dict[str, Any]]:
    from benchmarks.sections import decode_cases

    return decode_cases(scene)


def _measured(scene: Scene, case: Mapping[str, Any], engine: list[Any]) -> Row:
    import vllm

    from benchmarks import machine
    from benchmarks.decoding import PROMPT, prompts
    from benchmarks.sections import generated

    if not engine:
        engine.append(_engine(vllm, case, PROMPT))
    settings = vllm.SamplingParams(max_tokens=case["new"], temperature=1.0, ignore_eos=True, detokenize=False)
    asked = [{"prompt_token_ids": ids} for ids in prompts({**case, "device": "cpu"}).tolist()]
    seconds = min(machine.seconds(lambda: engine[0].generate(asked, settings, use_tqdm=False), "cpu", repeats=2))
    return generated(scene, case, seconds)


def _engine(vllm: Any, case: Mapping[str, Any], prompt: int) -> Any:
    """An engine with the random weights of `decode`, from a checkpoint in a temporary folder."""
    import torch

    from benchmarks.training import network, words

    folder = tempfile.mkdtemp()
    network(case["layers"], case["size"], seed=1, dtype=torch.bfloat16).save_pretrained(folder)
    words(case["size"]["vocab_size"]).save_pretrained(folder)
    return vllm.LLM(
        model=folder,
        dtype="bfloat16",
        max_model_len=prompt + case["new"] + 1,
        gpu_memory_utilization=0.6,
        enable_prefix_caching=False,  # the second call has the prompts of the first
        disable_log_stats=True,
    )
