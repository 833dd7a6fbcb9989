"""Calls of tools in an answer, compared with the right ones as syntax trees, after the Berkeley leaderboard (BFCL).

Example:
    >>> parsed_calls('<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>')
    [Call(name='add', arguments={'a': 1})]
    >>> matches([Call("add", {"a": 1})], [{"add": {"a": [1, 2], "b": ["", 0]}}])
    True
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.S)
_FENCED = re.compile(r"```(?:json|python|tool_code)?\s*\n(.*?)(?:```|$)", re.S)
_FAILURES = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError)


class Call(NamedTuple):
    """The call of one tool."""

    name: str
    arguments: Mapping[str, Any]


def ast_match(text: str, references: Sequence[str], meta: Mapping[str, Any]) -> float:
    """1 if the answer makes the right calls, in any order and no other, else 0.

    Right is what `meta["ground_truth"]` accepts: a list of {name: {argument: [accepted values]}}, where "" among the
    values means that the argument may be absent, as BFCL writes it; without it, exactly the calls of a reference. An
    empty list is an answer without any call.
    """
    calls = parsed_calls(text)
    if (accepted := meta.get("ground_truth")) is not None:
        return float(matches(calls, accepted))
    exact = [[{c.name: {k: [v] for k, v in c.arguments.items()}} for c in parsed_calls(r)] for r in references]
    return float(any(matches(calls, one) for one in exact))


def parsed_calls(text: str) -> list[Call]:
    """The calls in an answer: json objects {"name", "arguments"} alone, in a list, in <tool_call> or in a fenced block,
    or Python calls with named arguments, `[f(a=1), g(b="x")]`. None where the text is neither.
    """
    pieces = _TAGGED.findall(text) or _FENCED.findall(text) or [text]
    return [call for piece in pieces for call in (_of_json(piece.strip()) or _of_python(piece.strip()))]


def matches(calls: Sequence[Call], accepted: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether each accepted call is made once, by calls that are all used up."""
    left = list(calls)
    for wanted in accepted:
        ((name, arguments),) = wanted.items()
        found = next((call for call in left if _fits(call, name, arguments)), None)
        if found is None:
            return False
        left.remove(found)
    return not left


def _fits(call: Call, name: str, arguments: Mapping[str, Any]) -> bool:
    if call.name != name or not call.arguments.keys() <= arguments.keys():
        return False
    return all(
        _accepted(call.arguments[key], values) if key in call.arguments else "" in values
        for key, values in arguments.items()
    )


def _accepted(value: Any, accepted: Sequence[Any]) -> bool:
    return any(_same(value, one) for one in accepted)


def _same(value: Any, wanted: Any) -> bool:
    """Equal but for case, spaces and punctuation of text, as in BFCL; a nested mapping may hold lists of values."""
    if isinstance(value, Mapping) and isinstance(wanted, Mapping):
        options = {key: [*(one if isinstance(one, list) else []), one] for key, one in wanted.items()}
        return value.keys() <= wanted.keys() and all(
            _accepted(value[key], values) if key in value else "" in values for key, values in options.items()
        )
    if isinstance(value, str) and isinstance(wanted, str):
        return _plain(value) == _plain(wanted)
    if isinstance(value, list | tuple) and isinstance(wanted, list | tuple):
        return len(value) == len(wanted) and all(map(_same, value, wanted))
    return isinstance(value, bool) == isinstance(wanted, bool) and value == wanted


def _plain(text: str) -> str:
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')


def _of_json(text: str) -> list[Call]:
    try:
        found = json.loads(text)
    except _FAILURES:
        return list(_json_lines(text))
    entries = found if isinstance(found, list) else [found]
    calls = [_call(entry) for entry in entries]
    return [call for call in calls if call is not None] if None not in calls else []


def _json_lines(text: str) -> Iterator[Call]:
    """The calls of a text with one json object in each line, none where a line is something else."""
    calls = []
    for line in text.splitlines():
        try:
            calls.append(_call(json.loads(line)))
        except _FAILURES:
            return
    yield from (call for call in calls if call is not None)


def _call(entry: Any) -> Call | None:
    entry = entry.get("function", entry) if isinstance(entry, Mapping) else entry
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        return None
    arguments = entry.get("arguments", entry.get("parameters", {}))
    if isinstance(arguments, str):  # as OpenAI's messages have them
        try:
            arguments = json.loads(arguments)
        except _FAILURES:
            return None
    return Call(entry["name"], arguments) if isinstance(arguments, Mapping) else None


def _of_python(text: str) -> list[Call]:
    try:
        body = ast.parse(text, mode="eval").body
        nodes = body.elts if isinstance(body, ast.List | ast.Tuple) else [body]
        return [_python_call(node) for node in nodes]
    except _FAILURES:
        return []


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("no call with named arguments")
    arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    return Call(ast.unparse(node.func), arguments)
