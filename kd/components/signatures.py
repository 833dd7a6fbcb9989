"""The signature is the schema: a config node against the function or class that it calls."""

import importlib
import inspect
import json
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from difflib import get_close_matches
from inspect import Parameter
from types import ModuleType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError
from pydantic.fields import FieldInfo

from kd.components.allowed import check_found, check_named
from kd.components.synonyms import MOVED, NOTHING

FOR_HYDRA = frozenset({"_target_", "_partial_", "_args_", "_recursive_", "_convert_"})
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def suggestion(word: str, known: Iterable[str]) -> str:
    """The known name nearest to `word` as a question, else all of them if they are not many."""
    names = sorted(known)
    if close := get_close_matches(word, names, n=1, cutoff=0.6 if len(names) <= 20 else 0.0):
        return f"did you mean {close[0]}?"
    return f"known: {', '.join(names) or 'none'}"


def joined(path: str, key: str) -> str:
    """The dotted path of `key` below `path`."""
    return f"{path}.{key}" if path else key


def shown(value: Any) -> str:
    """A value as it would stand in yaml."""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def located(path: str, dotted: Any) -> Callable:
    """The function or class of the node at `path`, whose `_target_` is `dotted`.

    Raises ValueError, with the nearest name, if there is no such thing or it cannot be imported or called, and if it is
    not for a config to name (`kd.components.allowed`).
    """
    if not isinstance(dotted, str):
        raise ValueError(f"{path}._target_={shown(dotted)} names no function or class; give its dotted path")
    check_named(path, dotted)
    module, _, inside = dotted.rpartition(".")
    if module in MOVED:
        raise ValueError(f"{path}._target_={dotted} has moved; name {MOVED[module]}.{inside}")
    first, *rest = dotted.split(".")
    found: Any = _imported(path, dotted, first, None)
    for i, name in enumerate(rest, start=1):
        if isinstance(found, ModuleType) and not hasattr(found, name):
            found = _imported(path, dotted, ".".join([first, *rest[:i]]), found)
        elif not hasattr(found, name):
            raise ValueError(f"{path}._target_={dotted}: there is no {name} in {found.__qualname__}")
        else:
            found = getattr(found, name)
    if not callable(found):
        raise ValueError(f"{path}._target_={dotted} is no function or class; name one inside it")
    check_found(path, dotted, found)
    return found


def _imported(path: str, dotted: str, name: str, parent: ModuleType | None) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise ValueError(f"{path}._target_={dotted} needs the package {error.name}; install it") from None
    if parent is None:
        raise ValueError(f"{path}._target_={dotted}: no package {name} is installed; ours are in kd")
    inside = [module.name for module in pkgutil.iter_modules(getattr(parent, "__path__", []))]
    inside += [key for key, value in vars(parent).items() if getattr(value, "__module__", None) == parent.__name__]
    missing = name.rpartition(".")[2]
    public = {key for key in inside if not key.startswith("_")}
    raise ValueError(f"{path}._target_={dotted}: {parent.__name__} has no {missing}; {suggestion(missing, public)}")


def check_call(
    path: str,
    node: Mapping[str, Any],
    callee: Callable,
    *,
    name: str | None = None,
    besides: Set[str] = frozenset(),
) -> None:
    """Check that `callee` can be called with the keys and values of `node`, as far as its signature shows.

    With `_partial_` the positional parameters may come later. Not checked: keys in `besides`, values that hold a
    `_target_` of their own, and parameters annotated with what no yaml value can be (tensors, models).

    Raises:
        ValueError: an unknown key, with the nearest; a missing one; a value of the wrong type or out of bounds.
    """
    name = name or f"{callee.__module__}.{callee.__qualname__}"
    parameters = inspect.signature(callee).parameters
    given = {key: value for key, value in node.items() if key not in FOR_HYDRA | besides}
    if not any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        for key in (key for key in given if key not in parameters):
            raise ValueError(f"{joined(path, key)}: {name} takes no {key}; {suggestion(key, parameters)}")
    for key, parameter in parameters.items():
        if key in given:
            check_value(joined(path, key), given[key], parameter, _annotation(parameter, callee), name)
        elif _is_needed(parameter, node):
            words = in_words(_annotation(parameter, callee))
            raise ValueError(f"{joined(path, key)} is missing: {name} takes {key}: {words}; set {joined(path, key)}")


def _is_needed(parameter: Parameter, node: Mapping[str, Any]) -> bool:
    if parameter.default is not Parameter.empty or parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
        return False
    return parameter.kind is Parameter.KEYWORD_ONLY or not (node.get("_partial_") or node.get("_args_"))


def check_value(path: str, value: Any, parameter: Parameter, annotation: Any, name: str) -> None:
    """Raises ValueError if `value` does not fit `annotation`. Nothing is converted, but an int is a float."""
    adapter = None if _calls(value) else _adapter(annotation)
    if adapter is None:
        return
    try:  # as json, where strict means a list for a tuple too, and no string for a number
        adapter.validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        default = "" if parameter.default is Parameter.empty else f", default {shown(parameter.default)}"
        raise ValueError(
            f"{path}={shown(value)}: {_reason(value, error, annotation)} "
            f"({name} takes {parameter.name}: {in_words(annotation)}{default})"
        ) from None


def _calls(value: Any) -> bool:
    """Return whether the value is, or holds, a node with a `_target_`."""
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(_calls, value.values()))
    return isinstance(value, list) and any(map(_calls, value))


def _reason(value: Any, error: ValidationError, annotation: Any) -> str:
    if isinstance(value, str) and value.lower() in NOTHING and in_words(annotation).endswith("or null"):
        return f"should be {in_words(annotation)}; did you mean null?"
    if len(errors := error.errors()) > 1:  # one for each member of a union
        return f"should be {in_words(annotation)}"
    place = "".join(f"[{key}]" for key in errors[0]["loc"] if isinstance(key, int))
    text = (f"item {place} " if place else "") + errors[0]["msg"].removeprefix("Input ").removeprefix("Value error, ")
    text = text.replace("a valid array", "a list").replace("an object", "a mapping")
    options = [option for option in _options(annotation) if isinstance(option, str)]
    near = get_close_matches(value, options, n=1) if isinstance(value, str) else []
    return f"{text}; did you mean {near[0]}?" if near else text


def _options(annotation: Any) -> Sequence[Any]:
    """The values that a Literal, perhaps inside a union, allows."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        return [option for member in get_args(annotation) for option in _options(member)]
    return []


def _annotation(parameter: Parameter, callee: Callable) -> Any:
    """The annotation, also where its module postponed evaluation; Any if it cannot be known."""
    if parameter.annotation is Parameter.empty:
        return Any
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    try:
        return eval(parameter.annotation, dict(vars(sys.modules[callee.__module__])))
    except NameError:  # imported for type checkers only
        return Any


def _adapter(annotation: Any) -> TypeAdapter | None:
    try:
        made = TypeAdapter(annotation)
        return made if made.pydantic_complete else None
    except (PydanticUserError, PydanticUndefinedAnnotation):  # a tensor, a model, a protocol
        return None


def in_words(annotation: Any) -> str:
    """An annotation for readers: "float between 0 and 1", "one of even, first", "int or null"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return " ".join([in_words(arguments[0]), *_bounds(arguments[1:])])
    if origin is Literal:
        return f"one of {', '.join(map(shown, arguments))}" if len(arguments) > 1 else shown(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(map(in_words, arguments))
    if annotation is NoneType or annotation is None:
        return "null"
    if annotation is Any:
        return "anything"
    kind = origin or annotation
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return "mapping"
    if isinstance(kind, type) and issubclass(kind, Sequence | Set) and kind is not str:
        inner = {in_words(argument) for argument in arguments if argument is not ...}
        return f"list of {' or '.join(sorted(inner))}" if inner else "list"
    return getattr(kind, "__name__", str(kind))


def _bounds(metadata: Iterable[Any]) -> list[str]:
    limits: dict[str, Any] = {}
    for item in metadata:
        for constraint in item.metadata if isinstance(item, FieldInfo) else [item]:
            limits |= {key: getattr(constraint, key) for key in BOUNDS if hasattr(constraint, key)}
    if limits.keys() == {"ge", "le"}:
        return [f"between {limits['ge']} and {limits['le']}"]
    return [" and ".join(f"{BOUNDS[key]} {limit}" for key, limit in limits.items())] if limits else []
