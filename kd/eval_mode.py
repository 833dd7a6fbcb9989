"""Networks that are only read for a while, in the middle of training."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_mode(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Eval mode, and tensors without gradient that a later backward pass may still use; the modes are put back."""
    modes = {module: module.training for network in networks for module in network.modules()}
    try:
        for network in networks:
            network.eval()
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        torch.clear_autocast_cache()  # weights cast without gradient would be found there by the training step
        for module, mode in modes.items():
            module.training = mode
