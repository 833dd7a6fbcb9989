import ast
import contextlib
import inspect
import json
import os
import subprocess
import sys
import textwrap
from functools import partial

import pytest

from kd.sandbox import NoVerdict, calls, verdict
from kd.skills.gym_verifier import COMPARED, compares, gym_verifier
from kd.skills.reasoning_gym import REFUSED, UNTOLD, ReasoningGym
from kd.skills.scoring import scored
from kd.types import Skill

SPLITS = ("train", "validation", "test")
TASKS = (
    "spell_backward",
    "chain_sum",
    "letter_counting",
    "number_filtering",
    "number_sorting",
    "base_conversion",
    "caesar_cipher",
    "prime_factorization",
    "rotate_matrix",
    "simple_equations",
    "arc_1d",
    "countdown",
    "maze",
    "tower_of_hanoi",
)


def tasks():
    from reasoning_gym.factory import DATASETS

    return sorted(DATASETS)


def make(task="chain_sum", train=12, validation=6, test=6, **settings):
    return ReasoningGym(task=task, train=train, validation=validation, test=test, **settings)


def questions(skill, split):
    return [record.prompt[0]["content"] for record in skill.load(split)]


def numbers_up_to(largest):
    return {"task": "count_bits", "options": {"min_n": 1, "max_n": largest}}


@pytest.mark.parametrize("task", TASKS)
def test_references_score_one_and_problems_are_distinct(task):
    skill = make(task)
    assert isinstance(skill, Skill)
    assert skill.name == task
    everything = [question for split in SPLITS for question in questions(skill, split)]
    assert len(everything) == len(set(everything)) == 24
    for split in SPLITS:
        for record in skill.load(split):
            assert skill.score(record, record.responses[0].text) == 1.0
            assert skill.score(record, f"\n {record.responses[0].text} \n") == 1.0
            wrong = scored(skill, record, "surely wrong", reference=lambda own=record: own.responses[0].text)
            assert 0.0 <= wrong.score < 0.5


@pytest.mark.parametrize(("task", "told"), [("bf", "bf_program"), ("sentence_reordering", None)])
def test_no_problem_comes_back_in_other_words(task, told):
    skill = make(task, train=90, validation=30, test=30)
    records = [record for split in SPLITS for record in skill.load(split)]
    same = [record.meta["metadata"][told] if told else record.meta["answer"] for record in records]
    assert len(set(same)) == len(records)
    assert len({record.prompt[0]["content"].split(maxsplit=3)[0] for record in records}) > (1 if told else 0)


@pytest.mark.parametrize("task", ["ab", "acre", "aiw", "modulo_grid", "self_reference"])
def test_problems_that_the_package_does_not_distinguish_are_not_taken_for_one(task):
    """Other questions, although the answer and what is told of them are the same."""
    drawn = [r.meta for r in make(task, train=60, validation=0, test=0).load("train")]
    told = [json.dumps([m["answer"], m["metadata"].get("operation"), m["metadata"].get("target")]) for m in drawn]
    assert len(set(told)) < len(told)
    assert task in UNTOLD


def test_wrong_answers_score_zero():
    skill = make("chain_sum")
    for record in skill.load("test"):
        assert skill.score(record, str(int(record.meta["answer"]) + 1)) == 0.0
        assert skill.score(record, "") == 0.0


def test_a_text_that_breaks_the_verifier_is_no_verdict():
    skill = make("prime_factorization")
    record = skill.load("test")[0]
    with pytest.raises(ValueError, match="invalid literal"):  # what the package does with it
        gym_verifier("prime_factorization", {})("hello", {"question": "", **record.meta})
    with pytest.raises(NoVerdict, match="ValueError: invalid literal"):
        skill.score(record, "hello")


def outcome(judge, *arguments):
    try:
        return judge(*arguments)
    except NoVerdict as error:
        return error.status, str(error)


@pytest.mark.parametrize("task", ["spell_backward", "chain_sum", "letter_counting", "number_filtering"])
def test_verdicts_in_this_process_are_those_of_the_sandbox(task):
    """Right answers, those of others, pieces, numbers in other forms, and nonsense."""
    skill = make(task, train=0, validation=0, test=4)
    records = skill.load("test")
    for record, other in zip(records, [*records[1:], records[0]], strict=True):
        right, entry = record.responses[0].text, {"question": record.prompt[-1]["content"], **record.meta}
        texts = [right, right.upper(), f" {right}\n", right[1:], right + right, f"It is {right}.", f"+0{right}.0"]
        texts += [other.responses[0].text, "", "nan", "1e999999", "٣", "\ud800", "x" * 3000, "1,0" * 9, "(", "\0"]
        for text in texts:
            inside = outcome(partial(verdict, gym_verifier, (text.strip(), entry), setup=(task, {})))
            assert outcome(skill.score, record, text) == inside, text


def test_texts_that_a_verifier_only_compares_need_no_sandbox():
    skill, before = make("spell_backward"), calls()
    for record in skill.load("test"):
        assert skill.score(record, record.responses[0].text[1:]) < 1
    countdown = make("countdown", train=0, validation=0, test=1)
    [record] = countdown.load("test")
    assert countdown.score(record, record.responses[0].text) == 1.0
    assert calls() == before
    countdown.score(record, "1 + 1")
    assert calls() == before + 1


HARMLESS = {"isinstance", "len", "range", "answer.lower", "expected_answer.lower", "answer.replace", "Decimal"} | {
    *("oracle_answer.replace", "utils.compute_decimal_reward")
}


def test_what_is_judged_outside_of_the_sandbox_evaluates_nothing():
    from reasoning_gym import utils
    from reasoning_gym.dataset import ProceduralDataset
    from reasoning_gym.factory import DATASETS

    own = [DATASETS[task][0].score_answer for task in COMPARED]
    for verifier in (ProceduralDataset.score_answer, utils.compute_decimal_reward, *own):
        tree = ast.parse(textwrap.dedent(inspect.getsource(verifier)))
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert called <= HARMLESS, verifier
    assert not any(map(compares, ESCAPES))


CALL = "__import__('pathlib').Path('{path}').touch()"
ESCAPES = {
    "binary_matrix": f"{CALL} or [[1]]",
    "n_queens": f"{CALL} or [[1]]",
    "spiral_matrix": f"[{CALL}]",
    "string_insertion": f"[str({CALL})]",
    "countdown": CALL,
    "puzzle24": CALL,
    "simple_integration": CALL,
}


@pytest.mark.parametrize("task", ESCAPES)
def test_a_text_that_is_evaluated_reaches_nothing(task, tmp_path):
    """Each of these verifiers runs the text: outside of the sandbox it makes a file, inside it does not."""
    skill = make(task, train=0, validation=0, test=1)
    record = skill.load("test")[0]
    text = ESCAPES[task].format(path=tmp_path / "escaped")
    with contextlib.suppress(NoVerdict):
        assert skill.score(record, text) < 0.5
    assert not (tmp_path / "escaped").exists()
    with contextlib.suppress(Exception):
        gym_verifier(task, {})(text, {"question": "", **record.meta})
    assert (tmp_path / "escaped").exists()


@pytest.mark.parametrize(
    ("task", "text", "status"),
    [
        ("spiral_matrix", "[__import__('sys').exit(0)]", "raised"),
        ("spiral_matrix", "[(_ for _ in ()).throw(KeyboardInterrupt)]", "raised"),
        ("countdown", "9**9**9**9", "timeout"),
        ("string_insertion", "['a' * 10**10]", "raised"),
    ],
)
def test_a_text_that_would_end_or_stop_the_run_is_no_verdict(task, text, status):
    skill = make(task, train=0, validation=0, test=1)
    record = skill.load("test")[0]
    found = scored(skill, record, text, reference=lambda: record.responses[0].text)
    assert found.score == 0.0
    if found.error is not None:  # some verifiers catch what their text raises
        assert found.error.startswith(status)
    else:
        assert status == "raised"


def test_a_verdict_that_the_text_forged_is_bounded():
    """`eval` and the verifier share a process, so that a text can have it return anything; but no run ends by that."""
    skill = make("spiral_matrix", train=0, validation=0, test=1)
    record = skill.load("test")[0]
    for value, shown in (("NaN", "nan"), ("7.0", "7.0"), ("-1.0", "-1.0"), ('"much"', "'much'")):
        answer = f'{{"status": "ok", "value": {value}}}'
        encoder = f"type('E', (), {{'encode': lambda self, _: '{answer}'}})()"
        text = f"[__import__('json').__dict__.__setitem__('_default_encoder', {encoder})]"
        with pytest.raises(NoVerdict, match=f"the verifier returned {shown}, which is no number between 0 and 1"):
            skill.score(record, text)


WRONG = ("", "hello", "0", "-1.5", "[1, 2]", "[[1, 2], [3, 4]]", '{"a": 1}', "1 + 2", "A", "no\nnewline", "(((")


def outside(judge, text, entry):
    try:
        return judge(text.strip(), entry)
    except Exception as error:
        return type(error).__name__


def inside(skill, record, text):
    try:
        return skill.score(record, text)
    except NoVerdict as error:
        return str(error).partition(":")[0]


def same_inside_as_outside(task, count):
    skill = make(task, train=0, validation=0, test=count)
    records = skill.load("test")
    judge = gym_verifier(task, {})
    references = [record.responses[0].text for record in records]
    for record, other in zip(records, references[::-1], strict=True):
        own = record.responses[0].text
        texts = (own, f" {own}\n", own.lower(), own[:-1], f"{own} {own}", f"The answer is {own}.", other, *WRONG)
        entry = {"question": record.prompt[0]["content"], **record.meta}
        expected = [outside(judge, text, entry) for text in texts]
        assert [inside(skill, record, text) for text in texts] == expected, record.id
        assert expected[0] == 1.0


@pytest.mark.parametrize("task", [*TASKS, *ESCAPES])
def test_scores_are_the_same_inside_as_outside(task):
    same_inside_as_outside(task, 2)


@pytest.mark.long
@pytest.mark.parametrize("task", [name for name in tasks() if name not in {*REFUSED, *TASKS, *ESCAPES}])
def test_scores_of_every_other_task_are_the_same_inside_as_outside(task):
    same_inside_as_outside(task, 3)


def test_splits_share_nothing_even_when_they_fill_the_space():
    """Of the numbers 1 to 60 all are used, once, and a 61st is refused with their number."""
    skill = make(**numbers_up_to(60), train=40, validation=10, test=10)
    everything = [record.meta["metadata"]["number"] for split in SPLITS for record in skill.load(split)]
    assert sorted(everything) == list(range(1, 61))
    crowded = make(**numbers_up_to(60), train=41, validation=10, test=10)
    with pytest.raises(
        ValueError, match=r"has about 60 distinct problems .* fewer than train=41 \+ validation=10 \+ test=10"
    ):
        crowded.load("train")


def test_the_test_problems_do_not_depend_on_the_training_set():
    small, large = make(train=10), make(train=200)
    assert small.load("test") == large.load("test")
    assert small.load("train") == large.load("train")[:10]


def test_more_than_one_chunk_is_drawn():
    skill = make("count_bits", train=2500)
    assert len(set(questions(skill, "train"))) == 2500


def test_neighbouring_seeds_are_not_shifted_copies():
    one, two = (set(questions(make("count_bits", train=300, seed=seed), "train")) for seed in (0, 1))
    assert not one & two


def test_options_reach_the_task():
    skill = make("spell_backward", options={"min_word_len": 4, "max_word_len": 4})
    assert {len(record.responses[0].text) for record in skill.load("train")} == {4}


def test_loading_twice_gives_the_same_object():
    skill = make()
    assert skill.load("train") is skill.load("train")


@pytest.mark.parametrize("task", REFUSED)
def test_unfit_tasks_are_refused_at_construction(task):
    with pytest.raises(ValueError, match=f"task '{task}' cannot be a skill: it"):
        make(task)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"task": "spel_backward"}, r"has no task 'spel_backward'; the nearest name is 'spell_backward'"),
        ({"options": {"max_digit": 2}}, r"has no option 'max_digit'; the nearest name is 'max_digits'"),
        ({"options": {"min_digits": 3, "max_digits": 2}}, r"task 'chain_sum' refuses the options .*max_digits"),
        ({"options": {"min_digits": "two"}}, r"task 'chain_sum' refuses the options"),
    ],
)
def test_unknown_names_and_bad_options(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(**settings).load("test")


def test_options_may_not_set_the_seed():
    with pytest.raises(ValueError, match=r"options of chain_sum set \['seed'\]"):
        make(options={"seed": 3})


DIGEST = """
import hashlib, sys
from kd.skills.gsm_symbolic import GsmSymbolic
from kd.skills.reasoning_gym import ReasoningGym
counts = dict(train=60, validation=20, test=20)
skills = [GsmSymbolic(**counts)] + [ReasoningGym(task=task, **counts) for task in ("letter_counting", "gcd")]
records = [skill.load(split) for skill in skills for split in ("test", "train")]
print(hashlib.sha256(repr(records).encode()).hexdigest())
"""


def start(program, hash_seed, *arguments):
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )


def outputs(program, *arguments):
    processes = [start(program, hash_seed, *arguments) for hash_seed in (1, 77)]
    texts = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return texts


def test_two_processes_with_different_hash_seeds_see_the_same_records():
    one, two = outputs(DIGEST)
    assert len(one) == 65
    assert one == two


SURVEY = """
import hashlib, json, sys
from reasoning_gym.factory import DATASETS
refused = json.loads(sys.argv[1])
slow = ("futoshiki", "sokoban", "zebra_puzzles", "puzzle24", "game_of_life_halting", "rearc")
found = {}
for task, (dataset, config) in sorted(DATASETS.items()):
    if task in ("composite", "codeio", "knight_swap"):  # no task, runs code, a second each
        continue
    problems = dataset(config(seed=5, size=400))
    n = 2 if task in slow else 80 if task in refused else 20
    draws = []
    for i in range(n):
        try:
            entry = problems[i]
            draws.append((entry["question"], entry["answer"]))
        except RuntimeError:
            draws.append(("gives up", ""))
    no_answer = any(answer is None for _, answer in draws)
    found[task] = (no_answer, hashlib.sha256(repr(draws).encode()).hexdigest())
print("\\n" + json.dumps(found))  # some generators print dots
"""


@pytest.mark.long
def test_the_list_of_refused_tasks_is_what_the_package_shows():
    """Draws every task in two processes: no references, or other problems, exactly where REFUSED says so."""
    one, two = (json.loads(text.splitlines()[-1]) for text in outputs(SURVEY, json.dumps(list(REFUSED))))
    without_reference = {task for task, (no_answer, _) in one.items() if no_answer}
    unstable = {task for task in one if one[task] != two[task]}
    said = {reason: {task for task, why in REFUSED.items() if why == reason} for reason in REFUSED.values()}
    assert without_reference == said[REFUSED["boxnet"]]
    assert unstable == said[REFUSED["ransom_note"]] - {"knight_swap"}


def test_further_metrics_stand_beside_the_verifier():
    skill = ReasoningGym(task="spell_backward", train=0, validation=0, test=1, metrics=["exact_match"])
    (record,) = skill.load("test")
    right = record.responses[0].text
    assert [metric.score(record, right) for metric in skill.metrics] == [1.0]
    assert skill.metrics[0].score(record, right + "?!x") == 0.0
