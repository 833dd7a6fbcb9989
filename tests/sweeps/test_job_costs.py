"""What `benchmarks.launchers` reads of a sweep in one process."""

import json

import pytest
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from benchmarks.launchers import JobMeter, growth


def test_growth_is_the_slope_of_the_memory_over_jobs():
    assert growth([{"mib": 100.0}, {"mib": 102.0}, {"mib": 104.0}]) == pytest.approx(2.0)
    assert growth([{"mib": 3.0}, {"mib": 1.0}, {"mib": 3.0}]) == pytest.approx(0.0, abs=1e-9)


def test_each_job_that_ended_has_a_row(tmp_path):
    meter = JobMeter(str(tmp_path / "jobs.jsonl"))
    for _ in range(2):
        meter.on_job_end(OmegaConf.create(), JobReturn())
    first, second = (json.loads(line) for line in (tmp_path / "jobs.jsonl").read_text().splitlines())
    assert 0 < first["ended"] < first["went_on"] < second["ended"]  # the collection is not the job's
    assert first["mib"] > 1
