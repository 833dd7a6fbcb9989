"""Refusals name all that is missing at once; the command line that they print is a run, and so is what they offer.

Run: python -m pytest tests/composition/test_remedies.py
"""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from typing import Any, ClassVar

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from kd.components.choices import CONF, choices
from kd.composition.check import check
from kd.types import Record, Response, Skill, Split

SOME = ["apo_zero", "cpo", "distillm", "gad", "grpo_kl", "kdrl", "listwise", "minillm", "opd", "ppo", "reward_model"]
STARTS = (  # beside which every objective and every method is requested
    "",
    "teacher=none student=tiny",
    "rollout=on_policy",
    "rollout=paired",
    "rollout=mixed",
    "reward=verifier",
    "reward=discriminator",
    "reward=scores",
    "targets=topk",
    "targets=sampled",
    "targets=topk targets.cached=true",
    "alignment=none",
    "corpus=docstrings",
    "generator=vllm",
    "augmentation=labeling",
    "teacher=ensemble student=tiny augmentation=labeling",
    "teacher=routed skill=mixture skill.of=[spell_backward,number_filtering] student=tiny",
)


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield


@cache
def base(words: tuple[str, ...]) -> DictConfig:
    return compose("config", overrides=list(words))


def refusal(*words: str, **nodes: Any) -> str:
    """What a command line is refused with; "" for a run. `nodes` replace whole sections."""
    cfg = base(words).copy()
    OmegaConf.set_struct(cfg, False)
    for name, node in nodes.items():
        cfg[name] = OmegaConf.create(node)
    try:
        check(cfg, words=words)
    except ValueError as error:
        sentence = str(error)
    else:
        return ""
    assert "\n" not in sentence
    return sentence


def printed(sentence: str) -> tuple[str, ...]:
    """The overrides of the command line that a refusal ends with."""
    assert ", as in: python run.py " in sentence, sentence
    return tuple(shlex.split(sentence.partition(", as in: python run.py ")[2]))


def offered(sentence: str) -> Iterator[tuple[str, ...]]:
    """The command lines with what a refusal offers beside, each in the place of what it stands for."""
    line, remedy = printed(sentence), sentence.partition(", as in: ")[0].rpartition("; take ")[2]
    for taken, others in re.findall(r"(\w+=\w+(?: [\w.]+=\w+)*) \(or (\w+=[\w ]+)\)", remedy):
        group, _, names = others.partition("=")
        rest = [word for word in line if word not in taken.split()]
        yield from ((*rest, f"{group}={name}") for name in names.split(" or "))


# ---- the line that works ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [*SOME[:4], *(pytest.param(name, marks=pytest.mark.long) for name in SOME[4:])])
def test_the_line_that_a_refused_objective_is_answered_with_is_a_run(objective: str) -> None:
    sentence = refusal(f"objective={objective}")
    assert refusal(*printed(sentence)) == ""


@pytest.mark.long
@pytest.mark.parametrize("start", STARTS)
def test_it_is_a_run_from_wherever_one_starts(start: str) -> None:
    """Of every eighth objective and method, other ones with each start: all of them take more than an hour."""
    every = [f"{group}={name}" for group in ("objective", "method") for name in choices(group)]
    for choice in every[STARTS.index(start) % 8 :: 8]:
        sentence = refusal(choice, *start.split())
        if not sentence or (choice.startswith("method=") and start and ", as in: " not in sentence):
            continue  # it means just what is refused
        again = refusal(*printed(sentence))
        if choice.startswith("method=") and start.startswith("rollout=") and " takes no " in again:
            continue  # the method sets keys of its own rollout
        assert again == "", f"{choice} {start}: {sentence}"


@pytest.mark.parametrize(
    ("line", "told", "works"),
    [
        (
            "objective=grpo",
            ["old_logprobs, but rollout Offline", "rewards, but reward=none", "came with 1)"],
            "objective=grpo rollout=on_policy rollout.samples=4 reward=verifier",
        ),
        (
            "objective=minillm",
            ["needs behaviour_logprobs", "needs advantages", "corpus=none"],
            "objective=minillm rollout=on_policy reward=log_ratio corpus=docstrings",
        ),
        (
            "objective=gad",
            ["grpo needs rewards", "the discriminator compares"],
            "objective=gad rollout=demonstrated reward=discriminator",
        ),
        (  # what the user chose stays as long as it may
            "objective=dpo rollout=on_policy rollout.samples=2 optim.steps=3",
            ["in the order in which they were generated"],
            "objective=dpo optim.steps=3 rollout=ranked reward=verifier",
        ),
        ("teacher=none student=tiny", ["fkl needs a teacher (teacher_logits)"], "student=tiny teacher=tiny"),
        (
            "teacher=ensemble student=tiny augmentation=labeling",
            ["Labeling needs teacher, but teacher Ensemble provides logits"],
            "student=tiny augmentation=labeling teacher=tiny",
        ),
        (
            "objective=kdrl targets=topk targets.cached=true",
            ["kdrl needs the teacher's logprobs, but a cache holds its logits only"],
            "objective=kdrl rollout=on_policy rollout.samples=4 reward=verifier targets=full targets.cached=false",
        ),
        (  # a value that is missing, and then a reward that has nothing to give
            "method=sdft reward=verifier",
            ["there is no teacher.model.source; take student=tiny", "which neither a term (jsd) nor the rollout reads"],
            "method=sdft student=tiny reward=none",
        ),
        ("method=sdft", ["student.source is ${teacher.model.source}"], "method=sdft student=tiny"),
        ("reward=verifier", ["which neither a term (fkl) nor the rollout reads"], "reward=none"),
        ("targets=sampled objective=rkl", ["rkl has no meaning with targets=sampled"], "objective=rkl targets=topk"),
        (
            "'objective=[fkl,grpo]'",
            ["grpo needs rewards"],
            "'objective=[fkl,grpo]' rollout=on_policy rollout.samples=4 reward=verifier",
        ),
    ],
)
@pytest.mark.long
def test_all_that_is_missing_is_reported_at_once(line: str, told: list[str], works: str) -> None:
    sentence = refusal(*shlex.split(line))
    for part in told:
        assert part in sentence
    assert sentence.endswith(f", as in: python run.py {works}")


@pytest.mark.parametrize("line", ["objective=gad", "teacher=none student=tiny"])
def test_what_is_offered_beside_is_a_run_too(line: str) -> None:
    lines = list(offered(refusal(*line.split())))
    assert lines
    assert [refusal(*words) for words in lines] == [""] * len(lines)


def test_what_the_files_of_rollouts_recommend_is_a_run() -> None:
    comments = {name: (CONF / "rollout" / f"{name}.yaml").read_text() for name in ("ranked", "mixed")}
    beside = {"ranked": ("objective=dpo", "reward=verifier"), "mixed": ()}
    for name, text in comments.items():
        (word,) = re.findall(r"rollout\.writer\._target_=[\w.]+\w", text)
        assert refusal(f"rollout={name}", word, *beside[name]) == ""
    other = "rollout.writer._target_=kd.rollouts.paired.Demonstrated"
    assert other.rpartition("=")[2] in comments["ranked"]
    assert refusal("rollout=ranked", other, *beside["ranked"]) == ""


# ---- requirements on records -----------------------------------------------------------------------------------------


class Judged(Skill):
    """Records with two responses, scored, of two teachers; `lacking` is what the third one has not."""

    name, metric, licence, group_key = "judged", "accuracy", "CC0-1.0", "record"
    lacks: ClassVar[tuple[str, ...]] = ("response", "score", "teacher")

    def __init__(self, lacking: str | None = None):
        self.lacking = lacking

    def load(self, split: Split) -> list[Record]:
        """Five of each split."""
        return [self._record(f"{split}/{i}", self.lacking if i == 2 else None) for i in range(5)]

    def _record(self, id: str, lacking: str | None) -> Record:
        scores = (1.0, None if lacking == "score" else 0.0)
        responses = tuple(Response(text, score=score) for text, score in zip("ab", scores, strict=True))
        meta = {} if lacking == "teacher" else {"teacher": "first"}
        prompt = ({"role": "user", "content": id},)
        return Record(id, "judged", prompt, responses[:1] if lacking == "response" else responses, meta=meta)

    def score(self, record: Record, text: str) -> float:
        """Whether it is the first."""
        return float(text == "a")


ASKING = {
    "response": ("objective=dpo",),
    "score": ("objective=apo_zero", "reward=scores"),
    "teacher": ("teacher=ensemble", "teacher.combine=routed", "student=tiny"),
}


@pytest.mark.parametrize("lacking", Judged.lacks)
def test_the_first_record_that_lacks_what_is_required_is_named(lacking: str) -> None:
    skill = {"_target_": f"{__name__}.Judged", "lacking": None}
    assert refusal(*ASKING[lacking], skill=skill) == ""
    assert "train/2" in refusal(*ASKING[lacking], skill={**skill, "lacking": lacking})


def test_a_group_is_required_of_records_only_where_they_are_learnt_from() -> None:
    skill = {"_target_": f"{__name__}.Judged"}
    pairs = ("objective=rrhf", "reward=verifier", "rollout=mixed")
    assert refusal(*pairs, "rollout.writer.samples=2", skill=skill) == ""
    assert "what rollout Mixed gives: group_size=1" in refusal(*pairs, skill=skill)
    assert "record gsm_symbolic/0/1/0 came with 1" in refusal(*pairs, "rollout.writer.samples=2")
    assert refusal(*pairs, "rollout.writer.samples=2", "rollout.share=1.0") == ""


def test_the_teachers_text_counts_as_it_will_be() -> None:
    assert "came with 1" in refusal("objective=dpo", "augmentation=labeling")
    assert refusal("objective=dpo", "augmentation=labeling", "augmentation.stages.labeling.keep_reference=true") == ""
    scores = ("objective=apo_zero", "reward=scores", "augmentation=labeling")
    assert "by the teacher without" in refusal(*scores, skill={"_target_": f"{__name__}.Judged"})


def test_scores_of_records_are_for_what_the_records_came_with() -> None:
    sentence = refusal("objective=ppo", "reward=scores", "rollout=on_policy", skill={"_target_": f"{__name__}.Judged"})
    assert "is of the responses that records came with, but rollout OnPolicy generates others" in sentence
