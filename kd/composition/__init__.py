"""Is this config a run? Checked before any weight is loaded."""
