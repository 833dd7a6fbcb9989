"""The launchers of `conf/hydra/launcher` that another package of Hydra's names, too."""

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

OURS = ("submitit_local", "submitit_slurm")


def use_own_launchers() -> None:
    """Drop the configs of hydra-submitit-launcher, where it is installed: Hydra would check our yamls by them."""
    Plugins.instance()  # imports all plugins, which registers their configs
    registered = ConfigStore.instance().repo.get("hydra", {}).get("launcher", {})
    for name in OURS:
        registered.pop(f"{name}.yaml", None)
