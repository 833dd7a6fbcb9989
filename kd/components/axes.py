"""The axes of an experiment in one table: a new axis is one row here, a folder in `conf/` and its default there.

All code that treats the axes alike reads this table: the required sections of a config, the meaning of a list of files,
the choices that a baseline resets, the alternatives to a choice that does not fit, the names of other libraries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Axis:
    """A folder of `conf/` from which a run chooses a file.

    Args:
        alone: the file that a run on the references alone has, such as the baseline beside a run (`compare`); None: the
            file of the run itself.
        composes: whether several files, as in `objective=[fkl,sft]`, make one run, in the given order.
        instead: for an axis that does not compose, the remedy for several files, beside a sweep.
        first: files that are tried before the others in place of a choice that does not fit; none: the choice stays.
        synonyms: other libraries' names of the files.
        beside: keys that stand beside the arguments of its class, and are for the run.
        heavy: whether its part loads a model, or needs one, so that a check before the run does not make it.
        section: whether the config has a section of its name; a method or an experiment may set any key.
    """

    alone: str | None = None
    composes: bool = False
    instead: str | None = None
    first: Sequence[str] = ()
    synonyms: Mapping[str, str] = field(default_factory=dict)
    beside: frozenset[str] = frozenset()
    heavy: bool = False
    section: bool = True


# In this order demands are read and remedies are tried.
AXES: dict[str, Axis] = {
    "objective": Axis(
        composes=True,
        synonyms={
            "kl": "fkl",
            "kld": "fkl",
            "forward_kl": "fkl",
            "kl_div": "fkl",
            "reverse_kl": "rkl",
            "reverse_kld": "rkl",
            "js": "jsd",
            "jensen_shannon": "jsd",
            "gjsd": "jsd",
            "ce": "sft",
            "cross_entropy": "sft",
            "nll": "sft",
            "mse": "hidden_mse",
            "total_variation": "tvd",
        },
    ),
    "rollout": Axis(
        alone="offline",
        first=("on_policy", "paired", "demonstrated", "ranked", "teacher_mixed", "offline"),
        synonyms={
            "offpolicy": "offline",
            "off_policy": "offline",
            "online": "on_policy",
            "onpolicy": "on_policy",
        },
    ),
    "reward": Axis(alone="none", first=("none", "discriminator", "log_ratio", "verifier"), heavy=True),
    "corpus": Axis(alone="none", first=("docstrings",)),
    "targets": Axis(first=("full",), beside=frozenset({"cached", "audit"}), heavy=True),
    "alignment": Axis(first=("same", "shared_vocabulary", "spans")),
    "teacher": Axis(
        instead="teacher=ensemble",
        first=("tiny", "smollm2_135m"),
        beside=frozenset({"prepare", "licence", "source"}),
        heavy=True,
    ),
    "student": Axis(first=("tiny",), synonyms={"peft": "lora", "random": "scratch"}, heavy=True),
    "generator": Axis(
        alone="torch",
        first=("torch",),
        synonyms={"hf": "transformers", "huggingface": "transformers", "native": "torch"},
    ),
    "augmentation": Axis(alone="none", composes=True, first=("none",)),
    "skill": Axis(instead="skill=mixture 'skill.of={NAME: WEIGHT, ...}'"),
    "trainer": Axis(synonyms={"cuda": "gpu", "auto": "gpu", "mps": "cpu", "bf16": "cpu_bf16", "fsdp2": "fsdp"}),
    "evaluation": Axis(),
    "judge": Axis(
        alone="none",
        composes=True,
        synonyms={"mt_bench": "graded", "single": "graded", "pair": "pairwise", "win_rate": "pairwise"},
        beside=frozenset({"teacher", "source"}),
    ),
    "logger": Axis(composes=True, synonyms={"tb": "tensorboard", "none": "csv", "all": "wandb"}),
    "method": Axis(
        section=False,
        synonyms={
            "generalized_kd": "gkd",
            "on_policy_distillation": "opd",
            "sequence_kd": "seqkd",
            "vanilla_kd": "kd",
        },
    ),
    "experiment": Axis(section=False),
}


def sections() -> list[str]:
    """The axes that are sections of the config."""
    return [name for name, axis in AXES.items() if axis.section]


def points() -> list[str]:
    """The axes whose files choose of other axes and may set any key."""
    return [name for name, axis in AXES.items() if not axis.section]


def replaceable() -> list[str]:
    """The axes of which another file may be recommended, in the order in which it is looked for."""
    return [name for name, axis in AXES.items() if axis.first]


def references_alone() -> dict[str, str]:
    """The choices of a run on the references alone: no augmentation, rollout, reward or corpus of another run."""
    return {name: axis.alone for name, axis in AXES.items() if axis.alone is not None}


def check_several(axis: str, names: Sequence[str]) -> None:
    """Raises ValueError for files of an axis of which Hydra would mix the keys: several, or one that is named twice."""
    if len(names) < 2 or axis not in AXES:
        return
    listed, instead = ",".join(names), AXES[axis].instead
    if AXES[axis].composes:
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{axis}=[{listed}] names {twice} twice, and one would replace the other; name it once")
        return
    several = f"{instead} for several at once, or " if instead else ""
    raise ValueError(
        f"{axis}=[{listed}]: a run has one {axis}; take {several}a sweep with a run for each, -m {axis}={listed}"
    )
