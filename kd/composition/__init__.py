"""Checks that a config is a run, before any weight is loaded."""
