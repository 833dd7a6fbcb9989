"""Engines of `kd.generators` in the evaluation: the same texts, keys of their own, weights of one system after another.

Run: python -m pytest tests/evaluation/test_engines.py
"""

from functools import cache

import pytest

from kd.composition.engines import check_generator
from kd.data.sequences import Encoder
from kd.evaluation.answers import write_answers
from kd.evaluation.engines import Engine
from kd.evaluation.evaluate import Evaluation
from kd.experiment.plan import plain
from kd.generators.settings import Decoding
from kd.generators.transformers import Transformers
from kd.generators.vllm_server import Server
from kd.skills.gsm_symbolic import GsmSymbolic
from kd.skills.reasoning_gym import ReasoningGym
from tests.evaluation.conftest import TenIntegers, silenced
from tests.generators.completions import Served, serving
from tests.runs import config
from tests.tiny import tiny

GREEDY = Decoding(12, temperature=0.0, batch_size=3)
COUNTS = {"train": 1, "validation": 1, "test": 4}


@cache
def real_records():
    skills = (GsmSymbolic(**COUNTS), ReasoningGym(task="spell_backward", **COUNTS))
    return [record for skill in skills for record in skill.load("test")]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_greedy_texts_are_those_of_our_own_engine(family):
    model = tiny(
        dtype="float32",
        family=family,
        **({"n_positions": 1024} if family == "gpt2" else {"max_position_embeddings": 1024}),
    )
    own = write_answers(model, real_records(), GREEDY)
    theirs = write_answers(model, real_records(), GREEDY, engine=Engine(Transformers(options={})))
    assert own.equals(theirs)
    assert own["text"].nunique() > 2


def session(model, **settings):
    skill = TenIntegers(model, 4, right=(2, 3))
    settings = {"items": 0, "answers": None, "max_new_tokens": 4, "batch_size": 5, "baseline": None, **settings}
    encoder = Encoder(model.tokenizer, None, max_length=200, max_tokens=100)
    return Evaluation(**settings).session(skill=skill, train=(), test=skill.load("test"), encoder=encoder)


def test_an_engine_is_part_of_the_key():
    model = tiny()
    session(model).measure(model, identity="it")
    options = {"repetition_penalty": 1.5}
    found = session(model, generator=Transformers(options=options)).measure(model, identity="it")
    silent = silenced(model)
    session(model).measure(silent, identity="it")  # both are in the cache
    again = session(model, generator=Transformers(options=options)).measure(silent, identity="it")
    assert [row["response"] for row in again.samples] == [row["response"] for row in found.samples]
    with pytest.raises(AssertionError, match="forward was called"):
        session(model, generator=Transformers(options={"repetition_penalty": 1.6})).measure(silent, identity="it")


def test_a_server_is_given_the_weights_of_each_system_in_turn(tmp_path):
    before, after, teacher = tiny(0), tiny(2), tiny(3, hidden_size=16)
    with serving(Served(tiny(seed=1))) as served:
        engine = Engine(Server(url=served.url, weights=str(tmp_path / "weights"), retries=0))
        records = TenIntegers(before, 4, right=()).load("test")
        for name, model in (("before", before), ("before", before), ("after", after), ("teacher", teacher)):
            found = write_answers(model, records, GREEDY, engine=engine, identity=name)
            assert found.equals(write_answers(model, records, GREEDY)), name
        assert served.paths().count("/collective_rpc") == 2  # not again for the same, and not for another shape
        assert [dict(engine.settings(model)) for model in (after, teacher)] == [{"engine": "vllm"}, {}]


REFUSED = {
    "beams": (
        ["generator=beam_search", "evaluation.generator=${generator}", "evaluation.temperature=1.0"],
        r"evaluation: .*num_beams.*; or set evaluation\.generator=null",
    ),
    "weights that are never transferred": (
        ["generator=vllm", "generator.staleness=null", "evaluation.generator=${generator}"],
        r"evaluation\.generator\.staleness=null .* several models",
    ),
}


@pytest.mark.parametrize(("words", "sentence"), REFUSED.values(), ids=REFUSED)
def test_refusals(words, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_generator(plain(config(*words)))


def test_an_engine_may_serve_the_evaluation_alone():
    check_generator(plain(config("generator=transformers", "evaluation.generator=${generator}")))
    with pytest.raises(ValueError, match="generates nothing"):
        check_generator(plain(config("generator=transformers")))
