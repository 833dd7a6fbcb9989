"""A dry run: every job of a grid composed and checked, and what it would need, without weights, data, hub or GPU."""

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from kd.composition.overrides import check_overrides, started
from kd.doctor.grid import GridJob, jobs
from kd.doctor.needs import Assumed, Needs, needs, shown
from kd.reports.grid import Cell, Grid

PARTS = ("student", "teacher", "gradients", "AdamW", "activations", "head", "layer", "cache")
GENERAL = (
    "Estimated from architectures alone, without weights, data or tokenizers; left out are validation, evaluation and "
    "loading, and the networks of rewards and judges."
)
OF_FLOPS = (
    "FLOPs: 2 per weight and token forward, 4 backward, the head on responses, causal attention. Where a rollout may "
    "generate, each response is counted as generated, of the greatest length."
)
OF_MEMORY = (
    "Memory of one device, in GB (10⁹ bytes): weights, gradients, two moments of AdamW, the activations of the largest "
    "micro-batch, chunks of logits; layer: a frozen model's working memory; cache: keys and values of a batch. "
    "A PyTorch process takes a gigabyte or two beside it."
)


def dry_run(overrides: Sequence[str], assumed: Assumed, more: str | None = None) -> list[Grid]:
    """The tables of a command line's jobs.

    more: a folder of configs beside `conf`, as `--config-dir` names it.

    Raises ValueError, in one sentence: a job cannot be run, or the architecture of a model is not known.
    """
    check_overrides([*(["--config-dir", more] if more else []), *overrides])
    arms: dict[str, list[tuple[GridJob, Needs]]] = {}
    known: dict[str, Needs] = {}
    with started(more=more, overrides=overrides):
        for job in jobs(overrides):
            config: Any = OmegaConf.to_container(job.cfg, resolve=True)
            alike = OmegaConf.to_yaml(OmegaConf.create({**config, "seed": 0}))
            if alike not in known:
                known[alike] = needs(config, assumed)
            arms.setdefault(job.arm, []).append((job, known[alike]))
    return [_costs(arms, assumed), _memory(arms, assumed)]


def _costs(arms: Mapping[str, Sequence[tuple[GridJob, Needs]]], assumed: Assumed) -> Grid:
    """One line for each arm: parameters, tokens, FLOPs and hours of one job, and the total."""
    rows: list[list[str]] = []
    for arm, members in arms.items():
        one = members[0][1]
        spent = [one.flops[kind] for kind in ("student", "teacher", "generation")]
        spent[2] += one.flops["elicitation"]
        rows.append(
            [
                arm or "the run",
                Cell.number(len(members), str(len(members))),
                _sizes(one),
                Cell.number(one.tokens, _short(one.tokens)),
                *(Cell.number(value, _short(value)) for value in spent),
                Cell.number(one.hours, _hours(one.hours)),
            ]
        )
    every = [one for members in arms.values() for _, one in members]
    recipes: dict[str, float] = {}
    for one in every:
        recipes |= one.recipes
    total = sum(one.hours for one in every) + sum(recipes.values())
    header = [
        "job",
        "jobs",
        "student ←\nteacher",
        "tokens",
        "training\nFLOP",
        "teacher\nFLOP",
        "writing\nFLOP",
        "hours",
    ]
    prepared = f", with {_hours(sum(recipes.values()))} for {len(recipes)} preparations" if recipes else ""
    first = every[0]
    cards = first.devices * total
    notes = [
        f"In total {_hours(total)} hours on {shown(assumed, first.devices)}{prepared}; {_hours(cards)} GPU hours.",
        _lengths(assumed),
        OF_FLOPS,
        GENERAL,
    ]
    return Grid(f"{len(every)} jobs, composed and checked", header, rows, notes)


def _memory(arms: Mapping[str, Sequence[tuple[GridJob, Needs]]], assumed: Assumed) -> Grid:
    """One line for each arm and phase: memory by part."""
    lines = []
    for arm, members in arms.items():
        for phase, parts in members[0][1].memory.items():
            lines.append((arm or "the run", phase, parts))
    shown_parts = [part for part in PARTS if any(parts.get(part) for _, _, parts in lines)]
    rows = [[arm, phase, *(_gb(parts.get(part)) for part in shown_parts), _sum(parts)] for arm, phase, parts in lines]
    over = [f"{arm} ({phase})" for arm, phase, parts in lines if sum(parts.values()) > assumed.gpu.memory]
    limit = f"{assumed.gpu.name} has {assumed.gpu.memory / 1e9:.0f} GB"
    remedy = "lower data.max_tokens, take student=lora, targets.cached=true or a larger GPU"
    verdict = f"TOO LARGE for it: {', '.join(over)}; {remedy}"
    notes = [f"{limit}: {'every job fits' if not over else verdict}.", OF_MEMORY]
    return Grid("Memory", ["job", "phase", *shown_parts, "sum"], rows, notes, labels=2)


def _lengths(assumed: Assumed) -> str:
    if assumed.length is not None:
        return f"Lengths: {assumed.length} tokens of each record (--length), half of them the response."
    return (
        "Lengths: each record fills data.max_length, half of it the response, which is the most there can be; --length "
        "N assumes N tokens."
    )


def _sizes(one: Needs) -> str:
    trained = f" ({_short(one.trained)} trained)" if one.trained < one.student else ""
    return (
        f"{_short(one.student)}{trained} ← {_short(one.teacher)}" if one.teacher else f"{_short(one.student)}{trained}"
    )


def _short(value: int | float) -> str:
    """`1.56 B`, `124 M`; FLOPs as powers of ten."""
    if value >= 1e13:
        return f"{value:.1e}".replace("e+", "e")
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}" if value else "–"


def _hours(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _gb(size: int | None) -> Cell:
    return Cell("–") if not size else Cell.number(size / 1e9, f"{size / 1e9:.2f}")


def _sum(parts: Mapping[str, int]) -> Cell:
    return _gb(sum(parts.values()))
