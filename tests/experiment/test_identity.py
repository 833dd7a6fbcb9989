"""The hash of a run covers what the run reads: the content of data and files, own code, versions."""

import json
import textwrap
from dataclasses import asdict

import pytest
from omegaconf import OmegaConf

from kd import versions
from kd.components import choices
from kd.composition.overrides import started
from kd.experiment import identity as module
from kd.experiment.elicitation import elicited_folder
from kd.experiment.export import export
from kd.experiment.identity import TRAINING, check_records, check_unchanged, family, identity
from kd.experiment.loading import load_teacher
from kd.experiment.plan import check_evaluation
from kd.models.digests import weights_digest
from kd.skills.records import made
from kd.types import Record, Response
from tests import runs
from tests.tiny import tiny

READ: list[str] = []  # files that `numbered` read
READER = f"{__name__}.numbered"
CE = "kd.objectives.divergence.cross_entropy"
WHITE_BOX = "kd.teachers.white_box.WhiteBox"

OWN = """
import json
from pathlib import Path
from kd.types import Record, Response, Skill
from own_prompts import PROMPT

class Own(Skill):
    name, metric, licence, group_key, control_tokens = "own", "accuracy", "CC0-1.0", "record", False

    def __init__(self, folder):
        self.folder = Path(folder)

    def load(self, split):
        rows = [json.loads(line) for line in (self.folder / f"{split}.jsonl").read_text().splitlines()]
        return [
            Record(f"{split}-{i}", "own", ({"role": "user", "content": PROMPT + row["q"]},), (Response(row["a"]),),
                   meta={"tags": {"b", "a"}})
            for i, row in enumerate(rows)
        ]

    def score(self, record, text):
        return float(text == record.responses[0].text)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The config of a run on a user's own skill: a module, a module that it imports, three files."""
    (tmp_path / "own_skill.py").write_text(textwrap.dedent(OWN))
    (tmp_path / "own_prompts.py").write_text("PROMPT = 'Solve: '\n")
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(
            "".join(json.dumps({"q": f"{i}", "a": f"{i}!"}) + "\n" for i in range(3))
        )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("KD_ALLOW", "tests,own_skill,own_package")
    cfg = runs.config(skill={"_target_": "own_skill.Own", "folder": str(tmp_path)})
    yield tmp_path, cfg
    forget()


def forget() -> None:
    """As in a new process."""
    import sys

    for name in ("own_skill", "own_prompts", "own_package", "own_package.skill"):
        sys.modules.pop(name, None)
    for cache in (
        choices._merged,
        made,
        module._records_digest,
        versions._file_of,
        versions._roots,
        versions._imports,
    ):
        cache.cache_clear()


def test_the_same_twice(own):
    _, cfg = own
    first = identity(cfg)
    forget()
    assert identity(cfg) == first


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_edited_data_file_is_another_run(own, split):
    folder, cfg = own
    before = identity(cfg)
    path = folder / f"{split}.jsonl"
    path.write_text(path.read_text().replace("2!", "3!"))
    forget()
    assert identity(cfg) != before


def test_runs_of_a_family_differ_in_their_seed_alone(own):
    folder, cfg = own
    cfg.rollout = {"_target_": "kd.rollouts.offline.Offline", "of_the_seed": "${seed}"}  # which follows it
    other = cfg.copy()
    other.seed = cfg.seed + 1
    assert identity(other) != identity(cfg)
    first = family(cfg)
    assert family(other) == first
    other.optim.lr = 0.5
    assert family(other) != first
    path = folder / "test.jsonl"
    path.write_text(path.read_text().replace("2!", "3!"))
    forget()
    assert family(cfg) != first


def test_data_that_are_edited_between_the_check_and_the_load_end_the_run(own):
    """Else numbers of the new data would lie under the hash of the old."""
    folder, cfg = own
    identity(cfg)
    check_records(cfg.skill)
    path = folder / "train.jsonl"
    path.write_text(path.read_text().replace("2!", "3!"))
    with pytest.raises(ValueError, match=r"records of skill own_skill\.Own changed after the run was named"):
        check_records(cfg.skill)


def test_a_skills_own_code_and_what_it_imports_count(own):
    folder, cfg = own
    before = identity(cfg)
    (folder / "own_prompts.py").write_text("PROMPT = 'Work out: '\n")
    forget()
    edited = identity(cfg)
    skill = folder / "own_skill.py"
    skill.write_text(skill.read_text().replace("float(text ==", "float(text.strip() =="))  # the records stay
    forget()
    assert len({before, edited, identity(cfg)}) == 3


def test_a_component_whose_numbers_changed_is_another_run(own, monkeypatch):
    _, cfg = own
    before = identity(cfg)
    monkeypatch.setattr(module, "versions", lambda *names: {"kd.objectives.divergence": 2})
    assert identity(cfg) != before


def test_the_version_of_every_component_of_the_config_is_read(own, monkeypatch):
    _, cfg = own
    versioned: set[str] = set()
    monkeypatch.setattr(module, "versions", lambda *names: versioned.update(names) or {})
    identity(cfg)
    assert {"own_skill.Own", "kd.objectives.divergence.forward_kl", *module.STAGES} <= versioned
    versioned.clear()
    identity(cfg, TRAINING)
    assert "kd.evaluation.evaluate" not in versioned


def test_own_code_that_is_edited_while_its_process_runs_ends_the_next_job(own):
    """Jobs of hydra/launcher=basic share a process, which goes on with the code that it has imported."""
    folder, cfg = own
    before = identity(cfg)
    assert identity(cfg) == before
    (folder / "own_prompts.py").write_text("PROMPT = 'Work out: '\n")
    with pytest.raises(ValueError, match=r"own_prompts\.py changed after this process had imported it"):
        identity(cfg)
    forget()
    assert identity(cfg) != before


BY_NAME = "from importlib import import_module\nPROMPT = import_module('own_prompts').PROMPT"


@pytest.mark.parametrize("how", [BY_NAME, "package"], ids=["by name", "package"])
def test_code_that_is_imported_by_name_and_packages_around_a_module_count(own, how):
    folder, cfg = own
    skill = folder / "own_skill.py"
    if how == "package":
        (folder / "own_package").mkdir()
        (folder / "own_package" / "skill.py").write_text(skill.read_text())
        edited = folder / "own_package" / "__init__.py"
        edited.write_text("print('executed before the skill')\n")
        cfg.skill["_target_"] = "own_package.skill.Own"
    else:
        skill.write_text(skill.read_text().replace("from own_prompts import PROMPT", how))
        edited = folder / "own_prompts.py"
    before = identity(cfg)
    forget()
    edited.write_text(edited.read_text() + "MORE = 1\n")
    assert identity(cfg) != before


@pytest.mark.parametrize("what", ["teacher", "corpus"])
def test_files_that_are_edited_between_the_check_and_the_load_end_the_run(tmp_path, what):
    """As for data; of the model of a teacher, and plain text."""
    text = tmp_path / "text.md"
    text.write_text("Once upon a time.")
    export(tiny(dtype="float32"), tmp_path / "teacher", "")
    lm = {"stream": "lm", "kind": "likelihood", "loss": {"_target_": CE, "_partial_": True}}
    cfg = runs.config(
        objective={"sft": {"loss": {"_target_": CE, "_partial_": True}}, "lm": lm},
        corpus={"_target_": "kd.corpora.local.Local", "path": str(text)},
        teacher={"_target_": WHITE_BOX, "model": of(tmp_path / "teacher"), "prepare": None, "licence": None},
    )
    named = identity(cfg)
    check_unchanged(cfg, named)
    if what == "corpus":
        text.write_text("Once upon a lime.")
    else:
        export(tiny(seed=1, dtype="float32"), tmp_path / "teacher", "")
    with pytest.raises(ValueError, match=r"a file that this run reads .* changed after the run was named by it"):
        check_unchanged(cfg, named)


def of(folder):
    source = {"address": f"local:{folder}"}
    return {"_target_": "kd.models.networks.pretrained", "source": source, "dtype": "float32", "lora": None}


def test_a_teacher_whose_files_changed_is_loaded_again_by_the_next_job(tmp_path):
    """Jobs of a process share a teacher; else a run named by the new weights would learn from the old."""
    node = OmegaConf.create({"_target_": WHITE_BOX, "model": of(tmp_path / "teacher")})
    export(tiny(dtype="float32"), tmp_path / "teacher", "")
    first = load_teacher(node)
    assert load_teacher(node) is first
    export(tiny(seed=1, dtype="float32"), tmp_path / "teacher", "")
    second = load_teacher(node)
    assert weights_digest(second.model) == weights_digest(tiny(seed=1, dtype="float32")) != weights_digest(first.model)


def test_a_metric_counts_by_what_its_file_holds(tmp_path):
    """A skill names its metrics; with another stemmer they give other numbers."""
    rows, file = tmp_path / "rows.jsonl", tmp_path / "conf" / "metric" / "mine.yaml"
    rows.write_text("".join(json.dumps({"prompt": f"p{i}", "completion": f"c{i}"}) + "\n" for i in range(12)))
    file.parent.mkdir(parents=True)
    skill = {"_target_": "kd.skills.dataset.Dataset", "path": str(rows), "metrics": ["exact_match", "mine"]}
    cfg, found = runs.config("objective=sft", skill=skill), []
    for stemmer in ("false", "true", "false"):
        file.write_text(f"_target_: kd.metrics.overlap.rouge_l\nstemmer: {stemmer}\n")
        forget()
        with started(more=tmp_path / "conf"):
            found.append(identity(cfg))
    assert found[0] == found[2] != found[1]


def test_elicited_records_are_named_by_the_content_of_the_skills_that_a_stage_reads(tmp_path):
    """Of those that are evaluated, with which `decontaminated` compares."""
    rows, file = tmp_path / "rows.jsonl", tmp_path / "conf" / "skill" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"_target_: kd.skills.dataset.Dataset\npath: {rows}\nvalidation: 2\ntest: 2\n")
    cfg, found = runs.config("augmentation=decontaminated", "objective=sft"), []
    cfg.augmentation.stages.decontaminated.skills = ["mine"]
    for letter in "aba":
        rows.write_text(
            "".join(json.dumps({"prompt": f"{letter}{i}", "completion": f"c{i}"}) + "\n" for i in range(12))
        )
        forget()
        with started(more=tmp_path / "conf"):
            found.append(elicited_folder(cfg))
    assert found[0] == found[2] != found[1]


def numbered(path):
    """The rows of a file, which is counted as read."""
    READ.append(path.name)
    yield from ({"prompt": f"Say {path.stem} {i}.", "response": str(i)} for i in range(6))


def test_a_sweep_over_many_skills_reads_each_once(tmp_path, monkeypatch):
    """Also where the skills change fastest, so that each stands beside every objective long after it was read."""
    monkeypatch.setenv("KD_ALLOW", f"tests,{__name__}")
    READ.clear()
    names, cfg = [f"{i}.txt" for i in range(35)], runs.config()
    for name in names:
        (tmp_path / name).touch()
    for rate in (0.1, 0.2):
        for name in names:
            node = {"_target_": "kd.skills.dataset.Dataset", "path": str(tmp_path / name), "reader": READER}
            cfg.skill = {**node, "name": name[:-4], "validation": 2, "test": 2}
            cfg.optim.lr = rate
            check_evaluation(cfg)
            identity(cfg)
    assert sorted(READ) == sorted(names)


def test_a_word_that_is_no_address_is_no_source() -> None:
    """A stage may have a key that is called as a model's."""
    stage = {"source": "teacher", "file": {"address": "local:a.jsonl", "member": "b"}}
    model = {"source": "hub:org/name@main", "tokenizer": "bytes"}
    found = list(module.sources({"stages": [stage], "model": model}))
    assert [keys["address"] for keys in found] == ["local:a.jsonl", "hub:org/name@main"]


def test_the_text_of_a_record_is_that_of_its_fields_whatever_their_kind():
    """`dataclasses.asdict` is the other way to the same text."""
    meta = {"tags": {"b", 1}, "steps": (1, [2.5, None]), "bytes": b"x", "inner": Response("deep", score=0.5)}
    record = Record(
        "1", "s", ({"role": "user", "content": "é"},), (Response("a"), Response("b", "teacher")), ("x",), meta
    )
    whole = asdict(record)
    del whole["images"]
    whole["meta"] |= {"tags": ['"b"', "1"], "bytes": ["bytes", "b'x'"]}  # a set in order, a foreign object as text
    assert json.dumps(module._plain(module._content(record))) == json.dumps(whole, sort_keys=True)
