"""Makes the training records of a run: `python -m kd.elicit augmentation=labeling teacher=tiny skill=gsm_symbolic`.

The overrides are those of the run; none of them has to be the objective. The skill's records go through the
augmentation's stages once; every run with the same skill, stages, teacher and seed reads the result. With `--dry-run`
no text is generated: the plan is printed, with the number of prompts and tokens of each stage.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kd.artifacts import verified
from kd.components.instantiation import instantiate
from kd.composition.interfaces import made_by
from kd.composition.machine import check_ray
from kd.data.prompt_templates import template_text
from kd.doctor.subject import composed
from kd.errors import explained, fault
from kd.experiment.elicitation import Elicited, elicit
from kd.experiment.identity import load_skill
from kd.experiment.run import as_read
from kd.reports.comparisons.augmentation import stages_grid
from kd.reports.grid import Cell, Grid, console
from kd.reports.render import print_grid
from kd.skills.records import load
from kd.types import Record

CHARACTERS = 4  # of a token, about, in English


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of `python -m kd.elicit`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m kd.elicit", description=__doc__)
    parser.add_argument("-n", type=int, default=1, metavar="N", help="records to show (default: 1)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan: prompts and tokens of each stage")
    parser.add_argument("overrides", nargs="*", help="as for kd: augmentation=labeling teacher=tiny")
    parser.add_argument("--config-dir", metavar="DIR", help="a folder of your own yamls beside conf/, as for kd")
    options = parser.parse_intermixed_args(arguments)
    try:
        with composed(_words(options.overrides), more=options.config_dir) as cfg:
            if options.dry_run:
                print_grid(plan_grid(cfg), console())
                return 0
            elicited = made(cfg)
            for record in elicited.records[: options.n]:
                print(shown(record))
            print_grid(stages_grid([stage.model_dump() for stage in elicited.stages]), console())
            print(summary(elicited, len(load(load_skill(cfg.skill), "train"))))
    except Exception as error:
        print(explained(error) or fault(error), file=sys.stderr)
        return 1
    return 0


def _words(overrides: Sequence[str]) -> list[str]:
    """The overrides; where they choose no objective, on which no record depends, sft, which requires texts alone."""
    chosen = any(word.lstrip("+").partition("=")[0] in ("objective", "method", "experiment") for word in overrides)
    return list(overrides) if chosen else ["objective=sft", *overrides]


def made(cfg: DictConfig) -> Elicited:
    """The records, elicited now if they were not before. Raises ValueError for augmentation=none."""
    _check_stages(cfg)
    check_ray(cfg)
    return elicit(as_read(cfg))


def _check_stages(cfg: DictConfig) -> None:
    if not cfg.augmentation.stages:
        raise ValueError("augmentation=none changes no record; choose another, such as augmentation=labeling")


def plan_grid(cfg: DictConfig) -> Grid:
    """One line for each stage: the records, prompts and tokens that are expected, before anything is generated.

    Raises ValueError for augmentation=none, and for a setting that a stage refuses.
    """
    _check_stages(cfg)
    records = load(load_skill(cfg.skill), "train")
    characters = sum(len(str(message["content"])) for record in records for message in record.prompt)
    each = characters / max(1, len(records)) / CHARACTERS  # tokens of a prompt
    rows, now = [], len(records)
    totals, priced = [0, 0, 0], ""
    for name, node in cfg.augmentation.stages.items():
        settings: Any = OmegaConf.to_container(node, resolve=True)
        instantiate(node)  # its constructor checks the settings
        found = made_by(f"augmentation.stages.{name}", settings).expected(now, settings)
        read = round(found.prompts * (each + _template_tokens(settings))) + found.read_again
        counts = [found.prompts, read, found.new_tokens]
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        rows.append([name, *(Cell.number(n, f"{n:,}") for n in (now, found.records, *counts))])
        now = found.records
    if price := cfg.teacher.get("price"):
        most = (totals[1] * (price.input or 0) + totals[2] * (price.output or 0)) / 1e6
        priced = f"At teacher.price about {most:.4g} at most."
    header = ["stage", "records\nbefore", "records\nafter", "prompts", "prompt\ntokens", "new tokens\nat most"]
    notes = [
        f"In all {totals[0]:,} prompts, about {totals[1]:,} tokens read and at most {totals[2]:,} generated; answers "
        "that are on disk cost nothing again.",
        f"Prompt tokens: {CHARACTERS} characters each, of the skill's prompts, the stage's templates and a dialogue's "
        "earlier turns. After a stage that drops records there are at most so many.",
        *([priced] if priced else []),
    ]
    return Grid("Plan of the augmentation", header, rows, notes)


def _template_tokens(settings: Mapping[str, Any]) -> float:
    """Of a stage's templates in the mean, fields included: each prompt is taken to be in one of them."""
    named = {name: value for name, value in settings.items() if name.endswith("template") and isinstance(value, str)}
    lengths = [len(template_text(name, value)) for name, value in named.items()]
    return sum(lengths) / len(lengths) / CHARACTERS if lengths else 0.0


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
        f"{elicited.spent.teacher_tokens} tokens of the teacher, {elicited.spent.generated_tokens} generated by the "
        f"student, {seconds:.0f} s{_paid(elicited)}"
    )


def _paid(elicited: Elicited) -> str:
    """The requests to a server and their price, where there were any."""
    spent = elicited.spent
    return f", {spent.requests} requests for {spent.money:.4g} (teacher.price)" if spent.requests else ""


if __name__ == "__main__":
    sys.exit(main())
