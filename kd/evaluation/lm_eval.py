"""Tasks of lm-evaluation-harness on a model in memory: registered ones, and yamls of `conf/lm_eval` or one's own."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field, PositiveInt

from kd.artifacts import texts_sha256
from kd.components.choices import CONF
from kd.components.signatures import suggestion
from kd.eval_mode import eval_mode
from kd.evaluation.cache import remembered
from kd.intervals import NAN, Score, wilson
from kd.metrics.table import Metric
from kd.models.language_model import LanguageModel
from kd.permission import ALLOW, permitted
from kd.progress import counted_from_bars, phase

PREFIX = "lm_eval-"  # of the metrics' names, for their definitions are not ours
FOLDER = CONF / "lm_eval"
SHARES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "f1", "mc1", "mc2", "em")
ERROR_RATES = ("ter", "wer", "cer")


@dataclass(frozen=True)
class LmEval:
    """The section `evaluation.lm_eval`.

    Args:
        tasks: names of tasks; none: nothing is measured.
        limit: the first so many documents of each; None: all.
        num_fewshot: demonstrations before each document; None: as the task has it.
        chat: whether documents are wrapped in the model's chat template.
        include: a folder with yamls of tasks, whose Python files are executed: it requires run.allow=[lm_eval].

    Raises:
        ValueError: the package is not installed, the folder is not allowed or not there, or there is no such task.
    """

    tasks: Sequence[str] = ()
    limit: PositiveInt | None = None
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    chat: bool = True
    include: str | None = None

    def __post_init__(self) -> None:
        if not self.tasks:
            return
        try:
            import lm_eval  # noqa: F401
        except ModuleNotFoundError:
            raise ValueError("evaluation.lm_eval requires the package lm-eval; pip install -e '.[eval]'") from None
        if self.include is not None and "lm_eval" not in permitted():
            raise ValueError(
                f"evaluation.lm_eval.include={self.include}: a task's yaml may execute Python files beside it; if you "
                f"trust the folder, add run.allow=[lm_eval] to the command line, or set {ALLOW}=lm_eval"
            )
        if self.include is not None and not Path(self.include).expanduser().is_dir():
            raise ValueError(f"evaluation.lm_eval.include={self.include} is no folder")
        _manager(tuple(self.tasks), self.include)  # refuses tasks that are not there

    def measure(
        self, model: LanguageModel, *, identity: str, batch_size: int, max_length: int
    ) -> dict[str, dict[str, Score]]:
        """By task, the score of each metric with a 95 % interval: Wilson's of a share, else of the standard error.

        Read from the cache where a model of this identity was measured with the same tasks, documents and settings.

        identity: names the model's content: `kd.models.digests.model_digest(model)`.

        Raises:
            ValueError: the data of a task cannot be had.
        """
        settings = {"batch_size": batch_size, "max_length": max_length, "chat": self.chat}
        key = {
            "system": f"{identity} {model.network.dtype}",
            "tasks": self._contents,
            "limit": self.limit,
            "num_fewshot": self.num_fewshot,
            "lm_eval": version("lm_eval"),
            **settings,
        }
        compute = partial(self._measure, model, batch_size=batch_size, max_length=max_length)
        table, _ = remembered("lm_eval", key, compute)
        found: dict[str, dict[str, Score]] = {}
        for task, metric, *numbers in table.itertuples(index=False):
            found.setdefault(task, {})[metric] = Score(*numbers)
        return found

    @cached_property
    def _contents(self) -> dict[str, str]:
        """The sha256 of each task: its yaml with the source of its functions, and its documents.

        Raises ValueError where the documents cannot be had.
        """
        try:
            return {name: _content(task, self.num_fewshot) for name, task in self._tasks.items()}
        except (OSError, ConnectionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"evaluation.lm_eval.tasks={','.join(self.tasks)}: the data cannot be had: {reason}"
            ) from None

    @property
    def _tasks(self) -> dict[str, Any]:
        return self._manager.load(list(self.tasks))["tasks"]

    @property
    def _manager(self) -> Any:
        return _manager(tuple(self.tasks), self.include)

    def _measure(self, model: LanguageModel, *, batch_size: int, max_length: int) -> pd.DataFrame:
        """One row for each task and metric: value, n, low, high."""
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        device = str(model.network.device)
        adapter = HFLM(
            model.network, tokenizer=model.tokenizer, batch_size=batch_size, max_length=max_length, device=device
        )
        names = ", ".join(self.tasks)
        with (
            eval_mode([model.network]),
            phase(f"evaluate lm-eval's {names}", unit="requests") as shown,
            counted_from_bars(shown),
        ):
            found: Any = simple_evaluate(
                adapter,
                tasks=list(self.tasks),
                num_fewshot=self.num_fewshot,
                limit=self.limit,
                apply_chat_template=self.chat and model.tokenizer.chat_template is not None,
                task_manager=self._manager,
                bootstrap_iters=1000,
                log_samples=False,
            )
        counts = found["n-samples"]
        scores = {
            task: _scores(row, counts[task]["effective"]) for task, row in found["results"].items() if task in counts
        }
        rows = [(task, metric, *score) for task, metrics in scores.items() for metric, score in metrics.items()]
        return pd.DataFrame(rows, columns=["task", "metric", *Score._fields])

    def metric(self, name: str) -> Metric:
        """The facts of a metric `lm_eval-<name>`, by lm-eval's own names."""
        plain = name.removeprefix(PREFIX)
        own = plain.partition("-")[0]  # without the name of a filter
        lower = own in ERROR_RATES or any(word in own for word in ("perplexity", "bits_per_byte", "brier"))
        share = own in SHARES
        ends: dict[str, Any] = {} if share else {"high": float("inf"), "unit": plain, "of": "references"}
        return Metric(name, f"{plain} (lm-eval)", higher_is_better=not lower, **ends)


@lru_cache(maxsize=4)
def _manager(tasks: tuple[str, ...], include: str | None) -> Any:
    """Local tasks, and the registered ones where another is named: reading all of their files takes seconds."""
    from lm_eval.tasks import TaskManager

    folders = [str(FOLDER), *([str(Path(include).expanduser())] if include else [])]
    local = TaskManager(include_path=folders, include_defaults=False)
    if set(tasks) <= set(local.all_tasks):
        return local
    every = TaskManager(include_path=folders)
    if unknown := sorted(set(tasks) - set(every.all_tasks)):
        near = suggestion(unknown[0], every.all_tasks)
        raise ValueError(
            f"evaluation.lm_eval.tasks: lm-eval has no task {unknown[0]}; {near} (lm-eval ls tasks lists all)"
        )
    return every


def _content(task: Any, num_fewshot: int | None) -> str:
    """The sha256 of a task's config, of its documents, and of those that demonstrations are drawn from."""
    texts = [re.sub(r" at 0x[0-9a-f]+", "", json.dumps(task.dump_config(), sort_keys=True, default=str))]
    texts += [json.dumps(document, sort_keys=True, default=str) for document in task.eval_docs]
    if num_fewshot or task.get_config("num_fewshot"):
        texts += [json.dumps(document, sort_keys=True, default=str) for document in task.fewshot_docs() or ()]
    return texts_sha256(texts)


def _scores(row: dict[str, Any], n: int) -> dict[str, Score]:
    """`acc,none` becomes lm_eval-acc, `exact_match,strict-match` lm_eval-exact_match-strict-match."""
    found = {}
    for key, value in row.items():
        name, comma, chosen = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = row.get(f"{name}_stderr,{chosen}")
        half = 1.96 * error if isinstance(error, float) else NAN
        low, high = wilson(float(value), n) if name in SHARES else (float(value) - half, float(value) + half)
        label = PREFIX + name + (f"-{chosen}" if chosen != "none" else "")
        found[label] = Score(float(value), n, low, high)
    return found
