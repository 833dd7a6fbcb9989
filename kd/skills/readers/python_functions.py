"""Python functions with a docstring: the signature and docstring to complete, and the function that does."""

import ast
import doctest
import gzip
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

from kd.skills.readers.json_values import Row

# Functions whose own doctests fail or are skipped: random draws, names that a doctest does not define, sets of another
# order. Found by running all; a test does it again.
FAILING = frozenset(
    {
        "more_itertools.more.powerset_of_sets",
        "more_itertools.recipes.random_product",
        "more_itertools.recipes.random_permutation",
        "more_itertools.recipes.random_combination",
        "more_itertools.recipes.random_combination_with_replacement",
        "toolz.itertoolz.frequencies",
        "boltons.urlutils.find_all_links",
        "boltons.urlutils.unquote",
    }
)


def fenced(code: str) -> str:
    """The code as a block of Markdown."""
    return f"```python\n{code.strip()}\n```"


def without_docstring(source: str, name: str) -> str:
    """The function `name` of a source, from `def` to its end, without its docstring."""
    (function,) = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == name]
    lines = source.splitlines()
    documented = next(node for node in function.body if _is_text(node))  # HumanEval/115 imports before it
    kept = [*lines[function.lineno - 1 : documented.lineno - 1], *lines[documented.end_lineno : function.end_lineno]]
    return "\n".join(kept)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def human_eval(path: Path) -> Iterator[Row]:
    """HumanEval's problems: `signature` (the given text), `response`, `entry_point`, `tests` and `id`.

    `tests` is the source that is to run to its end after the function.
    """
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            name = row["entry_point"]
            yield {
                "id": row["task_id"],
                "signature": row["prompt"],
                "response": fenced(without_docstring(row["prompt"] + row["canonical_solution"], name)),
                "entry_point": name,
                "tests": f"{row['test']}\ncheck({name})\n",
            }


def of_wheel(path: Path) -> Iterator[Row]:
    """The public functions of a wheel's modules that have doctests: `signature` (with docstring), `response`, `module`,
    `entry_point`, `package` and `id` (module and name).

    Left out: decorated functions, functions that are nothing but a docstring, tests, those of `FAILING`, and those that
    no example calls and compares (`# doctest: +SKIP`), for any answer would pass.
    """
    with zipfile.ZipFile(path) as wheel:
        for member in sorted(wheel.namelist()):
            if member.endswith(".py") and "test" not in member and not member.startswith("docs/"):
                yield from of_module(member, wheel.read(member).decode("utf-8"))


def of_module(member: str, source: str) -> Iterator[Row]:
    """The rows of `of_wheel` for one file of it."""
    lines = source.splitlines()
    module = member.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    for node in ast.parse(source).body:
        if not (isinstance(node, ast.FunctionDef) and _wanted(node)) or f"{module}.{node.name}" in FAILING:
            continue
        yield {
            "id": f"{module}.{node.name}",
            "signature": dedent("\n".join(lines[node.lineno - 1 : node.body[0].end_lineno])) + "\n",
            "response": fenced(without_docstring("\n".join(lines[node.lineno - 1 : node.end_lineno]), node.name)),
            "entry_point": node.name,
            "module": module,
            "package": module.partition(".")[0],
        }


def _wanted(node: ast.FunctionDef) -> bool:
    plain = len(node.body) > 1 and not node.decorator_list and not node.name.startswith("_")
    return plain and any(_tests(example, node.name) for example in _examples(node))


def _examples(node: ast.FunctionDef) -> list[doctest.Example]:
    try:
        return doctest.DocTestParser().get_examples(ast.get_docstring(node) or "")
    except ValueError:  # a docstring that doctest cannot read
        return []


def _tests(example: doctest.Example, name: str) -> bool:
    """Return whether an example calls the function and compares what is printed; others hold for any function."""
    return name in example.source and bool(example.want) and not example.options.get(doctest.SKIP)
