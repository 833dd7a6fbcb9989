"""Elicitation: the stages of an augmentation applied to a skill's training records, kept for every run that reads them.

The records after each stage are an artifact, named by the skill's content, the stages so far, the teacher that they
need and the seed. It is made once, before training (`python -m kd.elicit`, or by the first run that needs it), and what
teacher and student generated for it is charged to each run that reads it. Two pipelines with the same first stages
share these. A record's `provenance` names each stage with the artifact's first digits, `labeling@1f2e3d4c`; facts.json
of the artifact holds the models, the seed and the account of the stages. In a loop (`kd.experiment.rounds`) the student
that stages generate with is that of the round before.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kd.artifacts import Cost, cache_root, once
from kd.augmentation import By, Resources
from kd.augmentation.quality import quality
from kd.components.axes import AXES
from kd.components.instantiation import instantiate
from kd.composition.interfaces import made_by
from kd.data.images import from_plain, plain
from kd.data.sequences import prompt_ids
from kd.data.windows import nothing_fits
from kd.experiment.identity import identity, load_skill
from kd.experiment.loading import device, load_exported, load_student, load_teacher, ray_workers
from kd.generators.account import Spent, metered
from kd.progress import part, remark
from kd.runs.costs import StageAccount
from kd.skills.records import checked, load
from kd.teachers.interface import Teacher
from kd.teachers.white_box import StudentText
from kd.types import Record, Response

VERSION = 2  # each stage is an artifact with an account
STAGE = ("kd.experiment.elicitation",)


@dataclass(frozen=True)
class Elicited:
    """The training records of a run.

    Attributes:
        records: after the last stage.
        stages: the account of each stage, in order.
        folder: of the artifact; None where no stage changes anything.
    """

    records: list[Record]
    stages: tuple[StageAccount, ...] = ()
    folder: Path | None = None

    @property
    def left_out(self) -> int:
        """Records whose prompts left the model of a stage no room for a response within `data.max_length`."""
        return sum(stage.left_out for stage in self.stages)

    @property
    def spent(self) -> Spent:
        """The cost of all text that was generated for the records."""
        found = Spent()
        for stage in self.stages:
            found = found.plus(Spent.of(stage.cost))
        return found

    def facts(self) -> dict[str, Any] | None:
        """The entry of results.json (`kd.runs.costs.Elicitation`); None where there is no stage."""
        if self.folder is None:
            return None
        spent = self.spent
        return {
            "records": len(self.records),
            "responses": sum(len(record.responses) for record in self.records),
            "left_out": self.left_out,
            "teacher_tokens": spent.teacher_tokens,
            "generated_tokens": spent.generated_tokens,
            "student_flops": spent.decoding_flops,
            "judge_flops": spent.judge_flops,
            "requests": spent.requests,
            "money": spent.money,
            "seconds": spent.seconds,
            "stages": [stage.model_dump() for stage in self.stages],
        }


def elicit(cfg: DictConfig) -> Elicited:
    """The training records after all stages, each an artifact, which is made now if there is none.

    cfg: a config of which everything is prepared (`kd.experiment.preparation.prepared`).

    Raises ValueError for an artifact that was changed since, and where a stage leaves no record.
    """
    given = load(load_skill(cfg.skill), "train")
    if not cfg.augmentation.stages:
        return Elicited(given)
    with closing(_Models(cfg)) as models:
        return _after(cfg, len(cfg.augmentation.stages), given, models)


def is_elicited(cfg: DictConfig) -> bool:
    """Return whether nothing is left to elicit for this config, of which everything is prepared."""
    return not cfg.augmentation.stages or elicited_folder(cfg).exists()


def elicited_folder(cfg: DictConfig, count: int | None = None) -> Path:
    """The folder of the records: the same for all runs with this skill, these stages, this teacher and seed.

    count: after the first so many stages; None: after all.
    """
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    stages = dict(list(config["augmentation"]["stages"].items())[:count])
    content: dict[str, Any] = {"skill": config["skill"], "seed": config["seed"], "augmentation": {"stages": stages}}
    if _require(stages, "student"):
        previous = config["loop"]["previous"]
        content["student"] = config["student"]["model"] if previous is None else {"run": previous["identity"]}
        content["max_length"] = cfg.data.max_length
    if _require(stages, "teacher"):
        teacher = {name: value for name, value in config["teacher"].items() if name not in AXES["teacher"].beside}
        content |= {"teacher": teacher, "max_length": cfg.data.max_length}
        if teacher["_target_"] is not None and made_by("teacher", teacher).follows_student:
            content["student"] = config["student"]["model"]
    return cache_root() / "elicited" / identity(OmegaConf.create(content), STAGE)


def requires(cfg: DictConfig, resource: str) -> bool:
    """Return whether a stage requires the teacher, the student or the skill."""
    return _require(cfg.augmentation.stages, resource)


def _require(stages: Mapping[Any, Any], resource: str) -> bool:
    every = (made_by(f"augmentation.stages.{name}", stage) for name, stage in stages.items())
    return any(resource in stage.requires for stage in every)


def _after(cfg: DictConfig, count: int, given: Sequence[Record], models: "_Models") -> Elicited:
    """The records after the first `count` stages."""
    if count == 0:
        return Elicited(list(given))
    folder = elicited_folder(cfg, count)
    once(folder, lambda partial: _write(cfg, count, given, models, folder, partial), kind="set of elicited records")
    with (folder / "records.jsonl").open(encoding="utf-8") as file:  # U+2028 and the like end no line here
        records = [_record(line, given) for line in file]
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    return Elicited(records, tuple(StageAccount.model_validate(stage) for stage in facts["stages"]), folder)


def _write(
    cfg: DictConfig, count: int, given: Sequence[Record], models: "_Models", folder: Path, partial: Path
) -> Cost:
    """Write the artifact of one stage. Returns its cost."""
    before = _after(cfg, count - 1, given, models)
    name, node = list(cfg.augmentation.stages.items())[count - 1]
    where = f"augmentation.stages.{name}"
    with part("elicit", shared=True):
        remark(f"{name} of {len(before.records)} records, once for all runs; kept in {folder}")
    stage: Any = instantiate(node)
    resources = models.resources(made_by(where, node).requires)
    records = before.records
    for model in (resources.teacher, resources.student):
        records = records if model is None else _with_room(records, model, cfg.data.max_length)
    partial.mkdir()
    with (
        part("elicit", shared=True),
        metered() as meter,
        (partial / "records.jsonl").open("w", encoding="utf-8") as file,
    ):
        made = [_marked(record, folder) for record in _yielded(where, stage(iter(records), resources))]
        file.writelines(_lines(made, given))
    account = StageAccount(
        name=name,
        artifact=folder.name,
        given=len(before.records),
        left_out=len(before.records) - len(records),
        kept=len(made),
        dropped=dict(resources.account.dropped),
        prompts=resources.account.prompts,
        models=models.names(resources),
        seed=cfg.seed,
        cost=meter.spent._asdict(),
        quality=quality(made, given, load_skill(cfg.skill)),
    )
    if records and not made:
        raise ValueError(
            f"{where} leaves none of {len(records)} records{_reasons(account)}; change its settings, or take "
            "augmentation=none"
        )
    facts = {"stages": [stage.model_dump() for stage in (*before.stages, account)]}
    (partial / "facts.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    return meter.spent._asdict()


def _reasons(account: StageAccount) -> str:
    """The reasons for which records were dropped, with their numbers, in brackets; nothing where there is none."""
    found = ", ".join(f"{reason} {count}" for reason, count in account.dropped.items())
    return f" (dropped: {found})" if found else ""


def _marked(record: Record, folder: Path) -> Record:
    """The record with the stage's artifact after the stage's name in its provenance."""
    passed = tuple(name if "@" in name else f"{name}@{folder.name[:8]}" for name in record.provenance)
    return record if passed == record.provenance else replace(record, provenance=passed)


def _yielded(where: str, found: Any) -> Iterator[Record]:
    """The records that a stage yields, checked as a skill's are. Raises ValueError for anything else."""
    if not isinstance(found, Iterable):
        raise ValueError(f"{where} returned {type(found).__name__}, which holds no records; yield them")
    for record in found:
        if not isinstance(record, Record):
            raise ValueError(
                f"{where} yielded {type(record).__name__}, which is no record; let it yield kd.types.Record"
            )
        yield checked(record)


class _Models:
    """The models that stages require, loaded when the first of them does, and the actors that generate with copies."""

    def __init__(self, cfg: DictConfig):
        self.cfg = cfg
        self.loaded: dict[str, tuple[Teacher, str]] = {}
        self.workers = ray_workers(cfg, _in_actor)

    def close(self) -> None:
        """End the actors, where there are any."""
        if self.workers is not None:
            self.workers.close()

    def resources(self, required: Collection[str]) -> Resources:
        """What a stage requires. Raises ValueError where there is no teacher for it."""
        cfg = self.cfg
        found = Resources(cfg.seed, max_length=cfg.data.max_length, workers=self.workers)
        if "teacher" in required:
            teacher, named = self._get("teacher")
            found = replace(found, teacher=teacher, teacher_id=named)
        if "student" in required:
            student, named = self._get("student")
            found = replace(found, student=student, student_id=named)
        return replace(found, skill=load_skill(cfg.skill)) if "skill" in required else found

    def _get(self, name: By) -> tuple[Teacher, str]:
        if name not in self.loaded:
            model = _student(self.cfg) if name == "student" else _generating(self.cfg)
            self.loaded[name] = model, model.identity()
        return self.loaded[name]

    def names(self, resources: Resources) -> dict[str, str]:
        """The names of the content of the models that a stage used."""
        found = {"teacher": resources.teacher_id, "student": resources.student_id}
        return {name: content for name, content in found.items() if content != "none"}


def _student(cfg: DictConfig) -> Teacher:
    """The student that generates for the stages: before the first step, or that of the round before."""
    previous = cfg.loop.previous
    model = load_student(cfg) if previous is None else load_exported(cfg, Path(previous.folder) / "student")
    student: Any = StudentText(model)
    return student.to(device(cfg))


def _generating(cfg: DictConfig, alone: bool = False) -> Teacher:
    """The teacher that generates for the stages (`alone`: see `load_teacher`). Raises ValueError for none."""
    teacher = load_teacher(cfg.teacher, alone=alone)
    if teacher is None:
        raise ValueError(
            "the augmentation needs a teacher that generates, but there is none; choose one whose weights are here "
            "(teacher=smollm2_135m), or augmentation=none"
        )
    if teacher.follows_student:
        teacher.bind(load_student(cfg))
    return teacher.to(device(cfg))


def _in_actor(content: Mapping[str, Any], by: By) -> Teacher:
    """A model of a config in plain containers, loaded in another process for its use alone."""
    cfg = OmegaConf.create(dict(content))
    return _student(cfg) if by == "student" else _generating(cfg, alone=True)


def _with_room(records: list[Record], teacher: Teacher, max_length: int) -> list[Record]:
    """The records whose prompts leave the teacher room for a response; all for one that gives text alone.

    Raises ValueError where none does.
    """
    if (words := teacher.tokenizer) is None:
        return records
    if kept := [record for record in records if len(prompt_ids(record, words)) < max_length]:
        return kept
    raise ValueError(nothing_fits(len(records), max_length))


# --- records as lines ---


def _lines(records: Iterable[Record], given: Sequence[Record]) -> Iterator[str]:
    """JSON, one record a line. `meta` that a skill's `score` reads stays with the skill: the line refers to it.

    Raises ValueError for the `meta` of a new record that JSON cannot hold.
    """
    place = {id(record.meta): i for i, record in enumerate(given)}
    for record in records:
        row = {field.name: getattr(record, field.name) for field in fields(record)}
        row["responses"] = [asdict(response) for response in record.responses]
        row |= {"images": plain(images)} if (images := row.pop("images")) else {}
        if (origin := place.get(id(record.meta))) is not None:
            row["meta"], row["origin"] = None, origin
        elif not _is_json(record.meta):
            raise ValueError(f"record {record.id}: its meta is no JSON; use numbers, strings, lists and mappings")
        yield json.dumps(row, ensure_ascii=False) + "\n"


def _is_json(meta: Any) -> bool:
    try:
        return json.loads(json.dumps(meta)) == meta
    except (TypeError, ValueError):
        return False


def _record(line: str, given: Sequence[Record]) -> Record:
    row = json.loads(line)
    origin = row.pop("origin", None)
    meta = row["meta"] if origin is None else given[origin].meta
    return Record(
        **{
            **row,
            "prompt": tuple(row["prompt"]),
            "responses": tuple(Response(**response) for response in row["responses"]),
            "provenance": tuple(row["provenance"]),
            "meta": meta,
            "images": from_plain(row.get("images", ())),
        }
    )
