"""Elicitation: the stages of an augmentation applied to a skill's training records, kept for every run that reads them.

The records are an artifact, named by the skill's content, the stages, the teacher that they need and the seed. It is
made once, before training (`python -m kd.elicit`, or by the first run that needs it), and what teacher and student
generated for it is charged to each run that reads it. In a loop (`kd.experiment.rounds`) the student that stages
generate with is that of the round before.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kd.artifacts import Cost, cache_root, once
from kd.augmentation import Resources
from kd.components.axes import AXES
from kd.components.instantiation import instantiate
from kd.composition.interfaces import made_by
from kd.data.images import from_plain, plain
from kd.data.sequences import prompt_ids
from kd.data.windows import nothing_fits
from kd.experiment.identity import identity, load_skill
from kd.experiment.loading import device, load_exported, load_student, load_teacher
from kd.generators.account import Spent, metered
from kd.progress import part, remark
from kd.skills.records import checked, load
from kd.teachers.interface import Teacher
from kd.teachers.white_box import StudentText
from kd.types import Record, Response

NOTHING = Spent()
STAGE = ("kd.experiment.elicitation",)


@dataclass(frozen=True)
class Elicited:
    """The training records of a run.

    Attributes:
        records: after the last stage.
        left_out: the skill's records whose prompts leave the teacher no room for a response within `data.max_length`.
        spent: on the text that was generated for them.
        folder: of the artifact; None where no stage changes anything.
    """

    records: list[Record]
    left_out: int = 0
    spent: Spent = NOTHING
    folder: Path | None = None

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
            "seconds": spent.seconds,
        }


def elicit(cfg: DictConfig) -> Elicited:
    """The training records after all stages, from the artifact, which is made now if there is none.

    cfg: a config of which everything is prepared (`kd.experiment.preparation.prepared`).

    Raises ValueError for an artifact that was changed since, and where no prompt leaves room for a response.
    """
    given = load(load_skill(cfg.skill), "train")
    if not cfg.augmentation.stages:
        return Elicited(given)
    folder = elicited_folder(cfg)
    manifest = once(folder, lambda partial: _write(cfg, given, folder, partial), kind="set of elicited records")
    with (folder / "records.jsonl").open(encoding="utf-8") as file:  # U+2028 and the like end no line here
        records = [_record(line, given) for line in file]
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    return Elicited(records, facts["left_out"], Spent.of(manifest.cost), folder)


def is_elicited(cfg: DictConfig) -> bool:
    """Return whether nothing is left to elicit for this config, of which everything is prepared."""
    return not cfg.augmentation.stages or elicited_folder(cfg).exists()


def elicited_folder(cfg: DictConfig) -> Path:
    """The folder of the records: the same for all runs with this skill, these stages, this teacher and seed."""
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    content = {name: config[name] for name in ("skill", "augmentation", "seed")}
    if requires(cfg, "student"):
        previous = config["loop"]["previous"]
        content["student"] = config["student"]["model"] if previous is None else {"run": previous["identity"]}
        content["max_length"] = cfg.data.max_length
    if requires(cfg, "teacher"):
        teacher = {name: value for name, value in config["teacher"].items() if name not in AXES["teacher"].beside}
        content |= {"teacher": teacher, "max_length": cfg.data.max_length}
        if teacher["_target_"] is not None and made_by("teacher", teacher).follows_student:
            content["student"] = config["student"]["model"]
    return cache_root() / "elicited" / identity(OmegaConf.create(content), STAGE)


def requires(cfg: DictConfig, resource: str) -> bool:
    """Return whether a stage requires the teacher, the student or the skill."""
    stages = cfg.augmentation.stages.items()
    return any(resource in made_by(f"augmentation.stages.{name}", stage).requires for name, stage in stages)


def _write(cfg: DictConfig, given: Sequence[Record], folder: Path, partial: Path) -> Cost:
    """Write the artifact's files. Returns their cost."""
    stages = [instantiate(stage) for stage in cfg.augmentation.stages.values()]
    with part("elicit", shared=True):
        remark(f"{', '.join(cfg.augmentation.stages)} of {len(given)} records, once for all runs; kept in {folder}")
    resources = _resources(cfg)
    records = list(given)
    for model in (resources.teacher, resources.student):
        records = records if model is None else _with_room(records, model, cfg.data.max_length)
    stream: Iterable[Record] = records
    partial.mkdir()
    with (
        part("elicit", shared=True),
        metered() as meter,
        (partial / "records.jsonl").open("w", encoding="utf-8") as file,
    ):
        for name, stage in zip(cfg.augmentation.stages, stages, strict=True):
            stream = _yielded(f"augmentation.stages.{name}", stage(stream, resources))
        kept = sum(file.write(line) > 0 for line in _lines(stream, given))
    if records and not kept:
        raise ValueError(
            f"augmentation.stages ({', '.join(cfg.augmentation.stages)}) leave none of {len(records)} records; see "
            "what the stages drop, or take augmentation=none"
        )
    facts = {"given": len(given), "left_out": len(given) - len(records)}
    (partial / "facts.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    return meter.spent._asdict()


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


def _resources(cfg: DictConfig) -> Resources:
    """What the stages require. Raises ValueError where there is no teacher for one."""
    teacher = _generating(cfg) if requires(cfg, "teacher") else None
    student = _student(cfg) if requires(cfg, "student") else None
    return Resources(
        seed=cfg.seed,
        teacher=teacher,
        teacher_id="none" if teacher is None else teacher.identity(),
        student=student,
        student_id="none" if student is None else student.identity(),
        skill=load_skill(cfg.skill) if requires(cfg, "skill") else None,
    )


def _student(cfg: DictConfig) -> Teacher:
    """The student that generates for the stages: before the first step, or that of the round before."""
    previous = cfg.loop.previous
    model = load_student(cfg) if previous is None else load_exported(cfg, Path(previous.folder) / "student")
    student: Any = StudentText(model)
    return student.to(device(cfg))


def _generating(cfg: DictConfig) -> Teacher:
    """The teacher that generates for the stages. Raises ValueError where there is none."""
    teacher = load_teacher(cfg.teacher)
    if teacher is None:
        raise ValueError(
            "the augmentation needs a teacher that generates, but there is none; choose one whose weights are here "
            "(teacher=smollm2_135m), or augmentation=none"
        )
    if teacher.follows_student:
        teacher.bind(load_student(cfg))
    return teacher.to(device(cfg))


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
