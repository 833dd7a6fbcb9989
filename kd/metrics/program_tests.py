"""Whether generated Python passes its tests, run in the sandbox (docs/sandbox.md)."""

import ast
import re
from collections.abc import Mapping
from textwrap import indent
from typing import Any

from kd.sandbox import AT_LIMIT, NoVerdict, Outcome, run

BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL | re.IGNORECASE)


def tests_passed(text: str, meta: Mapping[str, Any]) -> float:
    """1 if the program of the generated function and its tests runs to its end in the sandbox, else 0.

    `meta` has `signature` (the text that was given: imports, `def`, docstring), `entry_point` (the function's name) and
    `tests` (source that raises where one fails). With n samples of an item, the mean is pass@1 of Chen et al. 2021,
    arXiv 2107.03374; `pass_at_k` estimates larger k from the same scores.

    Raises:
        NoVerdict: the program reached a limit of the sandbox.
        ValueError: no sandbox works here.
    """
    program = f"{function(text, meta['signature'], meta['entry_point'])}\n{meta['tests']}"
    return passed(run(program))


def passed(outcome: Outcome) -> float:
    """1 if a program ran to its end, 0 if it raised or exited. Raises NoVerdict where it reached a limit."""
    if outcome.status in AT_LIMIT:
        raise NoVerdict(outcome.status, outcome.error)
    return float(outcome.status == "ok")


def function(text: str, signature: str, name: str) -> str:
    """Source that defines the function `name`: the text's code after the signature.

    The code is the first block of Markdown that defines it, else the first block, else the text. Where it does not
    define the function it continues the signature, as a base model's text does.
    """
    blocks = [match[1] for match in BLOCK.finditer(text)] or [text]
    code = next((block for block in blocks if defines(block, name)), blocks[0])
    if defines(code, name):
        return f"{signature.rstrip()}\n\n{code}\n"  # the signature's own definition is replaced, its imports are used
    return f"{signature.rstrip()}\n{_as_body(code)}\n"


def defines(code: str, name: str) -> bool:
    """Whether the source is valid and has a function of this name at its top."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body)


def _as_body(code: str) -> str:
    """The code indented as a body; one whose first line is indented, or is alone in not being so, is a body already."""
    lines = [line for line in code.split("\n") if line.strip()]
    if lines and lines[0][0] in " \t":
        return code.strip("\n")
    if len(lines) > 1 and all(line[0] in " \t" for line in lines[1:]) and not lines[0].rstrip().endswith(":"):
        return f"    {code.strip()}"  # a chat model's text begins without the indent that the prompt ended before
    return indent(code, "    ")
