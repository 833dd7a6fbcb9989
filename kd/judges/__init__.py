"""Judges: models that compare or grade answers, and how far their verdicts can be trusted."""
