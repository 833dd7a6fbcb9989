"""Checks of an objective's terms: keys, weight and kind, and a loss that takes signals."""

import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from torch import nn

from kd.components.signatures import check_call, located, shown
from kd.schedules import Schedule
from kd.signals import PAIR, domain, requires
from kd.training.terms import STREAMS, Term

LARGEST = 1e6  # beyond it, gradients leave float32 sooner or later; the learning rate is the place for a scale

Node = Mapping[str, Any]

LOGGED = ("loss", "grad_norm", "lr", "loss_scale", "tokens_per_second", "weights", "generation_share")  # beside terms
KINDS = ("divergence", "clipped", "likelihood", "feature", "ranking", "policy", "preference", "transport")


def check_objective(objective: Node) -> None:
    """Raises ValueError for a term whose keys, weight, kind or loss do not fit."""
    if not objective:
        raise ValueError("the objective has no terms; give objective=fkl, or several as 'objective=[fkl,sft]'")
    for name, term in objective.items():
        path = f"objective.{name}"
        _check_name(path, str(name), objective)
        if not isinstance(term, Mapping):
            raise ValueError(f"{path}={shown(term)}: a term is a mapping with weight, kind and loss")
        check_weight(f"{path}.weight", term.get("weight", 1.0))
        check_call(path, term, Term, name="a term")
        _check_term(path, term)
    check_silence({name: term.get("weight", 1.0) for name, term in objective.items()})


def _check_name(path: str, name: str, objective: Node) -> None:
    """Checks the name of a term, under which it is logged and its parameters are saved."""
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        raise ValueError(f"{path}: a term is named by letters, digits and underscores, a letter first; rename it")
    stem = name.removesuffix("_weight")
    if name in LOGGED or hasattr(nn.ModuleDict, name) or (stem != name and stem in objective):
        raise ValueError(f"{path}: the run logs, or keeps, something else under the name {name}; rename the term")


def _check_term(path: str, term: Node) -> None:
    if (kind := term.get("kind", KINDS[0])) not in KINDS:
        raise ValueError(f"{path}.kind={shown(kind)}: terms are of one kind of {', '.join(KINDS)}")
    if not isinstance(term["loss"], Mapping) or term["loss"].get("_target_") is None:
        raise ValueError(f"{path}.loss: names no _target_; give the dotted path of a function or an nn.Module")
    if (stream := term.get("stream", STREAMS[0])) not in STREAMS:
        raise ValueError(f"{path}.stream={shown(stream)}: terms learn on one stream of {', '.join(STREAMS)}")
    _check_loss(f"{path}.loss", term["loss"], term.get("lr"))
    responses, loss = term.get("responses", "all"), located(f"{path}.loss", term["loss"]["_target_"])
    if responses != "all" and domain(signals_of(loss)) == PAIR:
        raise ValueError(
            f"{path}.responses={responses}: {loss.__qualname__} has one value for a prompt or a pair, whatever "
            "generated its responses; leave responses out"
        )


def _check_loss(path: str, node: Node, lr: float | None) -> None:
    callee = located(path, node["_target_"])
    stateful = isinstance(callee, type)
    if stateful == bool(node.get("_partial_")):
        what = "a class, made once; leave _partial_ out" if stateful else "a function of signals; set _partial_: true"
        raise ValueError(f"{path}._partial_={shown(node.get('_partial_'))}: {callee.__qualname__} is {what}")
    if lr is not None and not stateful:
        raise ValueError(
            f"{path.removesuffix('.loss')}.lr={shown(lr)}: {callee.__qualname__} is a function and has no "
            "parameters of its own to learn at that rate; set optim.lr for the student's"
        )
    try:
        signals = requires(signals_of(callee))
        domain(signals_of(callee))
    except ValueError as error:
        raise ValueError(f"{path}._target_={node['_target_']}: {error}") from None
    for key in () if stateful else sorted(signals & node.keys()):
        raise ValueError(f"{path}.{key}={shown(node[key])}: {key} is a signal, supplied at each step; leave it out")


def signals_of(loss: Callable) -> Callable:
    """The function of a loss that takes the signals: a module's `forward`, or the function itself."""
    if not isinstance(loss, type):
        return loss
    if not hasattr(loss, "forward"):
        raise ValueError(f"{loss.__qualname__} has no forward that takes signals; make it an nn.Module")
    return loss.forward


# ---- weights ----


def check_weight(path: str, weight: Any) -> None:
    """Raises ValueError for a number that is negative or beyond `LARGEST`, and for a mapping that is no schedule.

    A weight that is neither a number nor a mapping is left to the check of the term's other keys.
    """
    ends = [weight.get("start"), weight.get("end")] if isinstance(weight, Mapping) else [weight]
    for end in ends:
        if isinstance(end, float | int) and end < 0:
            raise ValueError(
                f"{path}={shown(weight)}: a negative weight makes the term grow instead of fall; give a number between "
                f"0, which leaves the term out, and {LARGEST:g}"
            )
        if isinstance(end, float | int) and not end <= LARGEST:  # not a number either
            raise ValueError(
                f"{path}={shown(weight)}: a weight is a number between 0, which leaves the term out, and {LARGEST:g}"
            )
    if not isinstance(weight, Mapping):
        return
    check_call(path, weight, Schedule, name="a schedule")
    try:
        Schedule.of(weight)
    except ValueError as error:
        raise ValueError(f"{path}={shown(weight)}: {error}") from None


def check_silence(weights: Mapping[str, Any]) -> None:
    """Raises ValueError if there is a moment at which all weights are 0.

    A weight, which is never negative, is 0 throughout or nowhere between two edges of schedules.
    """
    schedules = {n: Schedule.of(w if isinstance(w, Mapping) else {"start": w, "end": w}) for n, w in weights.items()}
    edges = sorted({0.0, 1.0}.union(*({s.begin, s.until} for s in schedules.values())))
    for moment in (moment for one, other in pairwise(edges) for moment in (one, (one + other) / 2)):
        if not any(schedule.at(moment) for schedule in schedules.values()):
            fact = ", ".join(f"objective.{name}.weight={shown(weight)}" for name, weight in weights.items())
            when = f" at {moment:g} of the run" if any(isinstance(w, Mapping) for w in weights.values()) else ""
            raise ValueError(f"{fact}: nothing is left to learn from{when}; give one term a weight")


def check_scaled(config: Mapping[str, Any]) -> None:
    """Raises ValueError for a term with an optimizer of its own where the loss is scaled, by one scale for all."""
    own = [name for name, term in config["objective"].items() if term.get("lr") is not None]
    if own and config["trainer"].get("precision") == "16-mixed":
        raise ValueError(
            f"objective.{own[0]}.lr makes an optimizer of its own, which trainer.precision=16-mixed does not scale; "
            "take trainer.precision=bf16-mixed, or leave lr out"
        )
