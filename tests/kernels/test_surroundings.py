"""The chunked head pass inside what surrounds it in a run: LoRA on the head, data-parallel ranks, a compiler.

Run: python -m pytest tests/kernels/test_surroundings.py
"""

import copy
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kd.kernels import over_chunks
from kd.kernels.logits import DenseLogits, HeadLogits
from kd.models.language_model import LanguageModel
from kd.objectives.divergence import forward_kl
from kd.signals import requires
from kd.types import Head
from tests.kernels.problem import D, N, V, assert_near
from tests.tiny import tiny

TERMS = {"fkl": forward_kl}


def loss(student: HeadLogits, teacher: Tensor, rows: int = N) -> Tensor:
    weights = {"fkl": torch.full((student.n,), 1 / rows)}
    signals = {"teacher_logits": DenseLogits(teacher)}
    return over_chunks(TERMS, student, signals, weights, {"fkl": requires(forward_kl)}, chunk=5)[0]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- LoRA ----


def test_lora_on_the_head():
    model = tiny().network
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["lm_head"], init_lora_weights=False)
    network = get_peft_model(model, config).get_base_model()
    student = LanguageModel(network, tiny().tokenizer)
    hidden = draw(N, network.config.hidden_size).requires_grad_()
    teacher = 3 * draw(N, student.vocabulary, seed=1)
    adapters = [p for name, p in network.named_parameters() if "lora_" in name]
    assert len(adapters) == 2
    plain = forward_kl(network.lm_head(hidden)[:, : student.vocabulary], teacher).mean()
    found = loss(HeadLogits(hidden, student.head()), teacher)
    assert_near(found, plain, 1e-7)
    leaves = [hidden, *adapters]
    for a, b in zip(*(torch.autograd.grad(x, leaves) for x in (found, plain)), strict=True):
        assert b.norm() > 0
        assert_near(a, b, 1e-6)  # row weights are float32


# ---- ranks ----


class Net(nn.Module):
    """A head tied to the embeddings; the loss is made outside `forward`, from what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(draw(V, D))
        self.layer = nn.Linear(D, D, dtype=torch.float64)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.layer(self.embeddings[tokens])), self.embeddings * 1.0


def gradients(net: nn.Module, rows: slice) -> None:
    hidden, weight = net(torch.arange(N)[rows] % V)
    loss(HeadLogits(hidden, Head(weight)), 3 * draw(N, V, seed=1)[rows]).backward()


def rank_main(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    net = DistributedDataParallel(Net())
    gradients(net, slice(rank * N // 2, (rank + 1) * N // 2))
    torch.save([2 * p.grad for p in net.parameters()], folder / f"{rank}.pt")  # DDP averages, the loss is a sum
    dist.barrier()  # whoever leaves first takes the file with it that the other may still be reading
    dist.destroy_process_group()


@pytest.mark.long
@pytest.mark.timeout(120)
def test_two_ranks_are_one(tmp_path):
    torch.manual_seed(0)
    alone = Net()
    gradients(alone, slice(0, N))
    mp.spawn(rank_main, (tmp_path,), nprocs=2)
    for rank in range(2):
        for found, parameter in zip(torch.load(tmp_path / f"{rank}.pt"), alone.parameters(), strict=True):
            assert_near(found, parameter.grad, 1e-6)


# ---- a compiler ----


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU; install g++")
def test_a_compiled_model_feeds_it():
    plain = Net()
    fast = copy.deepcopy(plain)
    fast.forward = torch.compile(fast.forward)
    for net in (plain, fast):
        gradients(net, slice(0, N))
    for a, b in zip(fast.parameters(), plain.parameters(), strict=True):
        assert_near(a.grad, b.grad, 1e-10)


def test_a_compiled_step_around_it():
    teacher = 3 * draw(N, V, seed=1)

    @torch.compiler.disable  # as `over_chunks` is; shapes are checked under test, and the checker cannot be traced
    def head(hidden: Tensor, weight: Tensor) -> Tensor:
        return loss(HeadLogits(hidden, Head(weight)), teacher)

    def step(hidden: Tensor, weight: Tensor) -> Tensor:
        return 2 * head(torch.tanh(hidden), weight)

    leaves = draw(N, D).requires_grad_(), draw(V, D, seed=2).requires_grad_()
    compiled = torch.compile(step, backend="aot_eager")  # breaks the graph at the head pass, and goes on after it
    for a, b in zip(*(torch.autograd.grad(f(*leaves), leaves) for f in (compiled, step)), strict=True):
        assert_near(a, b, 1e-10)
