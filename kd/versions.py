"""The versions of the code that numbers come from: part of every identity, so that a fix shows no old result as new.

A module of `kd` whose numbers changed carries an integer `VERSION` (1 where there is none). A run depends on the
modules that its components import, directly or not; modules outside `kd` count by their content.
"""

import ast
import hashlib
import importlib.util
import re
import site
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from weakref import WeakKeyDictionary

import kd
from kd.artifacts import cache_root, file_sha256, store, verified

PACKAGE = Path(kd.__file__).parent
_IMPORT = re.compile(
    r"(?:^|[;:])[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import[ \t]*(\([^)]*\)|[^\n;]+)|import[ \t]+([\w., \t]+))", re.M
)
_DYNAMIC = re.compile(r"\b(?:import_module|__import__)\(\s*[\"']([\w.]+)[\"']")
_imported_as: WeakKeyDictionary[ModuleType, str] = WeakKeyDictionary()  # sha256 of own modules when first needed
_VERSION = re.compile(r"^VERSION(?:: \w+)? = (\d+)", re.M)


def versions(*names: str) -> dict[str, int | str]:
    """The code that the numbers of these modules, or of functions and classes in them, depend on.

    Args:
        names: dotted paths, such as `kd.experiment.build` or `my_losses.jeffreys`.

    Returns:
        By module: the `VERSION` of each module of `kd` that has one other than 1, and the sha256 of each module from
        outside of `kd` and of the installed packages; of a module in an installed package that is named itself, too.
    """
    found: dict[str, int | str] = {}
    named = [module for module in map(_module_of, dict.fromkeys(names)) if module is not None]
    for name, file in _reached(named).items():
        found |= _stamp(name, file)
    for module in filter(_is_installed, named):
        found[module[0]] = file_sha256(module[1])
    return dict(sorted(found.items()))


def code_digest() -> str:
    """16 hexadecimal digits over the syntax trees of `kd` without docstrings: equal for code that does the same.

    Comments, docstrings and layout do not count. Kept in the cache for unchanged files, as parsing takes a second.
    """
    files = sorted(PACKAGE.rglob("*.py"))
    return _code_digest(tuple((file, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files))


@cache
def _code_digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    memo = cache_root() / "code" / hashlib.sha256(repr(files).encode()).hexdigest()
    with suppress(ValueError, OSError):  # there is none, or it was damaged
        verified(memo)
        return memo.read_text(encoding="utf-8")
    trees = [f"{file.relative_to(PACKAGE)} {tree_digest(file.read_text(encoding='utf-8'))}" for file, *_ in files]
    digest = hashlib.sha256("\n".join(trees).encode()).hexdigest()[:16]
    with suppress(OSError):  # a cache that cannot be written costs the second again
        store(memo, lambda path: path.write_text(digest, encoding="utf-8"), kind="digest of code")
    return digest


def tree_digest(source: str) -> str:
    """Hexadecimal sha256 of a module's syntax tree without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


_Module = tuple[str, Path]  # dotted name and file


def _module_of(name: str) -> _Module | None:
    """The module that a dotted path names or leads through; None where there is none with a source file."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if (file := _file_of(".".join(parts[:end]))) is not None:
            return ".".join(parts[:end]), file
    return None


@cache
def _file_of(module: str) -> Path | None:
    """The source file of a module, which is looked for and not imported."""
    top, *inside = module.split(".")
    for root in _roots(top):
        base = root.joinpath(*inside)
        for file in (base / "__init__.py", base.with_suffix(".py")):
            if file.is_file():
                return file
    return None


@cache
def _roots(top: str) -> tuple[Path, ...]:
    """The folders of a top-level package; a module of one file is its path without the suffix."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, AttributeError, ValueError):
        return ()
    if spec is None or (spec.origin is None and not spec.submodule_search_locations):
        return ()
    if spec.submodule_search_locations:
        return tuple(map(Path, spec.submodule_search_locations))
    return (Path(str(spec.origin)).with_suffix(""),)


def _reached(starts: Sequence[_Module]) -> dict[str, Path]:
    """All modules of `kd` and from outside of the installed packages that `starts` import, and themselves."""
    found, waiting = dict[str, Path](), list(starts)
    while waiting:
        module = waiting.pop()
        if module[0] not in found and not _is_installed(module):
            found[module[0]] = module[1]
            waiting += _imports(*module)
            waiting += _packages(module[0])
    return found


def _packages(name: str) -> Iterator[_Module]:
    """The packages around a module from outside of `kd`, which Python executes before it."""
    parts = name.split(".")
    for end in range(1, len(parts)) if parts[0] != "kd" else ():
        if (file := _file_of(".".join(parts[:end]))) is not None:
            yield ".".join(parts[:end]), file


@cache
def _imports(name: str, file: Path) -> tuple[_Module, ...]:
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    targets = _imported(file.read_text(encoding="utf-8"), package)
    if name.split(".")[0] == "kd":
        targets = (target for target in targets if target.startswith("kd."))
    found = map(_module_of, targets)
    return tuple(module for module in dict.fromkeys(found) if module is not None and not _is_installed(module))


def _imported(source: str, package: str) -> Iterator[str]:
    """Absolute dotted names in a module's import statements, and in calls of `import_module` with a name as it stands;
    of `from a import b` it is a.b."""
    yield from _DYNAMIC.findall(source)
    for base, names, plain in _IMPORT.findall(re.sub(r"\\\n|#[^\n]*", " ", source)):
        if plain:
            yield from (word.split(" as ")[0].strip() for word in plain.split(","))
        else:
            dots = len(base) - len(base.lstrip("."))
            parents = package.split(".")[: len(package.split(".")) + 1 - dots] if dots else []
            root = ".".join([*parents, *filter(None, [base.lstrip(".")])])
            words = names.strip("() \t").split(",")
            yield from (f"{root}.{word.split(' as ')[0].strip()}" for word in words if word.strip())


def _is_installed(module: _Module) -> bool:
    """Return whether a module is Python's or an installed package's: its version is recorded, not its content."""
    name, file = module
    if name.split(".")[0] == "kd":
        return False
    return any(file.is_relative_to(folder) for folder in _installed_folders())


@lru_cache(maxsize=1)
def _installed_folders() -> tuple[Path, ...]:
    folders = [*map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")), site.getusersitepackages()]
    return tuple(Path(folder) for folder in folders)


def _stamp(name: str, file: Path) -> dict[str, int | str]:
    if name.split(".")[0] != "kd":
        return {name: _own(name, file)}
    stat = file.stat()
    version = _version_in(str(file), stat.st_size, stat.st_mtime_ns)
    return {name: version} if version != 1 else {}


@cache
def _version_in(file: str, size: int, modified: int) -> int:
    """The `VERSION` of a module of `kd`, read once for each size and modification time, as sha256s are."""
    match = _VERSION.search(Path(file).read_text(encoding="utf-8"))
    return int(match[1]) if match else 1


def _own(name: str, file: Path) -> str:
    """The sha256 of a module from outside of `kd`.

    Raises ValueError where this process has imported it and its file changed since, so that the old code would run.
    """
    now = file_sha256(file)
    module = sys.modules.get(name)
    if module is not None and _imported_as.setdefault(module, now) != now:
        raise ValueError(f"{file} changed after this process had imported it; start the command again")
    return now
