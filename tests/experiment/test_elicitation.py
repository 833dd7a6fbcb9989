"""What an augmentation makes of a skill's records: an artifact, made once, read by every run that it fits."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

import kd.elicit
from kd.artifacts import verified
from kd.augmentation import Resources, Stage
from kd.augmentation.labeling import Labeling
from kd.experiment import elicitation
from kd.experiment.build import build
from kd.experiment.elicitation import elicit, elicited_folder, is_elicited
from kd.experiment.launch import check_launch
from kd.experiment.loading import load_teacher
from kd.experiment.plan import Plan
from kd.generators.account import Spent, metered
from kd.models.digests import model_digest
from kd.runs.costs import Elicitation
from kd.types import Record, Response
from tests import runs

HERE = "tests.experiment.test_elicitation"
LABELING = ("augmentation=labeling", "augmentation.stages.labeling.max_new_tokens=6", "objective=sft")


class Expanded(Stage):
    """Beside each record a new one, which asks for the answer in capitals."""

    requires: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, pair: bool = False):
        self.meta = {"kind": ("capitals", "all") if pair else "capitals"}

    def __call__(self, records: Iterable[Record], *_: object) -> Iterator[Record]:
        for record in records:
            yield record
            answers = tuple(Response(answer.text.upper()) for answer in record.responses)
            passed = (*record.provenance, "expanded")
            yield replace(record, id=f"{record.id}/capitals", responses=answers, provenance=passed, meta=self.meta)


def by(stage: str, **settings: object) -> dict[str, object]:
    return {"augmentation": {"stages": {stage: {"_target_": f"{HERE}.{stage}", **settings}}}}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def bare(records: list[Record]) -> list[Record]:
    """The records without the artifacts in their provenance."""
    return [replace(one, provenance=tuple(name.split("@")[0] for name in one.provenance)) for one in records]


def test_the_artifact_holds_what_the_stage_yields() -> None:
    cfg = runs.config(*LABELING)
    teacher = load_teacher(cfg.teacher)
    stage = Labeling(max_new_tokens=6, temperature=0.0)
    name = model_digest(teacher.model)
    given = Resources(seed=cfg.seed, teacher=teacher, teacher_id=name)
    with metered() as meter:
        expected = list(stage(runs.Toy().load("train"), given))
    elicited = elicit(cfg)
    assert bare(elicited.records) == expected
    assert elicited.spent._replace(seconds=0.0) == meter.spent._replace(seconds=0.0)
    assert meter.spent.teacher_tokens > 0
    assert verified(elicited.folder).cost["teacher_tokens"] == meter.spent.teacher_tokens


def test_it_is_made_once_and_charged_to_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = runs.config(*LABELING)
    first = elicit(cfg)
    monkeypatch.setattr(elicitation, "load_teacher", lambda node: pytest.fail("the teacher was loaded again"))
    assert elicit(cfg) == first
    for other in (cfg, runs.config(*LABELING, "objective=fkl", "optim.lr=0.3")):
        parts = build(other)
        assert parts.data.train == first.records
        assert parts.module.budget.teacher_tokens == first.spent.teacher_tokens
        assert parts.elicited == first
    spent = first.spent
    assert Elicitation.model_validate(first.facts()).model_dump() == {
        **{"records": len(first.records), "responses": sum(len(one.responses) for one in first.records)},
        **{"left_out": first.left_out, "teacher_tokens": spent.teacher_tokens, "seconds": spent.seconds},
        **{"generated_tokens": 0, "student_flops": 0, "judge_flops": 0, "requests": 0, "money": 0},
        "stages": [one.model_dump() for one in first.stages],
    }
    assert spent.seconds > 0


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (["objective=fkl"], True),
        (["student.model.architecture.num_hidden_layers=2"], True),
        (["optim.steps=3", "evaluation=none", "data.max_tokens=64"], True),
        (["teacher.licence=MIT"], True),
        (["seed=9"], False),
        (["augmentation.stages.labeling.max_new_tokens=7"], False),
        (["augmentation.stages.labeling.keep_reference=true"], False),
        (["teacher.model.architecture.num_hidden_layers=2"], False),
        (["data.max_length=40"], False),
    ],
)
def test_what_names_it(words: list[str], same: bool) -> None:
    assert (elicited_folder(runs.config(*LABELING, *words)) == elicited_folder(runs.config(*LABELING))) is same


def test_one_that_was_edited_is_not_read() -> None:
    cfg = runs.config(*LABELING)
    lines = elicit(cfg).folder / "records.jsonl"
    lines.write_text(lines.read_text(encoding="utf-8").replace("teacher", "referee"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"records\.jsonl"):
        elicit(cfg)


def test_new_records_come_back_and_the_skills_own_keep_their_meta() -> None:
    """`meta` of a skill's record may hold what JSON has no form for: it is the skill's, not the file's."""
    given = runs.Toy().load("train")
    elicited = elicit(runs.config("objective=sft", **by("Expanded")))
    own, new = elicited.records[::2], elicited.records[1::2]
    assert own == given
    assert [record.meta for record in new] == [{"kind": "capitals"}] * len(given)
    assert [record.id for record in new] == [f"{record.id}/capitals" for record in given]
    assert {record.provenance for record in new} == {(f"expanded@{elicited.folder.name[:8]}",)}
    assert elicited.spent == Spent()


class Odd(Stage):
    """Answers with every character that Python, unlike JSON, takes for the end of a line."""

    requires: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, records: Iterable[Record], *_: object) -> Iterator[Record]:
        for record in records:
            yield replace(record, responses=(Response("a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\r\nh\n"),))


class Short(Stage):
    """Keeps the records with short ids."""

    requires: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, longest: int):
        self.longest = longest

    def __call__(self, records: Iterable[Record], resources: Resources) -> Iterator[Record]:
        for record in records:
            if len(record.id) <= self.longest:
                yield record
            else:
                resources.dropped("long id")


def pipeline(*stages: dict[str, object]) -> dict[str, object]:
    return {"augmentation": {"stages": {k: v for stage in stages for k, v in stage["augmentation"]["stages"].items()}}}


def test_each_stage_has_its_artifact_and_account(cache: Path) -> None:
    """Pipelines that begin alike share the first stages; the order counts."""
    given = runs.Toy().load("train")
    one = elicit(runs.config("objective=sft", **pipeline(by("Expanded"), by("Short", longest=2))))
    first, second = one.stages
    assert (first.name, first.given, first.kept, first.dropped) == ("Expanded", len(given), 2 * len(given), {})
    assert (second.given, second.kept, second.dropped) == (2 * len(given), len(given), {"long id": len(given)})
    assert [record.id for record in one.records] == [record.id for record in given]
    assert len(list(cache.glob("elicited/*/facts.json"))) == 2
    elicit(runs.config("objective=sft", **by("Expanded")))
    assert len(list(cache.glob("elicited/*/facts.json"))) == 2
    other = elicit(runs.config("objective=sft", **pipeline(by("Short", longest=2), by("Expanded"))))
    assert [(stage.name, stage.kept) for stage in other.stages] == [("Short", len(given)), ("Expanded", 2 * len(given))]
    assert len(list(cache.glob("elicited/*/facts.json"))) == 4


def test_a_stage_that_drops_everything_names_its_reasons() -> None:
    cfg = runs.config("objective=sft", **by("Short", longest=0))
    count = len(runs.Toy().load("train"))
    with pytest.raises(ValueError, match=rf"Short leaves none of {count} records \(dropped: long id {count}\)"):
        elicit(cfg)


def test_the_plan_counts_without_generating(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    words = ["teacher=tiny", "student=tiny", "skill=spell_backward", "skill.train=4", *runs.SMALL, *LABELING]
    samples = ["augmentation.stages.labeling.samples=3", "augmentation.stages.labeling.temperature=1.0"]
    assert kd.elicit.main(["--dry-run", *words, *samples]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "In all 4 prompts, about" in out
    assert f"at most {4 * 3 * 6} generated" in out
    assert not list(cache.glob("elicited/*"))


def test_records_need_no_objective_that_the_teacher_serves(capsys: pytest.CaptureFixture[str]) -> None:
    """The default objective reads logits, which this teacher lacks; one that is chosen is checked."""
    served = ["teacher=endpoint", "teacher.url=http://localhost:9/v1", "teacher.served_model=qwen", "student=tiny"]
    words = ["--dry-run", *served, "augmentation=labeling", "skill=spell_backward", "skill.train=4"]
    assert kd.elicit.main(words) == 0
    assert "In all 4 prompts" in " ".join(capsys.readouterr().out.split())
    assert kd.elicit.main([*words, "objective=fkl"]) == 1
    assert "fkl needs teacher_logits" in capsys.readouterr().err


def test_a_setting_that_a_stage_refuses_has_no_plan(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["teacher=tiny", "student=tiny", "skill=spell_backward", "skill.train=4", "augmentation=ultrachat"]
    assert kd.elicit.main(["--dry-run", *words, "augmentation.stages.dialogues.turns=0"]) == 1
    assert "turns=0 and least=2 leave no dialogue; set 1 <= least <= turns" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({"count_template": "How many of {topic}?", "user_template": "x{y}"}, (20 + 4) / 2 / 4),
        ({"template": None, "turns": 2}, 0),
    ],
)
def test_the_plan_counts_templates(settings: dict[str, Any], tokens: float) -> None:
    assert kd.elicit._template_tokens(settings) == tokens


def test_text_with_any_character_comes_back() -> None:
    elicited = elicit(runs.config(**by("Odd")))
    assert elicited.records == list(Odd()(runs.Toy().load("train")))


class Odder(Stage):
    """A stage that does not do what a stage does."""

    requires = frozenset()

    def __init__(self, how: str):
        self.how = how

    def __call__(self, records: Iterable[Record], *_: object) -> object:
        given = list(records)
        half = replace(given[0], responses=(Response("a\ud800b"),))
        return {"nothing": iter(()), "none": None, "half": iter([half]), "names": (record.id for record in given)}[
            self.how
        ]


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("nothing", r"augmentation\.stages\.Odder leaves none of \d+ records"),
        ("none", r"augmentation\.stages\.Odder returned NoneType, which holds no records"),
        ("names", r"augmentation\.stages\.Odder yielded str, which is no record"),
        ("half", r"record 0 of toy: the text of response 0 holds .*half of a surrogate pair"),
    ],
)
def test_what_is_no_record_is_named(how: str, sentence: str) -> None:
    cfg = runs.config("objective=sft", **by("Odder", how=how))
    with pytest.raises(ValueError, match=sentence):
        elicit(cfg)
    assert not is_elicited(cfg)


def test_meta_that_would_come_back_as_something_else_is_refused() -> None:
    cfg = runs.config("objective=sft", **by("Expanded", pair=True))
    with pytest.raises(ValueError, match=r"capitals: its meta is no JSON"):
        elicit(cfg)
    assert not is_elicited(cfg)


def test_prompts_without_room_are_left_out_and_counted() -> None:
    cfg = runs.config(*LABELING)
    reader = load_teacher(cfg.teacher).model.tokenizer
    given = runs.Toy().load("train")
    lengths = [len(elicitation.prompt_ids(record, reader)) for record in given]
    cfg.data.max_length = sorted(lengths)[len(lengths) // 2]
    fitting = [record.id for record, length in zip(given, lengths, strict=True) if length < cfg.data.max_length]
    elicited = elicit(cfg)
    assert 0 < len(fitting) < len(given)
    assert [record.id for record in elicited.records] == fitting
    assert elicited.left_out == len(given) - len(fitting)


def test_ranks_from_outside_wait_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cfg = runs.config(*LABELING, "trainer=ddp_cpu", "compare=null", f"run.root={tmp_path}")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"the elicitation \(augmentation\) must be made.*prerequisites_only=true"):
        check_launch(Plan.of(cfg))
    elicit(cfg)
    check_launch(Plan.of(cfg))


def test_the_command_elicits_and_shows(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    words = ["teacher=tiny", "student=tiny", "skill=spell_backward", "skill.train=4", *runs.SMALL, *LABELING]
    assert kd.elicit.main(["-n", "1", *words]) == 0
    out = capsys.readouterr().out
    (folder,) = (path.parent for path in cache.glob("elicited/*/records.jsonl"))
    assert f"(labeling@{folder.name[:8]})" in out
    assert "-> teacher: " in out
    assert f"{folder}: 4 records became 4" in out.splitlines()[-1]
    assert kd.elicit.main(["teacher=tiny", "student=tiny", "skill=spell_backward"]) == 1
    assert capsys.readouterr().err == (
        "augmentation=none changes no record; choose another, such as augmentation=labeling\n"
    )
