"""A calculator that a model calls in its turns."""

import re

from kd.data.prompt_templates import check_template
from kd.environments.arithmetic import value_of
from kd.environments.interface import END, Environment, Observation
from kd.sandbox import Limits, NoVerdict, mechanism, verdict
from kd.types import Message, Record

OPEN, CLOSE = "<calculate>", "</calculate>"
_CALL = re.compile(f"{re.escape(OPEN)}(.*?){re.escape(CLOSE)}", re.DOTALL)
LIMITS = Limits(cpu_seconds=1)
LONGEST = 200  # characters of an expression, and of an observation


class Calculator(Environment):
    """A calculator: a turn with `<calculate>EXPRESSION</calculate>` is a call, and a turn without is the answer.

    The expression is one of Python, of numbers, `math` and a few functions (`kd.environments.arithmetic`), evaluated in
    a sandbox (docs/sandbox.md) within a second of processor time. The observation is its value, or one line on the
    error. A turn with several calls, an unclosed, an empty or an overlong one is malformed, and its observation is the
    way to write one.

    Args:
        template: the last message of the prompt; `{question}` stands for the record's.

    Raises:
        ValueError: a template without `{question}`, or with another field; no sandbox works on this machine.
    """

    def __init__(self, *, template: str):
        check_template("rollout.environment.template", template, required=("question",), optional=())
        mechanism()
        self.template = template

    def reset(self, record: Record) -> tuple[Message, ...]:
        """The record's prompt, whose last message also describes the calculator."""
        *before, last = record.prompt
        return (*before, {**last, "content": self.template.format(question=last["content"])})

    def step(self, text: str) -> Observation:
        """The value of the call in a turn; the end after a turn without one."""
        if OPEN not in text:
            return END
        calls = _CALL.findall(text)
        if len(calls) != 1 or text.count(OPEN) != 1 or not 0 < len(calls[0].strip()) <= LONGEST:
            return Observation(f"error: write one call, as {OPEN}1 + 1{CLOSE}", malformed=True)
        try:
            return Observation(str(verdict(value_of, (calls[0],), limits=LIMITS))[:LONGEST])
        except NoVerdict as error:
            reason = str(error) if error.status == "raised" else f"it was stopped ({error.status})"
            return Observation(f"error: {reason}"[:LONGEST], failed=True)
