"""Rows that cannot be read are refused or skipped and counted, in every format, and named where results are shown.

Run: python -m pytest tests/skills/test_bad_rows.py
"""

# ruff: noqa: E501 - tables

import gzip
import json

import pyarrow
import pytest
from pyarrow import feather, parquet

from kd.data.bad_rows import BadRows
from kd.experiment.disclosure import _skipped
from kd.experiment.identity import _records_digest, identity
from kd.reports.table import run_grid
from kd.runs.results import validated
from kd.skills.__main__ import main
from kd.skills.dataset import Dataset
from kd.skills.mixture import Mixture
from kd.skills.records import made
from tests import runs

GOOD = [{"question": f"{i**5 + 7919 * i:x} in decimal, {i}?", "answer": str(i)} for i in range(30)]
TAIL = {"validation": 0, "test": 0}


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(rows):
    def sheet(texts):
        return pyarrow.table({name: pyarrow.array(texts(name), pyarrow.binary()) for name in ("question", "answer")})

    whole = sheet(lambda name: [row[name] if row[name] is None else as_bytes(row[name]) for row in rows])
    types = pyarrow.schema([(name, pyarrow.string()) for name in whole.column_names])  # without a check of the bytes
    columns = [
        pyarrow.Array.from_buffers(pyarrow.string(), len(rows), column.chunk(0).buffers()) for column in whole.columns
    ]
    return pyarrow.Table.from_arrays(columns, schema=types)


def as_bytes(value):
    return value if isinstance(value, bytes) else value.encode()


def parquet_file(path, rows):
    parquet.write_table(table(rows), path)


def feather_file(path, rows):
    feather.write_feather(table(rows), path)


IN_COLUMNS = [
    *GOOD[:2],
    {"question": None, "answer": "x"},
    {"question": b"gr\xf6\xdfe", "answer": "x"},
    {"question": " ", "answer": "x"},
    *GOOD[2:],
]
COLUMNS = [": row 3 fits no known shape", ": row 4 is no UTF-8", ": row 5 has an empty text as its question"]
AS_LINES = (
    lines(GOOD[:2])
    + b'\n{"question": "no ans\n'
    + b"[1, 2]\nnull\n"
    + '{"question": "größe", "answer": "x"}\n'.encode("latin1")
    + lines([{"foo": 1}, {"question": "a", "answer": ["b", {}]}, {"question": "", "answer": "b"}, {"question": "a"}])
    + lines([{"question": "half \ud83d", "answer": "b"}, {"prompt": "a", "answer": 1.5, "label": True}])
    + b'{"question": "'
    + b"x" * 1001
    + b'", "answer": "b"}\n'
    + lines(GOOD[2:])
    + b'{"question": "torn", "answ'
)
LINES = [
    *(":4 is no JSON", ":5 is a list", ":6 is null", ":7 is no UTF-8", ":13 is read as prompt → answer", ":14 has more than", ":43 is no JSON"),
    *(":8 fits no known shape", ":9 has {}, which is no text as its answer[1]", ":10 has an empty text", ":11 is read as question", ":12: message 0 (user): its content holds"),
]  # fmt: skip
LIST = (
    b"["
    + b",\n".join(lines([row]).strip() for row in GOOD)
    + '\n,3, {"foo": 1}, {"question": "größe", "answer": "b"}]'.encode("latin1")
)
CSV = "question,answer\n" + "".join(f'"{row["question"]}",{row["answer"]}\n' for row in GOOD)
FORMATS = {  # the file's name: its content, and the bad rows, by what their sentences hold
    "a.jsonl": (AS_LINES, LINES),
    "lines.json": (AS_LINES, LINES),
    "a.jsonl.gz": (gzip.compress(AS_LINES), LINES),
    "list.json": (LIST, [": item 31 is a number", ": item 32 fits no known shape", ": item 33 is no UTF-8"]),
    "a.csv": (
        CSV.encode() + "\ngröße,1\na,b,c\nd\n,b\n".encode("latin1") + b'"open,\nquote\n',
        [":33 is no UTF-8", ":34 has 3 cells under 2 columns", ":35 has 1 cells", ":36 has an empty text", ":37 is no row of a table (unexpected end of data, up to line 38)"],
    ),
    "a.tsv": (CSV.replace(",answer", "\tanswer").replace('",', '"\t').encode() + b'"a"b\tc\n"a\nb"\td\te\n', [":32 is no row of a table", ":33 has 3 cells"]),
    "a.parquet": (parquet_file, COLUMNS),
    "a.feather": (feather_file, COLUMNS),
}  # fmt: skip


@pytest.fixture(params=FORMATS)
def file(request, tmp_path):
    content, found = FORMATS[request.param]
    path = tmp_path / request.param
    content(path, IN_COLUMNS) if callable(content) else path.write_bytes(content)
    return path, found


def asked(skill):
    return {(record.prompt[0]["content"], record.responses[0].text) for record in skill.load("train")}


def test_bad_rows_are_refused_or_skipped_in_every_format(file, monkeypatch):
    monkeypatch.setattr("kd.data.tables.LONGEST", 1000)  # characters of a row
    path, found = file
    with pytest.raises(ValueError, match=path.name) as raised:
        Dataset(str(path), **TAIL).load("train")
    skill = Dataset(str(path), bad_rows="skip", **TAIL)
    assert skill.skipped_rows == []
    assert asked(skill) == {(row["question"], row["answer"]) for row in GOOD}
    assert len(skill.skipped_rows) == len(found)
    for sentence in found:
        assert sum(str(path) + sentence in one for one in skill.skipped_rows) == 1, (sentence, skill.skipped_rows)
    first = str(raised.value).partition("; ")[0]
    assert path.suffix == ".json" or first in skill.skipped_rows  # of a list, a line is named in place of an item


def test_a_file_that_cannot_be_read_is_refused_in_any_case(tmp_path):
    for name, content in {
        "a.json": b'[{"question": "a"},\n{"que',
        "b.parquet": b"PAR1",
        "c.jsonl.gz": gzip.compress(AS_LINES)[:90],
        "d.csv": b"a,a\n1,2\n",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            Dataset(str(tmp_path / name), bad_rows="skip").load("train")
    (tmp_path / "e.jsonl").write_bytes(b"{\n3\n")
    with pytest.raises(
        ValueError, match=r"has no rows that can be read \(.*e.jsonl:1 is no JSON .*; .*:2 is a number.*\); write some"
    ):
        Dataset(str(tmp_path / "e.jsonl"), bad_rows="skip").load("train")
    with pytest.raises(ValueError, match=r"skill.bad_rows=drop is neither refuse nor skip"):
        BadRows("drop")


def test_templates_groups_and_ids_of_bad_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    odd = [
        {"q": "a", "id": 31},
        {"q": "b", "a": "c", "id": 4},
        {"q": "d", "a": "e", "id": 32},
        {"q": None, "a": "e", "id": 33},
    ]
    path.write_bytes(
        lines([{"q": row["question"], "a": row["answer"], "id": i, "page": i} for i, row in enumerate(GOOD)] + odd)
    )
    settings = {"columns": {"prompt": "{q}", "response": "{a}"}, "group_key": "page", **TAIL}
    skill = Dataset(str(path), bad_rows="skip", **settings)
    assert len(skill.load("train")) == 30
    assert [one.rpartition(".jsonl")[2][:23] for one in skill.skipped_rows] == [
        ":31 has no a, which ski",
        ":32 has no page, which ",
        ":33 has no page, which ",
        ":34: q is null, which s",
    ]
    repeated = Dataset(str(path), bad_rows="skip", **{**settings, "group_key": None})
    assert len(repeated.load("train")) == 31
    assert any(":32 has the id 4 of " in one for one in repeated.skipped_rows)


def test_the_option_is_another_run_only_where_it_changes_the_records(tmp_path):
    def named(path, **more):
        made.cache_clear()  # as in another process
        _records_digest.cache_clear()
        node = {"_target_": "kd.skills.dataset.Dataset", "_convert_": "all", "path": path, "name": "mine", **more}
        return identity(runs.config("objective=sft", skill=node))

    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(GOOD))
    whole = named(str(path))
    assert named(str(path), bad_rows="skip") == named(str(path), bad_rows="refuse") == whole
    path.write_bytes(lines(GOOD[:20]) + b"{\n" + lines(GOOD[21:]))
    assert named(str(path), bad_rows="skip") != whole
    path.write_bytes(lines(GOOD) + b"{\n")
    assert named(str(path), bad_rows="skip") == whole


def test_skipped_rows_are_named_by_the_run_its_results_and_the_report_on_the_data(tmp_path, capsys):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(lines(GOOD) + b"{\n3\nnull\n[]\n")
    main(["inspect", "dataset", f"path={path}", "bad_rows=skip"])
    told = capsys.readouterr()
    assert f"mine: 4 of 34 rows were skipped (skill.bad_rows=skip): {path}:31 is no JSON" in told.err
    assert "skipped rows                                 4" in told.out
    assert "and 1 more" in told.out
    parts = {name: {"weight": 1, "path": str(path), "name": name, "bad_rows": "skip"} for name in ("dataset",)}
    mixed = Mixture(of={**parts, "chain_sum": {"weight": 1, "train": 8, "validation": 2, "test": 2}}, train=8)
    mixed.load("train")
    found = _skipped([mixed])
    assert found["dataset"]["count"] == 4
    assert [one.removeprefix(str(path))[:3] for one in found["dataset"]["first"]] == [":31", ":32", ":33"]
    results = validated({**runs_results(), "skipped_rows": found})
    assert results["skipped_rows"] == found
    (note,) = [note for note in run_grid(results).notes if note.startswith("Skipped")]
    assert note.startswith(f"Skipped rows of dataset: 4, {path}:31 is no JSON")


def runs_results():
    """The least that a run's results hold."""
    budget = dict.fromkeys(
        ("student_flops", "tokens", "teacher_tokens", "generated_tokens", "seconds", "peak_memory_bytes"), 0
    )
    digests = dict.fromkeys(("initial_weights", "data_order", "evaluation_items"), "0")
    scored = {"exact_match": {system: {"value": 0.5, "n": 2} for system in ("before", "after")}}
    return {
        "config_hash": "0" * 12,
        "seed": 1,
        "scores": {"dataset": scored},
        "gap_closed": {},
        "budget": budget,
        "digests": digests,
    }
