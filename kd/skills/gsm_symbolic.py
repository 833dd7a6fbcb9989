"""Grade-school word problems from templates, with chain-of-thought references.

The generators are those of reasoning-gym, after Mirzadeh et al. 2024, "GSM-Symbolic: Understanding the
Limitations of Mathematical Reasoning in Large Language Models" (arXiv:2410.05229).
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import count
from random import Random
from typing import Any, Literal

from kd.metrics.final_number import final_number
from kd.metrics.table import Metric
from kd.skills.answer_metrics import answer_metrics
from kd.skills.licences import check_commercial
from kd.skills.procedural import checked_counts, problem, take_distinct
from kd.types import Record, Response, Skill, Split

INSTRUCTION = "Think step by step. End with: The answer is N."
Task = Literal["solve", "predict", "explain"]
NAMES: Mapping[Task, str] = {"solve": "gsm_symbolic", "predict": "gsm_predict", "explain": "gsm_explain"}

# Of the 100 templates the package itself leaves out 15; these are left out here, each for what 300 draws showed.
DEFECTIVE = {
    2: "truncates 27.6 students to 27 in the reference",
    3: "truncates hours",
    4: "truncates 4.5 baking sheets to 4",
    46: "writes 0.6666666666666666 into the question",
    49: "truncates 856.7 packs to 856",
    52: "writes 0.3333333333333333 into the question",
    60: "truncates minutes",
    66: "writes 22.666666666666664 hours into the question",
    75: "truncates 2.5 tubes to 2",
    99: "loses a dollar to floating point",
}
HELD_OUT = 10  # templates in validation, and as many in test
REDRAWS = 20  # tries to draw a problem again with another answer


def templates() -> dict[Split, tuple[int, ...]]:
    """Template numbers of each split, the same for every seed, so that two seeds never leak into each other."""
    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import tasks_ok

    usable = [template for template in tasks_ok if template not in DEFECTIVE]
    Random("gsm_symbolic templates").shuffle(usable)
    return {
        "train": tuple(sorted(usable[2 * HELD_OUT :])),
        "validation": tuple(sorted(usable[HELD_OUT : 2 * HELD_OUT])),
        "test": tuple(sorted(usable[:HELD_OUT])),
    }


def reference(chain_of_thought: str, answer: str) -> str:
    """The package's rationale with its closing "#### 12" replaced by "The answer is 12."."""
    steps, _, _ = chain_of_thought.rpartition("####")
    return f"{steps.strip()}\nThe answer is {answer}."


class GsmSymbolic(Skill):
    """Word problems whose test templates never occur in training; the references reason step by step.

    Every split goes round its templates, so each has an equal share (until its problems run out), and a longer
    split begins with the shorter one. A record's id is skill/seed/template/draw, and `meta` holds the answer and
    the template, which is the unit to resample for an interval.

    Args:
        train: number of training records, over 55 templates.
        validation: number of validation records, over 10 other templates.
        test: number of test records, over 10 other templates.
        metrics: others of the same answers, names of files in `conf/metric`.
        seed: draws other problems from the same templates in the same splits.
        task: solve: the response is the rationale, which ends with the answer | predict, explain: the two tasks of
            distilling step by step (Hsieh et al. 2023, arXiv 2305.02301), with its prefixes `predict:` and `explain:`.
            The response is the answer alone, or the rationale, which here ends with the answer, by which it is scored.
            Both are of the same problems, so that `skill=step_by_step` has each of them twice.
        commercial_only: as for every skill; whether the templates allow commercial use is open, so it is refused.
    """

    name = "gsm_symbolic"
    metric: str | Metric = Metric("accuracy")
    licence = "Apache-2.0 (generators); templates after apple/GSM-Symbolic (CC BY-NC-ND 4.0)"
    group_key = "template"
    leaf = "thinking"
    commercial = None

    def __init__(
        self,
        *,
        train: int,
        validation: int,
        test: int,
        metrics: Sequence[str | Mapping[str, Any]] = (),
        seed: int = 0,
        task: Task = "solve",
        commercial_only: bool = False,
    ) -> None:
        if task not in NAMES:
            raise ValueError(f"skill.task={task} is none of {', '.join(NAMES)}; take one of them")
        self.name, self.task = NAMES[task], task
        check_commercial(self.name, self.licence, self.commercial, commercial_only=commercial_only)
        self.counts = checked_counts(self.name, train=train, validation=validation, test=test)
        self.metrics = answer_metrics(metrics)
        self.seed = seed
        self._splits: dict[Split, tuple[Record, ...]] = {}

    def load(self, split: Split) -> tuple[Record, ...]:
        """Records of one split, drawn at the first call.

        Raises:
            ValueError: the templates of the split have fewer distinct problems than wanted.
        """
        if split not in self._splits:
            self._splits[split] = self._take(split)
        return self._splits[split]

    def score(self, record: Record, text: str) -> float:
        """1 if the text's final number equals the answer, else 0."""
        number = final_number(text)
        if number is None or number.startswith("-"):  # the verifier overlooks a minus; no answer here has one
            return 0.0
        return float(self._verifier.score_answer(number, {"answer": record.meta["answer"]}) == 1.0)

    @cached_property
    def _verifier(self) -> Any:
        import reasoning_gym  # 1.4 s

        return reasoning_gym.create_dataset("gsm_symbolic", size=1, seed=0)

    def _take(self, split: Split) -> tuple[Record, ...]:
        wanted = self.counts[split]
        members = templates()[split]
        records = take_distinct(self._draws(members), wanted)
        if len(records) < wanted:
            raise ValueError(
                f"{self.name} has about {len(records)} distinct problems in its {len(members)} {split} templates, "
                f"fewer than {split}={wanted}; lower {split}."
            )
        return tuple(records)

    def _draws(self, members: tuple[int, ...]) -> Iterator[Record | None]:
        for draw in count():
            for template in members:
                yield self._record(template, draw)

    def redrawn(self, record: Record, seed: int) -> Record | None:
        """See `kd.skills.procedural.Redrawing`: the record's template, with other names too where it draws them."""
        known = {problem(one) for split in self.counts if self.counts[split] for one in self.load(split)}
        for draw in range(REDRAWS):
            new = self._record(record.meta["template"], f"again {seed} {record.id} {draw}")
            if new is not None and problem(new) not in known and new.meta["answer"] != record.meta["answer"]:
                return new
        return None

    def _record(self, template: int, draw: int | str) -> Record | None:
        """One problem, or None if its reference fails the verifier (template 24 can give a negative age)."""
        rng = Random(f"{self.seed} {template} {draw}")
        entry = self._verifier.generators[template](rng, 1.0)
        rationale = reference(entry["metadata"]["answer_cot"], entry["answer"])
        solved, question = self.task == "solve", entry["question"]
        prompt = f"{question}\n{INSTRUCTION}" if solved else f"{self.task}: {question}"
        record = Record(
            id=f"{self.name}/{self.seed}/{template}/{draw}",
            skill=self.name,
            prompt=({"role": "user", "content": prompt},),
            responses=(Response(entry["answer"] if self.task == "predict" else rationale),),
            meta={"answer": entry["answer"], "template": template},
        )
        return record if self.score(record, rationale) == 1.0 else None
