"""The config of a sweep as a whole, for keys that its default choices lack and its jobs have."""

import re
from collections.abc import Callable, Sequence

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from kd.components.choices import is_group, parsed
from kd.errors import sentence

Compose = Callable[[list[str]], DictConfig]


class SweepLoader(ConfigLoaderImpl):
    """Hydra's loader of configs; of a sweep's overrides, those that only its jobs can have are left to the jobs.

    Hydra composes a sweep as a whole, for its folder, launcher and sweeper, without the choices that are swept. In
    `-m rollout=on_policy,mixed rollout.samples=2` it would set the key beside the default rollout, which lacks it.
    """

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """The config of one job, or of a sweep as a whole."""
        load = super().load_configuration

        def composed(words: list[str]) -> DictConfig:
            return load(config_name, words, run_mode, from_shell, validate_sweep_overrides)

        if run_mode != RunMode.MULTIRUN:
            return composed(overrides)
        cfg = of_sweep(composed, overrides)
        cfg.hydra.overrides.task = [word for word in overrides if not parsed(word).is_hydra_override()]
        return cfg


def of_sweep(composed: Compose, overrides: Sequence[str]) -> DictConfig:
    """What `composed` makes of the overrides, without those whose keys the config has in none but a job.

    Raises HydraException where the config cannot be composed for another reason.
    """
    try:
        return composed(list(overrides))
    except HydraException:
        held = _held(composed, overrides)
        if held == list(overrides):
            raise
    return composed(held)


def unfit(error: HydraException) -> str:
    """The reason for which a job of a sweep has no config, in one sentence: Hydra's advice is that for a single run."""
    text = str(error)
    if missing := re.match(r"Could not override '(.+)'\.\nTo append to your config use \+(.+)", text):
        key, line = missing.groups()
        inner = str(getattr(error.__cause__, "full_key", None) or "")  # of a mapping that is merged into one there
        reason = f"the config has no {inner if inner.startswith(f'{key}.') else key}"
    elif found := re.match(r"Could not append to config\. An item is already at '(.+)'\.\nEither.*: '(.+)'", text):
        key, line = found[1], f"+{found[2]}"
        reason = f"the config has {key} already"
    else:
        return sentence(error)
    return f"{reason}; set {line} only in the arms (hydra.sweeper.arms) or files that it fits"


def _held(composed: Compose, overrides: Sequence[str]) -> list[str]:
    """The overrides but those of keys that the chosen files and the overrides before lack."""
    lines = {word: parsed(word) for word in overrides}
    whole = [word for word, line in lines.items() if line.is_hydra_override() or is_group(line)]
    cfg = composed(whole)
    return [word for word, line in lines.items() if word in whole or line.is_sweep_override() or _applied(cfg, line)]


def _applied(config: DictConfig, override: Override) -> bool:
    """Set the value, as Hydra does; False where it cannot be set."""
    try:
        ConfigLoaderImpl._apply_overrides_to_config([override], config)
    except HydraException:
        return False
    return True
