"""What a config may name, how it is called, and which choices there are."""

from kd.components import resolvers  # registers them

__all__ = ["resolvers"]
