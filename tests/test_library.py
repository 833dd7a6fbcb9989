"""docs/library.md runs from its first block to its last, and its Trainer averages as the page says.

Run: python -m pytest tests/test_library.py
"""

from typing import Any

import pytest
import torch

from tests.documents import ROOT, blocks


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """What the blocks define, after all of them ran with their own assertions."""
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile("\n".join(blocks(ROOT / "docs" / "library.md", "python")), "docs/library.md", "exec"), names)
    return names


def test_the_losses_of_micro_batches_add_up_to_that_of_the_window(script: dict[str, Any]) -> None:
    """Each micro-batch is divided by the labels of the whole window, so its parts sum to the mean over all rows."""
    inputs = script["padded"](script["items"])
    rows = inputs["labels"][:, 1:] != -100
    halves = [{name: tensor[part] for name, tensor in inputs.items()} for part in (slice(0, 1), slice(1, 4))]
    parts = [script["trainer"].compute_loss(script["pupil"], half, num_items_in_batch=rows.sum()) for half in halves]
    logits = [script[name](inputs["input_ids"][:, :-1]).logits[rows] for name in ("pupil", "mentor")]
    q, p = (z.log_softmax(-1) for z in logits)
    torch.testing.assert_close(sum(parts), (p.exp() * (p - q)).sum(-1).mean())


def test_the_trainer_learns_to_be_like_the_teacher(script: dict[str, Any]) -> None:
    inputs = script["padded"](script["items"])
    before = script["llama"](width=32, layers=1)
    after = script["trainer"].compute_loss(script["pupil"], inputs)
    assert after < script["trainer"].compute_loss(before, inputs)
