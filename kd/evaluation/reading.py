"""Forward passes that leave a model unchanged."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from kd.kernels.logits import Logits
from kd.models.language_model import LanguageModel
from kd.teachers.ensemble import Ensemble
from kd.types import Batch


@contextmanager
def reading(model: nn.Module) -> Iterator[None]:
    """Set eval mode without gradients; afterwards restore the mode of every submodule."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def read(model: LanguageModel | Ensemble, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Logits]]:
    """Each batch with the logits of its loss rows, not yet materialised. For use under `reading`."""
    device = device_of(model)
    for batch in batches:
        yield batch, model.output(replace(batch, teacher=batch.student.to(device)), frozenset({"logits"})).logits


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter."""
    return next(model.parameters()).device
