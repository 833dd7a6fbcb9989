"""The tables that a path names, by split: a file, a folder, a glob, an address, a list of these, or one per split."""

import glob
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from kd.data.bad_rows import BadRows
from kd.data.hub import hub_tables
from kd.data.tables import COMPRESSED, SUFFIXES, Row, is_table, rows, stem
from kd.sources.addresses import fetch
from kd.sources.archives import members_of

Reader = Callable[[Path], Iterable[Mapping[str, Any]]]
Table = Callable[[BadRows], Iterator[Row]]
Tables = Mapping[str | None, Sequence[Table]]
SPLITS = ("train", "validation", "test")
NAMED = {
    **{name: "train" for name in ("train", "training")},
    **{name: "validation" for name in ("validation", "valid", "val", "dev", "eval")},
    **{name: "test" for name in ("test", "testing")},
}
KEYS = {"address", "member", "sha256"}


def tables(path: Any, reader: Reader | None = None) -> Tables:
    """The tables of each split; under None those that are still to be divided.

    Args:
        path: see the module. An address is a text (`hub:org/name@revision`, which may go on as `:config`) or a mapping
            of `address`, `member` (a name, a glob, or a list) and `sha256`. A folder whose files are called after
            splits (`train.jsonl`, `dev.csv`, `test/1.parquet`) is divided by them.
        reader: makes rows of a file that is no table.

    Raises:
        ValueError: the path is of none of these forms, or names no table.
        FileNotFoundError: there is no such file.
    """
    if isinstance(path, Mapping) and "address" not in path:
        return _by_split(path, reader)
    parts = path if isinstance(path, list | tuple) else [path]
    if not parts:
        raise ValueError("skill.path is an empty list; name a file")
    found: dict[str | None, list[Table]] = {}
    for part in parts:
        for split, own in _of(part, reader).items():
            found.setdefault(split, []).extend(own)
    if None in found and len(found) > 1:
        raise ValueError(
            f"skill.path={path} names files of splits beside others; give each its split, as in "
            "skill.path={train: ..., test: ...}"
        )
    return found


def _by_split(path: Mapping[str, Any], reader: Reader | None) -> Tables:
    given = {NAMED.get(str(name).lower()): part for name, part in path.items() if part is not None}
    if None in given or not given:
        raise ValueError(
            f"skill.path has the keys {', '.join(map(str, path)) or 'of nothing'}; they are train, validation and "
            "test, or those of an address (address, member, sha256)"
        )
    return {split: _of_split(split, tables(part, reader)) for split, part in given.items()}


def _of_split(split: str | None, found: Tables) -> Sequence[Table]:
    """What a path that stands for one split names: of a source with splits of its own, those of this one."""
    if split in found or None in found:
        return found[split if split in found else None]
    raise ValueError(f"skill.path.{split} has the splits {', '.join(map(str, found))}, and no {split}; name its files")


def _of(part: Any, reader: Reader | None) -> Tables:
    if isinstance(part, Mapping):
        return {None: [_table(file, reader) for file in _fetched(part)]}
    if not isinstance(part, str):
        raise ValueError(f"skill.path={part!r} is no path; name a file, a folder, a glob or an address")
    scheme = part.partition(":")[0]
    if scheme == "hub":
        return hub_tables(part, NAMED)
    if scheme in ("wheel", "sdist"):
        raise ValueError(f"skill.path={part} lacks its sha256; write {{address: {part!r}, member: ..., sha256: ...}}")
    return _local(part.removeprefix("local:"), reader)


def _fetched(part: Mapping[str, Any]) -> Iterator[Path]:
    """The files of an address: each member on its own, globs among them spelled out; the whole where it names none."""
    if odd := part.keys() - KEYS:
        raise ValueError(f"skill.path has {', '.join(sorted(odd))} beside an address; its keys are {', '.join(KEYS)}")
    address, member, sha256 = str(part["address"]), part.get("member"), part.get("sha256")
    if member is None:
        yield fetch(address, sha256=sha256)
        return
    names = [member] if isinstance(member, str) else list(member)
    for name in names:
        spelled = _spelled(address, name, sha256) if glob.has_magic(name) else [name]
        yield from (fetch(address, member=each, sha256=sha256) for each in spelled)


def _spelled(address: str, pattern: str, sha256: str | None) -> list[str]:
    whole = fetch(address, sha256=sha256)
    inside = (file.relative_to(whole).as_posix() for file in whole.rglob("*") if file.is_file())
    found = sorted(name for name in (inside if whole.is_dir() else members_of(whole)) if fnmatchcase(name, pattern))
    if not found:
        raise ValueError(f"no member of {address} matches {pattern!r}; correct the glob")
    return found


def _local(text: str, reader: Reader | None) -> Tables:
    path = Path(text).expanduser()
    if path.is_dir():
        return _folder(path, reader)
    if path.is_file():
        return {None: [_table(path, reader)]}
    files = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
    if files:
        return _named_or_all(files, path.parent, reader)
    what = "matches no file" if glob.has_magic(text) else "does not exist"
    raise FileNotFoundError(f"skill.path={text} {what}, seen from {Path.cwd()}; correct the path")


def _folder(folder: Path, reader: Reader | None) -> Tables:
    if (folder / "dataset_dict.json").is_file():  # as `datasets` saves several splits
        files = sorted(folder.glob("*/*.arrow"))
    else:
        files = sorted(file for file in folder.rglob("*") if file.is_file() and (reader or is_table(file)))
        files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
        if any(file.suffix == ".arrow" for file in files):  # `datasets` keeps its state beside them
            files = [file for file in files if file.name not in ("state.json", "dataset_info.json")]
    if not files:
        ends = f"{', '.join(SUFFIXES)} ({', '.join(COMPRESSED)})"
        raise ValueError(f"folder skill.path={folder} holds no file that ends in {ends}; add one, or name a reader")
    return _named_or_all(files, folder, reader)


def _named_or_all(files: Sequence[Path], base: Path, reader: Reader | None) -> Tables:
    """The files by the split that their name or folder gives; if none gives one, all of them undivided."""
    found: dict[str | None, list[Table]] = {}
    for file in files:
        found.setdefault(_split_of(file, base), []).append(_table(file, reader))
    if len(found) > 1 and None in found:
        other = next(file for file in files if _split_of(file, base) is None)
        raise ValueError(f"{other} lies beside files called after splits; name each split's files in skill.path")
    return found


def _split_of(file: Path, base: Path) -> str | None:
    parts = file.relative_to(base).parts[:-1] if file.is_relative_to(base) else ()
    first = stem(file).replace(".", "-").replace("_", "-").lower().split("-")[0]  # train-00000-of-00002
    return next((NAMED[name.lower()] for name in (*parts, first) if name.lower() in NAMED), None)


def _table(file: Path, reader: Reader | None) -> Table:
    if reader is None:
        return lambda bad: rows(file, bad)

    def read(bad: BadRows) -> Iterator[Row]:
        for i, values in enumerate(reader(file), start=1):
            if row := bad.attempt(_of_reader, f"{file}: row {i} of {reader.__name__}", values):
                yield row

    return read


def _of_reader(place: str, values: Any) -> Row:
    if not isinstance(values, Mapping):
        raise ValueError(f"{place} is {type(values).__name__}, not a mapping of columns; mend the reader")
    return Row(place, values)
