"""The costs in `results.json`: of training, of the texts that were elicited before it, of running a model."""

from pydantic import Field, NonNegativeFloat, NonNegativeInt

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


class StageAccount(Page):
    """The account of one stage of an augmentation.

    artifact: the name of the folder that holds its records. given, kept: records before and after it.
    left_out: of those before it, whose prompts leave its model no room for a response. dropped: by reason, as the stage
    counts them. prompts: that models answered. models: names of their content. cost: of generating (tokens, FLOPs,
    seconds). quality: of the records after it (`kd.augmentation.quality`).
    """

    name: str
    artifact: str
    given: NonNegativeInt
    left_out: NonNegativeInt
    kept: NonNegativeInt
    dropped: dict[str, NonNegativeInt]
    prompts: NonNegativeInt
    models: dict[str, str]
    seed: int
    cost: dict[str, NonNegativeInt | NonNegativeFloat]
    quality: dict[str, float | int] = Field(default_factory=dict)


class Elicitation(Page):
    """The training records after the stages of an augmentation, and the cost of the texts that were generated for them.

    The tokens and FLOPs are in the budget of the run, too; the seconds, of generating, are not. Text that was read from
    a cache costs what it did when it was generated.

    records, responses: after the last stage. left_out: records that leave the teacher no room. stages: in order; none
    in results from before they were recorded.
    """

    records: NonNegativeInt
    responses: NonNegativeInt
    left_out: NonNegativeInt
    teacher_tokens: NonNegativeInt
    generated_tokens: NonNegativeInt
    student_flops: NonNegativeFloat
    judge_flops: NonNegativeFloat
    seconds: NonNegativeFloat
    stages: list[StageAccount] = Field(default_factory=list)
