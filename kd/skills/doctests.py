"""Whether a generated function passes the doctests of the one that it replaces in its package."""

import ast
import zipfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from kd.metrics.program_tests import function, passed
from kd.sandbox import run
from kd.sources.addresses import fetch

# The function's globals are its module's, so that it finds the imports and private functions that the original has.
PROGRAM = """
import doctest, importlib
module = importlib.import_module({module!r})
exec(compile({source!r}, "answer.py", "exec"), module.__dict__)
options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
test = doctest.DocTestParser().get_doctest({docstring!r}, dict(module.__dict__), {name!r}, None, 0)
failures = []
results = doctest.DocTestRunner(verbose=False, optionflags=options).run(test, out=failures.append)
assert results.attempted and not results.failed, "".join(failures)
"""


class DoctestsPassed:
    """1 if all doctests of the given docstring hold for the generated function in its module, else 0; in the sandbox.

    `meta` has `module`, `entry_point`, `signature` (with the docstring) and `package`, as
    `kd.skills.readers.python_functions.of_wheel` yields them. The package's files come from its wheel, so that what is
    installed here changes nothing.

    Args:
        wheels: address and sha256 of each package's wheel, as `path` of a skill has them.
    """

    def __init__(self, wheels: Sequence[Mapping[str, Any]]) -> None:
        self.wheels = tuple(wheels)

    def __call__(self, text: str, meta: Mapping[str, Any]) -> float:
        """The score of one answer. Raises NoVerdict at a limit of the sandbox, ValueError where none works."""
        source = function(text, meta["signature"], meta["entry_point"])
        program = PROGRAM.format(
            module=meta["module"], source=source, docstring=_docstring(meta["signature"]), name=meta["entry_point"]
        )
        return passed(run(program, files=self._files[meta["package"]]))

    @cached_property
    def _files(self) -> dict[str, dict[str, str]]:
        """The modules of each package by path."""
        found: dict[str, dict[str, str]] = {}
        for wheel in self.wheels:
            with zipfile.ZipFile(fetch(wheel["address"], sha256=wheel["sha256"])) as archive:
                for member in archive.namelist():
                    if member.endswith(".py"):
                        found.setdefault(member.partition("/")[0], {})[member] = archive.read(member).decode("utf-8")
        return found


def _docstring(signature: str) -> str:
    (definition,) = ast.parse(f"{signature.rstrip()}\n").body
    assert isinstance(definition, ast.FunctionDef)
    return ast.get_docstring(definition) or ""
