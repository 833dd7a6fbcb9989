"""The costs in `results.json`: of training, of the texts that were elicited before it, of running a model."""

from pydantic import NonNegativeFloat, NonNegativeInt

from kd.runs.estimates import Page


class Budget(Page):
    """The cost of the student's training."""

    student_flops: NonNegativeFloat
    tokens: NonNegativeInt
    teacher_tokens: NonNegativeInt
    generated_tokens: NonNegativeInt
    judge_flops: NonNegativeFloat = 0
    seconds: NonNegativeFloat
    peak_memory_bytes: NonNegativeInt


class Efficiency(Page):
    """The cost of running a model (`kd.evaluation.efficiency.Efficiency`)."""

    parameters: NonNegativeInt
    weights_bytes: NonNegativeInt
    cache_bytes_per_token: NonNegativeInt | None
    flops_per_token: NonNegativeInt
    tokens_per_second: NonNegativeFloat | None
    generated_tokens: NonNegativeInt


class Elicitation(Page):
    """The training records after the stages of an augmentation, and the cost of the texts that were generated for them.

    The tokens and FLOPs are in the budget of the run, too; the seconds, of generating, are not. Text that was read from
    a cache costs what it did when it was generated.

    records, responses: after the last stage. left_out: records of the skill that leave the teacher no room.
    """

    records: NonNegativeInt
    responses: NonNegativeInt
    left_out: NonNegativeInt
    teacher_tokens: NonNegativeInt
    generated_tokens: NonNegativeInt
    student_flops: NonNegativeFloat
    judge_flops: NonNegativeFloat
    seconds: NonNegativeFloat
