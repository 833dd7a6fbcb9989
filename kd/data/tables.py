"""Files of rows: JSON Lines, JSON, CSV, TSV, text, Parquet and Arrow, compressed or not, each row with its place.

Text is UTF-8, or what a byte order mark names; line ends are those of any system. A row that cannot be read is an error
of one sentence with file and line.
"""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

LONGEST = 10_000_000  # characters of one row: more is a file without line ends, or no text
IN_JSON = ("data", "rows", "examples", "instances")  # where a JSON file that is one object keeps its rows
Values = Mapping[str, Any]


class Row(NamedTuple):
    """A row's values by column, and its place for messages: `train.jsonl:3`, `train.parquet: row 3`."""

    place: str
    values: Values


def rows(path: Path) -> Iterator[Row]:
    """The rows of a file, in the format of its suffix (`SUFFIXES`, and one of `COMPRESSED` after it).

    Raises:
        ValueError: the suffix is of no format, or a row cannot be read; names the file and the line.
    """
    if not is_table(path):
        raise ValueError(
            f"{path} is no file of rows; they end in {', '.join(SUFFIXES)}, and in {', '.join(COMPRESSED)} if "
            "compressed; for another format name a function in skill.reader"
        )
    reader = SUFFIXES[_suffix(path)]
    try:
        with _opened(path) as file:
            yield from reader(path, file)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no UTF-16 ({error.reason}), as its first bytes claim; convert it to UTF-8"
        ) from error
    except (EOFError, lzma.LZMAError, gzip.zlib.error, OSError) as error:  # type: ignore[attr-defined]
        raise ValueError(f"{path} cannot be read ({error}); write or download it again") from error


def is_table(path: Path) -> bool:
    """Whether the name ends as a file of rows does."""
    return _suffix(path) in SUFFIXES


def stem(path: Path) -> str:
    """The name without the suffixes of its format and compression: `train` of `train.jsonl.gz`."""
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return name.stem if name.suffix.lower() in SUFFIXES else name.name


def _suffix(path: Path) -> str:
    inner = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return inner.suffix.lower()


def _opened(path: Path) -> io.BufferedReader:
    opening = COMPRESSED.get(path.suffix.lower())
    return path.open("rb") if opening is None else io.BufferedReader(opening(path))


def _zstd(path: Path) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")


# --- text ---


def _text(file: io.BufferedReader) -> io.TextIOWrapper:
    """The file as text; bytes that are none become surrogates, which `_checked` names."""
    start = file.peek(4)[:4] if hasattr(file, "peek") else b""
    wide = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return io.TextIOWrapper(file, "utf-16" if wide else "utf-8-sig", errors="surrogateescape", newline="")


def _lines(path: Path, file: io.BufferedReader) -> Iterator[tuple[int, str]]:
    number = 0
    with _text(file) as text:
        while line := text.readline(LONGEST + 1):
            number += 1
            if len(line) > LONGEST:
                raise ValueError(f"{path}:{number} has more than {LONGEST} characters; cut the row, or leave it out")
            yield number, _checked(path, number, line)


def _checked(path: Path, number: int, line: str) -> str:
    for i, character in enumerate(line) if not line.isascii() else ():
        if "\udc80" <= character <= "\udcff":
            byte = ord(character) - 0xDC00
            raise ValueError(
                f"{path}:{number} is no UTF-8 (byte 0x{byte:02x} at character {i}); convert the file, as in "
                f"iconv -f latin1 -t utf-8 {path.name}"
            )
    return line


def _text_lines(path: Path, file: io.BufferedReader) -> Iterator[Row]:
    for number, line in _lines(path, file):
        if line.strip():
            yield Row(f"{path}:{number}", {"text": line.strip()})


def _json_lines(path: Path, file: io.BufferedReader) -> Iterator[Row]:
    for number, line in _lines(path, file):
        if line.strip():
            place = f"{path}:{number}"
            yield Row(place, _mapping(place, _parsed(place, line)))


def _parsed(place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"character {error.pos} of {len(text.rstrip())}"
        raise ValueError(f"{place} is no JSON ({error.msg} at {where}); mend the row, or leave it out") from error
    except RecursionError:
        raise ValueError(f"{place} is nested too deeply to be read; flatten the row, or leave it out") from None


def _mapping(place: str, value: Any) -> Values:
    if not isinstance(value, Mapping):
        kind = {list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number")
        raise ValueError(f"{place} is {kind}, not an object with columns; write {{...}}, or leave it out")
    return value


def _json(path: Path, file: io.BufferedReader) -> Iterator[Row]:
    """A list of objects, an object that holds one, or, as is usual on the hub, JSON Lines under this suffix."""
    lines = list(_lines(path, file))
    text = "".join(line for _, line in lines)
    first = next((line for _, line in lines if line.strip()), "")
    try:
        whole = json.loads(text)
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to be read; flatten its rows") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and first.rstrip().endswith("}"):
            for number, line in lines:
                if line.strip():
                    yield Row(f"{path}:{number}", _mapping(f"{path}:{number}", _parsed(f"{path}:{number}", line)))
            return
        raise ValueError(f"{path}:{error.lineno} is no JSON ({error.msg}); mend the file") from error
    for i, value in enumerate(_listed(path, whole), start=1):
        place = f"{path}: item {i}"
        yield Row(place, _mapping(place, value))


def _listed(path: Path, whole: Any) -> list[Any]:
    if isinstance(whole, list):
        return whole
    held = [key for key, value in whole.items() if isinstance(value, list)] if isinstance(whole, Mapping) else []
    chosen = next((key for key in IN_JSON if key in held), held[0] if len(held) == 1 else None)
    if chosen is None:
        raise ValueError(f"{path} holds no list of rows; write a list of objects, or one object in each line (.jsonl)")
    return list(whole[chosen])


def _csv(path: Path, file: io.BufferedReader, delimiters: str = ",;\t") -> Iterator[Row]:
    csv.field_size_limit(LONGEST)
    lines = _lines(path, file)
    header_line = next(lines, (1, ""))[1]
    delimiter = max(delimiters, key=header_line.count)
    header = next(csv.reader([header_line], delimiter=delimiter), [])
    if len(set(header)) < len(header) or not all(header):
        raise ValueError(f"{path}:1 names no columns ({header_line.strip()[:60]!r}); give each column one name there")
    reader = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
    start = 2
    while True:
        place = f"{path}:{start}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"{place} is no row of a table ({error}); mend its quotes, or leave it out") from error
        if cells and len(cells) != len(header):
            raise ValueError(f"{place} has {len(cells)} cells under {len(header)} columns; mend the row")
        if cells:
            yield Row(place, dict(zip(header, cells, strict=True)))
        start = reader.line_num + 2


def _tsv(path: Path, file: io.BufferedReader) -> Iterator[Row]:
    return _csv(path, file, "\t")


# --- columns ---


def _parquet(path: Path, file: io.BufferedReader) -> Iterator[Row]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        found = ParquetFile(pyarrow.BufferReader(file.read()) if path.suffix.lower() in COMPRESSED else path)
        yield from _numbered(path, (row for batch in found.iter_batches(1024) for row in batch.to_pylist()))
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is no Parquet file ({_first(error)}); write or download it again") from error


def _arrow(path: Path, file: io.BufferedReader) -> Iterator[Row]:
    """An IPC file (Feather), or a stream, as `datasets` keeps its tables."""
    import pyarrow

    content = pyarrow.BufferReader(file.read())
    try:
        try:
            table = pyarrow.ipc.open_file(content).read_all()
        except pyarrow.ArrowInvalid:
            content.seek(0)
            table = pyarrow.ipc.open_stream(content).read_all()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is no Arrow file ({_first(error)}); write or download it again") from error
    yield from _numbered(path, (row for batch in table.to_batches(1024) for row in batch.to_pylist()))


def _numbered(path: Path, values: Iterator[Values]) -> Iterator[Row]:
    for i, row in enumerate(values, start=1):
        yield Row(f"{path}: row {i}", row)


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


SUFFIXES: dict[str, Callable[[Path, io.BufferedReader], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".txt": _text_lines,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".feather": _arrow,
}
COMPRESSED: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstd,
}
