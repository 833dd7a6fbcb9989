"""Environments that answer a model's turns: tools, and feedback (docs/on_policy.md)."""
