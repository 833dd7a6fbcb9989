"""A value that a config takes from the environment is nowhere in what a run leaves behind.

Run: python -m pytest tests/test_secrets.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from kd.components.choices import CONF
from kd.experiment import preparation
from kd.secrets import hashable, masked, note, unrevealed
from tests.runs import config
from tests.wandb_records import records_of

SECRET = "s3cr3t-f0r-nobody"
ROOT = CONF.parent
RUN = [
    *("teacher=tiny", "student=tiny", "skill=spell_backward", "teacher.prepare=null", "trainer=cpu", "optim.steps=1"),
    *("compare=null", "evaluation=none", "skill.train=8", "skill.validation=4", "skill.test=4", "checkpoint.records=2"),
    *("logger=wandb", "rollout=on_policy", "rollout.max_new_tokens=2"),
    "teacher.licence='see http://user:${oc.env:KD_TEST_LOGIN}@host/licence'",
    "logger.wandb.tags=['${oc.env:KD_TEST_LOGIN}']",
]


def test_interpolations_of_the_environment_stay_as_they_are_written(monkeypatch):
    monkeypatch.setenv("KD_TEST_LOGIN", SECRET)
    monkeypatch.setenv("KD_TEST_COUNT", "32")
    cfg = OmegaConf.create(
        {
            "url": "http://u:${oc.env:KD_TEST_LOGIN}@h",
            "again": "${url}/x",
            "count": "${oc.decode:${oc.env:KD_TEST_COUNT}}",
            "other": "${oc.env:KD_NOT_THERE,null}",
            "plain": "${count}",
        }
    )
    assert SECRET in OmegaConf.to_container(cfg, resolve=True)["again"]
    assert unrevealed(cfg)["again"] == "http://u:${oc.env:KD_TEST_LOGIN}@h/x"
    assert OmegaConf.to_container(OmegaConf.create(unrevealed(cfg)), resolve=True) == OmegaConf.to_container(
        cfg, resolve=True
    )
    assert hashable(cfg)["url"] == "http://u:${oc.env:KD_TEST_LOGIN}@h"
    assert hashable(cfg)["count"] == hashable(cfg)["plain"] == 32
    note(cfg)
    assert masked(f"no answer from http://u:{SECRET}@h") == "no answer from http://u:${oc.env:KD_TEST_LOGIN}@h"


def test_the_identity_depends_on_values_but_not_on_secrets(monkeypatch):
    def identity() -> str:
        cfg = config("rollout=on_policy", "generator=vllm", "generator.model=${oc.env:KD_TEST_PASSWORD}")
        cfg.data.max_length = "${oc.decode:${oc.env:KD_TEST_COUNT}}"
        cfg.generator.url = "http://${oc.env:KD_TEST_HOST}:8000"
        return preparation.identity(cfg)

    for name, value in {"PASSWORD": "one-secret", "COUNT": "32", "HOST": "host-a"}.items():
        monkeypatch.setenv(f"KD_TEST_{name}", value)
    first = identity()
    monkeypatch.setenv("KD_TEST_PASSWORD", "other-secret")
    monkeypatch.setenv("KD_TEST_HOST", "host-b")
    assert identity() == first
    monkeypatch.setenv("KD_TEST_COUNT", "64")
    assert identity() != first


def command(tmp_path: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "run.py", *RUN, *words, f"run.root={tmp_path / 'outputs'}"],
        cwd=ROOT,
        env=os.environ
        | environment
        | {"KD_TEST_LOGIN": SECRET, "KD_CACHE": str(tmp_path / "cache"), "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
    )


def revealing(folder: Path) -> list[str]:
    """The files below `folder` that hold the secret."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if SECRET.encode() in path.read_bytes()]


@pytest.mark.long
def test_a_number_counts_whatever_its_variable_is_called(monkeypatch):
    """Else a run with another data.max_length would be DONE already."""
    cfg, found = config(), set()
    cfg.data.max_length = "${oc.decode:${oc.env:KD_TEST_MAX_TOKENS}}"
    for count in ("32", "64"):
        monkeypatch.setenv("KD_TEST_MAX_TOKENS", count)
        found.add(preparation.identity(cfg))
    assert len(found) == 2


def test_no_file_of_a_run_holds_the_secret(tmp_path):
    """Config, overrides, results, card, W&B's offline folder, the cache; and what is printed.

    The environment names a service process of W&B that has ended, as in a child of a process that logged before.
    """
    done = command(tmp_path, WANDB_SERVICE=f"3-1-unix-{tmp_path / 'ended'}")
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (path.parent for path in (tmp_path / "outputs").glob("*/DONE"))
    (record,) = records_of(folder)
    assert "${oc.env:KD_TEST_LOGIN}" in record.tags
    assert (record.exit_code, record.group) == (0, "spell_backward-fkl")
    assert record.summary["budget/tokens"] == json.loads((folder / "results.json").read_text())["budget"]["tokens"] > 0
    assert f"to upload it: wandb sync {record.folder}\n" in done.stdout
    assert "${oc.env:KD_TEST_LOGIN}" in (folder / "config.yaml").read_text()
    assert "${oc.env:KD_TEST_LOGIN}" in (folder / "overrides.yaml").read_text()
    assert revealing(tmp_path) == []
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    "words",
    [
        ["data.max_length=${oc.env:KD_TEST_LOGIN}"],
        ["+student.model.source={address: 'local:/no/${oc.env:KD_TEST_LOGIN}'}", "student=pretrained"],
        ["generator=vllm", "generator.url=http://user:${oc.env:KD_TEST_LOGIN}@127.0.0.1:9", "-m"],
    ],
)
def test_no_error_reveals_the_secret(words, tmp_path):
    done = command(tmp_path, *words)
    assert done.returncode != 0
    assert SECRET not in done.stdout + done.stderr
    assert revealing(tmp_path) == []
