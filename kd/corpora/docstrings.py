"""Documentation of packages that are installed anyway: docstrings, bundled pages and the package's description."""

import ast
import hashlib
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath

from kd.artifacts import cache_root, key, once
from kd.corpora.licences import permissive_licence
from kd.corpora.prose import Novelty, prose
from kd.progress import phase
from kd.versions import versions

VERSION = 2  # part of the cache's key: raise it when the same packages are to give other texts

NEARLY_FULL = 2000  # characters left of a package's share at which the first text that does not fit ends it
PAGES = (".md", ".rst")
NO_PROSE = {"test", "tests", "testing", "_vendored", "vendor", "third_party"}  # folders; vendored: others' licences
NO_PAGES = ("license", "copying", "notice", "changelog", "authors")  # how names of other bundled files begin
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Docstrings:
    """English technical prose without a download, read with `ast`: no package is imported for it.

    Each docstring, page or description is a text, cleaned by `kd.corpora.prose`. The packages have equal shares of
    `characters`, and what one does not use goes to those after it. Files are taken in the order of their names'
    hashes, so that a share is drawn from the whole package. The texts depend on the installed versions, and so does
    `digest`.

    Args:
        packages: names of installed distributions.
        characters: upper bound on the sum of the texts' lengths.

    Raises:
        ValueError: a package is not installed from a wheel, its licence is not permissive, or `characters` is not
            positive.
    """

    name = "docstrings"

    def __init__(self, *, packages: Sequence[str], characters: int):
        if characters < 1:
            raise ValueError(f"corpus.characters={characters} leaves no text; give a positive number")
        if not packages:
            raise ValueError("corpus.packages is empty; name an installed package, such as numpy")
        self.characters = characters
        self.packages = [_installed(name) for name in dict.fromkeys(packages)]
        declared = [f"{package.name} {package.version}: {permissive_licence(package)}" for package in self.packages]
        self.licence = "; ".join(declared)

    def texts(self) -> tuple[str, ...]:
        """The documents, from the cache where these packages were read before.

        Raises:
            ValueError: no document of the packages fits.
        """
        return self._texts

    @cached_property
    def digest(self) -> str:
        """Hexadecimal sha256 of the texts and their order."""
        return hashlib.sha256(json.dumps(self.texts()).encode()).hexdigest()

    @cached_property
    def _texts(self) -> tuple[str, ...]:
        path, names = self._path(), ", ".join(package.name for package in self.packages)

        def write(partial: Path) -> None:
            with phase(f"read the documentation of {names}, once"):
                partial.write_text(json.dumps(list(self._read())), encoding="utf-8")

        once(path, write, kind="corpus")
        texts = tuple(json.loads(path.read_text(encoding="utf-8")))
        if not texts:
            raise ValueError(
                f"no documentation that fits corpus.characters={self.characters} is in {names}; "
                "raise it, or add another package to corpus.packages"
            )
        return texts

    def _path(self) -> Path:
        """The path of the texts, named by what they are made from; a newer Python parses more files."""
        packages = [_record(package) for package in self.packages]
        made_from = {"python": sys.version_info[:2], "characters": self.characters, "packages": packages}
        return cache_root() / "corpora" / f"{key({'code': versions(__name__), **made_from})}.json"

    def _read(self) -> Iterator[str]:
        is_new, left = Novelty(), self.characters
        for others, package in zip(range(len(self.packages), 0, -1), self.packages, strict=True):
            share = left // others
            for text in filter(is_new, filter(None, map(prose, documents(package)))):
                if len(text) > share and share < NEARLY_FULL:
                    break
                if len(text) > share:  # a long page, where shorter texts still fit
                    continue
                share, left = share - len(text), left - len(text)
                yield text


def documents(package: Distribution) -> Iterator[str]:
    """The package's description, then its pages and docstrings, file by file."""
    yield str(package.metadata.json.get("description", ""))
    files = [file for file in package.files or () if _is_source(file) or _is_page(file)]
    for file in sorted(files, key=lambda file: hashlib.sha256(str(file).encode()).digest()):
        content = Path(str(file.locate())).read_text(encoding="utf-8", errors="replace")
        if file.suffix in PAGES:
            yield content
        else:
            yield from docstrings(content)


def docstrings(source: str) -> Iterator[str]:
    """Docstrings of a module, its classes and functions, in the order of their lines; none if it cannot be parsed."""
    if '"""' not in source and "'''" not in source:  # parsing is what takes the time
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # others' invalid escapes
            tree = ast.parse(source)
    except (SyntaxError, ValueError):  # templates, and files for other versions of Python
        return
    documented = (node for node in ast.walk(tree) if isinstance(node, DOCUMENTED))
    for node in sorted(documented, key=lambda node: getattr(node, "lineno", 0)):
        if text := ast.get_docstring(node):
            yield text


def _is_source(file: PurePosixPath) -> bool:
    return file.suffix == ".py" and not NO_PROSE & set(file.parts)


def _is_page(file: PurePosixPath) -> bool:
    mentioned = any(part.endswith(".dist-info") for part in file.parts) or bool(NO_PROSE & set(file.parts))
    return file.suffix in PAGES and not mentioned and not file.name.lower().startswith(NO_PAGES)


def _installed(name: str) -> Distribution:
    try:
        package = distribution(name)
    except PackageNotFoundError as error:
        raise ValueError(
            f"package {name!r} of corpus.packages is not installed; install it, or take it out of the list"
        ) from error
    if not any(_is_source(file) for file in package.files or ()):
        raise ValueError(
            f"package {name!r} of corpus.packages lists no Python files, as editable installations do not; "
            "install its wheel, or take it out of the list"
        )
    return package


def _record(package: Distribution) -> list[str]:
    """Name, version and the wheel's own list of files with their hashes."""
    return [package.name, package.version, hashlib.sha256((package.read_text("RECORD") or "").encode()).hexdigest()]
