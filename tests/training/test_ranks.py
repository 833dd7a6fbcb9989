"""Two real processes (gloo) do what one does; and when one of them gets a signal to stop, both stop."""

import shutil
from typing import Any

import pytest
import torch

from kd.objectives.divergence import cross_entropy
from tests import runs

REDUCTIONS = ["token", "sequence", "sum"]
EXACT = [*runs.EXACT, "optim.steps=4", "optim.clip=null", "checkpoint.validate=2"]
DDP = "trainer=ddp_cpu"
SHARDED = "trainer=fsdp_cpu"
TURNS = [  # features, which teach nothing to the head, then logits
    "objective=[minilm,fkl]",
    "objective.minilm.weight={start:1,end:0,begin:0.5,until:0.5}",
    "objective.fkl.weight={start:0,end:1,begin:0.5,until:0.5}",
]
FEATURES = "objective=minilm"  # which teaches nothing to the last feed-forward block, the last gain and the head
INTERRUPTED = [DDP, runs.DROPOUT]
GREEDY = {"_target_": "kd.rollouts.on_policy.OnPolicy", "max_new_tokens": 6, "temperature": 0.0}
GROUPS = ["objective=[grpo,dpo]", "reward=teacher_score"]
AGAIN = {  # the reference beside a greedy response, each pair learnt from twice
    "_target_": "kd.rollouts.replay.Replay",
    "uses": 2,
    "writer": {
        "_target_": "kd.rollouts.paired.Demonstrated",
        "samples": 1,
        "max_new_tokens": 6,
        "temperature": 0.0,
    },
}
DOMAINS: dict[str, Any] = {  # greedily, by a teacher for each of two domains
    "teacher": runs.experts(),
    "skill": {"_target_": "tests.runs.OfDomains"},
    "rollout": GREEDY,
}
NORMALISED = {**DOMAINS, "reward": {"_target_": "kd.rewards.domains.DomainNormalised"}}
TEXT = "A page about nothing in particular, long enough for a few blocks of text. " * 4
STREAMS = {  # the term that learns is on one, what comes last on the other
    "scaled": runs.term(runs.Rescaled, lr=0.1),
    "lm": runs.term(cross_entropy, 0.5, stream="lm"),
}


BLOCKS = ["data.lm_window=5", "data.lm_length=24"]


def plain_text(folder) -> dict[str, str]:
    (folder / "page.md").write_text(TEXT)
    return {"_target_": "kd.corpora.local.Local", "path": str(folder / "page.md")}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Two calls of two processes each. In the first, the last run ends with a signal, sent to the second rank only."""
    return runs.shared(tmp_path_factory, "ranks", two_ranks)


def two_ranks(folder) -> None:
    step = runs.drawn().choice([4, 5, 7, 8])  # with a loss that is not logged yet, on either rank
    cut = folder / "cut"
    exact = [runs.job(folder / r, DDP, *EXACT, f"reduction={r}", objective=runs.MIXED) for r in REDUCTIONS]
    apart = runs.job(folder / "apart", DDP, *EXACT, objective=runs.MIXED, synchronised=False)
    whole = runs.job(folder / "whole", *INTERRUPTED, objective=runs.MIXED)
    stopped = runs.job(cut, *INTERRUPTED, objective=runs.MIXED, rollout=runs.scripted(cut, (step, 1, "SIGTERM")))
    features = runs.job(folder / "features", DDP, *EXACT, FEATURES)
    turns = runs.job(folder / "turns", DDP, *EXACT, *TURNS)
    written = runs.job(folder / "written", DDP, *EXACT, objective=runs.MIXED, rollout=GREEDY)
    groups = runs.job(folder / "groups", DDP, *EXACT, *GROUPS, rollout=AGAIN)
    routed = runs.job(folder / "routed", DDP, *EXACT, "objective=opd", **DOMAINS)
    normalised = runs.job(folder / "normalised", DDP, *EXACT, "objective=policy_gradient", **NORMALISED)
    streams = runs.job(folder / "streams", DDP, *EXACT, *BLOCKS, objective=STREAMS, corpus=plain_text(folder))
    pace = {"paced": runs.term(runs.Paced)}
    muted = {"_target_": "tests.runs.Muted"}
    silent = runs.job(folder / "silent", DDP, *EXACT, "log_every=1", objective=pace, rollout=muted)
    sharded = [
        runs.job(folder / "sharded", SHARDED, *EXACT, objective=runs.MIXED),
        runs.job(folder / "sharded_written", SHARDED, *EXACT, objective=runs.MIXED, rollout=GREEDY),
    ]
    several = [routed, normalised, *sharded]
    first = runs.in_processes(
        *exact, apart, features, turns, written, groups, *several, streams, silent, whole, stopped
    )
    shutil.copytree(cut / "checkpoints", folder / "stopped")
    second = runs.in_processes(runs.job(cut, *INTERRUPTED, objective=runs.MIXED))
    (folder / "codes").write_text(f"{step} {first.returncode} {second.returncode}\n{first.stderr}{second.stderr}")


def one_rank(path, *more: str, **nodes):
    """The same run in this process."""
    return runs.train(runs.config(*EXACT, *more, **{"rollout": runs.scripted(path), **nodes}), path)


def relative(one: dict, other: dict) -> float:
    """Largest difference between two sets of tensors, over the largest number in the first."""
    assert one.keys() == other.keys()
    return max(float((one[k] - other[k]).abs().max()) for k in one) / max(float(v.abs().max()) for v in one.values())


def moments(path) -> dict[str, torch.Tensor]:
    """The running mean of the gradients, which unlike the update is linear in them."""
    states = runs.checkpoint(path)["optimizer_states"][0]["state"]
    return {str(i): state["exp_avg"] for i, state in states.items()}


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_two_ranks_equal_one(ranks, tmp_path, reduction):
    """In gradients, weights, logs and budget, after four steps on unequal lengths, whatever the terms run over."""
    one_rank(tmp_path, f"reduction={reduction}", objective=runs.MIXED)
    two = ranks / reduction
    assert relative(moments(tmp_path), moments(two)) < 1e-12
    assert relative(runs.checkpoint(tmp_path)["state_dict"], runs.checkpoint(two)["state_dict"]) < 1e-9
    by_one, by_two_ranks = runs.metrics(tmp_path), runs.metrics(two)
    assert by_one.keys() == by_two_ranks.keys()
    for name, value in by_one.items():
        assert float(by_two_ranks[name]) == pytest.approx(float(value), rel=1e-9), name
    spent, by_two = (runs.checkpoint(p)["distillation"]["budget"] for p in (tmp_path, two))
    assert spent.pop("padded") >= 0 <= by_two.pop("padded")  # there are more micro-batches
    assert spent == by_two


def test_two_ranks_equal_one_where_the_last_blocks_learn_nothing(ranks, tmp_path):
    one_rank(tmp_path, FEATURES)
    assert relative(moments(tmp_path), moments(ranks / "features")) < 1e-12


def test_two_ranks_equal_one_where_terms_take_turns(ranks, tmp_path):
    one_rank(tmp_path, *TURNS)
    assert relative(moments(tmp_path), moments(ranks / "turns")) < 1e-12
    assert relative(runs.checkpoint(tmp_path)["state_dict"], runs.checkpoint(ranks / "turns")["state_dict"]) < 1e-9
    assert float(runs.metrics(ranks / "turns")["4,train,fkl_weight"]) == 1


def test_two_ranks_equal_one_where_the_student_writes(ranks, tmp_path):
    """Greedily, so that both write the same; each rank on its own share of the prompts."""
    one_rank(tmp_path, objective=runs.MIXED, rollout=GREEDY)
    assert relative(moments(tmp_path), moments(ranks / "written")) < 1e-12
    spent, by_two = (runs.checkpoint(p)["distillation"]["budget"] for p in (tmp_path, ranks / "written"))
    for name in ("tokens", "teacher_tokens", "generated_tokens", "student_flops"):
        assert spent[name] == by_two[name] > 0, name


@pytest.mark.parametrize(("name", "nodes"), [("sharded", {}), ("sharded_written", {"rollout": GREEDY})])
def test_two_sharded_ranks_equal_one(ranks, tmp_path, name, nodes):
    """Each holds a half of the weights, gradients and optimizer's state; further kinds are in test_sharding."""
    one_rank(tmp_path, objective=runs.MIXED, **nodes)
    one, two = runs.checkpoint(tmp_path), runs.checkpoint(ranks / name)
    assert relative(moments(tmp_path), moments(ranks / name)) < 1e-9
    assert relative(one["state_dict"], two["state_dict"]) < 1e-9
    spent, by_two = (state["distillation"]["budget"] for state in (one, two))
    for kind in ("tokens", "teacher_tokens", "generated_tokens", "student_flops"):
        assert spent[kind] == by_two[kind], kind


def test_two_ranks_equal_one_on_groups_that_are_judged_and_replayed(ranks, tmp_path):
    """Three groups of a window on one rank, two on the other: no group is torn, and none is counted twice."""
    one_rank(tmp_path, *GROUPS, rollout=AGAIN)
    assert relative(moments(tmp_path), moments(ranks / "groups")) < 1e-6  # rewards are float32
    spent, by_two = (runs.checkpoint(p)["distillation"]["budget"] for p in (tmp_path, ranks / "groups"))
    for name in ("tokens", "generated_tokens", "student_flops"):
        assert spent[name] == by_two[name] > 0, name
    logged, by_two = runs.metrics(tmp_path), runs.metrics(ranks / "groups")
    for name in ("grpo/ratio", "grpo/approx_kl", "dpo/rewards/margins", "dpo/rewards/accuracies", "dpo/logps/chosen"):
        by_one, by_two_ranks = (float(rows[f"4,train,{name}"]) for rows in (logged, by_two))
        assert by_two_ranks == pytest.approx(by_one, rel=1e-6), name


@pytest.mark.parametrize(("name", "objective"), [("routed", "opd"), ("normalised", "policy_gradient")])
def test_two_ranks_equal_one_where_each_domain_has_a_teacher(ranks, tmp_path, name, objective):
    """MOPD and DN-MOPD: a domain's factor is of all its tokens of the step, whichever rank has them."""
    nodes = {"routed": DOMAINS, "normalised": NORMALISED}[name]
    one_rank(tmp_path, f"objective={objective}", **nodes)
    two = ranks / name
    assert relative(moments(tmp_path), moments(two)) < 1e-6  # the student's log-probabilities are float32
    by_one, by_two_ranks = runs.metrics(tmp_path), runs.metrics(two)
    assert by_one.keys() == by_two_ranks.keys()
    logged = ("teacher_share", "domain_weight", "sampled_reverse_kl") if name == "normalised" else ("teacher_share",)
    for metric in (f"4,train,{each}/{domain}" for each in logged for domain in runs.DOMAINS):
        assert float(by_two_ranks[metric]) == pytest.approx(float(by_one[metric]), rel=1e-6), metric
        assert float(by_one[metric]) != 1


def test_a_rank_without_rows_has_no_metrics_and_the_others_have_theirs(ranks):
    """The values are (gap + 1) times the pace, over the rows of the one rank that has some; the pace is 1, then 1.1."""
    logged = runs.metrics(ranks / "silent")
    for step, pace in ((1, 1.0), (2, 1.1)):
        value, gap = (float(logged[f"{step},train,{name}"]) for name in ("paced", "paced/gap"))
        assert value == pytest.approx((gap + 1) * pace, rel=1e-6)
    assert gap != 0


def test_two_ranks_equal_one_on_two_streams(ranks, tmp_path):
    """A term with an optimizer of its own on one stream, plain text on the other: both learn as on one rank."""
    one_rank(tmp_path, *BLOCKS, objective=STREAMS, corpus=plain_text(tmp_path))
    one, two = runs.checkpoint(tmp_path), runs.checkpoint(ranks / "streams")
    for mine, theirs in zip(one["optimizer_states"], two["optimizer_states"], strict=True):
        first, second = ({str(i): s["exp_avg"] for i, s in state["state"].items()} for state in (mine, theirs))
        assert relative(first, second) < 1e-6  # the weights of rows are float32
    assert one["state_dict"]["stateful.scaled.scale"] != 0


def test_both_ranks_hold_the_same_weights(ranks):
    for run in (*REDUCTIONS, "written", "groups", "streams", "whole", "cut"):
        first, second = runs.finals(ranks / run).values()
        assert first["initial"] == second["initial"]
        assert all(torch.equal(weight, second["weights"][name]) for name, weight in first["weights"].items())


def test_gradients_that_are_not_summed_would_show(ranks, tmp_path):
    """The same run with each rank on its own."""
    one_rank(tmp_path, objective=runs.MIXED)
    first, second = (final["weights"] for final in runs.finals(ranks / "apart").values())
    assert relative(first, second) > 1e-3
    assert relative(moments(tmp_path), moments(ranks / "apart")) > 0.1


def test_the_ranks_share_the_records_of_each_step(ranks, tmp_path):
    one_rank(tmp_path)
    alone, together = runs.windows(tmp_path), runs.windows(ranks / "token")
    for step in range(4):
        first, second = (together[f"{rank}:{step}"][0] for rank in (0, 1))
        assert first
        assert second
        assert sorted(first + second) == sorted(alone[f"0:{step}"][0])


def test_each_rank_and_each_step_draws_from_a_stream_of_its_own(ranks):
    """Else the ranks would drop the same units."""
    seeds = [seed for _, seed in runs.windows(ranks / "whole").values()]
    assert len(set(seeds)) == len(seeds) == 2 * runs.STEPS


def test_a_signal_to_one_rank_stops_both_with_its_exit_code(ranks):
    step, first, second = (ranks / "codes").read_text().split("\n")[0].split()
    assert (first, second) == ("143", "0"), (ranks / "codes").read_text()
    saved = torch.load(ranks / "stopped/last.ckpt", weights_only=True)
    assert saved["distillation"]["step"] == int(step)


def test_two_ranks_resume_bit_for_bit(ranks):
    """Weights, moments, schedules, losses, records and random numbers, on both ranks."""
    assert runs.differences(ranks / "whole", ranks / "cut") == []
    assert len(runs.windows(ranks / "cut")) == 2 * runs.STEPS
