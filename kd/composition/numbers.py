"""Checks for numbers that no computation could use, anywhere in a config."""

import math
from collections.abc import Mapping
from typing import Any

from kd.composition.suggestions import flattened

SMALLEST, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # the normal numbers of float32
HEADS, GROUPED, WIDTH = "num_attention_heads", "num_key_value_heads", "hidden_size"


def check_numbers(config: Mapping[str, Any]) -> None:
    """Raises ValueError for NaN, an infinity, and a float that float32 cannot hold, at any depth."""
    for path, value in flattened(config).items():
        if not isinstance(value, float) or value == 0:
            continue
        if not math.isfinite(value):
            remedy = "null, if nothing is to limit it, or " if value > 0 else ""
            raise ValueError(f"{path}={value}: a number must be finite; give {remedy}a number")
        if not SMALLEST <= abs(value) <= LARGEST:
            raise ValueError(
                f"{path}={value}: float32 cannot hold this number; give 0, or one whose size is between {SMALLEST:.1e} "
                f"and {LARGEST:.1e}"
            )


def check_counts(path: str, fields: Mapping[str, Any]) -> None:
    """Raises ValueError for a count or size among the `fields` of an architecture that makes no network."""
    for key, value in fields.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        counts = key.startswith(("num_", "n_")) or key.endswith(("_size", "_positions", "_position_embeddings"))
        if whole and counts and not 1 <= value <= 2**24:
            raise ValueError(f"{path}.{key}={value}: a network has between 1 and {2**24} of them")


def check_heads(path: str, config: Any) -> None:
    """Raises ValueError for numbers of attention heads that do not divide the width or one another."""
    heads, groups, width = (getattr(config, name, None) for name in (HEADS, GROUPED, WIDTH))
    if heads and groups and heads % groups:
        raise ValueError(
            f"{path}.{GROUPED}={groups} does not divide {HEADS}={heads}; set {GROUPED} to a divisor of {heads}"
        )
    if heads and width and width % heads and not getattr(config, "head_dim", None):
        raise ValueError(f"{path}.{HEADS}={heads} does not divide {WIDTH}={width}; set {HEADS} to a divisor of {width}")
