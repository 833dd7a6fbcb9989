"""The task's own scores on validation prompts while a run trains: the learning curve by which `best` may be chosen."""

from collections.abc import Sequence
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig

from kd.data.sequences import Encoder
from kd.evaluation.evaluate import Evaluation
from kd.evaluation.items import requires_several
from kd.experiment.build import Parts
from kd.generators.settings import Decoding
from kd.models.language_model import LanguageModel
from kd.models.sharding import gathered
from kd.skills.records import load
from kd.types import Record, Skill


class TaskScores(Callback):
    """Logs `<skill>/<metric>` at each validation: greedy answers to validation prompts, scored as in the evaluation.

    Metrics of several answers to one prompt (pass@k, diversity) are left out.

    Every rank generates all of them, so that all have the same numbers. Nothing is cached, and the random numbers of
    training are as they were.

    Args:
        skill: the run's.
        records: of its validation split.
        encoder: with the student's tokenizer.
        decoding: the longest answer, and how many are generated together.
    """

    def __init__(self, skill: Skill, records: Sequence[Record], encoder: Encoder, decoding: Decoding):
        evaluation = Evaluation(
            items=None,
            answers=None,
            max_new_tokens=decoding.max_new_tokens,
            batch_size=decoding.batch_size,
            baseline=None,
            resamples=2,
        )
        self.name = skill.name
        self.session = evaluation.session(skill=skill, train=(), test=records, encoder=encoder)
        self.session.metrics = [one for one in self.session.metrics if not requires_several(one)]

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Log the scores of the student as it is."""
        pl_module.log_all(self.name, self.of(pl_module.student))

    def of(self, student: LanguageModel) -> dict[str, float]:
        """The value of each metric of the skill."""
        with gathered(student):
            return {name: score.value for name, score in self.session.task_scores(student).items()}


def task_scores(cfg: DictConfig, parts: Parts) -> TaskScores | None:
    """What scores the first `checkpoint.answers` validation prompts at each validation; None where there are none."""
    records = load(parts.skill, "validation")[: cfg.checkpoint.answers]
    if not records:
        return None
    settings = cfg.evaluation
    decoding = Decoding(settings.max_new_tokens, temperature=0.0, batch_size=settings.batch_size)
    return TaskScores(parts.skill, records, parts.encoder, decoding)
