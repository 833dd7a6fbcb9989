"""Is this config a run? Asked before any weight is loaded."""
