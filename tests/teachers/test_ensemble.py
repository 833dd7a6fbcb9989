"""Several teachers read as one: what they say, who is asked, and what is refused.

Run: python -m pytest tests/teachers/test_ensemble.py
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kd.data.sequences import Encoder
from kd.models.digests import model_digest
from kd.models.language_model import LanguageModel
from kd.teachers.ensemble import Ensemble
from kd.teachers.targets import TopK
from kd.teachers.truncated import Approximated
from kd.teachers.white_box import WhiteBox
from kd.types import Batch, ModelOutput, Record, Response
from tests.tiny import records, tiny

FIELDS = frozenset({"logits", "logprobs"})


def ensemble(*seeds: int, combine: str = "mean_probabilities", **settings) -> Ensemble:
    names = "abcdef"
    return Ensemble(members={names[i]: WhiteBox(tiny(s)) for i, s in enumerate(seeds)}, combine=combine, **settings)


def batches(told: list[Record], max_tokens: int = 120) -> list[Batch]:
    return Encoder(tiny().tokenizer, None, max_length=200, max_tokens=max_tokens, max_padding=1.0).batches(told)


def named(n: int, *names: str, responses: int = 1) -> list[Record]:
    """Records of unequal lengths, whose teachers take turns."""
    made = records(n, seed=3)
    return [
        replace(
            record,
            meta={"teacher": names[i % len(names)]},
            responses=tuple(Response(record.responses[0].text[k:]) for k in range(responses)),
        )
        for i, record in enumerate(made)
    ]


def everything(output: ModelOutput) -> Tensor:
    return output.logits.rows(slice(0, output.logits.n)).log_softmax(-1)


def test_two_equal_members_are_one():
    (batch,) = batches(records(3), max_tokens=10_000)
    alone = WhiteBox(tiny(1))(batch.teacher, FIELDS)
    for combine in ("mean_logits", "mean_probabilities"):
        both = ensemble(1, 1, combine=combine, weights={"a": 1, "b": 3}).read(batch, FIELDS)
        torch.testing.assert_close(everything(both), everything(alone))
        torch.testing.assert_close(both.logprobs, alone.logprobs)


def test_the_mixture_of_two():
    (batch,) = batches(records(3), max_tokens=10_000)
    p, q = (everything(WhiteBox(tiny(seed))(batch.teacher, FIELDS)).exp() for seed in (1, 2))
    output = ensemble(1, 2, weights={"a": 2, "b": 6}).read(batch, FIELDS)
    mixture = 0.25 * p + 0.75 * q
    torch.testing.assert_close(everything(output).exp(), mixture)
    labels = batch.teacher.labels[batch.teacher.mask]
    torch.testing.assert_close(output.logprobs[batch.teacher.mask], mixture[torch.arange(len(p)), labels].log())
    assert (output.logprobs[~batch.teacher.mask] == 0).all()


def test_only_what_is_wanted():
    (batch,) = batches(records(2), max_tokens=10_000)
    output = ensemble(1, 2).read(batch, frozenset({"logits"}))
    assert output.logprobs is None
    assert output.logits is not None
    assert Ensemble.provides == FIELDS


@pytest.mark.parametrize("responses", [1, 2])
@pytest.mark.parametrize("max_tokens", [60, 200, 10_000])
def test_each_record_is_read_by_the_member_that_it_names(responses, max_tokens):
    """However lengths sort the records, and wherever micro-batches are cut."""
    teachers = {"a": WhiteBox(tiny(1)), "b": WhiteBox(tiny(2)), "c": WhiteBox(tiny(3))}
    routed = Ensemble(members=teachers, combine="routed")
    made = batches(named(7, "b", "a", "b", "c", responses=responses), max_tokens)
    order = [record.id for batch in made for record in batch.records]
    assert order != sorted(order)
    assert (len(made) == 1) == (max_tokens == 10_000)
    for batch in made:
        output = routed.read(batch, FIELDS)
        alone = {name: teacher(batch.teacher, FIELDS) for name, teacher in teachers.items()}
        grid, row = {name: everything(said) for name, said in alone.items()}, 0
        for i in range(len(batch.teacher.tokens)):
            name = batch.records[i // responses].meta["teacher"]
            mine = slice(row, row := row + int(batch.teacher.mask[i].sum()))
            torch.testing.assert_close(everything(output)[mine], grid[name][mine])
            torch.testing.assert_close(output.logprobs[i], alone[name].logprobs[i])


def test_a_member_that_no_record_names_reads_nothing():
    routed = ensemble(1, 2, combine="routed")
    routed.members["b"].register_forward_hook(lambda *_: pytest.fail("nobody asked this one"))
    (batch,) = batches(named(2, "a"), 10_000)
    assert routed.read(batch, FIELDS).logits.n == int(batch.teacher.mask.sum())


def test_a_record_that_names_no_member_is_named():
    encoder = Encoder(tiny().tokenizer, None, max_length=200, max_tokens=200)
    routed = ensemble(1, 2, combine="routed")
    with pytest.raises(ValueError, match=r"record 0 of toy names teacher 'z' in its meta.* are a and b; name one"):
        routed.check(named(1, "z"), [], [], encoder)
    with pytest.raises(ValueError, match=r"record 0 of toy has no `teacher` in its meta.* are a and b"):
        routed.check(records(1), [], [], encoder)
    with pytest.raises(ValueError, match="combine=routed was given 0 records for 1 sequences"):
        routed(batches(named(1, "a"))[0].teacher, FIELDS)
    ensemble(1, 2).check(records(1), [], [], encoder)  # nobody has to name anybody


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"combine": "routed", "weights": {"a": 1.0, "b": 1.0}}, "weights have no meaning with combine=routed"),
        ({"weights": {"a": 1.0, "z": 1.0}}, "weights are for a and z, but the members are a and b"),
        ({"weights": {"a": 1.0}}, "weights are for a, but the members are a and b"),
        ({"weights": {"a": 1.0, "b": float("inf")}}, "teacher.weights.b=inf is no positive number"),
    ],
)
def test_weights_that_mean_nothing(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        ensemble(1, 2, **settings)


def test_one_teacher_is_no_ensemble():
    with pytest.raises(ValueError, match="has 1 of the two members"):
        ensemble(1)


def test_members_share_their_tokenizer():
    other = tiny(2)
    other.tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match=r"members.bad tokenizes text otherwise than teacher.members.good"):
        Ensemble(members={"good": WhiteBox(tiny(1)), "bad": WhiteBox(other)}, combine="mean_logits")


def test_members_know_the_same_ids():
    short = LanguageModel(tiny(2, vocab_size=260).network, tiny().tokenizer)
    with pytest.raises(ValueError, match=r"members.short has 260 ids and teacher.members.whole 261"):
        Ensemble(members={"whole": WhiteBox(tiny(1)), "short": WhiteBox(short)}, combine="mean_logits")


def test_a_teacher_stays_frozen():
    made = ensemble(1, 2).train()
    assert not any(module.training for module in made.modules())
    assert not any(parameter.requires_grad for parameter in made.parameters())


def test_who_it_is():
    digest = model_digest(ensemble(1, 2))
    assert model_digest(ensemble(1, 2)) == digest
    others = [ensemble(1, 3), ensemble(1, 2, combine="mean_logits"), ensemble(1, 2, weights={"a": 1, "b": 2})]
    assert digest not in {model_digest(other) for other in others}
    assert model_digest(ensemble(1, 2, weights={"a": 2, "b": 2})) == digest
    assert model_digest(tiny(1)) != digest


def test_what_is_counted():
    assert ensemble(1, 2, 3).readings == 3
    assert ensemble(1, 2, 3, combine="routed").readings == 1
    assert Approximated(ensemble(1, 2, 3), TopK(k=2)).readings == 3
    assert Approximated(WhiteBox(tiny()), TopK(k=2)).readings == 1
    assert ensemble(1, 2).vocabulary == tiny().vocabulary
