"""Loops: augment → train → augment (STaR, ReST, self-training), each round an ordinary run.

A run with `loop.rounds: 3` is the third round of its loop; the same config with 2 is its second, and so on, so that a
round has its name, and its hash, before an earlier one ran, and a longer loop goes on from a shorter one. The stages of
a round generate with the student that the round before exported; `loop.student` is where training starts:

    restart     the run's own student, untrained, in every round (STaR, arXiv 2203.14465; ReST-EM, arXiv 2312.06585)
    continue    the student of the round before (ReST, arXiv 2308.08998)
"""

from typing import Any

from omegaconf import DictConfig, open_dict

from kd.artifacts import verified
from kd.experiment.preparation import read_from
from kd.runs.folder import RunFolder


def round_before(cfg: DictConfig) -> DictConfig | None:
    """The config of the round before; None for the first, or the only one."""
    if cfg.loop.rounds == 1:
        return None
    earlier = cfg.copy()
    with open_dict(earlier):
        earlier.loop.rounds -= 1
    return earlier


def of_round(cfg: DictConfig) -> DictConfig:
    """The config as its hash reads it: the first round of a loop is the same run whatever `loop.student` is."""
    if cfg.loop.rounds > 1:
        return cfg
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.loop.student = "restart"
    return cfg


def after_round(cfg: DictConfig, folder: RunFolder) -> DictConfig:
    """The config whose stages generate with the student of the run in `folder`, and which trains it on or not.

    Raises ValueError where that student was changed since it was exported.
    """
    student = folder.path / "student"
    verified(student)
    cfg = cfg.copy()
    with open_dict(cfg):
        previous: dict[str, Any] = {"identity": folder.config_hash, "folder": str(folder.path)}
        cfg.loop.previous = previous
        if cfg.loop.student == "continue":
            read_from(student, cfg.student, lora=cfg.student.model.get("lora"))
    return cfg
