"""The same problem with other numbers and a new answer (GSM-Symbolic, Mirzadeh et al. 2024, arXiv 2410.05229)."""

from dataclasses import replace

from kd.skills.procedural import Redrawing
from kd.types import Record, Skill

VERSION = 1


def number_changes(record: Record, seed: int, skill: Skill) -> Record | None:
    """Another draw of the record's problem by its skill, in no split; None of a skill that draws none.

    Of `gsm_symbolic` it is the same template with other numbers, and other names where it draws them; of a task of
    reasoning-gym the same text but for its numbers.
    """
    new = skill.redrawn(record, seed) if isinstance(skill, Redrawing) else None
    if new is None:
        return None
    return replace(record, prompt=new.prompt, responses=new.responses, meta={**record.meta, **new.meta})
