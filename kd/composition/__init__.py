"""Is this config a run? Asked before any weight is loaded."""

from kd.composition import resolvers  # registers them

__all__ = ["resolvers"]
