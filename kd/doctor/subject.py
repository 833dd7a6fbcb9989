"""The subject of a diagnosis: the config's parts as a run builds them, but nothing is trained or generated first."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf, open_dict

from kd.components.choices import CONF
from kd.components.instantiation import instantiate
from kd.composition.check import check
from kd.composition.interfaces import made_by
from kd.composition.overrides import check_overrides, started
from kd.composition.sections import prepared_roles
from kd.experiment.build import Parts, build
from kd.experiment.checks import Subject
from kd.experiment.findings import Finding
from kd.experiment.preparation import checkpoint_folder, prepared, variant
from kd.runs.folder import RunFolder
from kd.secrets import note

ALIGNED = 16  # records


@contextmanager
def composed(overrides: Sequence[str], conf: Path = CONF, more: str | None = None) -> Iterator[DictConfig]:
    """The checked config of a command line. Inside the block, further files of `conf/` can be composed.

    more: a folder of configs beside `conf`, as `--config-dir` names it.

    Raises ValueError, in one sentence: the config cannot be run, or `conf/` does not stand beside `kd/`.
    """
    check_overrides([*(["--config-dir", more] if more else []), *overrides], conf, single=True)
    with started(conf, more, overrides):
        cfg = compose("config", overrides=list(overrides))
        note(cfg)
        check(cfg, words=overrides)
        yield cfg


def admit(cfg: DictConfig) -> Subject:
    """Build the subject. Two tokenizers that the alignment refuses are a finding, not an error."""
    cfg, missing = from_cache(cfg)
    cfg, unwritten = without_teachers_text(cfg)
    parts = build(variant(cfg, alignment="none"))
    alignment = instantiate(cfg.alignment)
    return Subject(cfg, parts, alignment, [*missing, *unwritten, *_agreement(cfg, parts, alignment)])


def from_cache(cfg: DictConfig) -> tuple[DictConfig, list[Finding]]:
    """The config with the prepared checkpoints that the cache holds; the others are left unprepared, with a finding."""
    cfg, findings = cfg.copy(), []
    recipes = {role: node.get("prepare") for role, node in prepared_roles(cfg).items()}
    for role in recipes:
        _set_prepare(cfg, role, None)
    for role, recipe in recipes.items():  # in this order: a student may be cut out of the prepared teacher
        _set_prepare(cfg, role, recipe)
        if recipe is not None and not checkpoint_folder(cfg, role).exists():
            _set_prepare(cfg, role, None)
            fact = f"its prepared checkpoint is not in the cache, so the {role} is diagnosed as it is before"
            findings.append(Finding("WARN", f"prepared {role}", fact, "the first run prepares it"))
        cfg = prepared(cfg, _train_nothing)
    return cfg, findings


def without_teachers_text(cfg: DictConfig) -> tuple[DictConfig, list[Finding]]:
    """The config without the augmentation's stages that generate text, or read generated text: both take long."""
    named = cfg.augmentation.stages.items()
    stages = {n: s for n, s in named if not made_by(f"augmentation.stages.{n}", s).requires}
    if len(stages) == len(cfg.augmentation.stages):
        return cfg, []
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.augmentation.stages = stages
    fact = "no text is generated for a diagnosis; the records' own responses are shown and measured"
    return cfg, [Finding("WARN", "augmentation", fact, "expect other lengths in the run")]


def _agreement(cfg: DictConfig, parts: Parts, alignment: Any) -> list[Finding]:
    """Check that the alignment serves these two tokenizers and vocabularies."""
    name, student, teacher = type(alignment).__name__, parts.module.student, parts.teacher
    if teacher is None:
        return [Finding("PASS", "alignment", "there is no teacher to align")]
    try:
        alignment.check(student.tokenizer, teacher.tokenizer, (student.vocabulary, teacher.vocabulary))
    except ValueError as error:
        return [Finding("FAIL", "alignment", str(error))]
    one = "one tokenizer for both" if parts.encoder.teacher is None else "each model reads its own tokens"
    if alignment.translates:
        return [Finding("PASS", "alignment", f"{name}: {alignment.summary}"), *_aligned(parts, alignment)]
    if "logits" in alignment.provides and student.vocabulary != teacher.vocabulary:
        fact = f"{name} compares logits over {student.vocabulary} (student) and {teacher.vocabulary} ids (teacher)"
        return [Finding("FAIL", "alignment", fact, "take a student whose tokenizer has the teacher's ids")]
    return [Finding("PASS", "alignment", f"{name}: {one}")]


def _aligned(parts: Parts, alignment: Any) -> list[Finding]:
    """The share of the first responses' tokens that can be compared."""
    batches = parts.encoder.batches([r for r in parts.data.train[:ALIGNED] if parts.encoder.encode(r)])
    if not batches:
        return []
    rows = sum(int(batch.student.mask.sum()) for batch in batches)
    share = sum(int((alignment.where(batch) >= 0).sum()) for batch in batches) / rows
    fact = f"{share:.1%} of {rows} response tokens of the student stand beside one token of the teacher"
    return [Finding("PASS" if share >= 0.5 else "WARN", "aligned tokens", fact)]


def _set_prepare(cfg: DictConfig, role: str, recipe: Any) -> None:
    with open_dict(cfg):
        OmegaConf.select(cfg, role).prepare = recipe


def _train_nothing(cfg: DictConfig, folder: RunFolder, export_to: Path) -> None:
    raise AssertionError(f"a diagnosis trains nothing, but {export_to} was to be made")
