"""Compose, check, train, evaluate, report: the command `kd`, which is `python run.py` in a clone."""

import sys

from omegaconf import DictConfig

from kd.components.choices import CONF
from kd.composition.overrides import check_overrides
from kd.errors import in_one_sentence
from kd.sweeps import entry as sweeps
from kd.sweeps.jobs import Job


@sweeps.main(config_path=str(CONF), config_name="config")
def main(cfg: DictConfig, job: Job) -> float | None:
    """One run, or one job of a sweep."""
    from kd.experiment.run import run

    return run(cfg, job)


def start() -> None:
    """The whole command, as `sys.argv` gives it."""
    with in_one_sentence():
        check_overrides(sys.argv[1:])
    main()
