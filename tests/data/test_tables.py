"""Files of rows in every format, and what is wrong with them.

Run: python -m pytest tests/data/test_tables.py
"""

# ruff: noqa: E501 - tables

import bz2
import codecs
import gzip
import json
import lzma
import re

import pyarrow
import pytest
from pyarrow import feather, parquet

from kd.data.tables import rows, stem

TABLE = [{"question": "Wie groß, 'so'?", "answer": "1,5\nm"}, {"question": "b", "answer": "c"}]
LINES = "".join(json.dumps(row) + "\n" for row in TABLE)
CSV = 'question,answer\n"Wie groß, \'so\'?","1,5\nm"\nb,c\n'


def stream(table):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def written(path, table, write):
    write(table, path)
    return path.read_bytes()


@pytest.fixture
def formats(tmp_path):
    table = pyarrow.Table.from_pylist(TABLE)
    return {
        "a.jsonl": LINES.encode(),
        "bom.jsonl": codecs.BOM_UTF8 + LINES.replace("\n", "\r\n\r\n").encode(),
        "wide.jsonl": LINES.encode("utf-16"),
        "last.ndjson": LINES.rstrip("\n").encode(),
        "list.json": json.dumps(TABLE, indent=1, ensure_ascii=False).encode(),
        "held.json": json.dumps({"version": 1, "data": TABLE}).encode(),
        "lines.json": LINES.encode(),
        "a.csv": CSV.encode(),
        "excel.csv": codecs.BOM_UTF8 + CSV.replace("1,5", "1;5").replace(",", ";").replace("1;5", "1,5").replace("groß;", "groß,").encode(),
        "a.tsv": CSV.replace("n,a", "n\ta").replace('",', '"\t').replace("b,c", "b\tc").encode(),
        "a.parquet": written(tmp_path / "w", table, parquet.write_table),
        "a.feather": written(tmp_path / "w", table, feather.write_feather),
        "stream.arrow": stream(table),
    }  # fmt: skip


def compressed(name, content):
    yield name, content
    yield f"{name}.gz", gzip.compress(content)
    yield f"{name}.bz2", bz2.compress(content)
    yield f"{name}.xz", lzma.compress(content)
    yield f"{name}.zst", pyarrow.compress(content, "zstd", asbytes=True)


def test_the_same_rows_come_out_of_every_format_and_compression(formats, tmp_path):
    for plain, content in formats.items():
        for name, packed in compressed(plain, content):
            path = tmp_path / name
            path.write_bytes(packed)
            assert [dict(row.values) for row in rows(path)] == TABLE, name
            assert stem(path) == plain.partition(".")[0]


def test_a_text_file_is_a_row_for_each_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\n two \n")
    assert [(row.place, row.values) for row in rows(path)] == [
        (f"{path}:1", {"text": "one"}),
        (f"{path}:3", {"text": "two"}),
    ]


def test_places_are_lines_of_the_file(tmp_path):
    (tmp_path / "a.csv").write_text(CSV)
    (tmp_path / "a.jsonl").write_text("\n" + LINES)
    assert [row.place.rpartition(":")[2] for row in rows(tmp_path / "a.csv")] == ["2", "4"]
    assert [row.place.rpartition(":")[2] for row in rows(tmp_path / "a.jsonl")] == ["2", "3"]


GOOD = b'{"a": 1}\n'
WRONG = {  # file: content, sentence
    "half.jsonl": (GOOD + b'{"a": "b', ":2 is no JSON (Unterminated string starting at at character 6 of 8); mend the row"),
    "latin.jsonl": (GOOD + '{"a": "größe"}'.encode("latin1"), ":2 is no UTF-8 (byte 0xf6 at character 9); convert the file"),
    "list.jsonl": (GOOD + b"[1]", ":2 is a list, not an object with columns"),
    "null.jsonl": (GOOD + b"null", ":2 is null, not an object with columns"),
    "huge.jsonl": (GOOD + b'{"a": "' + b"x" * 10_000_001 + b'"}', ":2 has more than 10000000 characters; cut the row"),
    "deep.jsonl": (b"[" * 100_000, ":1 is nested too deeply"),
    "binary.jsonl": (bytes(range(128, 256)), ":1 is no UTF-8 (byte 0x80 at character 0)"),
    "half.json": (b'[{"a": 1},\n{"a"', ":2 is no JSON (Expecting ':' delimiter); mend the file"),
    "latin.json": ('[\n"größe"]'.encode("latin1"), ":2 is no UTF-8 (byte 0xf6 at character 3)"),
    "item.json": (b'[{"a": 1}, 2]', ": item 2 is a number, not an object"),
    "none.json": (b'{"a": [1], "b": [2]}', " holds no list of rows; write a list of objects"),
    "empty.json": (b"", ":1 is no JSON (Expecting value); mend the file"),
    "short.csv": (b"a,b\n1,2\n3\n", ":3 has 1 cells under 2 columns; mend the row"),
    "quote.csv": (b'a,b\n1,2\n"3,4\n', ":3 is no row of a table (unexpected end of data); mend its quotes"),
    "header.csv": (b"a,a\n1,2\n", ":1 names no columns ('a,a'); give each column one name there"),
    "latin.csv": ("a,b\n1,größe\n".encode("latin1"), ":2 is no UTF-8 (byte 0xf6 at character 4)"),
    "huge.csv": (b"a,b\n1," + b"x" * 10_000_001, ":2 has more than 10000000 characters"),
    "a.parquet": (b"PAR1 or not", " is no Parquet file ("),
    "a.arrow": (b"ARROW1 or not", " is no Arrow file ("),
    "cut.jsonl.gz": (gzip.compress(LINES.encode() * 99)[:40], " cannot be read (Compressed file ended before"),
    "no.jsonl.gz": (b"no gzip at all", " cannot be read (Not a gzipped file"),
    "no.jsonl.bz2": (b"no bzip2 at all", " cannot be read (Invalid data stream"),
    "no.jsonl.xz": (b"no xz at all", " cannot be read (Input format not supported"),
    "no.jsonl.zst": (b"no zstd at all", " cannot be read ("),
    "odd.jsonl": ('{"a": 1}\n'.encode("utf-16")[:-1], " is no UTF-16 ("),
    "a.xlsx": (b"PK", " is no file of rows; they end in .jsonl, .ndjson"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_one_sentence(name, tmp_path):
    content, sentence = WRONG[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(sentence)) as raised:
        list(rows(path))
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)
