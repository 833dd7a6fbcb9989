"""Demand and supply: what terms and others ask for against what is given.

Both are read from the functions and classes that `_target_` names, so no weight is loaded.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from omegaconf import OmegaConf

from kd.composition.choices import choices, file_of
from kd.composition.engines import check_generator
from kd.composition.groups import check_groups, check_windows
from kd.composition.sections import prepared_roles
from kd.composition.signatures import joined, located, shown
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
from kd.terms import STREAMS

Node = Mapping[str, Any]


def check_supply(config: Node) -> None:
    """Raises ValueError if something is asked for that this config does not give, and says who could give it."""
    for group, who, names in demands(config):
        if config["teacher"].get("_target_") is None and (asked := _of_teacher(names)):
            raise ValueError(_no_teacher(group, who, asked))
        text = {"teacher": "text"} if "teacher" in names else {}
        _require(who, "teacher", _fields(names, "teacher", "native_teacher") | text, config)
        _require(who, "alignment", _fields(names, "teacher") | {n: n for n in names & FROM_ALIGNMENT}, config)
        _require(who, "student", _fields(names, "student", "reference"), config)
        _require(who, "rollout", {name: name for name in names & FROM_ROLLOUT}, config)
        _require(who, "reward", {name: name for name in names & FROM_REWARD}, config)
    _check_streams(config)
    for name, term in config["objective"].items():
        if term.get("stream", STREAMS[0]) == STREAMS[0]:
            callee = located(f"objective.{name}.loss", term["loss"]["_target_"])
            check_groups(name, term["loss"], signals_of(callee), config["rollout"])
            check_windows(name, callee, config["rollout"])
    _check_reward(config)
    check_generator(config)
    _check_readers(config)
    _check_translated(config)


def _check_translated(config: Node) -> None:
    """Where the teacher's words are translated, some are missing: a term on many rows at once would not know which."""
    alignment = located("alignment", config["alignment"]["_target_"])
    for name, term in config["objective"].items() if getattr(alignment, "translates", False) else ():
        loss = signals_of(located(f"objective.{name}.loss", term["loss"]["_target_"]))
        if of_role("teacher", requires(loss)) and not is_row_wise(loss):
            raise ValueError(
                f"{name} looks at many rows at once, but alignment {alignment.__qualname__} has no word of the teacher "
                f"about some of them; take alignment=same, or a term on single rows instead of {name}"
            )


def _check_readers(config: Node) -> None:
    """What a rollout has the teacher read must suit the alignment, and the terms."""
    alignment = located("alignment", config["alignment"]["_target_"])
    for rollout in _classes("rollout", config["rollout"]):
        if getattr(rollout, "one_vocabulary", False) and getattr(alignment, "translates", False):
            raise ValueError(
                f"rollout {rollout.__qualname__} has student and teacher write each token together, so an id must mean "
                f"the same to both, but alignment {alignment.__qualname__} translates; take alignment=same with a "
                "teacher of the student's tokenizer, or rollout=on_policy"
            )
        for name, term in config["objective"].items() if getattr(rollout, "teacher_prompts", False) else ():
            wanted = requires(signals_of(located(f"objective.{name}.loss", term["loss"]["_target_"])))
            if placed := of_role("teacher", wanted) & {"hidden", "attentions", "qkv"}:
                raise ValueError(
                    f"{name} compares the teacher's {_listed(placed)} at each position, but rollout "
                    f"{rollout.__qualname__} gives the teacher another prompt, so that positions differ; take a term "
                    "on logits or log-probabilities, or rollout=on_policy"
                )


def _check_reward(config: Node) -> None:
    """A reward that learns with the objective is one of its terms."""
    reward = config["reward"]
    if reward.get("_target_") is None or not hasattr(located("reward", reward["_target_"]), "bind"):
        return
    if (name := reward.get("term")) not in config["objective"]:
        raise ValueError(
            f"reward.term={shown(name)}: the reward is a term that learns with the others, and the objective has "
            f"{', '.join(config['objective'])}; take objective=gad, or name one of them"
        )


def _check_streams(config: Node) -> None:
    """A term on plain text needs a corpus, and none of what a rollout knows; else something is to be rolled out."""
    plain = {name: term for name, term in config["objective"].items() if term.get("stream") == "lm"}
    if plain and config["corpus"].get("_target_") is None:
        names = " or ".join(name for name in choices("corpus") if name != "none")
        raise ValueError(
            f"{next(iter(plain))} learns on plain text (stream: lm), but corpus=none; choose corpus={names}"
        )
    if len(plain) == len(config["objective"]):
        raise ValueError(f"{', '.join(plain)}: no term learns on the skill; add one with stream: main")
    for name, term in plain.items():
        if lacking := _asked(name, term) & (FROM_ROLLOUT | FROM_REWARD | FROM_ALIGNMENT):
            raise ValueError(f"{name} needs {_listed(lacking)}, which plain text does not have; set its stream to main")


def check_other_runs(config: Node) -> None:
    """The same for the runs that this one brings along: its baseline `compare`, and what prepares its models."""
    for role, node in prepared_roles(config).items():
        name = (node.get("prepare") or {}).get("objective")
        if name is not None and not _needs_none("objective", name):
            free = " or ".join(name for name in choices("objective") if _needs_none("objective", name))
            raise ValueError(f"{role}.prepare.objective={name} needs a teacher, and nobody teaches there; take {free}")
    if config["compare"] is not None:
        for name in ("teacher_tokens", "generated_tokens"):
            if config["budget"].get(name) is not None:
                raise ValueError(
                    f"budget.{name}={config['budget'][name]} would end this run, but not the one beside it "
                    f"(compare={config['compare']}), which spends none; set compare=null, or limit budget.student_flops"
                )
        try:
            plain = {"rollout": "offline", "generator": "torch", "reward": "none", "corpus": "none"}
            plain["objective"] = config["compare"]
            check_supply({**config, **{group: _content(group, name) for group, name in plain.items()}})
        except ValueError as error:
            raise ValueError(f"compare={config['compare']}: {error}, or compare=null") from None


def demands(config: Node) -> Iterator[tuple[str, str, frozenset[str]]]:
    """The group that asks, who in it, and for which signals ("teacher" is the teacher as a whole)."""
    for group in ("objective", "rollout", "reward", "augmentation"):
        for who, names in _demands(group, config[group]):
            yield group, who, names
    if config["checkpoint"]["monitor"] == "validation/forward_kl":
        yield "checkpoint", "checkpoint.monitor=validation/forward_kl", frozenset({"teacher_logits"})


def _demands(group: str, node: Node) -> Iterator[tuple[str, frozenset[str]]]:
    if group == "objective":
        for name, term in node.items():
            yield name, _asked(name, term)
    elif group in ("rollout", "reward"):
        yield from _parts(group, group, node)
    else:
        for i, stage in enumerate(node["stages"]):
            found = located(f"augmentation.stages[{i}]", stage["_target_"])
            yield f"augmentation stage {found.__qualname__}", frozenset(getattr(found, "requires", ()))


def _asked(name: str, term: Node) -> frozenset[str]:
    """The signals of a term, and who wrote each response where it learns on some of them."""
    signals = requires(signals_of(located(f"objective.{name}.loss", term["loss"]["_target_"])))
    return signals if term.get("responses", "all") == "all" else signals | {"written_by"}


def _parts(path: str, what: str, node: Node) -> Iterator[tuple[str, frozenset[str]]]:
    """What stands at `path`, and what it was given: a rollout may have another one that writes for it."""
    for found in _classes(path, node):
        yield f"{what} {found.__qualname__}", frozenset(getattr(found, "requires", ()))


def _classes(path: str, node: Node) -> Iterator[Callable]:
    """What the node's `_target_` names, and those of the nodes in it."""
    if node.get("_target_") is not None:
        yield located(path, node["_target_"])
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _classes(f"{path}.{key}", value)


def provided(path: str, node: Node) -> frozenset[str]:
    """The fields that the class at `path` gives, or the class that the function there returns."""
    if node.get("_target_") is None:
        return frozenset()
    found: Any = located(path, node["_target_"])
    if not isinstance(found, type):
        found = inspect.signature(found).return_annotation
    given = frozenset(getattr(found, "provides", ()))
    if isinstance(writer := node.get("writer"), Mapping):  # a rollout passes on what its writer provides, and may add
        given &= provided(joined(path, "writer"), writer) | frozenset(getattr(found, "adds", ()))
    return given


def _fields(names: frozenset[str], *roles: str) -> dict[str, str]:
    """The signals of these roles among `names`, and what each is called in a ModelOutput."""
    return {f"{role}_{field}": field for role in roles for field in of_role(role, names)}


def _require(who: str, group: str, wanted: Mapping[str, str], config: Node) -> None:
    node = _supplier(group, config[group])
    given = provided(group, node)
    lacking = {signal: field for signal, field in wanted.items() if field not in given}
    if not lacking:
        return
    able = list(_able(group, frozenset(wanted.values())))
    remedy = f"try {group}={' or '.join(able)}" if able else f"nothing in conf/{group} provides it"
    if node.get("_target_") is None:
        raise ValueError(f"{who} needs {_listed(lacking)}, but {group}=none; {remedy}")
    what = node["_target_"].rpartition(".")[2]
    raise ValueError(f"{who} needs {_listed(lacking)}, but {group} {what} provides {_listed(given)}; {remedy}")


def _supplier(group: str, node: Node) -> Node:
    return node["model"] if group == "student" else node


def _able(group: str, names: frozenset[str]) -> Iterator[str]:
    """The files of `group` whose class provides `names`."""
    for name in choices(group):
        node = _content(group, name)
        with suppress(ValueError, KeyError):  # a broken file is told to whoever chooses it
            if _supplier(group, node).get("_target_") is not None and names <= provided(group, _supplier(group, node)):
                yield name


def _of_teacher(names: frozenset[str]) -> frozenset[str]:
    return frozenset(
        n for n in names - FROM_SEQUENCES if n == "teacher" or n.startswith(("teacher_", "native_teacher_"))
    )


def _no_teacher(group: str, who: str, asked: frozenset[str]) -> str:
    teachers = list(_able("teacher", frozenset(_fields(asked, "teacher", "native_teacher").values())))
    free = [name for name in choices(group) if _needs_none(group, name)]
    ways = ["choose teacher=" + " or ".join(teachers)] if teachers else []
    ways += [f"take {group}={' or '.join(free)}"] if free else []
    signals = f" ({', '.join(sorted(asked - {'teacher'}))})" if asked - {"teacher"} else ""
    return f"{who} needs a teacher{signals}, but teacher=none; {', or '.join(ways)}"


def _needs_none(group: str, name: str) -> bool:
    """Whether a file of `group` asks for no teacher; and an objective, for nothing but the records' own responses."""
    apart = FROM_ROLLOUT | FROM_REWARD if group == "objective" else frozenset()
    with suppress(ValueError, KeyError):
        return not any(_of_teacher(names) | (names & apart) for _, names in _demands(group, _content(group, name)))
    return False


def _content(group: str, name: str) -> Any:
    """A file of `group`, after those of the same group that stand under its `defaults`."""
    own: Any = OmegaConf.to_container(OmegaConf.load(file_of(group, name)), resolve=False)
    bases = [base for base in own.pop("defaults", ()) if base != "_self_" and "@" not in base]  # @: put elsewhere
    return {key: value for part in (*(_content(group, base) for base in bases), own) for key, value in part.items()}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
