"""Every term of `conf/objective/*.yaml`, and a small world that supplies the signals which a term asks for.

A new objective is under the contract because its yaml is there; one that asks for a signal which `World` cannot
supply yet fails in `World.signal`, which is the one place to teach it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from kd.kernels.logits import label_logprobs
from kd.objectives.layerwise import TaskAwareFilters
from kd.seeding import seeded
from kd.signals import ROLES, ROW, is_row_wise, requires, separated
from kd.types import Boundaries, Head, Pairs, Progress, Shape, Spans
from tests.tiny import tiny

OBJECTIVES = Path(__file__).parents[2] / "conf" / "objective"
MIDDLE = Progress(step=3, total=10)
SHARED = {"temperature": 1.0, "temperature_squared": False}  # the knobs of conf/config.yaml that terms interpolate


@dataclass(frozen=True)
class Term:
    """One summand of an objective, as its yaml states it."""

    name: str
    weight: float
    kind: str
    loss: Callable

    def values(self, **signals: Any) -> Tensor:
        """Those of the loss, without its metrics."""
        return separated(self.loss(**signals))[0]

    def wants(self, *fields: str) -> bool:
        """True if a signal ends in one of `fields`."""
        return any(signal.endswith(fields) for signal in requires(self.loss))


def _sized(loss: Any) -> Any:
    """With the parameters that its yaml leaves to the models: here, both as `world` has them."""
    if hasattr(loss, "sized_for"):
        with seeded(0, "a term"):
            loss.sized_for(Shape(width=6, layers=2), Shape(width=6, layers=2))
        loss.double()
    if isinstance(loss, TaskAwareFilters):
        loss.after_step(0.0, MIDDLE)  # stage two, in which the student learns
    if hasattr(loss, "starts_from"):
        with seeded(0, "a term"):
            loss.starts_from(tiny())
        loss.double()
    return loss


def read(path: Path) -> list[Term]:
    """The terms of one objective file. Those named under its `defaults` are read from their own files."""
    config = OmegaConf.merge(OmegaConf.create(SHARED), OmegaConf.load(path))
    return [
        Term(f"{path.stem}-{name}", config[name].weight, config[name].kind, _sized(instantiate(config[name].loss)))
        for name in config
        if name not in SHARED and name != "defaults"
    ]


TERMS = [term for path in sorted(OBJECTIVES.glob("*.yaml")) for term in read(path)]
VOCABULARY_TERMS = [term for term in TERMS if term.wants("logits", "logprobs")]
DIVERGENCES = [term for term in TERMS if term.kind == "divergence"]
ROW_WISE = [term for term in TERMS if is_row_wise(term.loss)]


def over(terms: list[Term]) -> pytest.MarkDecorator:
    """Run a test for each of `terms`."""
    return pytest.mark.parametrize("term", terms, ids=lambda term: term.name)


def annotated_axes(loss: Callable, signal: str) -> str:
    """The shape that `loss` annotates `signal` with; "" where it is no tensor."""
    function = loss.forward if isinstance(loss, nn.Module) else loss
    while isinstance(function, partial):
        function = function.func
    return " ".join(getattr(get_type_hints(function).get(signal), "dim_str", "").split())


@dataclass(frozen=True)
class World:
    """What four models say at B x T positions; every signal follows from the fields."""

    logits: Mapping[str, Tensor]  # role -> [B, T, V]
    hidden: Mapping[str, tuple[Tensor, ...]]  # role -> layers of [B, T, D]
    labels: Tensor  # [B, T]
    rewards: Tensor  # [B]
    qkv: Mapping[str, tuple[tuple[Tensor, Tensor, Tensor], ...]]  # role -> of each layer [B, h, T, d]
    attentions: Mapping[str, tuple[Tensor, ...]]  # role -> layers of [B, h, T, T]
    head: Mapping[str, Head]  # role -> [V, D]
    boundary: Tensor  # [V], ids before which a text is cut
    group_size: int = 2
    mask: Tensor | None = None  # [B, T]; None: all positions count

    def signals(self, loss: Callable) -> dict[str, Any]:
        """What `loss` asks for, as rows where it is annotated so."""
        named = {name: (self.signal(name), annotated_axes(loss, name)) for name in requires(loss)}
        rows = (ROW, "n", "m")  # each for itself, or together; the teacher's own
        in_rows = {n: axes.split(" ")[0] in rows for n, (_, axes) in named.items()}
        return {n: _rows(self.at_positions(value)) if in_rows[n] else value for n, (value, _) in named.items()}

    def at_positions(self, value: Any) -> Any:
        """What is said of a sequence is said at each of its positions."""
        whole = isinstance(value, Tensor) and value.ndim == 1
        return value[:, None].expand(self.labels.shape) if whole else value

    def signal(self, name: str) -> Any:
        """One signal over the grid of positions; fails for one that this world does not know."""
        for role in ROLES:
            if name == f"{role}_logits":
                return self.logits[role]
            if name == f"{role}_logprobs":
                return self.logprobs(role)
            if name == f"{role}_mean_logprobs":
                return self.logprobs(role).detach().mean(-1)
            if name == f"{role}_hidden":
                return self.hidden[role]
            if name in (f"{role}_qkv", f"{role}_attentions", f"{role}_head"):
                return getattr(self, name.removeprefix(f"{role}_"))[role]
            if name == f"{role}_embeddings":
                return self.head[role].weight
        known = {
            "tokens": self.labels.roll(1, 0),
            "teacher_tokens": self.labels.roll(1, 0),
            "labels": self.labels,
            "teacher_labels": self.labels,
            "mask": torch.ones_like(self.labels, dtype=torch.bool) if self.mask is None else self.mask,
            "teacher_mask": torch.ones_like(self.labels, dtype=torch.bool),
            "real": torch.ones_like(self.labels, dtype=torch.bool),
            "teacher_real": torch.ones_like(self.labels, dtype=torch.bool),
            "group_size": self.group_size,
            "rewards": self.rewards,
            "progress": MIDDLE,
        }
        if name in ("spans", "pairs", "id_map", "boundaries"):
            return self.aligned(name)
        if name in ("behaviour_logprobs", "old_logprobs"):
            return self.logprobs("student").detach()
        if name == "advantages":
            rewards = self.rewards.to(torch.promote_types(self.rewards.dtype, torch.float32))
            return (rewards - rewards.mean())[:, None].expand(self.labels.shape)
        if name == "written_by":
            return (torch.arange(len(self.labels)) > 0) + 1  # the teacher, and then the student alone
        if name == "importance_weights":
            return torch.ones_like(self.logprobs("student"))
        if name not in known:
            pytest.fail(f"no contract runs for signal {name!r} yet: teach World.signal in {__file__} to supply it")
        return known[name]

    def aligned(self, name: str) -> Any:
        """What an alignment of one tokenizer with itself gives."""
        rows = torch.arange(self.labels.numel())
        sequence = rows // self.labels.shape[1]
        if name == "id_map":
            return torch.arange(self.logits["teacher"].shape[-1])
        if name == "boundaries":
            more = self.logits["teacher"].shape[-1] - len(self.boundary)  # ids that a test has added
            return Boundaries(*[torch.nn.functional.pad(self.boundary, (0, more))] * 2)
        return Spans(rows, rows + 1, rows, rows + 1, sequence) if name == "spans" else Pairs(rows, rows, sequence)

    def logprobs(self, role: str) -> Tensor:
        """Log-probabilities of the labels, [B, T]."""
        return label_logprobs(_rows(self.logits[role]), _rows(self.labels)).view(self.labels.shape)

    def map_logits(self, change: Callable[[Tensor], Tensor], *roles: str) -> "World":
        """The same world with other logits (of `roles`; of all, if none is named)."""
        return replace(self, logits={r: change(z) if r in (roles or ROLES) else z for r, z in self.logits.items()})

    def to(self, dtype: torch.dtype) -> "World":
        """The same world in another precision."""
        hidden = {role: tuple(layer.to(dtype) for layer in layers) for role, layers in self.hidden.items()}
        return replace(self.map_logits(lambda z: z.to(dtype)), hidden=hidden, rewards=self.rewards.to(dtype))

    def with_all_equal(self) -> "World":
        """Every model says what the student says."""
        return replace(
            self,
            logits=dict.fromkeys(ROLES, self.logits["student"]),
            hidden=dict.fromkeys(ROLES, self.hidden["student"]),
            qkv=dict.fromkeys(ROLES, self.qkv["student"]),
            attentions=dict.fromkeys(ROLES, self.attentions["student"]),
        )


def world(batch: int = 4, length: int = 3, vocabulary: int = 17, width: int = 6, seed: int = 0) -> World:
    """Random logits, hidden states and rewards in float64; the labels are among the first five ids.

    At the first position the teacher is sure of the label, so that terms which ask whether it is right find both.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    heads, square = (batch, 4, length, 4), (batch, 4, length, length)
    given = World(
        logits={role: 2 * draw(batch, length, vocabulary) for role in ROLES},
        hidden={role: tuple(draw(batch, length, width) for _ in range(3)) for role in ROLES},
        labels=torch.randint(0, 5, (batch, length), generator=generator),
        rewards=draw(batch),
        qkv={role: tuple((draw(*heads), draw(*heads), draw(*heads)) for _ in range(2)) for role in ROLES},
        attentions={role: tuple(draw(*square).tril().softmax(-1) for _ in range(2)) for role in ROLES},
        head={role: Head(draw(vocabulary, width)) for role in ROLES},
        boundary=torch.arange(vocabulary) % 3 == 0,
    )
    given.logits["teacher"][:, 0].scatter_(-1, given.labels[:, :1], 8.0)
    return given


def evaluate(
    term: Term, given: World, total: Callable[[Tensor], Tensor] = Tensor.sum
) -> tuple[Tensor, dict[str, Tensor]]:
    """Values, and the gradient of their sum: of the student's "logits", and of its other fields by name, stacked."""
    logits = given.logits["student"].detach().requires_grad_()
    hidden = tuple(layer.detach().requires_grad_() for layer in given.hidden["student"])
    qkv = tuple(tuple(x.detach().requires_grad_() for x in layer) for layer in given.qkv["student"])
    attentions = tuple(layer.detach().requires_grad_() for layer in given.attentions["student"])
    leaves = {"logits": logits, "hidden": hidden, "qkv": qkv, "attentions": attentions}
    told = replace(given, **{name: {**getattr(given, name), "student": leaf} for name, leaf in leaves.items()})
    values = term.values(**told.signals(term.loss))
    inputs = (logits, *hidden, *(x for layer in qkv for x in layer), *attentions)
    found = [None] * len(inputs)
    if values.requires_grad:
        found = torch.autograd.grad(total(values), inputs, allow_unused=True)
    gradients = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]
    of_hidden, of_qkv, of_attentions = gradients[1:4], gradients[4:10], gradients[10:]
    named = {"hidden": of_hidden, "qkv": of_qkv, "attentions": of_attentions}
    return values.detach(), {"logits": gradients[0], **{name: torch.stack(x) for name, x in named.items()}}


def in_precision(value: Any, dtype: torch.dtype) -> Any:
    """A signal with all of its real numbers in `dtype`."""
    if isinstance(value, tuple):
        inside = [in_precision(item, dtype) for item in value]
        return type(value)(*inside) if hasattr(value, "_fields") else tuple(inside)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _rows(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_rows(layer) for layer in value)
    return value.flatten(0, 1) if isinstance(value, Tensor) else value
