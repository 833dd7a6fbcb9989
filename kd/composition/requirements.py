"""Demand and supply: the signals that terms and other components require, against those that are provided.

Both are read from the functions and classes that `_target_` names, so no weight is loaded.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from kd.components.axes import references_alone, sections
from kd.components.choices import choices, content
from kd.components.signatures import joined, located, shown
from kd.composition.engines import check_generator
from kd.composition.groups import check_groups, check_windows
from kd.composition.interfaces import interface_of, made_by, members
from kd.composition.lacks import Lack
from kd.composition.sections import prepared_roles
from kd.composition.terms import signals_of
from kd.signals import (
    FROM_ALIGNMENT,
    FROM_REWARD,
    FROM_ROLLOUT,
    FROM_SEQUENCES,
    is_row_wise,
    of_role,
    requires,
)
from kd.teachers.interface import Teacher
from kd.training.observers import monitors
from kd.training.terms import STREAMS

Node = Mapping[str, Any]


def check_supply(config: Node) -> None:
    """Raises ValueError if a component requires a signal that this config does not provide."""
    for check in supply_checks(config):
        check()


def supply_checks(config: Node) -> Iterator[Callable[[], None]]:
    """The checks of demand and supply one by one: each raises ValueError for one missing signal."""
    for demand in demands(config):
        yield from _demand_checks(*demand, config)
    yield partial(_check_streams, config)
    for name, term in config["objective"].items():
        if term.get("stream", STREAMS[0]) == STREAMS[0]:
            callee = located(f"objective.{name}.loss", term["loss"]["_target_"])
            yield partial(check_groups, name, term["loss"], signals_of(callee), config["rollout"])
            yield partial(check_windows, name, callee, config["rollout"])
    for check in (_check_reward, _check_read, check_generator, _check_readers, _check_translated):
        yield partial(check, config)


def _demand_checks(group: str, part: str, names: frozenset[str], config: Node) -> Iterator[Callable[[], None]]:
    required = _of_teacher(names)
    if config["teacher"].get("_target_") is None and required:
        yield partial(_refuse_no_teacher, group, part, required)
    else:
        text = {"teacher": "text"} if "teacher" in names else {}
        yield partial(_require, part, "teacher", _fields(names, "teacher", "native_teacher") | text, config)
        aligned = _fields(names, "teacher") | {n: n for n in names & FROM_ALIGNMENT}
        yield partial(_require, part, "alignment", aligned, config)
    yield partial(_require, part, "student", _fields(names, "student", "reference"), config)
    yield partial(_require, part, "rollout", {name: name for name in names & FROM_ROLLOUT}, config)
    yield partial(_require, part, "reward", {name: name for name in names & FROM_REWARD}, config)


def _check_translated(config: Node) -> None:
    """Refuses a term on many rows at once where an alignment leaves some rows without the teacher's output."""
    alignment = made_by("alignment", config["alignment"])
    for name, term in config["objective"].items() if alignment.translates else ():
        loss = signals_of(located(f"objective.{name}.loss", term["loss"]["_target_"]))
        if of_role("teacher", requires(loss)) and not is_row_wise(loss):
            raise ValueError(
                f"{name} compares many rows at once, but alignment {alignment.__qualname__} has no output of the "
                f"teacher at some of them; take alignment=same, or a term on single rows instead of {name}"
            )


def _check_readers(config: Node) -> None:
    """Checks the sequences that a rollout gives the teacher against the alignment, and the terms."""
    alignment = made_by("alignment", config["alignment"])
    for rollout in _rollouts("rollout", config["rollout"]):
        if rollout.one_vocabulary and alignment.translates:
            raise ValueError(
                f"rollout {rollout.__qualname__} has student and teacher generate or read the same ids, so an id must "
                f"mean the same to both, but alignment {alignment.__qualname__} translates; take alignment=same with a "
                "teacher of the student's tokenizer, or rollout=on_policy"
            )
        for name, term in config["objective"].items() if rollout.teacher_prompts else ():
            wanted = requires(signals_of(located(f"objective.{name}.loss", term["loss"]["_target_"])))
            if placed := of_role("teacher", wanted) & {"hidden", "attentions", "qkv"}:
                raise ValueError(
                    f"{name} compares the teacher's {_listed(placed)} at each position, but rollout "
                    f"{rollout.__qualname__} gives the teacher another prompt, so that positions differ; take a term "
                    "on logits or log-probabilities, or rollout=on_policy"
                )


def _check_reward(config: Node) -> None:
    """Checks that a reward that learns is a term, that one of records is used with their own responses, and that one of
    domains has a teacher for each."""
    reward = config["reward"]
    if reward.get("_target_") is None:
        return
    found, rollout = made_by("reward", reward), made_by("rollout", config["rollout"])
    if found.learns and (name := reward.get("term")) not in config["objective"]:
        raise Lack(
            f"reward.term={shown(name)}: the reward is a term that learns with the others, and the objective has "
            f"{', '.join(config['objective'])}",
            {"reward": choices("reward")},
        )
    if found.of_domains and config["teacher"].get("combine") != "routed":
        raise Lack(
            f"reward {found.__qualname__} compares the domains of several teachers, and this teacher is not routed",
            {"teacher": ["routed"], "reward": choices("reward")},
        )
    if found.of_records and not rollout.keeps_responses:
        raise Lack(
            f"reward {found.__qualname__} is of the responses that records came with, but rollout "
            f"{rollout.__qualname__} generates others",
            {"rollout": ["offline"], "reward": choices("reward")},
        )


def _check_read(config: Node) -> None:
    """Refuses a reward that neither a term nor the rollout reads, which would only cost time."""
    given = provided("reward", config["reward"])
    read = frozenset[str]().union(*(names for group, _, names in demands(config) if group != "reward"))
    if given and not given & read:
        what = config["reward"]["_target_"].rpartition(".")[2]
        raise Lack(
            f"reward {what} provides {_listed(given)}, which neither a term ({', '.join(config['objective'])}) nor the "
            "rollout reads",
            {"reward": ["none"]},
        )


def _check_streams(config: Node) -> None:
    """Checks that terms on plain text have a corpus and require no signal of a rollout, and that other terms exist."""
    plain = {name: term for name, term in config["objective"].items() if term.get("stream") == "lm"}
    if plain and config["corpus"].get("_target_") is None:
        names = [name for name in choices("corpus") if name != "none"]
        raise Lack(f"{next(iter(plain))} learns on plain text (stream: lm), but corpus=none", {"corpus": names})
    if len(plain) == len(config["objective"]):
        raise ValueError(f"{', '.join(plain)}: no term learns on the skill; add one with stream: main")
    for name, term in plain.items():
        if lacking := _signals_of(name, term) & (FROM_ROLLOUT | FROM_REWARD | FROM_ALIGNMENT):
            raise ValueError(f"{name} needs {_listed(lacking)}, which plain text does not have; set its stream to main")


def check_other_runs(config: Node) -> None:
    """Checks the runs that this one requires: its baseline `compare`, and the preparations of its models."""
    for role, node in prepared_roles(config).items():
        if (name := (node.get("prepare") or {}).get("objective")) is not None:
            _check_prepared(f"{role}.prepare.objective={name}", name)
    if config["compare"] is not None:
        for name in ("teacher_tokens", "generated_tokens"):
            if config["budget"].get(name) is not None:
                raise ValueError(
                    f"budget.{name}={config['budget'][name]} would end this run, but not the one beside it "
                    f"(compare={config['compare']}), which spends none; set compare=null, or limit budget.student_flops"
                )
        try:
            plain = {**references_alone(), "objective": config["compare"]}
            check_supply({**config, **{group: content(group, name) for group, name in plain.items()}})
        except ValueError as error:
            ways = error.ways if isinstance(error, Lack) else {}
            raise Lack(f"compare={config['compare']}: {error}", {**ways, "compare": ["null"]}) from None


def _check_prepared(path: str, name: str) -> None:
    """Refuses a preparation that needs more than the skill's records."""
    plain = [term for term, node in content("objective", name).items() if node.get("stream") == "lm"]
    if not plain and _needs_none("objective", name):
        return
    free = [n for n in choices("objective") if n != name and _needs_none("objective", n)]
    what = f"has {plain[0]}, which learns on plain text (stream: lm)" if plain else "needs a teacher"
    raise ValueError(f"{path} {what}, and there is none in a preparation; take {' or '.join(free)}")


def demands(config: Node) -> Iterator[tuple[str, str, frozenset[str]]]:
    """Each demand: the group, the name of the component, and the signals ("teacher" is the teacher as a whole)."""
    for group in sections():
        for name, signals in _demands(group, config[group]):
            yield group, name, signals
    if config["checkpoint"]["monitor"] == "validation/forward_kl":
        yield "checkpoint", "checkpoint.monitor=validation/forward_kl", frozenset({"teacher_logits"})
    for key, metric in monitors(config).items():
        if metric == "validation/forward_kl":
            yield "checkpoint", f"{key}={metric}", frozenset({"teacher_logits"})


def _demands(group: str, node: Node) -> Iterator[tuple[str, frozenset[str]]]:
    if group == "objective":
        for name, term in node.items():
            yield name, _signals_of(name, term)
    elif group == "augmentation":
        for name, stage in node["stages"].items():
            found = made_by(f"augmentation.stages.{name}", stage)
            yield f"augmentation stage {found.__qualname__}", found.requires
    elif group == "rollout":
        yield from ((f"rollout {found.__qualname__}", found.requires) for found in _rollouts(group, node))
    elif node.get("_target_") is not None:
        yield from _demand(group, node)


def _demand(group: str, node: Node) -> Iterator[tuple[str, frozenset[str]]]:
    """The signals that a component requires, where its group has that member or no interface (an axis of one's own)."""
    interface = interface_of(group)
    if "requires" in members(interface):
        found = made_by(group, node)
        yield f"{group} {found.__qualname__}", found.requires
    elif interface is object:
        found = located(group, node["_target_"])
        if names := inspect.getattr_static(found, "requires", frozenset()):
            yield f"{group} {found.__qualname__}", names


def _signals_of(name: str, term: Node) -> frozenset[str]:
    """The signals of a term, and `written_by` where it learns on some responses only."""
    signals = requires(signals_of(located(f"objective.{name}.loss", term["loss"]["_target_"])))
    return signals if term.get("responses", "all") == "all" else signals | {"written_by"}


def _rollouts(path: str, node: Node) -> Iterator[Any]:
    """The class of the rollout at `path`, and those of the rollouts that generate for it."""
    if node.get("_target_") is not None:
        yield made_by(path, node)
        if isinstance(node.get("writer"), Mapping):
            yield from _rollouts(joined(path, "writer"), node["writer"])


def provided(path: str, node: Node) -> frozenset[str]:
    """The fields that the class at `path`, or the class that the function there returns, provides."""
    if node.get("_target_") is None:
        return frozenset()
    found = made_by(path, node)
    given = found.provided(node) if interface_of(path) is Teacher else found.provides
    if isinstance(writer := node.get("writer"), Mapping):  # a rollout passes on what its writer provides, and may add
        given &= provided(joined(path, "writer"), writer) | found.adds
    return given


def _fields(names: frozenset[str], *roles: str) -> dict[str, str]:
    """The signals of these roles among `names`, and the name of each in a ModelOutput."""
    return {f"{role}_{field}": field for role in roles for field in of_role(role, names)}


def _require(part: str, group: str, wanted: Mapping[str, str], config: Node) -> None:
    node = _supplier(group, config[group])
    given = provided(group, node)
    lacking = {signal: field for signal, field in wanted.items() if field not in given}
    if not lacking:
        return
    ways = {group: list(_able(group, frozenset(wanted.values())))}
    if node.get("_target_") is None:
        raise Lack(f"{part} needs {_listed(lacking)}, but {group}=none", ways)
    what = node["_target_"].rpartition(".")[2]
    raise Lack(f"{part} needs {_listed(lacking)}, but {group} {what} provides {_listed(given)}", ways)


def _supplier(group: str, node: Node) -> Node:
    return node["model"] if group == "student" else node


def _able(group: str, names: frozenset[str]) -> Iterator[str]:
    """The files of `group` whose class provides `names`; those in folders are for skills of their own (images)."""
    for name in (name for name in choices(group) if "/" not in name):
        node = content(group, name)
        with suppress(ValueError, KeyError):  # a broken file is reported to the user when it is chosen
            if _supplier(group, node).get("_target_") is not None and names <= provided(group, _supplier(group, node)):
                yield name


def _of_teacher(names: frozenset[str]) -> frozenset[str]:
    return frozenset(
        n for n in names - FROM_SEQUENCES if n == "teacher" or n.startswith(("teacher_", "native_teacher_"))
    )


def _refuse_no_teacher(group: str, part: str, required: frozenset[str]) -> None:
    text = {"text"} if "teacher" in required else set[str]()
    teachers = list(_able("teacher", frozenset({*_fields(required, "teacher", "native_teacher").values(), *text})))
    free = sorted((name for name in choices(group) if _needs_none(group, name)), key=lambda name: name != "none")
    signals = f" ({', '.join(sorted(required - {'teacher'}))})" if required - {"teacher"} else ""
    raise Lack(f"{part} needs a teacher{signals}, but teacher=none", {"teacher": teachers, group: free})


def _needs_none(group: str, name: str) -> bool:
    """True if a file of `group` requires no teacher; an objective, nothing but the records' own responses."""
    apart = FROM_ROLLOUT | FROM_REWARD if group == "objective" else frozenset()
    with suppress(ValueError, KeyError):
        return not any(_of_teacher(names) | (names & apart) for _, names in _demands(group, content(group, name)))
    return False


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
