"""teacher=endpoint in a config and in a run: what is refused, what names it, what it costs.

Run: python -m pytest tests/teachers/test_endpoint.py
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import open_dict

from kd.composition.check import check
from kd.experiment.compatibility import check_models
from kd.experiment.elicitation import elicit, elicited_folder
from kd.experiment.identity import identity
from kd.generators.account import metered
from kd.generators.settings import Decoding
from kd.runs.costs import Budget, Elicitation
from kd.secrets import unrevealed
from kd.teachers.endpoint.client import Connection
from kd.teachers.endpoint.teacher import Endpoint
from tests import runs
from tests.teachers.servers import Scripted, serving
from tests.tiny import records

GREEDY = Decoding(8, temperature=0.0)
PRICE = {"input": 1e6, "output": 2e6}  # a token costs 1, a generated one 2
LABELING = ["objective=sft", "augmentation=labeling", "augmentation.stages.labeling.max_new_tokens=8"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def config(*words: str, url: str = "http://localhost:9/v1", imported: bool = False) -> Any:
    """A tiny student, and a teacher that is on a server; or the one that `words` name."""
    small = [word for word in runs.SMALL if not word.lstrip("+").startswith("teacher.")]
    served = ["teacher=endpoint", f"teacher.url={url}", "teacher.served_model=scripted"]
    given = ["student=tiny", "trainer=cpu", *([] if imported else served)]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(runs.CONF), version_base="1.3"):
        cfg = compose("config", overrides=[*given, *small, *words])
    with open_dict(cfg):
        cfg.skill = {"_target_": "tests.runs.Toy"}
    return cfg


def endpoint(url: str, **settings: Any) -> Endpoint:
    return Endpoint(url=url, connection=Connection(retries=1), **{"served_model": "scripted", **settings})


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["objective=rkl"], "rkl needs teacher_logits, but teacher Endpoint provides text"),
        (["objective=sft", "rollout=teacher_mixed"], "needs teacher_logits, but teacher Endpoint provides text"),
        (["objective=sft", "+teacher.connection.retrys=2", "rollout=teacher"], "retrys"),
        (["objective=sft", "teacher.offers=[texts]", "rollout=teacher"], "teacher.offers"),
        (["objective=fkl", "teacher.offers=[top_logprobs]"], "fkl needs teacher_logits"),
        (["objective=fkl", "teacher.offers=[top_logprobs]", "teacher.tokenizer=bytes"], "fkl reads the whole distr"),
    ],
)
def test_what_the_server_does_not_offer_is_refused_when_the_config_is_composed(words, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        check(config(*words))
    assert "\n" not in str(error.value).strip()
    assert ("lists the likeliest ids" in str(error.value)) is ("teacher.tokenizer=bytes" in words)


@pytest.mark.parametrize("words", [LABELING, ["objective=sft", "rollout=teacher", "rollout.max_new_tokens=8"]])
def test_text_is_enough_for_labels(words):
    cfg = config(*words)
    check(cfg)
    check_models(cfg)


@pytest.mark.parametrize(
    ("word", "same"),
    [
        ("teacher.connection.concurrency=2", True),
        ("teacher.connection.api_key=${oc.env:KD_TEST_API_KEY}", True),
        ("teacher.budget.tokens=1000", True),
        ("teacher.price.input=3", True),
        ("teacher.self_test=false", True),
        ("teacher.url=http://other:1/v1", False),
        ("teacher.served_model=another", False),
        ("teacher.parameters={top_k: 3}", False),
        ("teacher.identity=mine", False),
    ],
)
def test_what_names_a_run_and_its_labels(word, same, monkeypatch):
    monkeypatch.setenv("KD_TEST_API_KEY", "sk-not-in-names")
    first, second = config(*LABELING), config(*LABELING, word)
    assert (identity(first) == identity(second)) is same
    assert (elicited_folder(first) == elicited_folder(second)) is same
    assert "sk-not" not in json.dumps(unrevealed(second))


def test_with_an_identity_the_address_is_none_of_the_name():
    cfgs = [config(*LABELING, "teacher.identity=mine", f"teacher.url=http://localhost:{port}/v1") for port in (1, 2)]
    assert identity(cfgs[0]) == identity(cfgs[1])


def test_samples_are_drawn_with_seeds_of_the_run_and_kept_under_them():
    drawn, given = Decoding(8, samples=2, temperature=1.0), records(2)
    with serving(Scripted()) as server:
        for together, count in ((True, 2), (False, 6), (True, 6)):
            torch.manual_seed(3)
            teacher = endpoint(server.url, together=together, self_test=False)
            found = teacher.respond(given, decoding=drawn, engine=None)
            assert [len(group.texts) for group in found] == [2, 2]
            assert len(server.requests) == count
        assert [body["n"] for body in server.requests] == [2, 2, 1, 1, 1, 1]
        assert len({body["seed"] for body in server.requests}) >= 4
        teacher.respond(given, decoding=drawn, engine=None)  # other seeds
        assert len(server.requests) == 8


def test_the_cost_is_charged_whether_paid_now_or_before():
    spent = []
    with serving(Scripted()) as server:
        for _ in range(2):
            with metered() as meter:
                endpoint(server.url, price=PRICE).respond(records(4), decoding=GREEDY, engine=None)
            spent.append(meter.spent)
        sent = [body for body in server.requests if "Repeat" not in str(body)]  # beside the self-test
    assert len(sent) == 4
    assert spent[0]._replace(seconds=0.0) == spent[1]._replace(seconds=0.0)
    assert spent[0].requests == 4
    assert spent[0].teacher_tokens < spent[0].money < 2 * spent[0].teacher_tokens
    assert len(server.requests) == 4 + 4  # the test of text, end and samples, once: nothing was to be paid then


def test_a_server_that_fails_the_test_is_paid_nothing_else():
    refusal = pytest.raises(ValueError, match="failed the test of several responses at once of scripted")
    with serving(Scripted(reply=lambda body: {"choices": []})) as server, refusal:
        endpoint(server.url).respond(records(4), decoding=GREEDY, engine=None)
    assert len(server.requests) == 3
    assert all("Repeat" in str(body) for body in server.requests)


def test_a_run_learns_from_its_texts_and_shows_what_they_cost(tmp_path):
    with serving(Scripted()) as server:
        cfg = config(*LABELING, "optim.steps=2", "teacher.price={input: 1e6, output: 2e6}", url=server.url)
        check(cfg)
        elicited = elicit(cfg)
    assert {response.source for record in elicited.records for response in record.responses} == {"teacher"}
    first = elicited.records[0]
    assert first.responses[0].text == first.prompt[-1]["content"].strip()[::-1]
    facts = Elicitation.model_validate(elicited.facts())
    assert (facts.requests, facts.money > facts.teacher_tokens > 0) == (24, True)
    parts = runs.train(cfg, tmp_path / "run")  # the server has gone
    assert parts.module.budget.money == facts.money
    assert "money" in Budget.model_fields
    assert parts.module.budget.teacher_tokens == facts.teacher_tokens


def test_images_are_not_sent():
    from dataclasses import replace

    from kd.types import Image

    [record] = records(1)
    with pytest.raises(ValueError, match=f"record {record.id} has images, which teacher=endpoint does not send"):
        endpoint("http://localhost:9/v1").generate([replace(record, images=(Image(b"x"),))], decoding=GREEDY)
