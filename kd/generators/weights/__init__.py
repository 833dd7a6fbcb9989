"""How new weights reach an engine in another process of this machine."""
