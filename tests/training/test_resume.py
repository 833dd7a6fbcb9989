"""A run that was stopped, or killed, and goes on, is the run that was not: bit for bit.

In one process where that shows it, in processes of their own where signals and exit codes are the point; the matrix of
ranks, workers and precisions is `long`.
"""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import runs
from tests.generators.completions import Served, serving

ON_POLICY = {"_target_": "kd.rollouts.on_policy.OnPolicy", "max_new_tokens": 6, "batch_size": 4}
SOMETIMES = {"seed": 1, "writer": ON_POLICY}
ROLLOUTS: dict[str, Any] = {
    "offline": None,
    "on_policy": ON_POLICY,
    "mixed": {"_target_": "kd.rollouts.mixed.Mixed", **SOMETIMES, "per": "sequence"},
    "adaptive": {  # its threshold grows at every look
        "_target_": "kd.rollouts.adaptive.Adaptive",
        **SOMETIMES,
        **{"capacity": 8, "initial": 0.5, "tolerance": -99.0},
    },
    "replay": {
        "_target_": "kd.rollouts.replay.Replay",
        "writer": ON_POLICY,
        **{"uses": 3, "capacity": 8, "max_age": 4, "importance_bound": 1.5},
    },
    "asynchronous": {
        **ON_POLICY,
        **{"_target_": "kd.rollouts.on_policy.Asynchronous", "staleness": 3, "importance_bound": 1.5},
    },
}


def ran(path: Path, *overrides: str, **nodes: Any) -> Path:
    """A run, with dropout in the student, up to its end or its signal."""
    nodes = {"rollout": runs.scripted(path), **nodes}
    with contextlib.suppress(SystemExit):
        runs.train(runs.config(runs.DROPOUT, *overrides, **nodes), path)
    return path


# ---- what is saved is what is needed ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """A whole run, and one that was stopped in the middle, where a loss is not logged yet."""
    root = tmp_path_factory.mktemp("halves")
    step = runs.drawn().choice([4, 5, 7, 8])
    ran(root / "whole", objective=runs.MIXED)
    ran(root / "cut", objective=runs.MIXED, rollout=runs.scripted(root / "cut", (step, 0, "SIGTERM")))
    return root / "whole", root / "cut"


def resumed(halves: tuple[Path, Path], to: Path, change: Any = None) -> list[str]:
    """What differs when the checkpoint was changed in between."""
    whole, cut = halves
    shutil.copytree(cut, to)
    if change is not None:
        state = torch.load(cut / "checkpoints/last.ckpt", weights_only=True)
        change(state)
        runs.rewrite(state, to / "checkpoints/last.ckpt")
    ran(to, objective=runs.MIXED)
    return runs.differences(whole, to)


def test_nothing_differs(halves, tmp_path):
    assert resumed(halves, tmp_path / "run") == []
    assert resumed(halves, tmp_path / "again", change=lambda state: None) == []


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
def test_a_checkpoint_with_a_flipped_bit_is_named_and_not_gone_on_from(halves, tmp_path, place):
    _, cut = halves
    shutil.copytree(cut, tmp_path / "run")
    last = tmp_path / "run/checkpoints/last.ckpt"
    content = bytearray(last.read_bytes())
    content[int(len(content) * place)] ^= 16
    last.write_bytes(content)
    with pytest.raises(ValueError, match=r"last.ckpt of a checkpoint was changed or damaged since it was written"):
        ran(tmp_path / "run", objective=runs.MIXED)
    assert last.read_bytes() == content  # kept, for whoever has the undamaged file


def zero(name: str) -> Any:
    def change(state: dict) -> None:
        for moments in state["optimizer_states"][0]["state"].values():
            moments[name].zero_()

    return change


def schedule(state: dict) -> None:
    state["lr_schedulers"][0]["last_epoch"] = 0


def rate(state: dict) -> None:
    for group in state["optimizer_states"][0]["param_groups"]:
        group["initial_lr"] = group["lr"] = 1.0


def step(state: dict) -> None:
    state["distillation"]["step"] -= 1


def spent(state: dict) -> None:
    state["distillation"]["budget"]["tokens"] = 0


def not_logged(state: dict) -> None:
    state["distillation"]["means"] = {}


def without_reports(state: dict) -> None:
    state["distillation"]["reports"] = {}


def own_state(state: dict) -> None:
    state["state_dict"]["stateful.paced.pace"].fill_(1.0)


def one_bit(state: dict) -> None:
    weight = next(iter(state["state_dict"].values())).view(-1)
    weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))


def position(state: dict) -> None:
    """Lightning's, by which it validates."""
    for progress in state["loops"]["fit_loop"]["epoch_loop.batch_progress"].values():
        if isinstance(progress, dict):
            progress.update({name: progress["completed"] - 1 for name in progress})


MUTATIONS = {
    "first moments": (zero("exp_avg"), "last.state_dict"),
    "second moments": (zero("exp_avg_sq"), "last.state_dict"),
    "bias correction": (zero("step"), "last.state_dict"),
    "schedule": (schedule, "last.lr_schedulers"),
    "step": (step, "windows"),
    "budget": (spent, "last.distillation.budget.tokens"),
    "means": (not_logged, "metrics"),
    "reports": (without_reports, "metrics"),
    "a term's state": (own_state, "last.state_dict"),
    "a bit of a weight": (one_bit, "last.state_dict"),
    "position": (position, "metrics"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_piece_that_is_missing_is_missed(halves, tmp_path, name):
    """So the comparison above sees what it should, and nothing is saved that is not read."""
    change, where = MUTATIONS[name]
    found = resumed(halves, tmp_path / "run", change)
    assert any(difference.startswith(where) for difference in found), found


def test_a_step_that_is_not_seeded_is_missed(tmp_path, monkeypatch):
    """No generator is saved: each step sets its own."""
    monkeypatch.setattr("kd.training.module.seed_all", lambda *_: None)
    whole = ran(tmp_path / "whole")
    cut = ran(tmp_path / "cut", rollout=runs.scripted(tmp_path / "cut", (5, 0, "SIGTERM")))
    assert any(found.startswith("last.state_dict") for found in runs.differences(whole, ran(cut)))


def test_rows_of_steps_that_were_lost_are_written_again(tmp_path):
    """Killed after the checkpoint at 4, with rows of 6 in metrics.csv and half a row after them."""
    whole = ran(tmp_path / "whole")
    cut = ran(tmp_path / "cut", rollout=runs.scripted(tmp_path / "cut", (7, 0, "SIGTERM")))
    early = ran(tmp_path / "early", rollout=runs.scripted(tmp_path / "early", (4, 0, "SIGTERM")))
    shutil.copytree(early / "checkpoints", cut / "checkpoints", dirs_exist_ok=True)  # with the manifest
    with (cut / "metrics.csv").open("a") as file:
        file.write("7,train,lo")
    assert runs.differences(whole, ran(cut)) == []


def test_means_are_over_the_steps_since_the_last_row_though_the_interval_changed(tmp_path):
    """log_every is in no hash, so a run may go on with another: six steps since the beginning are the mean of six."""
    runs.train(runs.config(*runs.EXACT, "log_every=1"), tmp_path / "each")
    each = [float(runs.metrics(tmp_path / "each")[f"{step},train,fkl"]) for step in range(1, 7)]
    stop = runs.config(*runs.EXACT, "log_every=10", rollout=runs.scripted(tmp_path / "cut", (4, 0, "SIGTERM")))
    with pytest.raises(SystemExit):
        runs.train(stop, tmp_path / "cut")
    runs.train(runs.config(*runs.EXACT, "log_every=3"), tmp_path / "cut")
    assert float(runs.metrics(tmp_path / "cut")["6,train,fkl"]) == pytest.approx(sum(each) / 6, rel=1e-9)


def test_a_run_that_was_killed_before_it_saved_begins_again(tmp_path):
    whole = ran(tmp_path / "whole")
    cut = ran(tmp_path / "cut", rollout=runs.scripted(tmp_path / "cut", (7, 0, "SIGTERM")))
    shutil.rmtree(cut / "checkpoints")
    assert runs.differences(whole, ran(cut)) == []


@pytest.mark.parametrize("precision", [[], runs.EXACT])
def test_a_term_with_an_optimizer_of_its_own_resumes(tmp_path, precision):
    """Two optimizers, two schedules, and the term's parameters, which are drawn in float32 and learn in float64."""
    objective = {"fkl": runs.term(runs.forward_kl), "scaled": runs.term(runs.Rescaled, lr=0.1)}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    ran(whole, *precision, objective=objective)
    ran(cut, *precision, objective=objective, rollout=runs.scripted(cut, (5, 0, "SIGTERM")))
    assert len(runs.checkpoint(cut)["optimizer_states"]) == 2
    ran(cut, *precision, objective=objective)
    assert runs.differences(whole, cut) == []


# ---- the state of rollouts -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rolled(tmp_path_factory):
    """Of each rollout with a state, a whole run, and one that was stopped in a replay."""
    root = tmp_path_factory.mktemp("rolled")
    for name in ("adaptive", "replay", "asynchronous"):
        whole, cut = root / f"{name} whole", root / f"{name} cut"
        ran(whole, rollout=runs.scripted(whole, inner=ROLLOUTS[name]))
        ran(cut, rollout=runs.scripted(cut, (7, 0, "SIGTERM"), inner=ROLLOUTS[name]))
    return root


@pytest.mark.parametrize("step", [3, 5])
@pytest.mark.parametrize("rollout", ["adaptive", "replay", "asynchronous"])
def test_any_step_of_a_rollout_with_state_can_be_the_last(rolled, tmp_path, rollout, step):
    """Also one after which (each third) the validation split is evaluated, and passed to the rollout."""
    ran(tmp_path, rollout=runs.scripted(tmp_path, (step, 0, "SIGTERM"), inner=ROLLOUTS[rollout]))
    assert runs.checkpoint(tmp_path)["distillation"]["step"] == step
    ran(tmp_path, rollout=runs.scripted(tmp_path, inner=ROLLOUTS[rollout]))
    assert runs.differences(rolled / f"{rollout} whole", tmp_path) == []


FORGOTTEN = {  # each piece of a rollout's state, as it is at the start
    ("adaptive", "threshold"): 0.5,
    ("adaptive", "level"): None,
    ("adaptive", "buffer"): [],
    ("replay", "wrote_at"): None,
    ("replay", "buffer"): [],
    ("asynchronous", "buffer"): {},
}


@pytest.mark.parametrize(("rollout", "name"), FORGOTTEN)
def test_a_piece_of_a_rollout_that_is_missing_is_missed(rolled, tmp_path, rollout, name):
    whole, cut = rolled / f"{rollout} whole", tmp_path / "cut"
    shutil.copytree(rolled / f"{rollout} cut", cut)
    state = torch.load(cut / "checkpoints/last.ckpt", weights_only=True)
    own = state["distillation"]["rollout"][0]
    (own["attributes"] if name in own["attributes"] else own)[name] = FORGOTTEN[rollout, name]
    runs.rewrite(state, cut / "checkpoints/last.ckpt")
    ran(cut, rollout=runs.scripted(cut, inner=ROLLOUTS[rollout]))
    found = runs.differences(whole, cut)
    assert any(difference.startswith(("last.state_dict", "last.distillation.rollout")) for difference in found), found


@pytest.mark.long
def test_an_engine_that_is_behind_goes_on_with_the_weights_that_it_had(tmp_path):
    """Given at steps 0 and 3; after step 5 it holds those of step 3, and neither server nor folder outlives the run."""

    def written(path: Path, *signal: Any) -> None:
        student = runs.build(runs.config(runs.DROPOUT)).module.student
        with serving(Served(student)) as served:
            engine = {"_target_": "kd.generators.vllm_server.Server", "url": served.url, "staleness": 2}
            inner = {**ON_POLICY, "generator": {**engine, "weights": str(path / "weights")}}
            ran(path, rollout=runs.scripted(path, *signal, inner=inner))

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    written(whole)
    written(cut, (5, 0, "SIGTERM"))
    saved = torch.load(cut / "checkpoints/last.ckpt", weights_only=True)["distillation"]
    assert (saved["step"], saved["rollout"][0]["generator"]["version"]) == (5, 3)
    shutil.rmtree(cut / "weights")
    written(cut)
    assert runs.differences(whole, cut) == []


# ---- in processes of their own ---------------------------------------------------------------------------------------


def finished(*jobs: dict[str, Any], code: int = 0) -> None:
    done = runs.in_processes(*jobs)
    assert done.returncode == code, done.stderr[-3000:]


def test_stopped_and_killed_processes_go_on_as_if_nothing_was(tmp_path):
    """SIGTERM after a step drawn at random, to the whole group: exit code 143. SIGKILL at a moment drawn at random."""
    whole, cut, killed = (tmp_path / name for name in ("whole", "cut", "killed"))
    draw = runs.drawn()
    term = runs.scripted(cut, (draw.randint(1, runs.STEPS - 1), 0, "group SIGTERM"))
    kill = runs.scripted(killed, (draw.randint(2, 7), 0, "SIGKILL", draw.uniform(0.001, 0.03)))
    cut_off = runs.job(cut, runs.DROPOUT, "data.workers=2", rollout=term)
    finished(runs.job(whole, runs.DROPOUT), cut_off, code=143)
    finished(runs.job(cut, runs.DROPOUT), runs.job(killed, runs.DROPOUT, rollout=kill), code=-9)
    ran(killed)
    assert runs.differences(whole, cut) == []
    assert runs.differences(whole, killed) == []


@pytest.mark.parametrize(
    "rollout",
    ["mixed", "adaptive", "replay", "asynchronous"],
)
@pytest.mark.long
def test_a_killed_process_goes_on_with_what_its_rollout_knew(tmp_path, rollout):
    """SIGKILL at a moment drawn at random, after the first checkpoint."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    draw, inner = runs.drawn(), ROLLOUTS[rollout]
    moment = (draw.randint(5, 9), 0, "SIGKILL", draw.uniform(0.001, 0.03))
    jobs = [
        runs.job(whole, runs.DROPOUT, rollout=runs.scripted(whole, inner=inner)),
        runs.job(killed, runs.DROPOUT, rollout=runs.scripted(killed, moment, inner=inner)),
    ]
    finished(*jobs, code=-9)
    ran(killed, rollout=runs.scripted(killed, inner=inner))
    assert runs.differences(whole, killed) == []
    (state,) = runs.checkpoint(whole)["distillation"]["rollout"]
    assert ("buffer" in state) == (rollout != "mixed")


# Any two of the four settings meet in every way, but that a rollout with a state has two ranks here, and one above.
KINDS = [
    ("offline", "32-true", 0, 1),
    ("offline", "bf16-mixed", 2, 2),
    ("on_policy", "32-true", 0, 2),
    ("on_policy", "bf16-mixed", 2, 1),
    ("mixed", "32-true", 2, 2),
    ("mixed", "bf16-mixed", 0, 2),
    ("adaptive", "32-true", 0, 2),
    ("adaptive", "bf16-mixed", 2, 2),
    ("replay", "32-true", 2, 2),
    ("replay", "bf16-mixed", 0, 2),
    ("asynchronous", "32-true", 0, 2),
]


@pytest.mark.long
@pytest.mark.parametrize(("rollout", "precision", "workers", "ranks"), KINDS)
def test_every_kind_of_run_resumes(tmp_path, ranks, workers, precision, rollout):
    overrides = [runs.DROPOUT, f"data.workers={workers}"]
    overrides += ["trainer=ddp_cpu"] if ranks == 2 else []
    overrides += [f"trainer.precision={precision}"]
    inner = ROLLOUTS[rollout]
    draw = runs.drawn()
    step, rank = draw.randint(1, runs.STEPS - 1), draw.randrange(ranks)
    name = draw.choice(["SIGTERM", "group SIGTERM"])
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    signalled = runs.scripted(cut, (step, rank, name), inner=inner)
    undisturbed = {path: runs.scripted(path, inner=inner) for path in (whole, cut)}
    first = [
        runs.job(whole, *overrides, rollout=undisturbed[whole]),
        runs.job(cut, *overrides, rollout=signalled),
    ]
    finished(*first, code=143)
    finished(runs.job(cut, *overrides, rollout=undisturbed[cut]))
    assert runs.differences(whole, cut) == []
    assert len(runs.finals(whole)) == ranks
    assert len(runs.windows(whole)) == ranks * runs.STEPS


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_takes_the_run_down_and_it_resumes(tmp_path, rank):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    draw = runs.drawn()
    overrides = [runs.DROPOUT, "trainer=ddp_cpu", f"data.workers={draw.choice((0, 2))}"]
    kill = runs.scripted(cut, (draw.randint(2, 7), rank, "SIGKILL", draw.uniform(0.001, 0.03)))
    finished(runs.job(whole, *overrides))
    assert runs.in_processes(runs.job(cut, *overrides, rollout=kill)).returncode != 0
    finished(runs.job(cut, *overrides))
    assert runs.differences(whole, cut) == []
