"""Answers and choices that other processes compute with copies of the models: the results, files and costs of one."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextvars import Context
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from kd.artifacts import read_manifest
from kd.evaluation import answers, choices
from kd.evaluation.answers import answer_parts
from kd.evaluation.choices import choice_parts, encoded_choices
from kd.evaluation.engines import Engine
from kd.generators.account import Spent, metered
from kd.generators.settings import Decoding
from kd.models.language_model import LanguageModel
from kd.workers import T, Workers
from kd.workers.actors import Actor
from kd.workers.copies import Copied, Copies
from tests.documents import ROOT
from tests.evaluation.conftest import record, tiny
from tests.evaluation.test_metrics import CHOICES, Measured, start

SAMPLED = {"samples": 2, "temperature": 1.0}
NAMES = ["choice_accuracy_pmi", "verifier_score", "length"]
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed (extra `ray`)")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of four answers, and of three records with choices."""
    monkeypatch.setattr(answers, "TOGETHER", 4)
    monkeypatch.setattr(choices, "TOGETHER", 3)


class Elsewhere(Workers):
    """Other processes, but for the processes: the last part first, each through pickle, by a model loaded anew."""

    def __init__(self, fails_after: int = 99):
        self.asked: list[tuple[str, bool, int]] = []  # role, whether with weights of now, size
        self.actor, self.fails_after = Actor(lambda copied: copied.loaded(lambda role: tiny(0)), 1), fails_after

    def answered(self, source: Any, named: str, parts: Sequence[T]) -> Iterator[tuple[T, Any, Spent]]:
        for i, part in reversed(list(enumerate(parts))):
            if len(self.asked) == self.fails_after:
                raise ConnectionError("the machine is gone")
            self.asked.append((source.role, source.weights is not None, part.size))
            sent = pickle.loads(pickle.dumps((source, named, i, part)))
            number, table, cost = Context().run(self.actor.answered, *sent)  # where no meter of this process is open
            yield parts[number], pickle.loads(pickle.dumps(table)), Spent(**cost)


def copies(student: LanguageModel, workers: Elsewhere) -> Copies:
    return Copies(workers, lambda: None, {student.identity(): "student"})


def kept(cache: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """The files of answers and choices: content, and cost without seconds, by name."""
    files = {path.name: path for kind in ("answers", "choices") for path in cache.glob(f"{kind}/*.json")}
    own = {name: path for name, path in files.items() if not name.endswith(".artifact.json")}
    return {name: (path.read_text(), {**read_manifest(path).cost, "seconds": 0}) for name, path in own.items()}


def measure(model: LanguageModel, encoder: Any, made: Copies | None, **settings: Any) -> tuple[Any, ...]:
    session = start(Measured(tiny(0), NAMES), encoder, **settings)
    session.evaluation.copies = made
    with metered() as meter:
        found = session.measure(model, identity=model.identity())
    assert meter.spent.seconds > 0
    return dict(found.scores), found.answers.to_dict(), found.items.to_dict(), meter.spent._replace(seconds=0.0)


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_results_files_and_cost_are_those_of_one_process(
    settings: dict[str, Any], student: LanguageModel, encoder: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, files = measure(student, encoder, None, **settings), kept(cache)
    assert len(files) == (5 if settings else 3) + 2 * 4  # 10 prompts in twos or fours; with and without the question
    monkeypatch.setenv("KD_CACHE", str(cache.parent.parent / "other"))
    workers = Elsewhere()
    assert repr(measure(student, encoder, copies(student, workers), **settings)) == repr(expected)
    assert kept(cache.parent.parent / "other" / "evaluation") == files
    assert expected[-1].decoding_flops > 0
    assert len(workers.asked) == len(files)
    assert set(workers.asked) == {("student", False, size) for size in ({2, 3, 1} if settings else {4, 2, 3, 1})}
    assert repr(measure(student, encoder, None, **settings)) == repr(expected)  # and this process alone finds them


def test_what_arrived_before_a_failure_is_not_computed_again(student: LanguageModel, encoder: Any, cache: Path) -> None:
    failing, again = Elsewhere(fails_after=2), Elsewhere()
    with pytest.raises(ConnectionError, match="the machine is gone"):
        measure(student, encoder, copies(student, failing))
    before = kept(cache)
    assert len(before) == 2
    found = measure(student, encoder, copies(student, again))
    assert len(again.asked) == 11 - 2
    assert before.items() <= kept(cache).items()
    assert repr(measure(student, encoder, None)) == repr(found)


def test_weights_of_now_are_sent_once_and_removed(student: LanguageModel, encoder: Any, cache: Path) -> None:
    trained = tiny(0)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.1)
    workers = Elsewhere()
    made = copies(student, workers)
    found = measure(trained, encoder, made)
    assert {(role, by_file) for role, by_file, _ in workers.asked} == {("student", True)}
    assert len(list(cache.glob("weights/*.safetensors"))) == 1
    made.close()
    assert list(cache.glob("weights/[!.]*")) == []
    for kind in ("answers", "choices"):
        for path in cache.glob(f"{kind}/*.json"):
            path.unlink()
    assert repr(measure(trained, encoder, None)) == repr(found)


def test_other_weights_than_this_process_has_are_refused() -> None:
    actor = Actor(lambda copied: tiny(1), 1)
    (part,) = choice_parts(encoded_choices(CHOICES[:1], tiny(0).tokenizer), identity="", batch_size=1, max_tokens=9)
    with pytest.raises(ValueError, match=r"an actor has loaded a student of other content \("):
        actor.answered(Copied("student"), tiny(0).identity(), 0, part)


def test_scores_while_training_are_of_this_process(student: LanguageModel, encoder: Any) -> None:
    workers = Elsewhere()
    session = start(Measured(tiny(0), NAMES), encoder)
    session.evaluation.copies = copies(student, workers)
    session.task_scores(student)
    assert workers.asked == []


def test_each_part_draws_for_itself(student: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """One prompt ten times, of which each part of four has another text; the first has the stream of the whole."""
    same = [replace(record(str(i), "Which?", "x"), id=str(i)) for i in range(10)]
    decoding = Decoding(12, temperature=1.0, batch_size=4)
    own = {"seed": 3, "engine": Engine(), "identity": "a"}
    parts = answer_parts(student, same, decoding, **own)
    assert [part.size for part in parts] == [4, 4, 2]
    first, second, third = (part.compute(student)["text"].tolist() for part in parts)
    assert first != second
    assert second[:2] != third
    assert [part.content.get("part") for part in parts] == [None, 1, 2]
    alone = answer_parts(student, same[:4], decoding, **own)
    assert [part.content for part in alone] == [parts[0].content]
    assert alone[0].compute(student)["text"].tolist() == first
    greedy = answer_parts(student, same, replace(decoding, temperature=0.0), **own)
    assert all("part" not in part.content for part in greedy)
    monkeypatch.setattr(answers, "TOGETHER", 1)
    assert [part.size for part in answer_parts(student, same, replace(decoding, samples=2), **own)] == [1] * 10
    sizes = [
        part.size
        for part in choice_parts(encoded_choices(CHOICES, student.tokenizer), identity="a", batch_size=1, max_tokens=9)
    ]
    assert sizes == [3, 3, 1]


# --- Ray on this machine ---

COMMAND = (
    *("teacher=tiny", "student=tiny", "teacher.prepare=null", "trainer=cpu", "skill=spell_backward", "skill.train=40"),
    *("objective=fkl", "compare=null", "optim.steps=2", "run.page=false"),
    *("evaluation.answers=500", "evaluation.items=8", "evaluation.max_new_tokens=4", "evaluation.temperature=1.0"),
)  # two parts of the student before and after, and of the teacher


def begin(folder: Path, *words: str) -> subprocess.Popen[str]:
    variables = {"KD_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment = os.environ | variables | {"HOME": str(folder), "RAY_worker_niceness": "0"}
    line = [sys.executable, "run.py", *COMMAND, f"run.root={folder / 'outputs'}", *words]
    return subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err


def results(folder: Path) -> tuple[Any, ...]:
    """All that the run's folder has of its measurements, but for seconds and memory."""
    (path,) = folder.glob("outputs/*/results.json")
    found = json.loads(path.read_text())
    counted = {name: value for name, value in found["budget"].items() if "seconds" not in name and "memory" not in name}
    files = [(path.parent / name).read_text() for name in ("samples.jsonl", "items.csv", "positions.csv")]
    return found["scores"], found["gap_closed"], found["digests"], found["agreement"], counted, files


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    end(begin(folder))
    return folder


def wait_for_parts(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    deadline = time.monotonic() + 400
    while len(kept(folder / "cache" / "evaluation")) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@needs_ray
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_actors_give_the_results_of_one_process_after_a_kill_too(one_process: Path, tmp_path: Path) -> None:
    """The run is killed after its first part, and in the restart an actor."""
    process = begin(tmp_path, "run.ray.actors=2")
    wait_for_parts(process, tmp_path, 1)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    psutil.wait_procs([child for child in children if "Agent" not in child.name()], timeout=60)
    folder = tmp_path / "cache" / "evaluation"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("answers/*.json")}
    assert 0 < len(kept(folder)) < 6
    again = begin(tmp_path, "run.ray.actors=2")
    wait_for_parts(again, tmp_path, len(kept(folder)) + 1)
    actors = [child for child in psutil.Process(again.pid).children(recursive=True) if "Actor" in child.name()]
    if actors:  # of the last part before training they may have ended
        actors[0].kill()
    end(again)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(kept(folder)) == 6
    assert kept(folder) == kept(one_process / "cache" / "evaluation")
    assert results(tmp_path) == results(one_process)
    assert list(folder.glob("weights/[!.]*")) == []
