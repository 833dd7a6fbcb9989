"""Stages whose prompts other processes answer: the records, files and costs of one process, whoever generates."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from contextvars import Context
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from omegaconf import OmegaConf

import kd.elicit
from kd.artifacts import read_manifest, remove
from kd.augmentation import Account, Resources, answering
from kd.augmentation.answering import Part
from kd.augmentation.labeling import Labeling
from kd.composition.machine import check_machine
from kd.composition.sections import check_sections
from kd.experiment import loading
from kd.experiment.elicitation import elicit, elicited_folder
from kd.experiment.identity import identity
from kd.generators.account import Spent, metered
from kd.generators.settings import Decoding
from kd.generators.torch import Torch
from kd.teachers.interface import Answers, Teacher
from kd.teachers.white_box import StudentText, WhiteBox
from kd.types import Record, Source
from kd.workers import Workers, actors
from kd.workers.actors import Actor, RaySettings, RayWorkers, _places, _variables
from tests import runs
from tests.augmentation.scripted import Scripted
from tests.documents import ROOT
from tests.tiny import records, tiny

GIVEN = records(5)
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed (extra `ray`)")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(answering, "TOGETHER", 4)  # parts of 2 prompts with 2 samples
    return tmp_path / "cache"


class Copies(Workers):
    """Other processes, but for the processes: the last part first, each through pickle, by a copy of the model."""

    def __init__(self, fails_after: int = 99) -> None:
        self.asked: list[tuple[Source, list[str]]] = []
        self.fails_after = fails_after

    def answered(
        self, source: Source, named: str, parts: Sequence[Part]
    ) -> Iterator[tuple[Part, Sequence[Answers], Spent]]:
        for part in reversed(parts):
            if len(self.asked) == self.fails_after:
                raise ConnectionError("the machine is gone")
            self.asked.append((source, [record.id for record in part.prompts]))
            sent = pickle.loads(pickle.dumps(part))
            rows, spent = Context().run(sent.answered, WhiteBox(tiny()))  # where no meter of this process is open
            yield part, pickle.loads(pickle.dumps(rows)), spent


def mute() -> WhiteBox:
    """The model of this process, which must not generate."""
    model = tiny()
    model.network.model.forward = lambda *_, **__: pytest.fail("this process generated")
    return WhiteBox(model)


def label(teacher: Teacher, workers: Workers | None = None, **settings: Any) -> tuple[list[Record], Account, Spent]:
    account = Account()
    stage = Labeling(**{"max_new_tokens": 6, "temperature": 0.0, **settings})
    resources = Resources(0, teacher, "t", account=account, workers=workers)
    with metered() as meter:
        found = list(stage(iter(GIVEN), resources))
    return found, account, meter.spent._replace(seconds=0.0)


def kept(cache: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """The files of answers: content and cost without seconds, by name."""
    files = {path.name: path for path in cache.glob("augmentation/*.jsonl")}
    return {name: (path.read_text(), {**read_manifest(path).cost, "seconds": 0}) for name, path in files.items()}


@pytest.mark.parametrize("settings", [{"samples": 1}, {"samples": 2, "temperature": 1.0}], ids=["greedy", "sampled"])
def test_records_files_and_cost_are_those_of_one_process(
    settings: dict[str, Any], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, files = label(WhiteBox(tiny()), **settings), kept(cache)
    assert len(files) == 3 if settings["samples"] == 2 else 2  # 2, 2 and 1 prompts | 4 and 1
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "other"))
    assert label(mute(), Copies(), **settings) == expected
    assert kept(tmp_path / "other") == files
    assert expected[2].teacher_tokens > 0
    assert label(mute(), **settings) == expected  # and this process alone finds them


def test_what_arrived_before_a_failure_is_not_generated_again(cache: Path) -> None:
    settings = {"samples": 2, "temperature": 1.0}
    failing = Copies(fails_after=2)
    with pytest.raises(ConnectionError, match="the machine is gone"):
        label(mute(), failing, **settings)
    assert failing.asked == [("teacher", [GIVEN[4].id]), ("teacher", [GIVEN[2].id, GIVEN[3].id])]
    assert len(kept(cache)) == 2
    again = Copies()
    found = label(mute(), again, **settings)
    assert again.asked == [("teacher", [GIVEN[0].id, GIVEN[1].id])]
    for path in cache.glob("augmentation/*.jsonl"):
        remove(path)
    assert found == label(WhiteBox(tiny()), **settings)


def test_nothing_is_sent_where_all_is_on_disk_or_the_model_is_elsewhere() -> None:
    label(WhiteBox(tiny()))
    workers = Copies()
    label(mute(), workers)
    label(Scripted(str.upper), workers, max_new_tokens=7)  # a server, to which this process sends requests
    assert workers.asked == []


def test_the_identity_does_not_depend_on_who_generates() -> None:
    words = ("augmentation=labeling", "objective=sft")
    one, several = runs.config(*words), runs.config(*words, "run.ray.actors=2", "run.ray.cluster=auto")
    assert elicited_folder(one) == elicited_folder(several)
    assert identity(one) == identity(several)


def test_an_elicitation_sends_its_stages_to_the_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ("augmentation=[sampling,self_labeling]", "objective=sft")
    short = [f"augmentation.stages.{name}.max_new_tokens=4" for name in ("sampling", "self_labeling")]
    expected = elicit(runs.config(*words, *short))
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "other"))
    seen: list[Source] = []

    class Here(RayWorkers):
        """An actor, but for Ray."""

        def __init__(self, load: Any, settings: RaySettings):
            self.actor, self.closed = Actor(load, 1), 0
            assert settings == RaySettings(actors=2, num_gpus=0.0)
            made.append(self)

        def answered(self, source: Source, named: str, parts: Sequence[Part]) -> Iterator[Any]:
            seen.append(source)
            for i, part in enumerate(parts):
                number, rows, cost = Context().run(self.actor.answered, source, named, i, part)
                yield parts[number], rows, Spent(**cost)

        def close(self) -> None:
            self.closed += 1

    made: list[Here] = []
    monkeypatch.setattr(loading, "RayWorkers", Here)
    found = elicit(runs.config(*words, *short, "run.ray.actors=2"))
    assert found.records == expected.records
    assert found.spent._replace(seconds=0.0) == expected.spent._replace(seconds=0.0)
    assert seen == ["teacher", "student"]
    assert [one.closed for one in made] == [1]


# --- an actor ---


def part(path: Path, *prompts: Record) -> Part:
    return Part(prompts, Decoding(4, temperature=0.0), Torch(), (0, "augmentation", "labels", 0), path)


def test_an_actor_holds_one_model_at_a_time_and_loads_it_once(tmp_path: Path) -> None:
    loaded: list[Source] = []

    def load(source: Source) -> Teacher:
        loaded.append(source)
        return StudentText(tiny(1)) if source == "student" else WhiteBox(tiny())

    actor = Actor(load, 1)
    teacher, student = WhiteBox(tiny()).identity(), f"student {StudentText(tiny(1)).identity()}"
    one = part(tmp_path / "a", *GIVEN)
    number, rows, cost = actor.answered("teacher", teacher, 7, one)
    assert (number, list(rows)) == (7, list(one.answered(WhiteBox(tiny()))[0]))
    assert cost["teacher_tokens"] == sum(row.tokens for row in rows) > 0
    actor.answered("teacher", teacher, 8, one)
    assert loaded == ["teacher"]
    _, rows, cost = actor.answered("student", student, 0, one)
    assert list(rows) == list(one.answered(StudentText(tiny(1)))[0])
    assert cost["decoding_flops"] > 0
    actor.answered("teacher", teacher, 9, one)
    assert loaded == ["teacher", "student", "teacher"]


def test_an_actor_with_other_weights_is_refused(tmp_path: Path) -> None:
    actor = Actor(lambda source: WhiteBox(tiny(1)), 1)
    for _ in range(2):  # it is loaded again, and refused again
        with pytest.raises(ValueError, match=r"an actor has loaded a teacher of other content.*give all machines the"):
            actor.answered("teacher", WhiteBox(tiny()).identity(), 0, part(tmp_path / "a", *GIVEN))


# --- settings ---


def test_a_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    cfg = runs.config("augmentation=labeling", "objective=sft", "run.ray.actors=2")
    sentence = re.escape("run.ray.actors=2 needs the package ray; install it with pip install -e '.[ray]'")
    monkeypatch.setattr(kd.elicit, "as_read", lambda cfg: pytest.fail("models were prepared first"))
    for refusing in (elicit, check_machine, kd.elicit.made):
        with pytest.raises(ValueError, match=sentence):
            refusing(cfg)
    check_machine(runs.config("run.ray.actors=0"))


@pytest.mark.parametrize(("key", "value"), [("actors", "-1"), ("num_gpus", "-0.5"), ("num_cpu", "1")])
def test_settings_are_checked_with_the_config(key: str, value: str) -> None:
    cfg = runs.config(f"++run.ray.{key}={value}")
    with pytest.raises(ValueError, match=rf"run\.ray\.{key}"):
        check_sections(OmegaConf.to_container(cfg, resolve=True))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Ray were."""
    monkeypatch.setattr("kd.workers.actors.check_installed", lambda setting: None)


def workers(actors: int, cpus: float, gpus: float, cluster: str | None = None) -> RayWorkers:
    return RayWorkers(lambda source: mute(), RaySettings(actors, cluster, num_cpus=cpus, num_gpus=gpus))


@pytest.mark.parametrize(
    ("cpus", "gpus", "machine", "room"),
    [
        (2.0, 0.0, {"CPU": 5.0}, 2),  # 5 / 2
        (1.0, 1.0, {"CPU": 8.0}, 0),
        (1.0, 0.6, {"CPU": 8.0, "GPU": 2.0}, 2),  # one on each GPU, though 3 * 0.6 < 2
        (1.0, 0.1, {"CPU": 64.0, "GPU": 2.0}, 20),
        (1.0, 1 / 3, {"CPU": 4.0, "GPU": 2.0}, 4),  # by the cores; by the GPUs, 6
        (0.0, 2.0, {"GPU": 5.0}, 2),
        (0.0, 0.0, {}, 99),  # an actor that takes nothing fits everywhere
    ],
)
def test_the_places_of_a_machine_by_hand(cpus: float, gpus: float, machine: dict[str, float], room: int) -> None:
    assert _places(machine, {"num_cpus": cpus, "num_gpus": gpus}, 99) == room


def test_actors_without_a_place_are_refused(installed: None) -> None:
    """On this machine and on a cluster; 3 and 2 cores are places for 3 actors of 1.5 cores, not for 3 of 2."""
    one = workers(3, 1.0, 0.6)
    one.is_own, one.ray = True, SimpleNamespace(shutdown=lambda: None)
    sentence = r"actors=3 take 1 CPUs and 0.6 GPUs each, and this machine has room for 2 \(8 CPUs, 2 GPUs\); lower run"
    with pytest.raises(ValueError, match=sentence):
        one._check_places([{"CPU": 8.0, "GPU": 2.0}])
    assert not one.is_own
    machines = [{"CPU": 3.0}, {"CPU": 2.0}]
    with pytest.raises(ValueError, match=r"the cluster \(machines: 2\) has room for 2 \(5 CPUs, 0 GPUs\)"):
        workers(3, 2.0, 0.0, "auto")._check_places(machines)
    workers(3, 1.5, 0.0, "auto")._check_places(machines)
    assert RayWorkers(lambda source: mute(), RaySettings(1, num_gpus=1.0)).takes == {"num_cpus": 1, "num_gpus": 1.0}


def test_a_cluster_that_is_not_reached_is_named(installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else, as of a cluster that was never there to be ended."""

    def refusing(address: str | None, key: str) -> Any:
        raise ValueError(f"{key}={address}: Ray is not reached (no route); start it by ray start --head")

    monkeypatch.setattr("kd.workers.actors.connected", refusing)
    with (
        pytest.raises(ValueError, match=r"^run\.ray\.cluster=there:1: Ray is not reached \(no route\); start it"),
        closing(workers(1, 1.0, 0.0, "there:1")) as lost,
    ):
        list(lost.answered("teacher", "t", []))


class RayError(Exception):
    """Ray's, of which the others here are kinds, as there."""


class RayTaskError(RayError):
    pass


class RayActorError(RayError):
    pass


class OutOfMemoryError(RayError):
    pass


class RuntimeEnvSetupError(RayError):
    pass


class ActorUnschedulableError(RayError):
    pass


ERRORS = (OutOfMemoryError, RuntimeEnvSetupError, ActorUnschedulableError)


class Pool:
    """A pool whose next results are given; an exception is raised."""

    def __init__(self, *results: Any):
        self.results = list(results)

    def map_unordered(self, call: Any, tasks: Any) -> None:
        pass

    def has_next(self) -> bool:
        return bool(self.results)

    def get_next_unordered(self, timeout: float) -> Any:
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result


def started(pool: Pool, waiting: Sequence[int] = ()) -> RayWorkers:
    """Three actors, the given ones of which have no place yet."""
    kinds = (RayError, RayTaskError, RayActorError)
    found = workers(3, 1.0, 0.5)
    found.pool, found.placed = pool, [1, 2, 3]
    found.ray = SimpleNamespace(
        exceptions=SimpleNamespace(**{kind.__name__: kind for kind in kinds}),
        wait=lambda refs, num_returns, timeout: ([i for i in refs if i not in waiting], list(waiting)),
    )
    return found


@needs_ray
def test_the_errors_here_have_rays_kinds() -> None:
    exceptions = import_module("ray.exceptions")
    for kind in ERRORS:
        own = getattr(exceptions, kind.__name__)
        assert issubclass(own, exceptions.RayError)
        assert not issubclass(own, exceptions.RayTaskError | exceptions.RayActorError)


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_of_rays_is_one_sentence(kind: type[RayError], installed: None) -> None:
    pool = Pool(kind("Details:\n\n the node is full \n"))
    sentence = (
        rf"run\.ray: Ray reports {kind.__name__} \(the node is full\); what was answered is kept: .*start it again$"
    )
    with pytest.raises(ConnectionError, match=sentence) as found:
        list(started(pool).answered("teacher", "t", []))
    assert "\n" not in str(found.value)


def test_actors_that_wait_for_a_place_are_named(
    installed: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """At every EVERY, also while parts of others arrive; and none is where all have their place."""
    monkeypatch.setattr(actors, "EVERY", 0.0)
    parts = [part(tmp_path / "a", *GIVEN), part(tmp_path / "b", *GIVEN)]
    results = (TimeoutError(), (1, [], {}), (0, [], {}))
    for waiting, times in (((1, 3), 3), ((), 0)):
        found = list(started(Pool(*results), waiting).answered("teacher", "t", parts))
        assert [one for one, *_ in found] == [parts[1], parts[0]]
        printed = capsys.readouterr().err
        assert printed.count("without a place yet: 1, 3 of 3, which take 1 CPUs and 0.5 GPUs each; where") == times
    monkeypatch.setattr(actors, "EVERY", 60.0)
    list(started(Pool(*results), (1, 3)).answered("teacher", "t", parts))
    assert capsys.readouterr().err == ""


def test_actors_of_a_running_cluster_get_what_they_need_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets not by `runtime_env`, which Ray logs, but before the first model is loaded."""
    plain = {"KD_CACHE": "/c", "HF_HOME": "/h", "HF_TOKEN_PATH": "/h/token"}
    secrets = {"HF_TOKEN": "hf_1", "KD_TEST_API_KEY": "sk-2"}
    here = {"PYTHONPATH": os.pathsep.join([os.getcwd(), "/a"])}
    assert _variables({**plain, **secrets, "AWS_SECRET": "s", "PYTHONPATH": "/a"}) == ({**plain, **here}, secrets)
    for name in secrets:
        monkeypatch.setenv(name, "before")
    Actor(lambda source: mute(), torch.get_num_threads(), secrets)
    assert {name: os.environ[name] for name in secrets} == secrets


def test_a_running_cluster_is_given_no_secret_to_log(installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster as Ray describes it to the code, which notes what actors are started with."""
    options, arguments = dict[str, Any](), list[Any]()

    class Started:
        ready = SimpleNamespace(remote=lambda: 1)

    def start(*given: Any) -> Started:
        arguments.extend(given)
        return Started()

    def with_options(**given: Any) -> Any:
        options.update(given)
        return SimpleNamespace(remote=start)

    node = {"Alive": True, "Resources": {"CPU": 2.0}}
    ray = SimpleNamespace(nodes=lambda: [node], remote=lambda kind: SimpleNamespace(options=with_options))
    monkeypatch.setattr(actors, "connected", lambda address, key: ray)
    monkeypatch.setitem(sys.modules, "ray.util", SimpleNamespace(ActorPool=list))
    monkeypatch.setenv("HF_TOKEN", "hf_never_logged")
    monkeypatch.setenv("KD_CACHE", "/c")
    workers(1, 1.0, 0.0, "auto")._start()
    assert "hf_never_logged" not in str(options)
    assert options["runtime_env"]["env_vars"]["KD_CACHE"] == "/c"
    assert arguments[2]["HF_TOKEN"] == "hf_never_logged"


# --- Ray on this machine ---

COMMAND = (
    *("augmentation=[labeling,self_labeling]", "teacher=tiny", "student=tiny", "teacher.prepare=null", "trainer=cpu"),
    *("skill=spell_backward", "skill.train=1100", "augmentation.stages.labeling.max_new_tokens=6"),
    *("augmentation.stages.self_labeling.max_new_tokens=6", "augmentation.stages.self_labeling.samples=1"),
)  # five parts of the teacher's greedy text, five of the student's samples


def start(cache: Path, *words: str) -> subprocess.Popen[str]:
    variables = {"KD_CACHE": str(cache), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(cache.parent)}
    environment = os.environ | variables | {"RAY_worker_niceness": "0"}  # Ray's 15 would starve on a crowded machine
    line = [sys.executable, "-m", "kd.elicit", *COMMAND, *words]
    return subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return out


def elicited(cache: Path) -> dict[str, Any]:
    """The records and accounts of all stages, by artifact, but for seconds."""
    found: dict[str, Any] = {}
    for facts in cache.glob("elicited/[!.]*/facts.json"):  # not what a killed process was about to write
        stages = json.loads(facts.read_text())["stages"]
        for stage in stages:
            stage["cost"].pop("seconds")
        found[facts.parent.name] = (facts.parent / "records.jsonl").read_text(), stages
    return found


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("one") / "cache"
    end(start(cache))
    return cache


def wait_for_answers(process: subprocess.Popen[str], cache: Path, count: int) -> None:
    deadline = time.monotonic() + 300
    while len(list(cache.glob("augmentation/*.jsonl"))) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@needs_ray
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_actors_give_the_records_of_one_process(one_process: Path, tmp_path: Path) -> None:
    cache = tmp_path / "ray"
    end(start(cache, "run.ray.actors=2"))
    assert len(kept(one_process)) == 10
    assert kept(cache) == kept(one_process)
    assert elicited(cache) == elicited(one_process)
    assert len(elicited(cache)) == 2


@needs_ray
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_killed_elicitation_pays_nothing_twice(one_process: Path, tmp_path: Path) -> None:
    """The command is killed, and in the restart an actor."""
    cache = tmp_path / "ray"
    process = start(cache, "run.ray.actors=2")
    wait_for_answers(process, cache, 1)
    children = psutil.Process(process.pid).children(recursive=True)
    started = [child for child in children if "Agent" not in child.name()]  # which notice the end a minute later
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(started, timeout=60)
    assert alive == []  # the cluster and its actors end with the process that started them
    before = {path: path.stat().st_mtime_ns for path in cache.glob("augmentation/*.jsonl")}
    assert 0 < len(before) < 10
    again = start(cache, "run.ray.actors=2")
    wait_for_answers(again, cache, len(before) + 1)
    actors = [child for child in psutil.Process(again.pid).children(recursive=True) if "Actor" in child.name()]
    actors[0].kill()
    end(again)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert kept(cache) == kept(one_process)
    assert elicited(cache) == elicited(one_process)
