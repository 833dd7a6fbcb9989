"""The experiments of paper tables: every arm of a grid is a run, and every published row is one of its arms.

Run: python -m pytest tests/composition/test_paper_grids.py
"""

import shlex
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose
from omegaconf import DictConfig, OmegaConf

from kd.components.choices import CONF
from kd.composition.check import check
from kd.composition.overrides import started
from kd.reports.papers.published import papers, read_published
from kd.reports.runs import Job
from kd.reports.settings import every_setting, has

FILES = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (CONF / "experiment").glob("*.yaml")}
GRIDS = sorted(name for name, page in FILES.items() if page.get("paper"))
QUICK = "minillm_table1_tiny"


def sweeper(name: str) -> Mapping[str, Any]:
    return FILES[name]["hydra"]["sweeper"]


def jobs_of(name: str) -> dict[str, DictConfig]:
    """The composed config of each arm, of its first seed and skill."""
    first = [f"{key}={str(values).split(',')[0]}" for key, values in sweeper(name)["params"].items()]
    with started(CONF):
        return {
            arm: compose("config", overrides=[f"experiment={name}", *shlex.split(arm), *first])
            for arm in sweeper(name)["arms"]
        }


def as_report_reads(arm: str, cfg: DictConfig) -> Job:
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    return Job(arm, "done", overrides=dict(word.split("=", 1) for word in shlex.split(arm)), config=config)


def test_each_table_has_both_scales_and_a_page() -> None:
    assert len(FILES) >= 13
    assert {FILES[name]["paper"] for name in GRIDS} == set(papers())
    for name, path in papers().items():
        assert {name, f"{name}_tiny"} <= set(GRIDS)
        page = (Path(path).parent / "README.md").read_text(encoding="utf-8")
        assert f"experiment={name}_tiny" in page
        assert read_published(name).source in page


@pytest.mark.parametrize("name", [name for name in GRIDS if name.endswith("_tiny")])
def test_an_embedded_grid_has_three_seeds_and_sixty_runs_at_most(name: str) -> None:
    sizes = {key: len(str(values).split(",")) for key, values in sweeper(name)["params"].items()}
    assert sizes["seed"] >= 3
    assert len(sweeper(name)["arms"]) * prod(sizes.values()) <= 60


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == QUICK else pytest.mark.long) for n in GRIDS])
def test_every_arm_is_a_run_and_every_row_is_one_arm(name: str) -> None:
    """Rows are found in runs by their settings: two arms for one row would be an error under the sweep's table."""
    found = jobs_of(name)
    for cfg in found.values():
        check(cfg)
    settings = every_setting([as_report_reads(arm, cfg) for arm, cfg in found.items()])
    for row in read_published(FILES[name]["paper"]).rows:
        if row.system == "after" and not row.lacks:
            assert sum(has(one, row.arm) for one in settings) <= 1, row.heading


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.long) for n in papers()])
def test_every_row_has_an_arm_at_one_scale(name: str) -> None:
    jobs = [as_report_reads(arm, cfg) for n in (name, f"{name}_tiny") for arm, cfg in jobs_of(n).items()]
    settings = every_setting(jobs)
    for row in read_published(name).rows:
        if row.system == "after":
            assert row.lacks or any(has(one, row.arm) for one in settings), row.heading
