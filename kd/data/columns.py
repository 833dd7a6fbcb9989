"""Templates that make a row's columns of another's: `{question: "{passage}\\n{query}", answer: "{labels[0]}"}`."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from string import Formatter
from typing import Any

from kd.data.tables import Row

_FORMATTER = Formatter()


def mapped(row: Row, columns: Mapping[str, Any]) -> Row:
    """The row with the columns that the templates make. One that is a single field, `"{options}"`, keeps its type.

    Raises:
        ValueError: the row lacks a field, or has null there; names its place, the template and the columns.
    """
    made = {name: _filled(row, f"skill.columns.{name}", template) for name, template in columns.items()}
    return Row(row.place, made)


def filled(row: Row, where: str, template: str) -> str:
    """The template with the row's values in it. Raises ValueError as `mapped`."""
    value = _filled(row, where, template)
    return value if isinstance(value, str) else str(value)


def fields(template: Any) -> list[str]:
    """The fields of a template, as `labels[0]`; none where it is no text."""
    parts = _FORMATTER.parse(template) if isinstance(template, str) else ()
    return [field for _, field, _, _ in parts if field is not None]


def check(where: str, template: Any) -> None:
    """Raises ValueError for a template whose braces do not match, or that formats."""
    if isinstance(template, Sequence) and not isinstance(template, str):
        for i, part in enumerate(template):
            check(f"{where}[{i}]", part)
        return
    try:
        odd = [f for _, f, form, conversion in _FORMATTER.parse(template) if f == "" or form or conversion]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}={template!r} is no template ({error}); write a brace that is text as {{{{") from None
    if odd:
        raise ValueError(f"{where}={template!r} is no template; name a column in each {{...}}, and nothing else")


def field_value(row: Row, where: str, field: str) -> Any:
    """The value of `name`, `name[0]`, `name[key]` or `name.key` in the row. Raises ValueError as `mapped`."""
    first, rest = _split(field)
    value, path = _member(row, where, row.values, first, field), first
    for key in rest:
        value, path = _member(row, where, value, key, field), f"{path}[{key}]"
    if value is None:
        raise ValueError(f"{row.place}: {path} is null, which {where} reads; fill it in, or leave the row out")
    return value


def _filled(row: Row, where: str, template: Any) -> Any:
    if isinstance(template, Sequence) and not isinstance(template, str):
        return [_filled(row, where, part) for part in template]
    if not isinstance(template, str):
        return template
    parts = list(_FORMATTER.parse(template))
    if len(parts) == 1 and parts[0][0] == "" and parts[0][1] is not None:
        return field_value(row, where, parts[0][1])
    found = [text + ("" if field is None else str(field_value(row, where, field))) for text, field, _, _ in parts]
    return "".join(found)


def _split(field: str) -> tuple[str, list[str]]:
    first, *rest = field.replace("]", "").replace(".", "[").split("[")
    return first, rest


def _member(row: Row, where: str, value: Any, key: str, field: str) -> Any:
    if isinstance(value, Mapping) and key in value:
        return value[key]
    if isinstance(value, Sequence) and not isinstance(value, str) and key.lstrip("-").isdigit():
        if -len(value) <= int(key) < len(value):
            return value[int(key)]
        raise ValueError(f"{row.place}: {{{field}}} of {where} is beyond a list of {len(value)}; leave the row out")
    held = list(map(str, value)) if isinstance(value, Mapping) else []
    near = get_close_matches(key, held, n=1, cutoff=0.0)
    remedy = f"its columns are {', '.join(held)}; the nearest is {near[0]}" if near else "it holds no columns there"
    raise ValueError(f"{row.place} has no {key}, which {where} reads as {{{field}}}; {remedy}")
