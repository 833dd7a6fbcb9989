"""The grid of skills: facts of every file, data of those that are embedded, licences.

Run: python -m pytest tests/skills/test_grid.py
"""

import random

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.console import Console

from kd.components.choices import CONF, choices, content
from kd.pages import skills as page
from kd.sandbox import NoVerdict
from kd.skills.__main__ import build, read
from kd.skills.answer_metrics import Evidence
from kd.skills.dataset import Dataset
from kd.skills.grid import HUB, LEAVES, entries, notes, tables
from kd.skills.readers.python_functions import of_module
from kd.types import Skill

OPEN = {"dataset", "mixture", "reasoning_gym"}  # of which a setting has no value yet
NAMES = [name for name in choices("skill") if name not in OPEN]
EMBEDDED = [name for name in NAMES if "path" in content("skill", name) and not name.startswith(HUB)]
OF_EACH_KIND = ("asdiv", "bfcl_simple", "translation_fr", "movielens_next", "mt_bench", "doctest_functions")
PREFERENCES_ALONE = {"true_summaries"}  # no text generated is right or wrong
PROMPTS_ALONE = {"prompts/do_not_answer", "prompts/harmbench", "prompts/ifbench"}


@pytest.fixture(autouse=True)
def sdists(monkeypatch):
    monkeypatch.setenv("KD_ALLOW", "sdist:llamafactory")


@pytest.mark.parametrize("name", NAMES)
def test_every_file_builds_without_its_data(name):
    skill = build(read(name, []))
    assert isinstance(skill, Skill)
    assert skill.leaf in LEAVES
    assert skill.commercial in (True, False, None)
    assert skill.licence != "not stated"


def test_every_leaf_has_embedded_data_and_the_usual_hub_sets_are_there():
    found = entries()
    held = {entry.leaf for entry in found if not entry.name.startswith(HUB) and entry.leaf}
    assert LEAVES.keys() == held
    assert sum(not entry.name.startswith(HUB) for entry in found) >= 40
    assert sum(entry.name.startswith(HUB) for entry in found) >= 25


def test_a_skill_is_named_as_its_file():
    for name in [*EMBEDDED, *(name for name in NAMES if name.startswith(HUB))]:
        assert build(read(name, [])).name == name.rpartition("/")[2]


def test_an_archive_has_one_version_and_one_hash():
    hashes: dict[str, set[str]] = {}
    for path in CONF.glob("*/*.yaml"):
        lines = [line.strip(" -") for line in path.read_text().splitlines()]
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            if line.startswith("address: "):
                rest = lines[lines.index(line) :]
                sha = next((other for other in [following, *rest] if other.startswith("sha256: ")), "")
                hashes.setdefault(line.partition("@")[0], set()).add(f"{line} {sha.split('#')[0].strip()}")
    assert len(hashes) > 10
    assert {donor: found for donor, found in hashes.items() if len(found) > 1} == {}


def test_a_glob_chooses_the_grid_and_nothing_that_needs_a_value():
    (override,) = OverridesParser.create().parse_overrides(["skill=glob(*,exclude=[dataset,mixture,reasoning_gym])"])
    files = [path.stem for path in (CONF / "skill").glob("*.yaml")]
    assert sorted(override.value().filter(files)) == sorted(name for name in NAMES if "/" not in name)


def test_the_list_is_readable_at_80_columns(capsys):
    console = Console(width=80)
    for table in tables(80):
        console.print(table)
    console.print(notes())
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    for name in choices("skill"):
        assert name in printed


def test_the_page_is_up_to_date():
    page.main(["--check"])


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("asdiv", "CC BY-NC 4.0 (upstream, unchecked), does not allow commercial use"),
        ("boolq", "is not known to allow commercial use"),
        ("gsm_symbolic", "is not known to allow commercial use"),
    ],
)
def test_commercial_only_refuses_by_the_licence(name, fault):
    with pytest.raises(ValueError, match=r"skill\.commercial_only=true") as error:
        build(read(name, ["commercial_only=true"]))
    assert str(error.value).startswith(f"skill {name}: its licence, ")
    assert fault in str(error.value)


def test_commercial_only_takes_what_is_allowed():
    assert build(read("humaneval", ["commercial_only=true"])).commercial is True
    assert build(read("jugs", ["commercial_only=true"])).commercial is True


def test_terms_are_printed_once(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"question": "{i * 7919} + 1?", "answer": "{i * 7919 + 1}"}}\n' for i in range(30)))
    for _ in range(2):
        Dataset(str(path), name="bound", leaf="nlu", terms="no wagers").load("test")
    assert capsys.readouterr().err.count("bound: terms of the data: no wagers") == 1


def test_functions_whose_examples_test_nothing_are_left_out():
    source = '''
def doubled(x):
    """
    >>> doubled(2)
    4
    """
    return 2 * x

def skipped(x):
    """
    >>> skipped(2)  # doctest: +SKIP
    4
    """
    return 2 * x

def silent(x):
    """
    >>> y = silent(2)
    """
    return 2 * x

def elsewhere(x):
    """
    >>> 2 * 2
    4
    """
    return 2 * x
'''
    (row,) = of_module("package/module.py", source)
    assert row["id"] == "package.module.doubled"
    assert row["response"] == "```python\ndef doubled(x):\n    return 2 * x\n```"


# ---- with their archives ---------------------------------------------------------------------------------------------


def check_splits(skill):
    """No record, prompt or group in two splits."""
    splits = [skill.load(split) for split in ("train", "validation", "test")]
    assert all(splits)
    for names in (
        [{record.id for record in records} for records in splits],
        [{str(record.prompt) for record in records} for records in splits],
        [{str(record.meta.get(skill.group_key, record.id)) for record in records} for records in splits],
    ):
        assert not names[0] & names[1]
        assert not names[0] & names[2]
        assert not names[1] & names[2]


def refused(skill, record, text):
    """Whether `text` is not accepted: no verdict, of a program without end, counts as the worst."""
    try:
        return skill.score(record, text) < skill.metric.best
    except NoVerdict:
        return True


def check_preferences(skill, records):
    """A model to which the preferred text is likelier is right, one to which another is likelier is wrong."""
    (metric, *_) = skill.metrics
    for record in records:
        texts = [response.text for response in record.responses]
        assert len(set(texts)) == len(texts) > 1, record.id
        assert metric.value(Evidence(record, logprobs=[-1.0, *[-9.0] * (len(texts) - 1)]))[0] == skill.metric.best
        assert metric.value(Evidence(record, logprobs=[-9.0, *[-1.0] * (len(texts) - 1)]))[0] < skill.metric.best


def check_verifier(skill, records):
    """Each reference is right, and the reference of another record is not, where the two differ."""
    mutated = 0
    for record, other in zip(records, [*records[1:], records[0]], strict=True):
        own = record.responses[0].text
        assert skill.score(record, own) == skill.metric.best, record.id
        text, answer = other.responses[0].text, record.meta.get("answer")
        if answer is not None and answer == other.meta.get("answer"):
            continue
        if text.strip().casefold() not in {*map(str.casefold, record.meta.get("references", ())), own.casefold()}:
            mutated += 1
            assert refused(skill, record, text), record.id
        assert refused(skill, record, ""), record.id
    assert mutated or len(records) < 3


def checked(name, most):
    skill = build(read(name, []))
    check_splits(skill)
    if name in PROMPTS_ALONE:
        assert not any(record.responses for record in skill.load("test"))
        return
    every = [record for split in ("train", "validation", "test") for record in skill.load(split)]
    check = check_preferences if name in PREFERENCES_ALONE else check_verifier
    check(skill, random.Random(0).sample(every, min(most, len(every))))


@pytest.mark.archive
@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_a_skill_of_each_kind_accepts_its_references_and_refuses_others(name):
    checked(name, most=6)


@pytest.mark.long
@pytest.mark.archive
@pytest.mark.parametrize("name", sorted(set(EMBEDDED) - {"doctest_functions"}))
def test_every_skill_accepts_its_references_and_refuses_others(name):
    checked(name, most=2000)


@pytest.mark.long
@pytest.mark.archive
def test_every_function_passes_its_own_doctests():
    checked("doctest_functions", most=400)


@pytest.mark.long
@pytest.mark.parametrize("name", ["shortest_path", "tower_of_hanoi", "jugs", "countdown", "sokoban"])
def test_every_plan_is_accepted_when_it_is_simulated(name):
    skill = build(read(name, []))
    for record in skill.load("test"):
        assert skill.score(record, record.responses[0].text) == 1.0
        assert skill.score(record, "") < 1.0
