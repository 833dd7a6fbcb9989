"""The loggers and callbacks that a config names: made for a run, checked before it, and whether they count."""

import inspect
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, ListConfig

from kd.components.instantiation import instantiate
from kd.components.signatures import located, shown
from kd.secrets import unrevealed
from kd.training.tolerance import tolerant

WANDB = "wandb"  # a section of its own, without a `_target_` (`kd.training.trainer`)
CONNECTS = ("CometLogger", "MLFlowLogger")  # their constructors begin an experiment, or make a database
EXTRAS = {"TensorBoardLogger": "tensorboard", "MLFlowLogger": "mlflow", "Trackio": "trackio"}  # of pyproject.toml


def named(callbacks: Any) -> dict[str, Any]:
    """The nodes of `trainer.callbacks` by their path below it, whether it is a mapping or a list."""
    if isinstance(callbacks, list | ListConfig):
        return {f"[{i}]": node for i, node in enumerate(callbacks)}
    return {f".{name}": node for name, node in (callbacks or {}).items()}


def own_folder(callee: Any, node: Mapping[str, Any], run: Path, name: str) -> dict[str, str]:
    """The settings that a logger gets from its run where its node lacks them: the folder `<run>/<name>`, and a name."""
    given = {"save_dir": str(run / name), "run_name": run.name}
    takes = inspect.signature(callee).parameters
    return {key: value for key, value in given.items() if key in takes and node.get(key) is None}


def loggers_of(cfg: DictConfig, run: Path) -> list[Logger]:
    """Those of the group `logger` that have a `_target_`; they log the config, and into `<run>/<name>`."""
    nodes = {str(name): node for name, node in cfg.logger.items() if "_target_" in node}
    made = [tolerant(_logger(node, run, name), name) for name, node in nodes.items()]
    for logger in made:
        logger.log_hyperparams(unrevealed(cfg))
    return made


def callbacks_of(cfg: DictConfig) -> list[Callback]:
    """Those of `trainer.callbacks`, in their order."""
    return [_made(node) for node in named(cfg.trainer.get("callbacks")).values()]


def try_observers(cfg: DictConfig) -> None:
    """Raises ValueError, in one sentence, if a constructor of a logger or callback refuses its settings."""
    callbacks_of(cfg)
    for name, node in cfg.logger.items():
        kind = str(node.get("_target_", "")).rpartition(".")[2]
        if kind not in CONNECTS and "_target_" in node:
            _logger(node, Path(cfg.run.root), str(name))
        elif kind in EXTRAS and find_spec(EXTRAS[kind]) is None:
            raise ValueError(_lack(f"logger.{name}", kind, ""))


def _logger(node: DictConfig, run: Path, name: str) -> Logger:
    return _made(node, **own_folder(located(f"logger.{name}", node["_target_"]), node, run, name))


def _made(node: DictConfig, **settings: Any) -> Any:
    path = str(node._get_full_key(None))
    try:
        return instantiate(node, _convert_="all", **settings)
    except ModuleNotFoundError as error:
        kind = str(node["_target_"]).rpartition(".")[2]
        raise ValueError(_lack(path, kind, " ".join(str(error).split()))) from error
    except MisconfigurationException as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error


def _lack(path: str, kind: str, reason: str) -> str:
    """The sentence on a class with a package that is not installed."""
    remedy = f"pip install -e '.[{EXTRAS[kind]}]'" if kind in EXTRAS else f"install what it names ({reason})"
    return f"{path}: {kind} needs a package that is not installed; {remedy}"


# ---- checked, and counted ----

Node = Mapping[str, Any]

MONITORED = ("validation/bits_per_byte", "validation/forward_kl")
WATCHING = frozenset(  # Lightning's callbacks that change no number, so that a run's identity goes without them
    {
        *("LearningRateMonitor", "DeviceStatsMonitor", "ThroughputMonitor"),
        *("ProgressBar", "RichProgressBar", "TQDMProgressBar", "ModelSummary", "RichModelSummary"),
    }
)
WEIGHTS = "it exchanges the weights that are validated, saved and generated with; take checkpoint.use=best"
REFUSED = {  # Lightning's callbacks, and the settings that replace them
    "Checkpoint": "the run keeps its own checkpoints; set checkpoint.every, checkpoint.monitor and checkpoint.use",
    "GradientAccumulationScheduler": "a step learns from one window; set optim.window, and data.max_tokens for memory",
    "Timer": "a run ends by its own clock; set budget.seconds",
    "BatchSizeFinder": "a window is cut by tokens; set data.max_tokens, and see python -m kd.doctor",
    "LearningRateFinder": "it steps the optimizer by itself; sweep optim.lr instead",
    "StochasticWeightAveraging": WEIGHTS,
    "WeightAveraging": WEIGHTS,
    "ModelPruning": "the parameters that it replaces are those that are exported; take student=pruned",
    "BaseFinetuning": "it makes parameter groups of its own; take student=lora",
    "BasePredictionWriter": "a run predicts nothing; its answers are in samples.jsonl",
    "SpikeDetection": "it reads a loss that steps do not return; a run stops at the first value that is not finite",
}


def check_observers(config: Node) -> None:
    """Raises ValueError for a node that is no logger or callback, and for a callback that a run cannot have.

    config: resolved; its code was checked (`kd.components.instantiation.check_code`).
    """
    for name, node in config["logger"].items():
        if name != WANDB or (isinstance(node, Mapping) and "_target_" in node):
            _check_kind(f"logger.{name}", node, Logger, "lightning.pytorch.loggers.TensorBoardLogger")
    given = config["trainer"].get("callbacks")
    if given is not None and not isinstance(given, Mapping | list):
        raise ValueError(f"trainer.callbacks={shown(given)}: should be a mapping of names to nodes, or a list of nodes")
    known = tuple(dict.fromkeys([*MONITORED, config["checkpoint"]["monitor"]]))
    for name, node in named(given).items():
        path = f"trainer.callbacks{name}"
        found = _check_kind(path, node, Callback, "lightning.pytorch.callbacks.LearningRateMonitor")
        _check_callback(path, node, found, known)


def _check_kind(path: str, node: Any, kind: type, example: str) -> type:
    what = kind.__name__.lower()
    if not isinstance(node, Mapping) or node.get("_target_") is None:
        raise ValueError(f"{path}={shown(node)}: names no {what}; give it a _target_, such as {example}")
    found: Any = located(path, node["_target_"])
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ValueError(
            f"{path}._target_={node['_target_']} is no {what} of Lightning; derive it from {kind.__name__}"
        )
    return found


def _check_callback(path: str, node: Node, found: type, known: Sequence[str]) -> None:
    for name, remedy in REFUSED.items():
        if issubclass(found, getattr(lightning_callbacks, name)):
            raise ValueError(f"{path}._target_={node['_target_']}: {remedy}")
    if issubclass(found, EarlyStopping) and node.get("monitor") not in known:
        raise ValueError(
            f"{path}.monitor={shown(node.get('monitor'))}: a run is monitored by what each validation logs; give "
            f"{' or '.join(known)}"
        )


def supplied(path: str, node: Node) -> Node:
    """The node with the settings that the run adds: a logger's folder."""
    group, _, name = path.partition(".")
    if group != "logger" or "." in name:
        return node
    return {**node, **own_folder(located(path, node["_target_"]), node, Path(name), name)}


def monitors(config: Node) -> dict[str, str]:
    """Key -> metric of the callbacks that stop a run by a metric."""
    given = named(config["trainer"].get("callbacks"))
    return {f"trainer.callbacks{name}.monitor": node["monitor"] for name, node in given.items() if "monitor" in node}


def counted(config: Node) -> dict[str, Any]:
    """The config without loggers and callbacks that only observe, as it enters a run's identity."""
    kept = {key: value for key, value in config.items() if key != "logger"}
    if (given := (kept.get("trainer") or {}).get("callbacks")) is not None:
        trainer = {key: value for key, value in kept["trainer"].items() if key != "callbacks"}
        others = {name: node for name, node in named(given).items() if not _watches(str(node["_target_"]))}
        kept["trainer"] = {**trainer, **({"callbacks": others} if others else {})}
    return kept


def _watches(target: str) -> bool:
    module, _, name = target.rpartition(".")
    return name in WATCHING and module.partition(".callbacks")[0] == "lightning.pytorch"
