"""The verifiers of the package reasoning-gym, for the sandbox and beside it: this module imports nothing else of kd."""

from collections.abc import Callable, Mapping
from typing import Any

# Tasks with a verifier of their own that compares the text's characters, or the text as a decimal, with the answer.
COMPARED = frozenset({"spell_backward", "chain_sum"})


def compares(task: str) -> bool:
    """Return whether the verifier of `task` compares the text with the answer and evaluates nothing of it: it is one of
    COMPARED, or that of the package's base class.
    """
    from reasoning_gym.dataset import ProceduralDataset
    from reasoning_gym.factory import DATASETS  # 1.4 s

    return task in COMPARED or DATASETS[task][0].score_answer is ProceduralDataset.score_answer


def gym_verifier(task: str, options: Mapping[str, Any]) -> Callable[[str, Mapping[str, Any]], float]:
    """(text, entry) -> the score that the package's verifier of `task` returns for the text.

    An entry is `{"question", "answer", "metadata"}` as the package generates it. The verifier has judged one reference
    already, so that what it imports and caches at its first use is in place.

    Raises:
        Exception: whatever the package raises for options that it does not accept.
    """
    from reasoning_gym.factory import DATASETS  # 1.4 s

    dataset, config = DATASETS[task]
    judge = dataset(config(seed=0, size=1, **options))
    try:
        entry = judge[0]
        judge.score_answer(entry["answer"], entry)
    except Exception:
        pass  # a warm-up and no verdict: some tasks give up on some problems
    return lambda text, entry: float(judge.score_answer(text, entry))
