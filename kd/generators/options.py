"""The options of the library's `generate` beside the settings of a rollout or an augmentation."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

Share = Annotated[float, Field(gt=0, le=1)]
Cutoff = Annotated[float, Field(ge=0, lt=1)]
PAIR = Field(min_length=2, max_length=2)
Ids = Annotated[list[NonNegativeInt], Field(min_length=1)]

SAMPLING = ("top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")  # options of sampling alone
SEARCHING = ("length_penalty", "early_stopping")  # options of a beam search alone


@dataclass(frozen=True)
class Options:
    """Names and meanings are those of `transformers.GenerationConfig`; each default leaves the text as it was.

    Args:
        num_beams: beams of a search; 1: no search.
        length_penalty: a text's log-probability is divided by its length to this power; 0 is the likeliest text.
        early_stopping: when a search ends: true, with `num_beams` finished texts | false, when it is unlikely to find a
            better one | never, when there cannot be one.
        no_repeat_ngram_size: n-grams of that size come once at the most, prompt included; 0: as often as they like.
        repetition_penalty: logits of ids that were there before, prompt included, are divided by it where positive and
            multiplied where negative (arXiv 1909.05858); in a search it is log-probabilities.
        min_new_tokens: no end token before.
        top_k: only the likeliest k ids are drawn; 0: all.
        min_p: only ids with at least this share of the likeliest one's probability (arXiv 2407.01082).
        top_h: only the likeliest ids that together have this share of the entropy (arXiv 2509.02510).
        typical_p: only the most typical ids that together reach this probability (arXiv 2202.00666).
        epsilon_cutoff, eta_cutoff: only ids above a probability, fixed or by entropy (arXiv 2210.15191).
        bad_words_ids: sequences of ids that are never written.
        suppress_tokens, begin_suppress_tokens: ids that are never written, or never at the start.
        sequence_bias: pairs of a sequence of ids and what is added to the logit of its last one.
        exponential_decay_length_penalty: tokens after which the end grows likelier, and the factor by which.
        renormalize_logits: whether scores are log-probabilities again after all of that; for a search.

    Raises:
        ValueError: an option would change nothing without beams.
    """

    num_beams: PositiveInt = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    no_repeat_ngram_size: NonNegativeInt = 0
    repetition_penalty: PositiveFloat = 1.0
    min_new_tokens: NonNegativeInt = 0
    top_k: NonNegativeInt = 0
    min_p: Share | None = None
    top_h: Share | None = None
    typical_p: Share = 1.0
    epsilon_cutoff: Cutoff = 0.0
    eta_cutoff: Cutoff = 0.0
    bad_words_ids: list[Ids] | None = None
    suppress_tokens: Ids | None = None
    begin_suppress_tokens: Ids | None = None
    sequence_bias: list[Annotated[list[Ids | float], PAIR]] | None = None
    exponential_decay_length_penalty: Annotated[list[NonNegativeInt | PositiveFloat], PAIR] | None = None
    renormalize_logits: bool = False

    def __post_init__(self) -> None:
        for name in SEARCHING if self.num_beams == 1 else ():
            if name in self.chosen:
                raise ValueError(
                    f"generator.options.{name}={self.chosen[name]} is for beam search, but there is one beam; set "
                    f"generator.options.num_beams above 1, or leave {name} out"
                )

    @property
    def chosen(self) -> dict[str, Any]:
        """The options that are not at their defaults."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    def check(self, *, temperature: float, top_p: float, samples: int) -> None:
        """Raises ValueError for options that contradict these settings."""
        beams = self.num_beams
        if beams > 1 and temperature > 0:
            raise ValueError(
                f"generator.options.num_beams={beams} with temperature={temperature}: a beam search looks for the "
                "likeliest text, and the probability of text drawn from its beams is unknown; set "
                "temperature=0, or num_beams=1"
            )
        if beams > 1 and samples > beams:
            raise ValueError(
                f"samples={samples}, but generator.options.num_beams={beams} beams end in {beams} responses at the "
                "most; lower samples, or raise num_beams"
            )
        for name in SAMPLING if temperature == 0 else ():
            if name in self.chosen:
                raise ValueError(
                    f"generator.options.{name}={self.chosen[name]} cuts what is drawn from, but temperature=0 draws "
                    f"nothing; raise temperature, or leave {name} out"
                )


# Further options of `GenerationConfig`, and the setting to use in place of each.
BY_ANOTHER: Mapping[str, str] = {
    **dict.fromkeys(("max_length", "max_new_tokens"), "the writer's max_new_tokens bounds a response; set that"),
    **dict.fromkeys(("do_sample", "temperature"), "the writer's temperature sets it, 0 for greedy; set that"),
    "top_p": "the writer's top_p sets it; set that",
    "num_return_sequences": "the writer's samples sets it; set that",
    "min_length": "it counts the prompt and its padding; take min_new_tokens",
    "max_time": "responses truncated by a clock differ each time; take max_new_tokens",
    **dict.fromkeys(("stop_strings", "forced_eos_token_id"), "a response ends at an end token or is cut; leave it out"),
    **dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id"), "the tokenizer sets it; leave it out"),
    **dict.fromkeys(
        ("num_beam_groups", "diversity_penalty", "penalty_alpha", "dola_layers", "constraints", "force_words_ids"),
        "transformers has moved it to code that it fetches from the hub; leave it out",
    ),
    "guidance_scale": "it reads another prompt, which no budget would count; leave it out",
}


def check_known(path: str, options: Mapping[str, Any]) -> None:
    """Raises ValueError for an option at `path` that exists, but is set by another key or not supported."""
    for name in options:
        if name in BY_ANOTHER:
            raise ValueError(f"{path}.{name}={options[name]}: {BY_ANOTHER[name]}")
