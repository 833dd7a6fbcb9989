"""Caches a teacher's targets for a run's training records: `python -m kd.cache targets=topk skill=gsm_symbolic`.

The overrides are those of the run; afterwards the same command line with targets.cached=true trains from disk. The
teacher reads each sequence once, and an interrupted command goes on where it stopped.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from kd.artifacts import write_atomically
from kd.doctor.subject import composed
from kd.errors import explained, fault
from kd.evaluation.reading import reading
from kd.experiment.build import Parts, build
from kd.experiment.loading import device
from kd.experiment.preparation import targets_folder
from kd.experiment.run import as_read
from kd.locks import locked
from kd.models.digests import model_digest
from kd.progress import phase
from kd.teachers.heads import head_tensors
from kd.teachers.listed import Listed
from kd.teachers.target_store import TargetStore, check_part, keep, keys_of
from kd.teachers.targets import Hidden, stored
from kd.teachers.truncated import Approximated
from kd.training.observation import moved
from kd.types import Batch

SHARD = 256  # sequences


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of `python -m kd.cache`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m kd.cache", description=__doc__)
    parser.add_argument("--this-run", action="store_true", help="only the records that this run's steps will meet")
    parser.add_argument("overrides", nargs="*", help="as for kd: targets=topk teacher=tiny")
    parser.add_argument("--config-dir", metavar="DIR", help="a folder of your own yamls beside conf/, as for kd")
    options = parser.parse_intermixed_args(arguments)
    try:
        with composed(options.overrides, more=options.config_dir) as cfg:
            print(write(cfg, options.this_run))
    except Exception as error:
        print(explained(error) or fault(error), file=sys.stderr)
        return 1
    return 0


def write(cfg: DictConfig, this_run: bool = False) -> str:
    """Cache the teacher's targets of every training sequence that is not in the cache yet; returns the `summary`.

    this_run: leave out the records that optim.steps, optim.window and seed never come to.

    Raises ValueError for targets=full.
    """
    if cfg.targets.get("_target_") is None:
        raise ValueError("targets=full keeps nothing that could be cached; choose targets=topk, sampled or hidden")
    with open_dict(cfg):
        cfg.targets.cached = False
    cfg = as_read(cfg)
    folder, parts = targets_folder(cfg), build(cfg)
    teacher: Approximated | Listed = parts.module.models.teacher
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder), reading(teacher):
        records = parts.data.met() if this_run else parts.data.train
        batches = [moved(batch, device(cfg)) for batch in parts.encoder.batches(records)]
        _write_frame(folder, teacher)
        store, started = TargetStore(folder), time.monotonic()
        before = len(store)
        probe = _probe(cfg, parts)
        _write_targets(store, teacher, [*batches, *probe])
        if isinstance(teacher, Approximated):
            _write_probe(store, teacher, probe)
    return summary(store, len(store) - before, time.monotonic() - started)


def summary(store: TargetStore, new: int, seconds: float) -> str:
    """The content of the cache, and its size."""
    size, rows = store.size_bytes(), store.rows()
    return (
        f"{store.folder}: {len(store)} sequences ({new} new, in {seconds:.0f} s), {rows} response tokens, "
        f"{size / 2**20:.1f} MiB, {size / max(rows, 1):.0f} bytes per token"
    )


def targets_of(teacher: Approximated | Listed, batch: Batch) -> Iterator[tuple[bytes, dict[str, Tensor]]]:
    """Each sequence's key and columns, as they are stored."""
    for key, columns in zip(keys_of(batch.teacher), teacher.columns_of(batch), strict=True):
        yield key, stored(columns, teacher.targets.dtype, teacher.vocabulary)


def _write_frame(folder: Path, teacher: Approximated | Listed) -> None:
    """Write what holds for all sequences: the targets' settings, the teacher's tokenizer, and its head if needed."""
    if (folder / "targets.json").exists():
        return
    words: Any = teacher.tokenizer
    keep(folder / "tokenizer", words.save_pretrained)
    if isinstance(teacher.targets, Hidden):
        head = head_tensors(teacher.exact.projection())
        keep(folder / "head.safetensors", lambda path: save_file(head, path))
    settings = {"targets": type(teacher.targets).__name__, **vars(teacher.targets)}
    settings.pop("rule", None)  # the tail rule is chosen when they are read
    named = teacher.identity() if teacher.model is None else model_digest(teacher.model)
    facts = {"teacher": named, "vocabulary": teacher.vocabulary, **settings}
    keep(folder / "targets.json", lambda path: write_atomically(path, json.dumps(facts, indent=2) + "\n"))


def _write_targets(store: TargetStore, teacher: Approximated | Listed, batches: Sequence[Batch]) -> None:
    """Write a shard for every SHARD sequences, so that no more is lost when the command is stopped."""
    waiting: dict[bytes, dict[str, Tensor]] = {}
    with phase("write the teacher's targets", len(batches), "batches") as shown:
        for batch in batches:
            if not all(key in store for key in keys_of(batch.teacher)):
                waiting |= {key: columns for key, columns in targets_of(teacher, batch) if key not in store}
            if len(waiting) >= SHARD:
                store.append(waiting)
                waiting = {}
            shown.advance(1)
    if waiting:
        store.append(waiting)


def _probe(cfg: DictConfig, parts: Parts) -> list[Batch]:
    """The sequences of the audit, if there is one."""
    audit = cfg.targets.get("audit")
    records = [] if audit is None else parts.data.validation[: audit.records]
    return [moved(batch, device(cfg)) for batch in parts.encoder.batches(records)]


def _write_probe(store: TargetStore, teacher: Approximated, batches: Sequence[Batch]) -> None:
    """Add the log-probabilities of `batches` over all ids, in float32, to those of other runs' audits."""
    known, whole = store.probed(), dict[str, Tensor]()
    for batch in batches:
        if all(key in known for key in keys_of(batch.teacher)):
            continue
        logits = teacher.exact.read(batch, frozenset({"logits"})).logits
        rows = logits.rows(slice(0, logits.n)).float().log_softmax(-1).cpu().split(batch.teacher.mask.sum(1).tolist())
        whole |= {key.hex(): part.contiguous() for key, part in zip(keys_of(batch.teacher), rows, strict=True)}
    if whole:
        whole |= load_file(check_part(store.probe)) if known else {}
        keep(store.probe, lambda path: save_file(whole, path))


if __name__ == "__main__":
    sys.exit(main())
