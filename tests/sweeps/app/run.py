"""A task as small as `run.py`'s, driven in real processes by tests/sweeps/test_sweeps.py."""

import toy
from omegaconf import DictConfig, OmegaConf

from kd.sweeps import entry as sweeps


@sweeps.main(config_path="conf", config_name="config")
def main(config: DictConfig, job: sweeps.Job) -> float | None:
    toy.check(config)
    results = job.run(
        toy.folder_of(config),
        lambda folder: toy.work(config, folder),
        config_yaml=OmegaConf.to_yaml(config, resolve=True),
        force=config.run.force,
    )
    return results["scores"]["toy"]["bits_per_byte"]["after"]["value"]


if __name__ == "__main__":
    main()
