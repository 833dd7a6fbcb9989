"""Evaluation of model-generated text and code in a confined process (docs/sandbox.md)."""

from kd.sandbox.limits import Limits, NoVerdict, Outcome, SandboxError
from kd.sandbox.pool import CODE, VERDICT, calls, mechanism, run, verdict

__all__ = ["CODE", "VERDICT", "Limits", "NoVerdict", "Outcome", "SandboxError", "calls", "mechanism", "run", "verdict"]
