"""Data sets of the hub, by `datasets`: here one that lies in a folder of the same name, which it reads first.

Run: python -m pytest tests/data/test_hub.py
"""

import json

import pytest

from kd.skills.dataset import Dataset


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    for split, count in (("train", 30), ("validation", 4)):
        rows = [{"question": f"{split} {i**7:x}", "answer": str(i)} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "hub:org/name@main"


def test_splits_are_those_of_the_data_set_and_the_missing_one_is_cut_from_train(hub):
    skill = Dataset(hub, test=5)
    assert skill.name == "name"
    assert [len(skill.load(split)) for split in ("train", "validation", "test")] == [25, 4, 5]
    assert skill.load("validation")[0].prompt[0]["content"].startswith("validation ")


def test_one_split_of_it_is_named_for_another(hub):
    skill = Dataset({"train": hub, "validation": hub}, test=0)
    assert [len(skill.load(split)) for split in ("train", "validation", "test")] == [30, 4, 0]
    with pytest.raises(ValueError, match=r"skill.path.test has the splits .* and no test; name its files"):
        Dataset({"test": hub}).load("test")


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("hub:org/name", r"is not of the form hub:org/name@revision"),
        ("hub:org/name@main:a:b", r"is not of the form hub:org/name@revision"),
    ],
)
def test_a_wrong_address_is_one_sentence(address, sentence):
    with pytest.raises(ValueError, match=sentence):
        Dataset(address).load("train")


def test_what_cannot_be_fetched_is_one_sentence(hub, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="hub:org/other@main is not in the cache of datasets and could not be"):
        Dataset("hub:org/other@main").load("train")
