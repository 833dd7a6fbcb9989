"""The jobs of a command line as the run would compose them: one, or those of the sweep that its experiment names."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from kd.composition.check import check
from kd.secrets import note
from kd.sweeps.loader import of_sweep, unfit

SEEDS = "seed="
GRIDS = (
    "hydra_plugins.kd_launcher.sweeper.CheckedSweeper",
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
)


@dataclass(frozen=True)
class GridJob:
    """A job of a grid.

    Attributes:
        overrides: of this job alone, beyond those of the command line.
        cfg: its composed config, which can be run.
    """

    overrides: tuple[str, ...]
    cfg: DictConfig

    @property
    def arm(self) -> str:
        """Its overrides without the seed."""
        return " ".join(word for word in self.overrides if not word.startswith(SEEDS))


def jobs(overrides: Sequence[str]) -> Iterator[GridJob]:
    """Every job of a command line, composed and checked; inside `kd.composition.overrides.started`.

    Raises ValueError, in one sentence that names the job, for one that cannot be run.
    """
    whole = of_sweep(lambda words: compose("config", words, return_hydra_config=True), _single(overrides))
    given = {*overrides, *map(_written, _parser().parse_overrides(list(overrides)))}
    for words in _lines(whole, overrides):
        own = tuple(word for word in words if word not in given)
        try:
            cfg = _composed(words)
            check(cfg, words=words)
        except ValueError as error:
            raise ValueError(f"job {' '.join(own)}: {error}" if own else str(error)) from None
        yield GridJob(own, cfg)


def _composed(words: Sequence[str]) -> DictConfig:
    try:
        cfg = compose("config", overrides=list(words))
    except HydraException as error:
        raise ValueError(unfit(error)) from None
    note(cfg)
    return cfg


def _lines(whole: DictConfig, overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job: the product of the experiment's parameters and of the command line's."""
    parsed = _parser().parse_overrides(list(overrides))
    swept = any(one.is_sweep_override() for one in parsed)
    if str(whole.hydra.mode).rpartition(".")[2] != "MULTIRUN" and not swept:
        return [list(overrides)]
    node: Any = OmegaConf.to_container(whole.hydra.sweeper, resolve=True)
    if node["_target_"] not in GRIDS:
        raise ValueError(f"{node['_target_']} proposes jobs one by one; a dry run needs a grid (hydra/sweeper=checked)")
    sweeper = instantiate(node)
    words = [*sweeper._parse_config(), *overrides]  # as Hydra's own sweeper has it
    (found,) = sweeper.split_arguments(_parser().parse_overrides(words), None)
    return [list(job) for job in found]


def _single(overrides: Sequence[str]) -> list[str]:
    """The overrides without those that are swept, which no single config can have."""
    parsed = _parser().parse_overrides(list(overrides))
    return [word for word, one in zip(overrides, parsed, strict=True) if not one.is_sweep_override()]


def _written(override: Override) -> str:
    """An override as a sweeper writes it into a job."""
    if override.is_sweep_override() or override.is_delete():
        return ""
    return f"{override.get_key_element()}={override.get_value_element_as_str()}"


def _parser() -> OverridesParser:
    return OverridesParser.create(GlobalHydra.instance().config_loader())
