"""Cautions about effects that the user of a run may not intend: printed at its beginning, and under its table.

None of them is refused, for each has its uses; no key silences them.
"""

from collections.abc import Iterator, Mapping
from inspect import signature
from typing import Any

from kd.components.signatures import joined, located
from kd.composition.interfaces import made_by
from kd.composition.terms import signals_of
from kd.signals import FROM_REWARD, hook, requires
from kd.training.terms import STREAMS

Node = Mapping[str, Any]

STUDENT, OTHER = "student", "other"  # sides that generate the responses that are learnt on
FAR = ("scratch", "pruned")  # functions of kd.models.networks that make students far from any teacher


def cautions(config: Node) -> list[str]:
    """The cautions about a resolved config: sentences without a full stop."""
    return [*_sides(config), *_unfiltered(config), *_fading(config)]


def sides(config: Node) -> frozenset[str] | None:
    """The sides that generate what the student learns on; None where the rollout's class leaves that open."""
    return _sides_of("rollout", config["rollout"])


def _sides_of(path: str, node: Node) -> frozenset[str] | None:
    written = None
    if isinstance(node.get("writer"), Mapping):
        written = _sides_of(joined(path, "writer"), node["writer"])
    return made_by(path, node).sides(node, written)


def _terms(config: Node) -> Iterator[tuple[str, Node, Any]]:
    """Name, settings and function of the terms on the rollout's responses."""
    for name, term in config["objective"].items():
        if term.get("stream", STREAMS[0]) == STREAMS[0]:
            yield name, term, signals_of(located(f"objective.{name}.loss", term["loss"]["_target_"]))


def _learnt(term: Node, there: frozenset[str]) -> frozenset[str]:
    """The sides that generate the responses a term learns on."""
    return there & {"student": {STUDENT}, "other": {OTHER}}.get(term.get("responses", "all"), {STUDENT, OTHER})


def _sides(config: Node) -> Iterator[str]:
    if (there := sides(config)) is None:
        return
    rollout = config["rollout"]["_target_"].rpartition(".")[2]
    for name, term, loss in _terms(config):
        learnt = _learnt(term, there)
        if not learnt:
            yield f"{name} learns on responses: {term['responses']}, of which rollout {rollout} has none"
        elif hook(loss, "two_sided") and len(learnt) == 1:
            only = "the student's own responses" if STUDENT in learnt else "responses that the student did not generate"
            yield (
                f"half of {name} is trained: it has one loss for the student's responses and another for those of "
                f"others, and rollout {rollout} has {only} alone; rollout=paired has both"
            )


def _unfiltered(config: Node) -> Iterator[str]:
    rollout = made_by("rollout", config["rollout"])
    if STUDENT not in (sides(config) or ()) or rollout.requires & {"rewards", "teacher"}:
        return
    for name, term, loss in _terms(config):
        judged = FROM_REWARD & requires(loss) or any(n.startswith(("teacher", "native")) for n in requires(loss))
        plain = term.get("kind") == "likelihood" and not judged and hook(loss, "check_group") is None
        if plain and STUDENT in _learnt(term, frozenset({STUDENT, OTHER})):
            yield (
                f"{name} raises the likelihood of the student's own responses, right or wrong, for they are not "
                f"selected; objective.{name}.responses=other leaves them out"
            )


def _fading(config: Node) -> Iterator[str]:
    student = config["student"]
    if student["model"]["_target_"].rpartition(".")[2] not in FAR or student.get("prepare") is not None:
        return
    for name, term, loss in _terms(config):
        if (fades := hook(loss, "fades")) is None:
            continue
        defaults = {key: parameter.default for key, parameter in signature(loss).parameters.items()}
        if fades(**{key: term["loss"].get(key, defaults[key]) for key in signature(fades).parameters}):
            yield (
                f"{name} has almost no gradient where the student is far from the teacher, as it is here (cut out or "
                "random weights), and may make its likelihood worse than at the start; tune the student first "
                "(student.prepare), or begin with fkl by a schedule of weights"
            )
