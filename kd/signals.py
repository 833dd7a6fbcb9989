"""The signals that an objective may require, those that it requires, and the domain of its values.

Left of an objective's `*` stand signals, provided at every step; right of it stand hyperparameters, set in yaml.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from inspect import Parameter, signature
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from torch import Tensor, nn

from kd.types import Batch, ModelOutput

Objective = TypeVar("Objective", bound=Callable)

ROLES = ("student", "teacher", "native_teacher", "reference")
FROM_MODELS = frozenset(f"{role}_{field.name}" for role in ROLES for field in fields(ModelOutput))
IN_SEQUENCES = ("tokens", "labels", "mask", "real")  # real: True at tokens, False at padding
FROM_SEQUENCES = frozenset(f"{role}{name}" for role in ("", "teacher_") for name in IN_SEQUENCES)
FROM_REWARD = frozenset({"rewards", "advantages"})
FROM_ROLLOUT = frozenset(field.name for field in fields(Batch)) - {"student", "teacher", "records"} - FROM_REWARD
FROM_ALIGNMENT = frozenset({"spans", "pairs", "id_map", "boundaries"})
FROM_RUN = frozenset({"progress"})
SIGNALS = FROM_MODELS | FROM_SEQUENCES | FROM_ROLLOUT | FROM_REWARD | FROM_ALIGNMENT | FROM_RUN

# What an objective may have beside its signals and hyperparameters; of each the value where it has none. Decorators
# below set the first five; the others are attributes and methods of an objective that is a class.
HOOKS: Mapping[str, Any] = {
    "check_shapes": None,  # `checked_by`: raises ValueError for models that it cannot learn by
    "check_group": None,  # `of_groups`: raises ValueError for a number of responses to a prompt
    "in_order": False,  # `of_groups`: takes the first response for the preferred one
    "two_sided": False,  # `of_two_sides`: one loss for the student's responses, another for those of others
    "fades": None,  # `fading`: whether its gradient vanishes far from the teacher, under given hyperparameters
    "whole_windows": False,  # keeps state of a window, so that a rollout must not mix windows
    "sized_for": None,  # (student, teacher: Shape): makes its parameters
    "starts_from": None,  # (student): makes its parameters from a copy of the student
    "begins_with_heads": False,  # whether `begins_with` is to be called
    "begins_with": None,  # (student, teacher: Head, ids that mean the same): sets its parameters
    "after_step": None,  # (mean, progress): after each optimizer step, with its mean over the step
    "take_report": None,  # () -> name -> (sum, count): what is logged beside its value (`kd.types.Reports`)
    "reading": None,  # (sequences) -> (model, head, lengths): what it reads with a network of its own, for the budget
    "judge": None,  # (sequences) -> [B]: scores, where it serves as a reward (`kd.rewards.discriminator`)
}

ROW, POSITION, RESPONSE, PAIR = "*n", "B T", "B", "P"  # what the values of a term run over


def requires(objective: Callable) -> frozenset[str]:
    """Names of the signals that `objective` is computed from.

    Raises ValueError for a name outside the vocabulary, and for `*args` or `**kwargs`, which would swallow
    a misspelt hyperparameter.
    """
    names = set()
    for parameter in signature(_function(objective)).parameters.values():
        if parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            stars = "*" if parameter.kind is Parameter.VAR_POSITIONAL else "**"
            raise ValueError(f"objective {_name(objective)} takes {stars}{parameter.name}; spell its arguments out")
        if parameter.kind is not Parameter.KEYWORD_ONLY and parameter.name != "self":
            names.add(parameter.name)
    if unknown := names - SIGNALS:
        raise ValueError(
            f"objective {_name(objective)} requires {sorted(unknown)}, which nothing provides; "
            f"known signals: {', '.join(sorted(SIGNALS))} (hyperparameters stand right of the *)"
        )
    return frozenset(names)


def of_role(role: str, names: frozenset[str]) -> frozenset[str]:
    """The fields of `role`'s ModelOutput among `names`."""
    return frozenset(field.name for field in fields(ModelOutput) if f"{role}_{field.name}" in names)


def domain(objective: Callable) -> str:
    """The domain of the objective's values: "*n" or "B T" (tokens), "B" (responses), "P" (pairs or prompts)."""
    hint = _hints(objective).get("return")
    if get_origin(hint) is tuple and len(get_args(hint)) == 2:  # values and metrics
        hint = get_args(hint)[0]
    shape = _shape(hint)
    if shape not in (ROW, POSITION, RESPONSE, PAIR):
        found = shape or ("a scalar" if hasattr(hint, "dim_str") else "an unannotated value")
        raise ValueError(
            f"objective {_name(objective)} returns {found}; annotate it as one of "
            f'Float[Tensor, "*n"], "B T", " B", " P", unreduced, or as a tuple of that and a dict of metrics'
        )
    return shape


def separated(result: Tensor | tuple[Tensor, Mapping[str, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
    """The values of an objective, and its metrics by name, detached; none where it returns the values alone.

    Metrics run over what the values run over, are averaged as they are, and are logged as `train/<term>/<metric>`. The
    names are the same in every call.

    Raises ValueError for a metric of another shape than the values.
    """
    if isinstance(result, Tensor):
        return result, {}
    values, metrics = result
    for name, metric in metrics.items():
        if metric.shape != values.shape:
            raise ValueError(
                f"the metric {name} has shape {list(metric.shape)} and the values have {list(values.shape)}; return "
                "one number for each value, unreduced"
            )
    return values, {name: metric.detach().to(values.dtype) for name, metric in metrics.items()}


def is_row_wise(objective: Callable) -> bool:
    """True if each position's value depends on that position alone, so that the head may run in chunks.

    Read from the annotations: the result and every tensor among the signals, inside tuples too (layers), begin with
    `*n`. A term with parameters of its own is not chunked: a chunk makes gradients of hidden states and head only.
    """
    if isinstance(objective, nn.Module) and any(p.requires_grad for p in objective.parameters()):
        return False
    hints = _hints(objective)
    shapes = [shape for name in requires(objective) for shape in _shapes(hints.get(name))]
    return domain(objective) == ROW and all(shape.split()[0] == ROW for shape in shapes)


def checked_by(check: Callable[..., None]) -> Callable[[Objective], Objective]:
    """Decorates an objective that only some models can learn by; see `introduce`.

    check: called with the student's and the teacher's `kd.types.Shape`, and with those of the objective's
        hyperparameters that it names; raises ValueError where the two models do not fit.
    """

    def decorated(objective: Objective) -> Objective:
        objective.check_shapes = check  # type: ignore[attr-defined]
        return objective

    return decorated


def of_groups(check: Callable[..., None], *, in_order: bool = False) -> Callable[[Objective], Objective]:
    """Decorates an objective that compares the responses to one prompt with one another.

    check: called with how many there are to each prompt, and with those of the objective's hyperparameters that it
        names; raises ValueError where these are too few or too many. Called before a run starts, where that is known.
    in_order: whether the first response is the preferred one.
    """

    def decorated(objective: Objective) -> Objective:
        objective.check_group, objective.in_order = check, in_order  # type: ignore[attr-defined]
        return objective

    return decorated


def of_two_sides(objective: Objective) -> Objective:
    """Decorates an objective that has one loss for the student's responses and another for those of other sources."""
    objective.two_sided = True  # type: ignore[attr-defined]
    return objective


def fading(where: Callable[..., bool]) -> Callable[[Objective], Objective]:
    """Decorates an objective whose gradient is almost 0 where the student is far from the teacher.

    where: called with those of the objective's hyperparameters that it names; returns whether it is so with them.
    """

    def decorated(objective: Objective) -> Objective:
        objective.fades = where  # type: ignore[attr-defined]
        return objective

    return decorated


def hook(objective: Any, name: str) -> Any:
    """What an objective (an instance, a class or a function) has under a name of HOOKS, or what stands there."""
    return getattr(_innermost(objective), name, HOOKS[name])


def sized(objective: Callable) -> bool:
    """Return whether `introduce` has an effect on the objective."""
    return any(hook(objective, name) for name in ("sized_for", "starts_from", "check_shapes"))


def introduce(objective: Any, student: Any, teacher: Any, alignment: Any = None) -> None:
    """Give an objective the models that it is for (their `shape`), before the first step.

    One with parameters of its own makes them, in its `sized_for`, or from the student itself, in its `starts_from`; a
    function may have a check (`checked_by`). `alignment`: given where the models have weights, and not only shapes; an
    objective with `begins_with_heads` then receives both heads, and the ids that mean the same, in its `begins_with`.
    A checkpoint is loaded later, and replaces all of it. Raises ValueError where the two models do not fit.
    """
    if sized_for := hook(objective, "sized_for"):
        sized_for(student.shape, None if teacher is None else teacher.shape)
    if starts_from := hook(objective, "starts_from"):
        starts_from(student)
    if hook(objective, "begins_with_heads") and alignment is not None and (shared := alignment.shared_ids()):
        objective.begins_with(student.head(), teacher.model.head(), shared)
    if check := hook(objective, "check_shapes"):
        settings = signature(objective).parameters  # as yaml and defaults have them
        named = {name: settings[name].default for name in signature(check).parameters if name in settings}
        check(student.shape, teacher.shape, **named)


def _function(objective: Callable) -> Callable:
    return objective.forward if isinstance(objective, nn.Module) else objective


def _hints(objective: Callable) -> dict[str, Any]:
    return get_type_hints(_innermost(_function(objective)))


def _innermost(objective: Any) -> Any:
    """The function of which yaml has set some arguments."""
    while isinstance(objective, partial):
        objective = objective.func
    return objective


def _shape(hint: Any) -> str:
    return " ".join(getattr(hint, "dim_str", "").split())


def _shapes(hint: Any) -> list[str]:
    """The shape of a tensor, or those of a tuple of tensors; "?" for one of a tuple that declares none."""
    if inner := get_args(hint):
        return [shape for item in inner for shape in (["?"] if item is Tensor else _shapes(item))]
    return [shape] if (shape := _shape(hint)) else []


def _name(objective: Callable) -> str:
    objective = _innermost(objective)
    return getattr(objective, "__name__", type(objective).__name__)
