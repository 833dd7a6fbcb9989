"""A dry run: every job of a grid composed and checked, and what it would need, without weights, data, hub or GPU."""

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from kd.composition.overrides import check_overrides, started
from kd.doctor.grid import GridJob, jobs
from kd.doctor.memory_table import memory_of_grid, memory_of_job
from kd.doctor.needs import Needs, needs, shown
from kd.doctor.workload import Assumed
from kd.experiment.identity import settings_hash
from kd.experiment.plan import baseline, plain
from kd.reports.grid import Cell, Grid

Arms = dict[str, list[tuple[GridJob, Needs]]]
GENERAL = (
    "Estimated from architectures alone, without weights, data or tokenizers; left out are validation, evaluation and "
    "loading, and the networks of rewards and judges."
)
OF_FLOPS = (
    "FLOPs: 2 per weight and token forward, 4 backward, the head on responses, causal attention. Where a rollout may "
    "generate, each response is counted as generated, of the greatest length."
)


def dry_run(overrides: Sequence[str], assumed: Assumed, more: str | None = None) -> list[Grid]:
    """The tables of a command line's jobs.

    more: a folder of configs beside `conf`, as `--config-dir` names it.

    Raises ValueError, in one sentence: a job cannot be run, or the architecture of a model is not known.
    """
    check_overrides([*(["--config-dir", more] if more else []), *overrides])
    arms: Arms = {}
    every, beside = _Estimates(assumed), _Beside()
    with started(more=more, overrides=overrides):
        for job in jobs(overrides):
            arms.setdefault(job.arm, []).append((job, every(job.cfg)))
            if job.cfg.compare is not None:
                beside.add(job.cfg)
        others = [every(cfg) for cfg in beside.missing()]
    return [_costs(arms, others, assumed), _memory(arms, assumed)]


class _Estimates:
    """The needs of configs; those of jobs that differ in their seed alone are estimated once."""

    def __init__(self, assumed: Assumed):
        self.assumed = assumed
        self.known: dict[str, Needs] = {}

    def __call__(self, cfg: DictConfig) -> Needs:
        config = plain(cfg)
        alike = OmegaConf.to_yaml(OmegaConf.create({**config, "seed": 0}))
        if alike not in self.known:
            self.known[alike] = needs(config, self.assumed)
        return self.known[alike]


class _Beside:
    """The runs beside jobs (`compare`), which share them; a job that is its own is none."""

    def __init__(self) -> None:
        self.found: dict[str, DictConfig] = {}
        self.jobs: set[str] = set()

    def add(self, cfg: DictConfig) -> None:
        """Add that of a job."""
        other, alone = baseline(cfg), cfg.copy()
        alone.compare = None
        self.found.setdefault(settings_hash(other), other)
        self.jobs.add(settings_hash(alone))

    def missing(self) -> list[DictConfig]:
        """Those that are no job of the grid."""
        return [cfg for digest, cfg in self.found.items() if digest not in self.jobs]


def _costs(arms: Arms, beside: Sequence[Needs], assumed: Assumed) -> Grid:
    """One line for each arm: parameters, tokens, FLOPs and hours of one job, and the total.

    beside: the runs beside the jobs.
    """
    rows: list[list[str]] = []
    for arm, members in arms.items():
        one = members[0][1]
        spent = [one.flops[kind] for kind in ("student", "teacher", "generation")]
        spent[2] += one.flops["elicitation"]
        rows.append(
            [
                _lines(arm),
                Cell.number(len(members), str(len(members))),
                _sizes(one),
                Cell.number(one.tokens, _short(one.tokens)),
                *(Cell.number(value, _short(value)) for value in spent),
                Cell.number(one.hours, _hours(one.hours)),
            ]
        )
    every = [one for members in arms.values() for _, one in members]
    recipes: dict[str, float] = {}
    for one in [*every, *beside]:
        recipes |= one.recipes
    total = sum(one.hours for one in [*every, *beside]) + sum(recipes.values())
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
    parts = [f"{_hours(sum(recipes.values()))} for {len(recipes)} preparations"] if recipes else []
    parts += [f"{_hours(sum(one.hours for one in beside))} for {len(beside)} runs beside (compare)"] if beside else []
    more = f", with {' and '.join(parts)}" if parts else ""
    cards = sum(one.devices * one.hours for one in [*every, *beside]) + sum(recipes.values())
    notes = [
        f"In total {_hours(total)} hours on {shown(assumed, every[0].devices)}{more}; {_hours(cards)} GPU hours.",
        *([_phases(every[0])] if len(arms) == 1 and every[0].times else []),
        _lengths(assumed),
        OF_FLOPS,
        GENERAL,
    ]
    return Grid(f"{len(every)} jobs, composed and checked", header, rows, notes, folds=True)


def _memory(arms: Arms, assumed: Assumed) -> Grid:
    """What one device holds in each phase: part by part for one job, else in four columns."""
    first = {arm: members[0][1] for arm, members in arms.items()}
    if len(first) == 1:
        return memory_of_job(next(iter(first.values())), assumed)
    return memory_of_grid(first, assumed)


def _lines(arm: str) -> str:
    """The overrides of an arm below one another."""
    return arm.replace(" ", "\n") or "the run"


def _phases(one: Needs) -> str:
    """The hours of a job by phase."""
    return f"Hours by phase: {', '.join(f'{phase} {_hours(each)}' for phase, each in one.times.items() if each)}."


def _lengths(assumed: Assumed) -> str:
    if assumed.length is not None:
        return f"Lengths: {assumed.length} tokens of each record (--length), half of them the response."
    return (
        "Lengths: each record fills data.max_length, half of it the response, which is the most there can be; --length "
        "N assumes N tokens."
    )


def _sizes(one: Needs) -> str:
    trained = [f"({_short(one.trained)}", "trained)"] if one.trained < one.student else []
    return "\n".join([_short(one.student), *trained, *([f"← {_short(one.teacher)}"] if one.teacher else [])])


def _short(value: int | float) -> str:
    """`1.56 B`, `124 M`; FLOPs as powers of ten."""
    if value >= 1e13:
        return f"{value:.1e}".replace("e+", "e")
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}" if value else "–"


def _hours(value: float) -> str:
    if 0 < value < 0.001:
        return "<0.001"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"
