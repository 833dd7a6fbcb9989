"""The objectives that have a meaning on each kind of targets, and the refusal of those without."""

from collections.abc import Iterator

import pytest
from hydra import compose, initialize_config_dir
from jaxtyping import Float
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor

from kd.components.choices import CONF
from kd.composition.check import check
from kd.composition.requirements import check_supply
from kd.objectives.divergence import forward_kl

RULES = {
    "tail_bucket": ("targets=topk",),
    "renormalise": ("targets=topk", "targets.tail=renormalise"),
    "zero": ("targets=topk", "targets.tail=zero"),
    "sampled": ("targets=sampled",),
}


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield


def composed(*words: str) -> DictConfig:
    return compose("config", overrides=["teacher=tiny", "student=tiny", *words])


def refused(cfg: DictConfig) -> str:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the callers look at the sentence
        check(cfg)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_forward_kl_goes_with_all():
    for words in RULES.values():
        check(composed(*words))
        check(composed(*words, "temperature=3.0", "temperature_squared=true"))
        check(composed(*words, "objective=[fkl,sft]"))


@pytest.mark.parametrize("rule", RULES)
def test_what_needs_no_teacher_goes_with_all(rule):
    check(composed(*RULES[rule], "objective=sft"))


@pytest.mark.parametrize("objective", ["rkl", "jsd", "skew_fkl", "skew_rkl", "tvd", "symmetric", "akl", "todi"])
def test_every_divergence_goes_with_a_tail_bucket(objective):
    check(composed(*RULES["tail_bucket"], f"objective={objective}"))
    check(composed(*RULES["tail_bucket"], f"objective={objective}", "temperature=2.0"))


@pytest.mark.parametrize("objective", ["jsd", "skew_fkl", "skew_rkl", "tvd"])
def test_renormalised_where_zeros_are_borne(objective):
    check(composed(*RULES["renormalise"], f"objective={objective}"))


@pytest.mark.parametrize(
    "words", [("objective=rkl",), ("objective=jsd", "objective.jsd.loss.beta=1.0"), ("objective=symmetric",)]
)
def test_renormalised_where_they_are_not(words):
    sentence = refused(composed(*RULES["renormalise"], *words))
    assert "has no meaning with targets.tail=renormalise: it has no bound where the teacher's probability" in sentence
    assert "take targets.tail=tail_bucket" in sentence


@pytest.mark.parametrize("objective", ["rkl", "jsd", "tvd", "skew_fkl", "akl"])
def test_zero_and_samples_are_for_forward_kl(objective):
    zero, sampled = (refused(composed(*RULES[rule], f"objective={objective}")) for rule in ("zero", "sampled"))
    assert f"{objective} has no meaning with targets.tail=zero: probabilities that do not sum to 1" in zero
    assert "take objective=fkl, or targets.tail=tail_bucket" in zero
    assert f"{objective} has no meaning with targets=sampled: only forward KL is linear" in sampled
    assert "take objective=fkl, or targets=topk" in sampled


def test_forward_kl_under_another_name_is_found_out():
    check(composed(*RULES["sampled"], "objective=jsd", "objective.jsd.loss.beta=0.0"))
    check(composed(*RULES["zero"], "objective=skew_fkl", "objective.skew_fkl.loss.alpha=0.0"))


def half(student_logits: Float[Tensor, "*n V"], teacher_logits: Float[Tensor, "*n V"]) -> Float[Tensor, "*n"]:
    """Forward KL on the half of the rows where the teacher's first id is likely: a gate, not a scale."""
    return forward_kl(student_logits, teacher_logits) * (teacher_logits[:, 0] > 0)


def wide(student_logits: Float[Tensor, "B T V"], teacher_logits: Float[Tensor, "B T V"]) -> Float[Tensor, "B T"]:
    """Forward KL, annotated as if positions depended on each other."""
    return forward_kl(student_logits, teacher_logits)


def plain(student_logits: Float[Tensor, "*n V"], teacher_logits: Float[Tensor, "*n V"]) -> Float[Tensor, "*n"]:
    return forward_kl(student_logits, teacher_logits)


def with_loss(cfg: DictConfig, loss: object) -> DictConfig:
    target = f"{loss.__module__}.{loss.__qualname__}"
    OmegaConf.update(
        cfg, "objective", {"own": {"weight": 1.0, "loss": {"_target_": target, "_partial_": True}}}, merge=False
    )
    return cfg


def test_a_term_that_only_looks_like_forward_kl():
    assert "own has no meaning with targets=sampled" in refused(with_loss(composed(*RULES["sampled"]), half))


def test_a_term_that_is_not_chunked():
    sentence = refused(with_loss(composed(*RULES["tail_bucket"]), wide))
    assert "own is no sum over positions" in sentence
    assert "take targets=full or hidden" in sentence
    check(with_loss(composed("targets=hidden"), wide))


def test_a_term_that_looks_up_labels():
    sentence = refused(composed(*RULES["tail_bucket"], "objective=dkd"))
    assert "dkd also needs labels, and a label need not be among the ids that are kept" in sentence


def test_temperatures_must_agree():
    sentence = refused(composed(*RULES["tail_bucket"], "targets.temperature=2.0"))
    assert "fkl compares distributions of temperature 1.0, but targets.temperature=2.0" in sentence


@pytest.mark.long
def test_a_term_s_own_temperature_counts():
    """`own` has one in its signature, and `plain` none: a softmax as it is."""
    cooled = with_loss(composed(*RULES["tail_bucket"], "temperature=2.0"), forward_kl)
    assert "own compares distributions of temperature 1.0, but targets.temperature=2.0" in refused(cooled)
    OmegaConf.update(cooled, "objective.own.loss.temperature", 2.0, force_add=True)
    check(cooled)
    sentence = refused(with_loss(composed(*RULES["tail_bucket"], "temperature=2.0"), plain))
    assert "own compares distributions of temperature 1.0, but targets.temperature=2.0" in sentence
    assert "set targets.temperature=1.0" in sentence
    check(with_loss(composed(*RULES["tail_bucket"], "temperature=2.0", "targets.temperature=1.0"), plain))
    taid = composed(*RULES["tail_bucket"], "temperature=2.0", "objective=taid")
    check(taid)
    with open_dict(taid):
        del taid.objective.taid.loss.temperature
    assert "taid compares distributions of temperature 1.0" in refused(taid)


def test_no_teacher():
    with pytest.raises(ValueError, match="targets TopK keeps a part of a teacher's output, but teacher=none; choose"):
        check(compose("config", overrides=["teacher=none", "student=tiny", "objective=sft", "targets=topk"]))


def test_an_alignment_over_the_vocabulary():
    sentence = refused(composed("targets=topk", "alignment=shared_vocabulary"))
    assert "needs the teacher's whole vocabulary, but targets TopK keeps some ids; take alignment=same" in sentence


@pytest.mark.parametrize("objective", ["fkl", "sft", "uld", "alm", "hidden_mse"])
@pytest.mark.parametrize("alignment", ["shared_vocabulary", "spans", "min_edit", "none"])
@pytest.mark.parametrize("targets", ["topk", "sampled"])
def test_an_alignment_that_moves_rows_or_ids(targets, alignment, objective):
    sentence = refused(composed(f"targets={targets}", f"alignment={alignment}", f"objective={objective}"))
    assert "keeps some ids; take alignment=same, or targets=full or hidden" in sentence


@pytest.mark.parametrize("targets", ["topk", "sampled"])
@pytest.mark.parametrize("objective", ["hidden_mse", "alm", "dskd", "attention_kl"])
def test_terms_that_read_no_logits(targets, objective):
    sentence = refused(composed(f"targets={targets}", f"objective={objective}"))
    assert f"but targets {'TopK' if targets == 'topk' else 'Sampled'} keeps its logits" in sentence
    assert sentence.startswith(f"{objective} reads ")
    assert "take targets=full" in sentence
    check(composed(f"targets={targets}", f"objective=[fkl,{objective}]"))


@pytest.mark.parametrize("targets", ["topk", "sampled", "hidden"])
def test_a_cache_and_fresh_responses(targets):
    sentence = refused(composed(f"targets={targets}", "targets.cached=true", "rollout=on_policy"))
    assert "rollout OnPolicy generates responses that no cache has; take rollout=offline" in sentence
    check(composed(f"targets={targets}", "rollout=on_policy"))


def test_a_cache_of_everything():
    assert "targets=full keeps nothing that could be cached" in refused(composed("targets.cached=true"))
    assert "targets.cached=yes: give true or false" in refused(composed("targets=topk", "targets.cached='yes'"))


def test_a_cache_and_the_validation_split():
    words = ("targets=topk", "targets.cached=true", "checkpoint.monitor=validation/forward_kl")
    assert "take checkpoint.monitor=validation/bits_per_byte" in refused(composed(*words))
    check(composed(words[0], words[2]))


def of_hidden(
    student_hidden: tuple[Float[Tensor, "B T D"], ...], teacher_hidden: tuple[Float[Tensor, "B T E"], ...]
) -> Float[Tensor, "B T"]:
    return (student_hidden[-1] - teacher_hidden[-1]).square().mean(-1)


def test_a_cache_and_hidden_states():
    cfg = with_loss(composed("targets=topk", "targets.cached=true"), of_hidden)
    assert "own needs the teacher's hidden, but a cache holds its logits only; set targets.cached=false" in refused(cfg)
    assert "own reads hidden of the teacher" in refused(with_loss(composed("targets=topk"), of_hidden))
    check(with_loss(composed("targets=full"), of_hidden))


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("targets.k=0", ["targets.k=0", "greater than 0"]),
        ("targets.tail=tail_buckets", ["did you mean tail_bucket?", "renormalise, zero"]),
        ("targets.audit.every=0", ["targets.audit.every=0", "int > 0 or null"]),
        ("targets.dtype=int8", ["targets.dtype=int8", "float16"]),
        ("+targets.kk=3", ["targets.kk", "did you mean k?"]),
    ],
)
def test_values(word, parts):
    sentence = refused(composed("targets=topk", word))
    assert all(part in sentence for part in parts), sentence


def test_nothing_is_loaded_for_it(monkeypatch):
    """The trial of a term is on a few random rows: no model is built."""
    from kd.models import networks

    monkeypatch.setattr(networks, "_finish", None)
    check(composed(*RULES["sampled"]))
    check_supply(OmegaConf.to_container(composed(*RULES["sampled"]), resolve=True))
