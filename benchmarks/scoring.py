"""Scoring of texts beside generating them: every metric of conf/metric, and verifiers, on 10 000 texts with intervals.

python -m benchmarks.scoring
python -m benchmarks.scoring --texts 500 --metrics rouge_l macro_f1
python -m benchmarks.scoring --by tiny --metrics --verifiers spell_backward        a model that generates as fast as any
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.evaluation import BATCH, NEW, language_model, records
from benchmarks.head import Rows

SEVERAL = 10  # answers to a prompt, for metrics of samples
VERIFIERS = ("gsm_symbolic", "spell_backward", "countdown")  # skills with a verifier of their own
UNNAMED = {  # skills whose records have what metrics require that no skill names
    **dict.fromkeys(("brier", "calibration_error"), "boolq"),
    **dict.fromkeys(("listed_hit", "listed_mrr", "listed_ndcg"), "fiqa_ranking"),
}


def records_of(name: str) -> list[Any]:
    """The test records of a file of conf/skill."""
    from kd.components.choices import content
    from kd.components.instantiation import instantiate

    return list(instantiate(content("skill", name)).load("test"))


def skill_with(metric: str) -> str:
    """A skill that names the metric, or that has what it requires."""
    from kd.components.choices import choices, content

    embedded = (name for name in choices("skill") if not name.startswith("hub/"))
    naming = (name for name in embedded if metric in (content("skill", name).get("metrics") or ()))
    return next(naming, UNNAMED.get(metric, "gsm_symbolic"))


def repeated(found: Sequence[Any], count: int) -> list[Any]:
    """So many records, of which none has the id of another."""
    turns = itertools.islice(itertools.cycle(found), count)
    return [replace(record, id=f"{i} {record.id}") for i, record in enumerate(turns)]


def answers(found: Sequence[Any], each: int) -> Any:
    """`each` answers to each record: its own response and that of the next in turn, right ones and wrong ones."""
    import pandas as pd

    texts = [record.responses[0].text if record.responses else record.prompt[-1]["content"] for record in found]
    rows = [
        {"id": record.id, "text": texts[(i + k % 2 + i % 2) % len(found)], "score": float((i + k) % 2)}
        for i, record in enumerate(found)
        for k in range(each)
    ]
    return pd.DataFrame(rows).assign(tokens=50, truncated=False)


def likelihoods(found: Sequence[Any]) -> dict[str, Any]:
    """Random log-likelihoods of each record's choices."""
    from kd.skills.answer_metrics import Evidence

    draw = torch.Generator().manual_seed(0)
    counts = [len(record.meta.get("choices") or record.responses) for record in found]
    assert all(Evidence(record).choices for record in found[:1])
    return {
        record.id: tuple((-10 * torch.rand(2, count, generator=draw)).tolist())
        for record, count in zip(found, counts, strict=True)
    }


def scored(name: str, texts: int) -> tuple[machine.Clock, Any, list[Any]]:
    """The time of a metric on so many texts; the texts, and their records."""
    from kd.evaluation.items import evidence, measured, requires_likelihood, requires_several
    from kd.skills.answer_metrics import answer_metrics

    (metric,) = answer_metrics([name])
    each = SEVERAL if requires_several(metric) else 1
    found = repeated(records_of(skill_with(name)), texts // each)
    written = answers(found, each)
    choices = likelihoods(found) if requires_likelihood(metric) else {}
    measured(metric, evidence(found[:2], written, choices), ["a", "b"], resamples=2)  # a pool of workers, caches
    with machine.Clock() as clock:
        measured(metric, evidence(found, written, choices), [one.id for one in found], resamples=2000)
    return clock, written, found


def verified(name: str, texts: int) -> tuple[machine.Clock, Any, list[Any]]:
    """The same of a skill's own verifier."""
    from kd.components.choices import content
    from kd.components.instantiation import instantiate
    from kd.evaluation.answers import judged

    skill = instantiate(content("skill", name))
    found = repeated(list(skill.load("test")), texts)
    written = answers(found, 1).drop(columns="score")
    judged(written[:2], skill, found[:2])
    with machine.Clock() as clock:
        judged(written, skill, found)
    return clock, written, found


def tiny_model() -> Any:
    """The random network of conf/student/tiny.yaml: a hundred thousand parameters, tokens of a byte."""
    from kd.components.choices import content
    from kd.components.instantiation import instantiate

    return instantiate(content("student", "tiny")["model"])


MODELS = {"smollm2_135m": language_model, "tiny": tiny_model}


class Writer:
    """The seconds in which a model reads prompts and generates texts, 32 together, in float32."""

    def __init__(self, name: str) -> None:
        from kd.data.sequences import prompt_ids
        from kd.generators.generation import generate

        self.model = MODELS[name]()
        prompts = [prompt_ids(record, self.model.tokenizer) for record in records("answers", BATCH, shots=0)]
        generate(self.model, prompts[:2], max_new_tokens=2)
        with machine.Clock() as reading:
            generate(self.model, prompts, max_new_tokens=1, batch_size=BATCH)
        with machine.Clock() as both:
            found = generate(self.model, prompts, max_new_tokens=NEW, batch_size=BATCH)
        self.read = reading.cpu / sum(map(len, prompts))
        self.generated = (both.cpu - reading.cpu) / (sum(map(len, found)) - len(found))

    def seconds(self, written: Any, found: Sequence[Any]) -> float:
        """Of processor time, for these texts."""
        tokens = self.model.tokenizer(written["text"].tolist(), add_special_tokens=False)["input_ids"]
        prompts = ["\n".join(message["content"] for message in record.prompt) for record in found]
        read = self.model.tokenizer(prompts, add_special_tokens=False)["input_ids"]
        return self.read * sum(map(len, read)) + self.generated * sum(len(one) + 1 for one in tokens)


def benchmark(options: argparse.Namespace, console: Console) -> int:
    """All metrics; 1 if scoring takes longer than generating."""
    rows = Rows(options.out, machine.described())
    console.print(rows.header)
    writer = Writer(options.by)
    console.print(f"generation: {1 / writer.read:.0f} tokens read, {1 / writer.generated:.0f} generated a second (CPU)")
    table = Table(title=f"seconds for {options.texts} texts; scoring (wall) / generating (CPU)")
    for column in ("metric", "records of", "CPU s", "wall s", "generating, CPU s", "share"):
        table.add_column(column, justify="right", no_wrap=True)
    jobs = [(name, skill_with(name), scored) for name in options.metrics]
    jobs += [("its own verifier", name, verified) for name in options.verifiers]
    worst = 0.0
    for label, skill, work in jobs:
        clock, written, found = work(label if work is scored else skill, options.texts)
        seconds = writer.seconds(written, found)
        worst = max(worst, clock.wall / seconds)
        row = {
            "metric": label,
            "skill": skill,
            "texts": options.texts,
            "by": options.by,
            "generating": seconds,
            "kind": "time",
        }
        rows.add(row, clock.row())
        table.add_row(
            label, skill, f"{clock.cpu:.1f}", f"{clock.wall:.1f}", f"{seconds:.0f}", f"{clock.wall / seconds:.3f}"
        )
    console.print(table)
    return int(worst > 1)


def _parser() -> argparse.ArgumentParser:
    from kd.components.choices import choices

    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description=__doc__.splitlines()[0])
    parser.add_argument("--metrics", nargs="*", choices=choices("metric"), default=choices("metric"))
    parser.add_argument("--verifiers", nargs="*", choices=VERIFIERS, default=list(VERIFIERS))
    parser.add_argument("--by", choices=list(MODELS), default="smollm2_135m", help="the model that would generate them")
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "scoring-cpu.jsonl")
    return parser


if __name__ == "__main__":
    width = None if sys.stdout.isatty() else 140
    sys.exit(benchmark(_parser().parse_args(sys.argv[1:]), Console(width=width)))
