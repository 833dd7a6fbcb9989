"""Any task of the package reasoning-gym, judged by the package's own verifier."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import cached_property
from itertools import count
from typing import Any
from zlib import crc32

from kd.metrics.table import Metric
from kd.sandbox import NoVerdict, mechanism, verdict
from kd.skills.answer_metrics import answer_metrics
from kd.skills.gym_verifier import compares, gym_verifier
from kd.skills.licences import check_commercial
from kd.skills.procedural import by_text, checked_counts, problem, stream_seed, take_distinct, without_numbers
from kd.types import Record, Response, Skill, Split

NO_REFERENCE = "it gives no reference answers, only a verifier"
UNSTABLE = "its problems change with Python's hash seed, so two processes would see different data"

# Found by drawing every task in two processes with different hash seeds (a test does it again).
REFUSED = {
    "boxnet": NO_REFERENCE,
    "graph_color": NO_REFERENCE,
    "propositional_logic": NO_REFERENCE,
    "rubiks_cube": NO_REFERENCE,
    "rush_hour": NO_REFERENCE,
    "intermediate_integration": UNSTABLE,
    "isomorphic_strings": UNSTABLE,
    "knight_swap": UNSTABLE,
    "list_functions": UNSTABLE,
    "polynomial_multiplication": UNSTABLE,
    "ransom_note": UNSTABLE,
    "word_ladder": UNSTABLE,
    "codeio": "it runs code that draws unseeded random numbers, so its problems differ on each call",
    "time_intervals": "its problems contain today's date",
    "composite": "it mixes other tasks; name one of them",
    "gsm_symbolic": "its problems must be split by template; use skill=gsm_symbolic, which does",
}

# Found by drawing 400 problems of every task: other problems may have the same answer and metadata.
UNTOLD = {"ab", "acre", "aiw", "family_relationships", "game_of_life", "modulo_grid", "self_reference"}
BOOKKEEPING = {"source_dataset", "source_index", "difficulty"}  # of metadata: where and how it was drawn

PRIORITY: tuple[Split, ...] = ("test", "validation", "train")  # the split that keeps a problem which two streams draw
REDRAWS = 100  # tries to draw a problem again with the same words
CHUNK = 1000  # problems per generator object: some tasks lay out their whole `size` at construction


class ReasoningGym(Skill):
    """Problems of one task; no problem occurs twice, in one split or in two, nor in other words.

    A split is drawn from its own stream and leaves out what a split of higher priority holds (test, then
    validation, then train), so the test problems do not depend on how many are trained on, and a longer training
    split begins with the shorter one. A record's id is task/seed/split/draw.

    Args:
        task: name of the task in reasoning-gym.
        train: number of training records.
        metrics: others of the same answers, names of files in `conf/metric`.
        validation: number of validation records.
        test: number of test records.
        seed: draws other problems.
        options: the task's own settings (`max_digits: 2`), None for the package's defaults.
        leaf: of the grid that `python -m kd.skills` prints.
        commercial_only: as for every skill; the licence allows commercial use.

    Raises:
        ValueError: the task cannot serve as a skill, a count is negative, the options set seed or size, or the machine
            has no sandbox to judge a model's text in.
    """

    metric: str | Metric = Metric("verifier_score")  # some verifiers give part of the credit
    licence = "Apache-2.0"
    commercial = True
    group_key = "problem"

    def __init__(
        self,
        *,
        task: str,
        train: int,
        metrics: Sequence[str | Mapping[str, Any]] = (),
        validation: int,
        test: int,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        leaf: str | None = None,
        commercial_only: bool = False,
    ) -> None:
        if task in REFUSED:
            raise ValueError(f"reasoning_gym task {task!r} cannot be a skill: {REFUSED[task]}.")
        self.name, self.leaf = task, leaf
        check_commercial(self.name, self.licence, self.commercial, commercial_only=commercial_only)
        self.counts = checked_counts(task, train=train, validation=validation, test=test)
        self.seed = seed
        self.options = dict(options or {})
        if reserved := {"seed", "size"} & set(self.options):
            raise ValueError(f"options of {task} set {sorted(reserved)}; the skill does, from `seed` and the counts.")
        self._splits: dict[Split, tuple[Record, ...]] = {}
        self.metrics = answer_metrics(metrics)
        mechanism()

    def load(self, split: Split) -> tuple[Record, ...]:
        """Records of one split, drawn at the first call.

        Raises:
            ValueError: the package has no such task or option, the task has no reference answers, or there are
                fewer distinct problems than wanted.
        """
        if split not in self._splits:
            self._splits[split] = self._take(split)
        return self._splits[split]

    def score(self, record: Record, text: str) -> float:
        """The score of the package's verifier for the stripped text, between 0 and 1.

        Most verifiers parse a text with int(), json, sympy or eval, and a few run it: these are called in a sandbox
        (docs/sandbox.md), those that compare texts alone in this process. The record's own reference has 1, since a
        record is kept only if its verifier accepts that.

        Raises:
            NoVerdict: the verifier raised, left, was stopped at a limit, or returned something else.
        """
        text, entry = text.strip(), {"question": problem(record), **record.meta}
        if text == record.meta["answer"].strip():
            return 1.0
        if self._compares:
            value: Any = self._verifier(text, entry)
        else:
            value = verdict(gym_verifier, (text, entry), setup=(self.name, self.options))
        if not (isinstance(value, float) and 0 <= value <= 1):  # a text that is evaluated can return anything
            raise NoVerdict("range", f"the verifier returned {value!r:.40}, which is no number between 0 and 1")
        return value

    def redrawn(self, record: Record, seed: int) -> Record | None:
        """See `kd.skills.procedural.Redrawing`: a problem whose text differs from the record's in numbers alone."""
        text = problem(record)
        if (words := without_numbers(text)) == text:
            return None
        start = (stream_seed(seed, "test") + crc32(record.id.encode())) % 2**31
        generator = self._generator(seed=start, size=REDRAWS)
        for index in range(REDRAWS):
            try:
                drawn = generator[index]["question"]
            except RuntimeError:  # as in `_record`
                continue
            if drawn == text or without_numbers(drawn) != words:
                continue
            new = self._record(generator, index, id=record.id)
            if new is not None and not self._taken & self._names(new):
                return new
        return None

    @cached_property
    def _taken(self) -> set[str]:
        """The names of the problems of all splits."""
        return {name for split in PRIORITY for record in self.load(split) for name in self._names(record)}

    @cached_property
    def _compares(self) -> bool:
        """Whether a model's text may be given to the verifier outside of the sandbox."""
        return compares(self.name)

    @cached_property
    def _verifier(self) -> Callable[[str, Mapping[str, Any]], float]:
        """The package's verifier in this process, for its own references, and for texts that it only compares."""
        self._generator(seed=0, size=1)  # its checks, with their messages
        return gym_verifier(self.name, self.options)

    def _take(self, split: Split) -> tuple[Record, ...]:
        before = PRIORITY[: PRIORITY.index(split)]
        others = [record for other in before for record in self.load(other)]
        taken = {name for record in others for name in self._names(record)}
        records = take_distinct(self._draws(split), self.counts[split], taken, self._names)
        if len(records) < self.counts[split]:
            raise ValueError(self._too_few(len(others) + len(records)))
        return tuple(records)

    def _names(self, record: Record) -> set[str]:
        """By which two problems are the same: the text, and what was drawn for it, whose wording may differ."""
        if self.name in UNTOLD:
            return by_text(record)
        drawn = {key: value for key, value in record.meta["metadata"].items() if key not in BOOKKEEPING}
        return {*by_text(record), json.dumps([record.meta["answer"], drawn], sort_keys=True, default=str)}

    def _too_few(self, distinct: int) -> str:
        wanted = " + ".join(f"{split}={n}" for split, n in self.counts.items())
        return (
            f"reasoning_gym task {self.name!r} with options {self.options} has about {distinct} distinct problems "
            f"whose reference passes the verifier, fewer than {wanted}; lower the counts or widen the options."
        )

    def _draws(self, split: Split) -> Iterator[Record | None]:
        start = stream_seed(self.seed, split)
        for first in count(step=CHUNK):
            generator = self._generator(seed=start + first, size=CHUNK)
            for index in range(CHUNK):
                yield self._record(generator, index, id=f"{self.name}/{self.seed}/{split}/{first + index}")

    def _record(self, generator: Any, index: int, id: str) -> Record | None:
        """One problem, or None if the generator gives up on it or its reference fails the verifier."""
        try:
            entry = generator[index]
        except RuntimeError:  # `maze` finds no path for some indices
            return None
        if entry["answer"] is None:
            raise ValueError(f"reasoning_gym task {self.name!r} cannot be a skill: {NO_REFERENCE}.")
        response = Response(entry["answer"].strip())
        record = Record(
            id=id,
            skill=self.name,
            prompt=({"role": "user", "content": entry["question"]},),
            responses=(response,),
            meta={"answer": entry["answer"], "metadata": entry["metadata"]},
        )
        return record if self._own_score(record, response.text) == 1.0 else None

    def _own_score(self, record: Record, reference: str) -> float:
        try:
            return self._verifier(reference, {"question": problem(record), **record.meta})
        except Exception as error:
            raise ValueError(
                f"record {record.id}: the verifier of task {self.name!r} fails on its reference: {error!r}"
            ) from error

    def _generator(self, *, seed: int, size: int) -> Any:
        from reasoning_gym.factory import DATASETS  # 1.4 s

        if self.name not in DATASETS:
            nearest = get_close_matches(self.name, DATASETS, n=1, cutoff=0.0)[0]
            raise ValueError(f"reasoning_gym has no task {self.name!r}; the nearest name is {nearest!r}.")
        dataset, config = DATASETS[self.name]
        self._check_options({field.name for field in fields(config)})
        try:
            return dataset(config(seed=seed, size=size, **self.options))
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(f"reasoning_gym task {self.name!r} refuses the options {self.options}: {error}") from error

    def _check_options(self, known: set[str]) -> None:
        for option in self.options:
            if option not in known:
                nearest = get_close_matches(option, known, n=1, cutoff=0.0)[0]
                raise ValueError(
                    f"reasoning_gym task {self.name!r} has no option {option!r}; the nearest name is {nearest!r}."
                )
