"""Questions with functions to call, and the calls that answer them.

A row's `tools` stand in the system message as JSON (`kd.data.conversations`), and a response is its calls, each as
`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, the form of Hermes and Qwen.
"""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from kd.skills.readers.dialogues import ROLES
from kd.skills.readers.json_values import Row, merged, values

# BFCL's possible answers that its own schema contradicts: no call of the question's function satisfies them.
UNANSWERABLE = {"live_simple_106-63-0", "live_simple_112-68-0"}
ABSENT = ""  # among the values that are accepted for an argument: it may be left out


def bfcl_simple(path: Path) -> Iterator[Row]:
    """One function, one call."""
    return bfcl(path, "simple_python")


def bfcl_multiple(path: Path) -> Iterator[Row]:
    """Several functions, one call."""
    return bfcl(path, "multiple")


def bfcl_parallel(path: Path) -> Iterator[Row]:
    """One function or several, several calls."""
    return chain(bfcl(path, "parallel"), bfcl(path, "parallel_multiple"))


def bfcl_live(path: Path) -> Iterator[Row]:
    """Functions and questions of users, one call."""
    return chain(bfcl(path, "live_simple"), bfcl(path, "live_multiple"))


def bfcl(path: Path, category: str) -> Iterator[Row]:
    """Questions of a category of the Berkeley Function-Calling Leaderboard (v4) with their possible answers.

    `path` is the wheel of bfcl-eval. Rows have `prompt` (messages), `tools`, `response` (the calls with the first value
    that is accepted for each argument), `ground_truth` (each call's arguments with all values that are accepted), `id`
    and `question`, the group: categories share some.
    """
    names = (f"bfcl_eval/data/BFCL_v4_{category}.json", f"bfcl_eval/data/possible_answer/BFCL_v4_{category}.json")
    for row in merged(path, *names, key="id"):
        if "question" not in row or "ground_truth" not in row or row["id"] in UNANSWERABLE:
            continue
        messages = row["question"][0]
        yield {
            "id": row["id"],
            "prompt": messages,
            "tools": row["function"],
            "response": "\n".join(written(_call(wanted)) for wanted in row["ground_truth"]),
            "ground_truth": row["ground_truth"],
            "question": messages[-1]["content"],
        }


def written(call: Row) -> str:
    """A call as a response has it."""
    return f"<tool_call>{json.dumps(call, ensure_ascii=False)}</tool_call>"


def _call(wanted: Row) -> Row:
    ((name, arguments),) = wanted.items()
    return {"name": name, "arguments": {key: _first(ways) for key, ways in arguments.items() if _required(ways)}}


def _required(ways: Any) -> bool:
    return not (isinstance(ways, list) and ABSENT in ways)


def _first(ways: Any) -> Any:
    """The first value that is accepted; inside of an object each value is again a list of ways, or plain."""
    value = ways[0] if isinstance(ways, list) and ways else ways
    if isinstance(value, dict):
        return {
            key: _first(inner) if isinstance(inner, list) else inner for key, inner in value.items() if _required(inner)
        }
    return [_first(item) if isinstance(item, dict) else item for item in value] if isinstance(value, list) else value


def glaive(path: Path) -> Iterator[Row]:
    """Conversations of Glaive with functions: a row for each call that the assistant makes, after all that came before.

    Conversations without functions are left out. Rows have `prompt` (messages), `tools`, `response` and `opening`.
    """
    for row in values(path):
        functions, turns = json.loads(row["tools"] or "[]"), row["conversations"]
        for place, turn in enumerate(turns):
            if functions and turn["from"] == "function_call":
                yield {
                    "prompt": [_turn(earlier) for earlier in turns[:place]],
                    "tools": functions,
                    "response": written(json.loads(turn["value"])),
                    "opening": turns[0]["value"],
                }


def _turn(turn: Row) -> Row:
    """A message; a function's result is one of the user's, for few chat templates have a role for it."""
    if turn["from"] == "observation":
        return {"role": "user", "content": f"Result: {turn['value']}"}
    text = written(json.loads(turn["value"])) if turn["from"] == "function_call" else turn["value"]
    return {"role": ROLES[turn["from"]], "content": text}
