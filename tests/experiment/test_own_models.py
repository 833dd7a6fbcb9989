"""Models of one's own by an address alone: nothing of another model's member, hash or licence is kept."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose
from omegaconf import DictConfig, OmegaConf

from kd.composition.overrides import started
from kd.experiment.export import adapter_lack, export_adapter, licences
from kd.experiment.identity import content_digests
from kd.models.networks import pretrained
from kd.runs.results import read_results
from kd.sources.addresses import digest
from tests.experiment.test_export import adapted, logits

ROOT = Path(__file__).parents[2]
MINE = "hub:org/mine@main"


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    with started():
        yield


def resolved(*words: str) -> dict:
    return OmegaConf.to_container(compose("config", overrides=list(words)), resolve=True)  # type: ignore[return-value]


def of(config: dict) -> dict[str, str | None]:
    return {role: licence for role, (_, licence) in licences(config, "data", "MIT").items()}


SMOLLM2 = {"data": "MIT", "teacher": "Apache-2.0", "student, before": "Apache-2.0"}
UNKNOWN = {"data": "MIT", "teacher": None, "student, before": None}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", SMOLLM2),
        (f"teacher=pretrained teacher.source={MINE}", UNKNOWN),
        (f"teacher.source={MINE}", UNKNOWN),
        (f"teacher.model.source={MINE}", UNKNOWN),
        (f"teacher.source={{address:'{MINE}',member:null,sha256:null}}", UNKNOWN),
        (f"teacher.source.address={MINE} teacher.source.member=null teacher.source.sha256=null", UNKNOWN),
        (f"student=pretrained student.source={MINE}", {**SMOLLM2, "student, before": None}),
        (f"student=lora student.source={MINE}", {**SMOLLM2, "student, before": None}),
        (f"student=pruned student.source={MINE}", {**SMOLLM2, "student, before": None}),
        (f"teacher.source={MINE} teacher.licence=Gemma", {**UNKNOWN, "teacher": "Gemma", "student, before": "Gemma"}),
        (
            f"teacher=none student=lora student.source={MINE} student.licence=BSD",
            {"data": "MIT", "student, before": "BSD"},
        ),
        ("teacher=tiny student=tiny", {"data": "MIT", "teacher": "MIT"}),
        ("teacher=tiny student=tiny teacher.prepare=null", {"data": "MIT", "teacher": None}),
        ("teacher=tiny student=tiny teacher.prepare.skill=chain_sum", {"data": "MIT", "teacher": None}),
        ("teacher=ensemble student=tiny", {"data": "MIT", "teacher first": "MIT", "teacher second": "MIT"}),
    ],
)
def test_a_licence_is_of_its_own_weights(line: str, expected: dict[str, str | None]) -> None:
    assert of(resolved(*line.split())) == expected


@pytest.mark.parametrize("line", [f"teacher=pretrained teacher.source={MINE}", f"teacher.source={MINE}"])
def test_an_address_alone_takes_the_place_of_member_and_hash(line: str) -> None:
    config = resolved(*line.split())
    assert config["teacher"]["model"]["source"] == config["student"]["model"]["source"] == MINE


def test_the_card_beside_the_weights_is_read(tmp_path: Path) -> None:
    adapted(tmp_path / "mine")
    (tmp_path / "mine" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    mine = f"local:{tmp_path / 'mine'}"
    assert of(resolved(f"teacher.source={mine}"))["teacher"] == "cc-by-4.0"
    assert of(resolved("student=pretrained", f"student.source={mine}"))["student, before"] == "cc-by-4.0"
    assert of(resolved(f"teacher.source={mine}", "teacher.licence=MIT"))["teacher"] == "MIT"


def test_the_identity_is_that_of_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By address alone or with keys beside it, relative or from home; two members of one folder are two contents."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    adapted(tmp_path / "mine")
    expected = digest(f"local:{tmp_path / 'mine'}")
    for address in ("local:./mine", "local:~/mine", "local:mine"):
        found = content_digests(resolved("teacher=none", "student=pretrained", f"student.source='{address}'"))
        assert found == {address: expected}
        assert pretrained(source=address).network.config.hidden_size == 32
    nodes = [{"address": "local:mine", "member": name} for name in ("config.json", "tokenizer.json")]
    assert len(content_digests(nodes)) == 2


def test_an_adapter_is_exported_beside_the_student_and_read_by_peft(tmp_path: Path) -> None:
    student = adapted(tmp_path / "base")
    card = "---\nlibrary_name: transformers\n---\n"
    source = {"address": f"local:{tmp_path / 'base'}"}
    assert export_adapter(student, tmp_path / "adapter", source, card) == []
    again = pretrained(source={**source, "adapter": f"local:{tmp_path / 'adapter'}"}, dtype="float64")
    expected, plain = logits(student.network, student.tokenizer), pretrained(source=source, dtype="float64")
    assert (logits(again.network, again.tokenizer) - expected).abs().max() < 1e-5
    assert (logits(plain.network, plain.tokenizer) - expected).abs().max() > 0.01
    assert f"base_model: {tmp_path / 'base'}" in (tmp_path / "adapter" / "README.md").read_text()


def test_an_adapter_over_other_weights_is_noticed(tmp_path: Path) -> None:
    student = adapted(tmp_path / "base")
    student.network.get_input_embeddings().weight.data += 0.5  # type: ignore[union-attr]
    found = export_adapter(student, tmp_path / "adapter", f"local:{tmp_path / 'base'}", "")
    assert len(found) == 1
    assert "PEFT reads logits that differ by up to" in (tmp_path / "adapter" / "README.md").read_text()


def test_an_adapter_of_weights_that_have_no_address_is_not_exported_alone() -> None:
    def model(*words: str) -> DictConfig:
        return resolved(*words)["student"]["model"]

    assert adapter_lack(model("student=lora")) is None
    assert "were cut for this run" in str(adapter_lack(model("student=pruned", "student.model.lora={r: 4}")))
    factored = model("student=lora", "+student.model.lora.init_lora_weights=pissa")
    assert "init_lora_weights=pissa changes the weights" in str(adapter_lack(factored))


@pytest.mark.long
def test_a_run_on_models_of_ones_own(tmp_path: Path) -> None:
    """The README's line, seen from another folder: LoRA on a local student, the licence of each, the adapter beside."""
    for name, card in (("teacher", ""), ("student", "---\nlicense: mit\n---\n")):
        adapted(tmp_path / name)
        (tmp_path / name / "README.md").write_text(card)
    words = ["teacher.source=local:./teacher", "student=lora", "student.source=local:./student", "trainer=cpu"]
    small = ["skill=spell_backward", "skill.train=32", "skill.validation=8", "skill.test=8", "optim.steps=2"]
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "run.py"),
            *words,
            *small,
            "data.max_length=256",
            "evaluation=quick",
            "compare=null",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (tmp_path / "outputs").glob("spell_backward-*")
    results = read_results(folder)
    assert {role: one["licence"] for role, one in results["origins"].items()} == {
        "data": "Apache-2.0",
        "teacher": "unknown",
        "student, before": "mit",
    }
    assert "\nlicense: unknown\n" in (folder / "student" / "README.md").read_text()
    assert set(results["efficiency"]) == {"student", "teacher"}
    assert results["contamination"]["splits"]["test"]["items"] > 0
    whole = pretrained(source=f"local:{folder / 'student'}")
    beside = pretrained(source={"address": f"local:{tmp_path / 'student'}", "adapter": f"local:{folder / 'adapter'}"})
    torch.testing.assert_close(
        logits(whole.network, whole.tokenizer), logits(beside.network, whole.tokenizer), atol=1e-4, rtol=1e-4
    )
