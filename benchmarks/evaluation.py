"""Evaluation against lm-evaluation-harness's backend `hf`: the same weights, prompts, choices, batch size, precision.

python -m benchmarks.evaluation                                          500 answers, 1000 questions, fp32
python -m benchmarks.evaluation --tasks answers --items 64 --rounds 1
python -m benchmarks.evaluation --small                                  a minute: does it run?
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import child, machine
from benchmarks.head import Rows, summary

CHOICES = ("mmlu", "medmcqa", "commonsense_qa", "social_iqa", "piqa")  # skills, whose questions come in turn
NEW = 96  # tokens of an answer at most, as in conf/evaluation/default.yaml
ITEMS = {"answers": 500, "choices": 1000}
SHOTS = 8  # solved problems before each problem, as in GSM-Symbolic (arXiv 2410.05229, section 3)
BATCH = 32  # as in conf/evaluation/default.yaml; lm-eval's own default is 1
NATS = 1e-3  # in fp32, by which the likelihoods of a choice may differ
Outcome = list[list[int]] | list[list[float]]  # tokens of each answer; log-likelihood of each choice


def language_model() -> Any:
    """SmolLM2-135M-Instruct, as conf/teacher/smollm2_135m.yaml names it."""
    from kd.components.choices import content
    from kd.models.networks import pretrained

    return pretrained(source=content("teacher", "smollm2_135m")["source"])


def records(task: str, items: int, shots: int) -> list[Any]:
    """Test problems of gsm_symbolic after solved ones of train, or questions of several skills in turn."""
    from kd.components.choices import content
    from kd.components.instantiation import instantiate

    if task == "answers":
        skill = instantiate({**content("skill", "gsm_symbolic"), "train": shots, "validation": 0, "test": items})
        solved = [(*one.prompt, {"role": "assistant", "content": one.responses[0].text}) for one in skill.load("train")]
        return [replace(one, prompt=(*itertools.chain(*solved), *one.prompt)) for one in skill.load("test")]
    tests = [instantiate(content("skill", name)).load("test") for name in CHOICES]
    turns = (one for turn in itertools.zip_longest(*tests) for one in turn if one is not None)
    return list(itertools.islice(turns, items))


# ---- contenders: a case to a function that evaluates all of its items ------------------------------------------------


def ours(case: Mapping[str, Any]) -> Callable[[], Outcome]:
    """As in a run: prompts to ids, answers or likelihoods, ids to text. Of float32 weights, under autocast for bf16."""
    from kd.data.sequences import prompt_ids
    from kd.evaluation.choices import encoded_choices, score_choices
    from kd.generators import generation
    from kd.generators.settings import Decoding

    model, items, size = language_model(), _records(case), case["batch_size"]

    def answers() -> Outcome:
        prompts = [prompt_ids(record, model.tokenizer) for record in items]
        choose = Decoding(case["new"], temperature=0.0).sampled
        found = generation.write([model], prompts, max_new_tokens=case["new"], choose=choose, batch_size=size)
        model.tokenizer.batch_decode([answer.ids for (answer,) in found])
        return [list(answer.ids) for (answer,) in found]

    def choices() -> Outcome:
        table = score_choices(model, encoded_choices(items, model.tokenizer), batch_size=size, max_tokens=4096)
        return table["logprobs"].tolist()

    return answers if case["task"] == "answers" else choices


def lm_eval(case: Mapping[str, Any]) -> Callable[[], Outcome]:
    """The methods of its class HFLM that evaluate; tasks, templates and metrics are not counted. For bf16 with weights
    that were cast before.
    """
    from kd.data.sequences import prompt_ids
    from kd.evaluation.choices import encoded_choices

    model, items = language_model(), _records(case)
    if case["precision"] == "bf16":
        model.network.to(torch.bfloat16)
    backend = _backend(model, case["batch_size"])
    prompts = [prompt_ids(record, model.tokenizer) for record in items]

    def answers() -> Outcome:
        backend.tokens.clear()
        texts = model.tokenizer.batch_decode(prompts)
        settings = {"until": [], "do_sample": False, "max_gen_toks": case["new"]}
        from lm_eval.api.instance import Instance

        asked = [Instance("generate_until", {}, (text, settings), i) for i, text in enumerate(texts)]
        backend.generate_until(asked, disable_tqdm=True)
        return [backend.tokens[tuple(prompt)] for prompt in prompts]

    def choices() -> Outcome:
        encoded = encoded_choices(items, model.tokenizer)
        rows = [(("", ""), list(prompt), list(ids)) for _, prompt, several in encoded for ids in several]
        found = iter(backend._loglikelihood_tokens(rows, disable_tqdm=True))
        return [[next(found)[0] for _ in several] for *_, several in encoded]

    return answers if case["task"] == "answers" else choices


def _backend(model: Any, batch_size: int) -> Any:
    """HFLM on a network in memory, which also keeps the tokens of its answers by prompt."""
    from lm_eval.models.huggingface import HFLM

    class Kept(HFLM):
        tokens: dict[tuple[int, ...], list[int]]

        def _model_generate(self, context: Any, max_length: int, stop: Any, **settings: Any) -> Any:
            found = super()._model_generate(context, max_length, stop, **settings)
            mask, width = settings["attention_mask"].bool(), context.shape[1]
            for row, kept, ids in zip(context, mask, found[:, width:].tolist(), strict=True):
                end = ids.index(self.eot_token_id) + 1 if self.eot_token_id in ids else len(ids)
                self.tokens[tuple(row[kept].tolist())] = ids[:end]
            return found

    backend = Kept(model.network, tokenizer=model.tokenizer, batch_size=batch_size, max_length=2048, device="cpu")
    backend.tokens = {}
    return backend


CONTENDERS = {"ours": ours, "lm_eval": lm_eval}


def measured(case: Mapping[str, Any]) -> dict[str, Any]:
    """Clocks of one evaluation, after one of a few items, and its outcome."""
    from kd.kernels.allocation import keep_freed_memory

    keep_freed_memory()
    contender = CONTENDERS[case["contender"]]
    with _precision(case):
        contender({**case, "items": 2, "new": 2})()
        once = contender(case)
        child.forget_peak()
        resident = child.resident()
        with machine.Clock() as clock:
            outcome = once()
    return {"times": [clock.row()], "extra_bytes": child.peak() - resident, "outcome": outcome}


def _records(case: Mapping[str, Any]) -> list[Any]:
    return records(case["task"], case["items"], case["shots"])


def _precision(case: Mapping[str, Any]) -> AbstractContextManager:
    ours_in_bf16 = case["precision"] == "bf16" and case["contender"] == "ours"
    return torch.autocast("cpu", torch.bfloat16) if ours_in_bf16 else nullcontext()


# ---- parent ----------------------------------------------------------------------------------------------------------


def benchmark(options: argparse.Namespace, console: Console) -> int:
    """All cases; 1 if answers differ in fp32."""
    rows, outcomes = Rows(options.out, machine.described()), dict[tuple[str, str, str], Outcome]()
    console.print(rows.header)
    cases = list(itertools.product(options.tasks, options.precisions))
    with Progress(console=console, transient=True) as bar:
        total = len(cases) * options.rounds * len(options.contenders)
        progress = bar.add_task("", total=total)
        for (task, precision), turn in itertools.product(cases, range(options.rounds)):
            for name in options.contenders if turn % 2 == 0 else options.contenders[::-1]:
                bar.update(progress, description=f"{task} {precision} {name}")
                sizes = {"items": options.items or ITEMS[task], "new": options.new, "batch_size": options.batch_size}
                sizes["shots"] = options.shots if task == "answers" else 0
                case = {"task": task, "precision": precision, "contender": name, **sizes}
                said = child.ask(__spec__.name, case, options.threads)
                outcomes[task, precision, name] = said.pop("outcome", [])
                rows.add({**case, "kind": "time", "round": turn}, said)
                bar.advance(progress)
    same = {case: agreement(case[0], *(outcomes.get((*case, name), []) for name in CONTENDERS)) for case in cases}
    for (task, precision), found in same.items():
        rows.add({"kind": "agreement", "task": task, "precision": precision}, found)
    console.print(report(rows, cases, same))
    return int(any(not found["within"] for (_, precision), found in same.items() if precision == "fp32"))


def agreement(task: str, own: Outcome, theirs: Outcome) -> dict[str, Any]:
    """Share of answers that are the same token for token; largest difference of a choice's likelihood, in nats."""
    if not own or not theirs:
        return {"within": True}
    if task == "answers":
        share = sum(a == b for a, b in zip(own, theirs, strict=True)) / len(own)
        return {"same": share, "tokens": sum(map(len, own)) / len(own), "within": share == 1}
    pairs = [(a, b) for one, other in zip(own, theirs, strict=True) for a, b in zip(one, other, strict=True)]
    chosen = sum(a.index(max(a)) == b.index(max(b)) for a, b in zip(own, theirs, strict=True)) / len(own)
    gap = max(abs(a - b) for a, b in pairs)
    return {"same": chosen, "nats": gap, "choices": len(pairs) / len(own), "within": gap <= NATS}


def report(rows: Rows, cases: list[tuple[str, str]], same: Mapping[tuple[str, str], Mapping[str, Any]]) -> Table:
    """Medians, ours as a fraction of theirs, and whether the outcomes are the same."""
    table = Table(title="CPU s, wall s (~ others used the machine), GiB beyond the weights; ours / theirs")
    for column in ("task", "dtype", "items", "by", "CPU s", "wall s", "GiB", "CPU", "wall", "memory", "same", "nats"):
        table.add_column(column, justify="right", no_wrap=True)
    for task, precision in cases:
        chosen = [row for row in rows.of("time") if (row["task"], row["precision"]) == (task, precision)]
        found = {name: summary(row["said"] for row in chosen if row["contender"] == name) for name in CONTENDERS}
        for name, one in found.items():
            cells = _cells(one, found["lm_eval"] if name == "ours" else {})
            agreed = same[task, precision] if name == "ours" else {}
            share = f"{agreed['same']:.1%}" if "same" in agreed else ""
            nats = f"{agreed['nats']:.0e}" if "nats" in agreed else ""
            table.add_row(task, precision, str(chosen[0]["items"]), name, *cells, share, nats)
        table.add_section()
    return table


def _cells(one: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    if "cpu" not in one:
        return [str(one.get("failed", ""))[:60], *[""] * 5]
    cells = [f"{one['cpu']:.1f}", f"{one['wall']:.1f}" + "~" * one["loud"], f"{one['extra_bytes'] / 2**30:.2f}"]
    if "cpu" not in theirs:
        return [*cells, "", "", ""]
    return cells + [f"{one[key] / max(theirs[key], 1e-9):.2f}" for key in ("cpu", "wall", "extra_bytes")]


def main(arguments: list[str]) -> int:
    """Parent or child."""
    if arguments[:1] == ["--child"]:
        child.answer(measured(json.loads(arguments[1])))
        return 0
    options = _parser().parse_args(arguments)
    if options.small:
        options.items, options.new, options.rounds, options.shots = 4, 4, 1, 1
    return benchmark(options, Console(width=None if sys.stdout.isatty() else 140))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=list(ITEMS), default=list(ITEMS))
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32"])
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--items", type=int, help=f"answers, or questions; without it {ITEMS}")
    parser.add_argument("--shots", type=int, default=SHOTS, help="solved problems before each problem")
    parser.add_argument("--new", type=int, default=NEW, help="tokens of an answer at most")
    parser.add_argument("--batch-size", type=int, default=BATCH)
    parser.add_argument("--rounds", type=int, default=2, help="processes per contender and case, in turn")
    parser.add_argument("--small", action="store_true", help="four items")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "evaluation-cpu.jsonl")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
