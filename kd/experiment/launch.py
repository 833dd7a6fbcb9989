"""Checks that the started processes are the ranks of one run, and that its prerequisites are made."""

from pathlib import Path

from omegaconf import DictConfig

from kd.composition.sections import learning_processes
from kd.experiment.elicitation import elicited_folder, is_elicited
from kd.experiment.plan import Plan, plain
from kd.experiment.preparation import as_prepared, unprepared
from kd.experiment.rounds import after_round
from kd.program import is_rank_zero, ranks_started


def check_launch(plan: Plan) -> None:
    """Raises ValueError where several ranks were started from outside before its prerequisites were made."""
    ranks = ranks_started()
    _check_ranks(plan.cfg, ranks)
    if ranks > 1 and (lacking := [what for what, _ in missing(plan)]):
        raise ValueError(
            f"{ranks} ranks were started from outside (torchrun, Slurm), but {' and '.join(lacking)} must be made by "
            "one process before; give the same command to one process first, with run.prerequisites_only=true"
        )


def needs(cfg: DictConfig) -> set[Path]:
    """The folders of what a job trains on and that is not made yet, as far as it is known before it is made.

    Raises ValueError, OSError as `Plan.of` does.
    """
    return {folder for _, folder in missing(Plan.of(cfg))}


def missing(plan: Plan) -> list[tuple[str, Path]]:
    """What is to be made before a run trains, with its folder: prepared models, a round, elicited records, a baseline.

    A folder that is named by another one's content is left out until that is made.
    """
    found = [(f"the preparation of the {role}", folder) for role, folder in unprepared(plan.cfg).items()]
    if plan.before is not None and not plan.before.folder.done:
        return [*found, (f"round {plan.before.cfg.loop.rounds} of the loop", plan.before.folder.path)]
    read = as_prepared(plan.cfg)
    read = read if plan.before is None else after_round(read, plan.before.folder)
    if not found and not is_elicited(read):
        found.append(("the elicitation (augmentation)", elicited_folder(read)))
    if plan.beside is not None and not plan.beside.folder.done:
        found.append((f"the run beside it (compare={plan.cfg.compare})", plan.beside.folder.path))
    return found


def _check_ranks(cfg: DictConfig, ranks: int) -> None:
    """Raises ValueError where several processes would each train a whole run, or the only one is not the first rank."""
    learning = learning_processes(plain(cfg)["trainer"])
    if ranks > 1 and learning not in (None, ranks):
        raise ValueError(
            f"{ranks} ranks were started from outside (WORLD_SIZE or SLURM_NTASKS), but trainer.devices="
            f"{cfg.trainer.devices} makes a run of {learning}, so that the same would be trained several times; take "
            f"trainer.devices={ranks} trainer.strategy=ddp, or start one process without these variables"
        )
    if ranks == 1 and not is_rank_zero():
        raise ValueError(
            "the environment (RANK, LOCAL_RANK or SLURM_PROCID) makes this process another rank than the first, and "
            "only one was started, so that no results would be written; unset the variable"
        )
