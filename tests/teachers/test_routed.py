"""Teachers of domains: the record's key or skill chooses, and each one's share is reported.

Run: python -m pytest tests/teachers/test_routed.py
"""

from dataclasses import replace

import pytest
import torch

from kd.data.sequences import Encoder
from kd.teachers.routed import Routed
from kd.teachers.white_box import WhiteBox
from kd.types import Record
from tests.teachers.test_ensemble import FIELDS, batches, everything
from tests.tiny import records, tiny


def routed(**settings) -> Routed:
    return Routed(members={"sums": WhiteBox(tiny(1)), "words": WhiteBox(tiny(2))}, **settings)


def of_domains(*names: str, key: str = "domain") -> list[Record]:
    return [replace(record, meta={key: name}) for record, name in zip(records(len(names), seed=3), names, strict=True)]


def test_a_record_is_read_by_the_teacher_of_its_key_else_of_its_skill():
    teacher = routed(key="domain")
    told = of_domains("words", "sums", "words")
    told[1] = replace(told[1], meta={"teacher": "words"}, skill="sums")  # of another key, which does not matter
    (batch,) = batches(told, 10_000)
    expected = {r.id: r.meta.get("domain", "sums") for r in told}
    assert [teacher.names[k] for k in teacher.owners(batch).tolist()] == [expected[r.id] for r in batch.records]
    output = teacher.read(batch, FIELDS)
    alone = {name: WhiteBox(tiny(seed))(batch.teacher, FIELDS) for name, seed in (("sums", 1), ("words", 2))}
    row = 0
    for i, record in enumerate(batch.records):
        mine = slice(row, row := row + int(batch.teacher.mask[i].sum()))
        torch.testing.assert_close(everything(output)[mine], everything(alone[expected[record.id]])[mine])


def test_the_share_of_each_is_of_the_tokens_read():
    teacher = routed(key="domain")
    (batch,) = batches(of_domains("words", "sums", "words"), 10_000)
    teacher.read(batch, FIELDS)
    lengths = batch.teacher.lengths.tolist()
    sums = sum(n for n, r in zip(lengths, batch.records, strict=True) if r.meta["domain"] == "sums")
    report = teacher.take_report()
    assert report == {
        "teacher_share/sums": (sums, sum(lengths)),
        "teacher_share/words": (sum(lengths) - sums, sum(lengths)),
    }
    assert teacher.take_report()["teacher_share/sums"] == (0.0, 0.0)


def test_a_record_of_no_domain_is_named():
    teacher, encoder = routed(key="domain"), Encoder(tiny().tokenizer, None, max_length=200, max_tokens=200)
    with pytest.raises(ValueError, match=r"record 0 of toy names domain 'maps' in its meta.* sums and words"):
        teacher.check(of_domains("maps"), [], [], encoder)
    with pytest.raises(ValueError, match=r"record 0 of toy has no `domain` in its meta"):
        teacher.check(records(1), [], [], encoder)
