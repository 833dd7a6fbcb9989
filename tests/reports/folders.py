"""Run folders as the program writes them, whose scores and answers are drawn: reports are tested without training."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from kd.artifacts import key
from kd.intervals import Score, mean, ratio
from kd.judges.judging import Compared, Found
from kd.judges.verdicts import VALUE, Outcome
from kd.runs.folder import RunFolder
from kd.runs.metrics_log import csv_text
from kd.runs.positions import positions_csv

Draw = Callable[[np.random.Generator, int], np.ndarray]
SYSTEMS = {"before": 0.0, "sft": 0.3, "after": 0.5, "teacher": 0.9}
ITEMS = 32
WIN_RATE, DECIDED = "win_rate-pairwise-teacher", "decided-pairwise-teacher"
CONTROLLED = "lc_win_rate-pairwise-teacher"
OUTCOME: dict[float | None, Outcome | None] = {value: outcome for outcome, value in VALUE.items()} | {None: None}
FACTS = {
    "accuracy": {
        "heading": "accuracy",
        "unit": "share",
        "low": 0.0,
        "high": 1.0,
        "higher_is_better": True,
        "of": "answers",
    },
    "bits_per_byte": {
        "heading": "bits per byte",
        "unit": "bits per byte",
        "low": 0.0,
        "high": None,
        "higher_is_better": False,
        "of": "references",
    },
}


def config(objective: str = "fkl", skill: str = "sums", seed: int = 1, **sections: Any) -> dict[str, Any]:
    """A composed config; `sections` replace whole ones."""
    terms = {
        name: {"weight": 1.0, "kind": "divergence", "loss": {"_target_": f"kd.objectives.divergence.{name}", **own}}
        for name, own in (
            (name, {"beta": 0.5} if name == "jsd" else {"temperature": 1.0}) for name in objective.split("+")
        )
    }
    found = {
        "name": f"{skill}-{objective}-s{seed}",
        "seed": seed,
        "compare": None if objective == "sft" else "sft",
        "optim": {"steps": 40, "lr": 0.001},
        "skill": {"_target_": "kd.skills.reasoning_gym.ReasoningGym", "task": skill, "seed": 0},
        "objective": terms,
        "rollout": {"_target_": "kd.rollouts.offline.Offline"},
        "teacher": {"_target_": "kd.teachers.white_box.WhiteBox", "model": {"_target_": "kd.models.networks.scratch"}},
        "student": {"model": {"_target_": "kd.models.networks.scratch", "source": "tiny"}},
        "augmentation": {"stages": {}},
        "run": {"root": "outputs"},
    }
    return {**found, **sections}


def write_run(
    root: Path,
    objective: str = "fkl",
    skill: str = "sums",
    seed: int = 1,
    *,
    right: float | None = None,
    overrides: Sequence[str] = (),
    baseline: RunFolder | None = None,
    spent: Mapping[str, Any] | None = None,
    sections: Mapping[str, Any] | None = None,
    metrics: str = "",
    wins: Sequence[float | None] = (),
    headline: str = "accuracy",
    data: str = "",
    positions: Sequence[Mapping[str, Any]] = (),
) -> RunFolder:
    """A finished run on ITEMS items; `right`: the share that the trained student answers rightly.

    wins: a judge's verdicts on its answers beside the teacher's, each the same in both orders; None: without one.
    headline: the name of the skill's own metric. data: of what skill the items are, if not of the one of that name.
    """
    page = config(objective, skill, seed, **(sections or {}))
    digest = key({"config": page, "data": data})[:12]
    folder = RunFolder.of(root, page["name"], digest)
    folder.start(yaml.safe_dump(page, sort_keys=False), list(overrides))
    shares = SYSTEMS | ({} if right is None else {"after": right})
    scores, items, samples = _measured(skill, {name: s for name, s in shares.items() if name != "sft"}, seed, objective)
    scores = {headline if name == "accuracy" else name: found for name, found in scores.items()}
    items = [[headline if cell == "accuracy" else cell for cell in row] for row in items]
    if baseline is not None:
        scores[headline]["sft"] = baseline.results()["scores"][skill][headline]["after"]
    if wins:
        judged = Found()
        verdicts = {f"{skill}/{i}": Compared(OUTCOME[win], f"record {skill}/{i}", 0) for i, win in enumerate(wins)}
        orders = [[one.outcome] * 2 for one in verdicts.values()]
        judged.add_rates("pairwise", (skill, "after", "teacher"), verdicts, orders)
        for name, systems in judged.scores[skill].items():
            scores[name] = dict.fromkeys(("before", "after"), _estimate(systems["after"]))
        items += [row for table in judged.rows for row in table[list(items[0])].itertuples(index=False)]
    folder.write_samples(samples)
    folder.write_items(csv_text(items))
    folder.write_text("metrics.csv", metrics or "step,split,name,value\n")
    if positions:
        folder.write_positions(positions_csv(positions))
    folder.finish(
        {
            "seed": seed,
            "family": key({**page, "seed": None, "name": None, "data": data})[:12],
            "baseline": None if baseline is None else baseline.config_hash,
            "scores": {skill: scores},
            "gap_closed": {skill: {headline: scores[headline]["after"]["value"] / 0.9}},
            "metrics": FACTS
            | {headline: {**FACTS["accuracy"], "heading": headline}}
            | (dict.fromkeys((WIN_RATE, DECIDED, CONTROLLED), FACTS["accuracy"]) if wins else {}),
            "budget": {
                **{"student_flops": 1e9, "tokens": 1000, "teacher_tokens": 0, "generated_tokens": 0, "seconds": 2.0},
                **{"peak_memory_bytes": 10, **(spent or {})},
            },
            "digests": {"initial_weights": f"w{seed}", "data_order": f"o{seed}", "evaluation_items": data or skill},
            "code": "c" * 16,
            "versions": {"kd": 1},
            "records": {split: {"given": 64, "left_out": 0} for split in ("train", "validation", "test")},
        }
    )
    return folder


def _measured(skill: str, shares: Mapping[str, float], seed: int, objective: str) -> tuple[Any, list[Any], list[Any]]:
    """Scores by metric and system, the rows of items.csv, and those of samples.jsonl."""
    ids = [f"{skill}/{i}" for i in range(ITEMS)]
    easy = np.random.default_rng(0).permutation(ITEMS)  # the same items are easy for every system
    scores: dict[str, dict[str, Any]] = {"accuracy": {}, "bits_per_byte": {}}
    rows: list[Any] = [("skill", "system", "metric", "id", "group", "value", "statistics")]
    samples = []
    for system, share in shares.items():
        own = objective if system == "after" else system
        rng = np.random.default_rng([seed, *map(ord, own)])
        noise = rng.normal(0, 4, ITEMS) * (0 < share < 1)
        right = (easy + noise < share * ITEMS).astype(float)
        size = rng.integers(4, 12, ITEMS).astype(float)
        bits = size * (3 - 2 * share + rng.normal(0, 0.1, ITEMS))
        scores["accuracy"][system] = _estimate(mean(right))
        scores["bits_per_byte"][system] = _estimate(ratio(bits, size))
        for i, name in enumerate(ids):
            rows.append((skill, system, "accuracy", name, f"record {name}", right[i], ""))
            pair = json.dumps([bits[i], size[i]])
            rows.append((skill, system, "bits_per_byte", name, f"record {name}", bits[i] / size[i], pair))
            answer = {"system": system, "skill": skill, "id": name, "prompt": f"{i} + 1 =", "reference": str(i + 1)}
            samples.append({**answer, "response": str(i + 1) if right[i] else "?", "score": right[i], "sample": 0})
    return scores, rows, samples


def _estimate(score: Score) -> dict[str, Any]:
    return score._asdict()


def write_grid(root: Path, seeds: Sequence[int] = (1, 2, 3)) -> None:
    """Three objectives, and sft beside them, on two skills: `fkl` is the best on both, `rkl` no better than `sft`."""
    for skill in ("sums", "words"):
        for seed in seeds:
            beside = write_run(root, "sft", skill, seed, right=0.2, metrics=logged(seed, 3.0))
            for objective, right in {"fkl": 0.8, "jsd": 0.55, "rkl": 0.2}.items():
                costs = {"teacher_tokens": 1000, "seconds": {"fkl": 2.0, "jsd": 3.0, "rkl": 2.5}[objective]}
                words = [f"objective={objective}", f"skill={skill}", f"seed={seed}"]
                facts = {"baseline": beside, "spent": costs, "overrides": words, "metrics": logged(seed, right)}
                facts |= {"positions": by_position(skill, 1 - right + seed / 100)}
                write_run(root, objective, skill, seed, right=right, **facts)


def by_position(skill: str, level: float) -> list[dict[str, Any]]:
    """Rows of positions.csv, of a student that is the farther from its teacher the later a token stands."""
    found = []
    for i in range(5):
        kl = level * (1 + i / 4)
        place = {"skill": skill, "system": "after", "responses": "references", "first": 2**i // 2 + 1, "last": 2**i}
        numbers = {"top1": 1 / (1 + kl), "forward_kl": kl, "reverse_kl": 2 * kl, "entropy": 1.5 - level}
        found.append({**place, "n": ITEMS * (2**i - 2**i // 2), **numbers, "teacher_entropy": 0.5})
    return found


def logged(seed: int, level: float) -> str:
    """metrics.csv of a run whose loss falls to `level`, by chance a little beside it."""
    noise = np.random.default_rng(seed).normal(0, 0.1, 5)
    rows = (f"{step},train,loss,{level + 2 ** -(step / 10) + noise[step // 10]}\n" for step in range(0, 50, 10))
    return "step,split,name,value\n" + "".join(rows)
