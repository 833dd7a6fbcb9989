"""Evaluation of model-generated text and code in a confined process (docs/sandbox.md)."""

from kd.sandbox.limits import AT_LIMIT, Limits, NoVerdict, Outcome, SandboxError
from kd.sandbox.pool import CODE, VERDICT, calls, concurrently, mechanism, run, verdict

__all__ = [
    "AT_LIMIT",
    "CODE",
    "VERDICT",
    "Limits",
    "NoVerdict",
    "Outcome",
    "SandboxError",
    "calls",
    "concurrently",
    "mechanism",
    "run",
    "verdict",
]
