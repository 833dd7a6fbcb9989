"""`python tests/preparation_worker.py CONFIG LOG`: makes what CONFIG prepares, in a process of its own.

The training waits until two processes have found nothing in the cache, so that they do start at once.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from kd.experiment import preparation
from kd.experiment.run import train_only
from kd.runs.folder import RunFolder

if __name__ == "__main__":
    config, log = Path(sys.argv[1]), Path(sys.argv[2])
    make = preparation._make

    def waited(*arguments) -> None:
        (log / f"waiting.{os.getpid()}").touch()
        make(*arguments)

    def train(cfg: DictConfig, run: RunFolder, export_to: Path) -> None:
        (log / f"trained.{os.getpid()}").touch()
        deadline = time.monotonic() + 60
        while len(list(log.glob("waiting.*"))) < 2:
            assert time.monotonic() < deadline, "no other process came"
            time.sleep(0.01)
        train_only(cfg, run, export_to)

    preparation._make = waited
    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        made = preparation.prepared(OmegaConf.load(config), train)
    print(made.teacher.model.source.address)
