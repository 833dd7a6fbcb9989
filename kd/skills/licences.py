"""What a skill's licence allows: a refusal where commercial use is asked for, and terms that are printed once."""

import sys
from functools import lru_cache

from kd.program import is_rank_zero


def check_commercial(name: str, licence: str, commercial: bool | None, *, commercial_only: bool) -> None:
    """Raises ValueError for a skill that is not known to allow commercial use, where nothing else is wanted.

    Args:
        commercial: whether the licence allows commercial use; None: not known, or not checked.
        commercial_only: whether only such skills are wanted (`skill.commercial_only`).
    """
    if commercial_only and commercial is not True:
        fault = "does not allow commercial use" if commercial is False else "is not known to allow commercial use"
        raise ValueError(
            f"skill {name}: its licence, {licence}, {fault}, and skill.commercial_only=true; choose a skill that "
            "`python -m kd.skills` lists with yes, or set skill.commercial_only=false"
        )


def print_terms(name: str, terms: str | None) -> None:
    """Print the terms that bind users of the data, once in a process, on rank zero."""
    if terms is not None and is_rank_zero():
        _print(f"{name}: terms of the data: {terms}")


@lru_cache(maxsize=256)
def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
