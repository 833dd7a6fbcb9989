"""Files of rows: JSON Lines, JSON, CSV, TSV, text, Parquet and Arrow, compressed or not, each row with its place.

Text is UTF-8, or what a byte order mark names; line ends are those of any system. A row that cannot be read is an error
of one sentence with file and line, or is skipped; a file that cannot be read is an error in any case.
"""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kd.data.bad_rows import BadRows

LONGEST = 10_000_000  # characters of one row: more is a file without line ends, or no text
IN_JSON = ("data", "rows", "examples", "instances")  # where a JSON file that is one object keeps its rows
Values = Mapping[str, Any]


class Row(NamedTuple):
    """A row's values by column, and its place for messages: `train.jsonl:3`, `train.parquet: row 3`."""

    place: str
    values: Values


def rows(path: Path, bad: BadRows | None = None) -> Iterator[Row]:
    """The rows of a file, in the format of its suffix (`SUFFIXES`, and one of `COMPRESSED` after it).

    bad: receives rows that cannot be read; None: the first is an error.

    Raises:
        ValueError: the suffix is of no format, the file cannot be read, or a row; names the file and the line.
    """
    if not is_table(path):
        raise ValueError(
            f"{path} is no file of rows; they end in {', '.join(SUFFIXES)}, and in {', '.join(COMPRESSED)} if "
            "compressed; for another format name a function in skill.reader"
        )
    reader = SUFFIXES[_suffix(path)]
    try:
        with _opened(path) as file:
            yield from reader(path, file, bad or BadRows())
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
    """The lines with their numbers, unchecked; of one that is too long, the start."""
    number = 0
    with _text(file) as text:
        while line := text.readline(LONGEST + 1):
            number += 1
            yield number, line
            while len(line) > LONGEST and not line.endswith(("\n", "\r")):
                line = text.readline(LONGEST + 1) or "\n"


def _checked(path: Path, number: int, line: str) -> str:
    if len(line) > LONGEST:
        raise ValueError(f"{path}:{number} has more than {LONGEST} characters; cut the row, or leave it out")
    for i, character in enumerate(line) if not line.isascii() else ():
        if "\udc80" <= character <= "\udcff":
            byte = ord(character) - 0xDC00
            raise ValueError(
                f"{path}:{number} is no UTF-8 (byte 0x{byte:02x} at character {i}); convert the file, as in "
                f"iconv -f latin1 -t utf-8 {path.name}"
            )
    return line


def _text_lines(path: Path, file: io.BufferedReader, bad: BadRows) -> Iterator[Row]:
    for number, line in _lines(path, file):
        if line.strip() and (text := bad.attempt(_checked, path, number, line)):
            yield Row(f"{path}:{number}", {"text": text.strip()})


def _json_lines(path: Path, file: io.BufferedReader, bad: BadRows) -> Iterator[Row]:
    return _json_rows(path, _lines(path, file), bad)


def _json_rows(path: Path, lines: Iterable[tuple[int, str]], bad: BadRows) -> Iterator[Row]:
    for number, line in lines:
        if line.strip() and (row := bad.attempt(_json_row, path, number, line)):
            yield row


def _json_row(path: Path, number: int, line: str) -> Row:
    place = f"{path}:{number}"
    return Row(place, _mapping(place, _parsed(place, _checked(path, number, line))))


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


def _json(path: Path, file: io.BufferedReader, bad: BadRows) -> Iterator[Row]:
    """A list of objects, an object that holds one, or, as is usual on the hub, JSON Lines under this suffix."""
    lines = list(_lines(path, file))
    if not bad.skip:
        lines = [(number, _checked(path, number, line)) for number, line in lines]
    text = "".join(line for _, line in lines)
    first = next((line for _, line in lines if line.strip()), "")
    try:
        whole = json.loads(text)
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to be read; flatten its rows") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and first.rstrip().endswith("}"):
            yield from _json_rows(path, lines, bad)
            return
        raise ValueError(f"{path}:{error.lineno} is no JSON ({error.msg}); mend the file") from error
    for i, value in enumerate(_listed(path, whole), start=1):
        if row := bad.attempt(_item, f"{path}: item {i}", value):
            yield row


def _item(place: str, value: Any) -> Row:
    row = Row(place, _mapping(place, value))
    if re.search("[\udc80-\udcff]", json.dumps(value, ensure_ascii=False)):  # bytes that are no text
        raise ValueError(f"{place} is no UTF-8; convert the file, or leave the row out")
    return row


def _listed(path: Path, whole: Any) -> list[Any]:
    if isinstance(whole, list):
        return whole
    held = [key for key, value in whole.items() if isinstance(value, list)] if isinstance(whole, Mapping) else []
    chosen = next((key for key in IN_JSON if key in held), held[0] if len(held) == 1 else None)
    if chosen is None:
        raise ValueError(f"{path} holds no list of rows; write a list of objects, or one object in each line (.jsonl)")
    return list(whole[chosen])


def _csv(path: Path, file: io.BufferedReader, bad: BadRows, delimiters: str = ",;\t") -> Iterator[Row]:
    csv.field_size_limit(LONGEST)
    lines = _lines(path, file)
    header_line = _checked(path, *next(lines, (1, "")))
    delimiter = max(delimiters, key=header_line.count)
    header = next(csv.reader([header_line], delimiter=delimiter), [])
    if len(set(header)) < len(header) or not all(header):
        raise ValueError(f"{path}:1 names no columns ({header_line.strip()[:60]!r}); give each column one name there")
    own: list[tuple[int, str]] = []  # the lines of one row
    reader = csv.reader(_kept(lines, own), delimiter=delimiter, strict=True)
    while True:
        own.clear()
        try:
            cells, wrong = next(reader, None), ""
        except csv.Error as error:
            cells, wrong = [], str(error)
        if cells is None:
            return
        if (cells or wrong) and (row := bad.attempt(_csv_row, path, own, header, cells, wrong)):
            yield row


def _kept(lines: Iterable[tuple[int, str]], own: list[tuple[int, str]]) -> Iterator[str]:
    for line in lines:
        own.append(line)
        yield line[1]


def _csv_row(path: Path, lines: Sequence[tuple[int, str]], header: list[str], cells: list[str], wrong: str) -> Row:
    for number, line in lines:
        _checked(path, number, line)
    place = f"{path}:{lines[0][0]}"
    if wrong:
        until = f", up to line {lines[-1][0]}" if len(lines) > 1 else ""
        raise ValueError(f"{place} is no row of a table ({wrong}{until}); mend its quotes, or leave it out")
    if len(cells) != len(header):
        raise ValueError(f"{place} has {len(cells)} cells under {len(header)} columns; mend the row, or leave it out")
    return Row(place, dict(zip(header, cells, strict=True)))


def _tsv(path: Path, file: io.BufferedReader, bad: BadRows) -> Iterator[Row]:
    return _csv(path, file, bad, "\t")


# --- columns ---


def _parquet(path: Path, file: io.BufferedReader, bad: BadRows) -> Iterator[Row]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        found = ParquetFile(pyarrow.BufferReader(file.read()) if path.suffix.lower() in COMPRESSED else path)
        yield from _numbered(path, found.iter_batches(1024), bad)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is no Parquet file ({_first(error)}); write or download it again") from error


def _arrow(path: Path, file: io.BufferedReader, bad: BadRows) -> Iterator[Row]:
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
    yield from _numbered(path, table.to_batches(1024), bad)


def _numbered(path: Path, batches: Iterable[Any], bad: BadRows) -> Iterator[Row]:
    number = 0
    for batch in batches:
        try:
            values = batch.to_pylist()
        except UnicodeDecodeError:
            values = None
        for i in range(batch.num_rows):
            number += 1
            place = f"{path}: row {number}"
            row = Row(place, values[i]) if values else bad.attempt(_row_of, place, batch, i)
            if row is not None:
                yield row


def _row_of(place: str, batch: Any, i: int) -> Row:
    try:
        return Row(place, batch.slice(i, 1).to_pylist()[0])
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is no UTF-8 ({error.reason}); convert it, or leave it out") from error


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


SUFFIXES: dict[str, Callable[[Path, io.BufferedReader, BadRows], Iterator[Row]]] = {
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
