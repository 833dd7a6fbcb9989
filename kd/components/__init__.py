"""Components that a config may name, the check of their calls, and the choices of each group."""

from kd.components import resolvers  # registers them

__all__ = ["resolvers"]
