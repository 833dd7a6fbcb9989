"""The mathematics of docstrings, and the page that is made of them.

Run: python -m pytest tests/composition/test_formula.py
"""

import re
from functools import cache
from typing import Annotated

import pytest
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from kd.components.choices import CONF, choices
from kd.composition.formula import composed, formula, gradient, sources, typeset
from kd.composition.terms import signals_of
from kd.pages.objectives import PAGE, arguments, entries, main, methods, page
from kd.signals import ROW, domain

ENTRIES = entries()
written = cache(page)  # a second, with forty objectives
WORDS = "alphabet, skew_alpha_x, alpha_divergence, `a - b`, top-k, f-Distill, authors' code, 2-step"


def squared(student_logits: Float[Tensor, "*n V"], *, alpha: float = 0.5, sharp: bool = True) -> Float[Tensor, "*n"]:
    """alpha sum z(v)^2 - 1/2 max(z, 1), z the logits, w = alpha / 2; phi' = 2 alpha z. arXiv 1234.56789, eq. 3.

    More is said here (arXiv 2222.11111).
    """
    return student_logits.square().sum(-1)


class Stateful(nn.Module):
    """||S h - t||^2, S learnt. Somebody has this, arXiv 1234.56789, section 2.1.

    Args:
        width: of the student's
            hidden states.
    """

    def __init__(self, *, width: Annotated[int, Field(ge=1)], bias: bool = False):
        super().__init__()

    def forward(self, student_logits: Float[Tensor, "*n V"]) -> Float[Tensor, "*n"]:
        return student_logits[..., 0]


def wordy(student_logits: Float[Tensor, "*n V"]) -> Float[Tensor, "*n"]:
    """Something about logits."""
    return student_logits[..., 0]


def term(callee, weight=1.0, **settings) -> dict:
    return {"weight": weight, "loss": {"_target_": f"{__name__}.{callee.__name__}", "_partial_": True, **settings}}


# ---- docstrings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ascii_text", "expected"),
    [
        ("KL(p || q)", "KL(p ‖ q)"),
        ("-log q(y_t)", "−log q(y_t)"),
        ("sum_v |p(v) - q(v)|^2", "Σ_v |p(v) − q(v)|²"),
        ("1/2 sqrt(alpha) phi'", "½ √(α) φ′"),
        ("beta -> 0, x = -p/q, (-1)", "β → 0, x = −p/q, (−1)"),
        ("p^beta <= 11/2", "p^β ≤ 11/2"),
        # words, names and numbers stay
        (f"{WORDS}, alpha_t", f"{WORDS}, α_t"),
        ("their sum is 1", "their sum is 1"),
    ],
)
def test_signs(ascii_text, expected):
    assert typeset(ascii_text) == expected
    assert typeset(expected) == expected


def test_a_docstring_begins_with_the_formula():
    assert formula(squared) == "α Σ z(v)² − ½ max(z, 1), z the logits, w = α / 2"
    assert gradient(squared) == "φ′ = 2 α z"
    assert formula(Stateful) == "‖S h − t‖², S learnt"
    assert gradient(Stateful) == ""
    assert formula(wordy) == ""


def test_papers_are_named_once_with_the_place():
    assert sources(squared.__doc__, "again arXiv 1234.56789, and arXiv 2222.11111, section 3") == {
        "1234.56789": "eq. 3",
        "2222.11111": "section 3",
    }
    assert sources(Stateful.__doc__) == {"1234.56789": "section 2.1"}
    book = "Amari, Differential-Geometrical Methods in Statistics, 1985"
    assert sources(f"Words, 12. {book}. It is one.") == {book: ""}
    assert sources("For Phi-3, the Words of nobody.") == {}


def test_arguments_of_a_class():
    assert arguments("Words.\n\nArgs:\n    width: of the student's\n        hidden states.\n    b: c.\n\nMore: x.") == {
        "width": "of the student's hidden states.",
        "b": "c.",
    }


def test_a_sum_is_put_in_brackets_and_its_letters_are_explained():
    sum_of_two = {"s": term(squared, alpha=0.5, sharp=True), "w": term(wordy, weight=2)}
    what = "(α Σ z(v)² − ½ max(z, 1))"
    assert composed(sum_of_two) == f"1.0 · {what} [s, w = α / 2, α=0.5] + 2.0 · wordy [w]"
    assert composed({"s": term(squared, alpha=0.25, sharp=False)}) == (
        f"1.0 · {what} [s, w = α / 2, α=0.25, sharp off]"
    )


def test_the_settings_of_a_class_are_shown():
    assert composed({"h": term(Stateful, width=8, bias=False)}) == "1.0 · ‖S h − t‖² [h, width=8]"
    nested = term(squared, sharp={"_target_": f"{__name__}.squared", "_partial_": True, "alpha": 0.25})
    assert composed({"s": nested}).endswith("[s, w = α / 2, sharp=squared(α=0.25)]")


# ---- every objective -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.heading)
def test_every_objective_states_what_it_is_and_where_it_comes_from(entry):
    name = entry.callee.__qualname__
    assert formula(entry.callee), f"the docstring of {name} must begin with its formula, up to a ; or full stop"
    assert entry.papers or entry.papers_of_parts, (
        f"neither the docstring of {name} nor the head of its yaml names a paper (arXiv 1234.56789)"
    )
    assert entry.comment, f"conf/objective/{entry.file}.yaml must begin with a comment that describes it"
    composite = any(isinstance(value, dict) for value in entry.node["loss"].values())
    if entry.node["kind"] == "divergence" and not composite and domain(signals_of(entry.callee)) == ROW:
        assert gradient(entry.callee), f"the docstring of {name} must have phi' = ... or dL/dz = ..."


def test_the_page_is_what_the_docstrings_say():
    assert PAGE.read_text(encoding="utf-8") == written(), "run make docs"


def test_the_page_has_every_file():
    text = written()
    assert [entry.file for entry in ENTRIES] == sorted(entry.file for entry in ENTRIES)
    assert {entry.file for entry in ENTRIES} == set(choices("objective"))
    for entry in ENTRIES:
        assert f"### {entry.heading}\n" in text
        assert f"    {formula(entry.callee)}\n" in text


def test_the_section_on_jsd():
    section = written().partition("### jsd\n")[2].partition("\n### ")[0]
    assert "- **Gradient**: φ′ = (1 − β) log(q/m)" in section
    assert "- **Chunked**: yes" in section
    assert "[arXiv 2306.13649](https://arxiv.org/abs/2306.13649), eq. 1" in section
    assert "- **Used by**: `method=gkd`" in section
    assert "| `beta` | float between 0 and 1 | `0.5` | weight of the teacher in the mixture, 0 to 1" in section
    assert "| weight of the TEACHER in the mixture; 0 is forward KL" in section  # the file's own note
    assert "| `temperature` | float between 1e-06 and 1000000.0 | `1.0`, shared: `temperature` |" in section


def test_methods_are_found_by_what_they_choose():
    assert set(methods()["sft"]) >= {"sft", "seqkd"}
    assert "no_such_objective" not in methods()


def test_no_bar_breaks_a_table():
    for line in written().splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (5, 6), line


def test_links_lead_somewhere():
    text = written().partition("## The same loss elsewhere")[0]
    anchors = {
        re.sub(r"[^a-z0-9_ -]", "", line[4:].lower()).replace(" ", "-") for line in re.findall("^### .*", text, re.M)
    }
    assert set(re.findall(r"\(#([^)]*)\)", text)) == anchors


def test_an_edited_page_is_noticed(tmp_path, monkeypatch, capsys):
    copy = tmp_path / "objectives.md"
    copy.write_text(written() + "by hand\n", encoding="utf-8")
    monkeypatch.setattr("kd.pages.objectives.PAGE", copy)
    assert main(["--check"]) == 1
    assert "make docs" in capsys.readouterr().err
    assert main([]) == 0
    assert copy.read_text(encoding="utf-8") == written()


def test_hand_written_comparisons_follow(tmp_path):
    peers = tmp_path / "conversion.md"
    peers.write_text("# Peers\n\nWords.\n\n## Proven\n\n| theirs | ours |\n", encoding="utf-8")
    section = "## The same loss elsewhere\n\nWords.\n\n### Proven\n\n| theirs | ours |\n"
    assert page(CONF, peers).endswith(section)
