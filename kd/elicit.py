"""Makes the training records of a run: `python -m kd.elicit augmentation=labeling teacher=tiny skill=gsm_symbolic`.

The overrides are those of the run. The skill's records go through the augmentation's stages once; every run with the
same skill, stages, teacher and seed reads the result.
"""

import argparse
import sys
from collections.abc import Sequence

from omegaconf import DictConfig

from kd.artifacts import verified
from kd.doctor.subject import composed
from kd.errors import explained, fault
from kd.experiment.elicitation import Elicited, elicit
from kd.experiment.identity import load_skill
from kd.experiment.preparation import prepared
from kd.experiment.run import train_only
from kd.skills.records import load
from kd.types import Record


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of `python -m kd.elicit`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m kd.elicit", description=__doc__)
    parser.add_argument("-n", type=int, default=1, metavar="N", help="records to show (default: 1)")
    parser.add_argument("overrides", nargs="*", help="as for kd: augmentation=labeling teacher=tiny")
    parser.add_argument("--config-dir", metavar="DIR", help="a folder of your own yamls beside conf/, as for kd")
    options = parser.parse_intermixed_args(arguments)
    try:
        with composed(options.overrides, more=options.config_dir) as cfg:
            elicited = made(cfg)
            for record in elicited.records[: options.n]:
                print(shown(record))
            print(summary(elicited, len(load(load_skill(cfg.skill), "train"))))
    except Exception as error:
        print(explained(error) or fault(error), file=sys.stderr)
        return 1
    return 0


def made(cfg: DictConfig) -> Elicited:
    """The records, elicited now if they were not before. Raises ValueError for augmentation=none."""
    if not cfg.augmentation.stages:
        raise ValueError("augmentation=none changes no record; choose another, such as augmentation=labeling")
    return elicit(prepared(cfg, train_only))


def shown(record: Record) -> str:
    """A record in a few lines."""
    lines = [f"{record.id} ({', '.join(record.provenance) or 'as the skill has it'})"]
    lines += [f"  {message['role']}: {message['content']}" for message in record.prompt]
    lines += [f"  -> {response.source}: {response.text}" for response in record.responses]
    return "\n".join(lines)


def summary(elicited: Elicited, given: int) -> str:
    """The folder of the records, their number before and after, and the cost."""
    assert elicited.folder is not None
    seconds = verified(elicited.folder).cost["seconds"]
    left_out = f" ({elicited.left_out} without room for a response)" if elicited.left_out else ""
    return (
        f"{elicited.folder}: {given} records{left_out} became {len(elicited.records)}, "
        f"{elicited.teacher_tokens} tokens of the teacher, {seconds:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
