import pytest

from kd.doctor.subject import admit
from kd.experiment.checks import Subject
from tests.doctor.subjects import toy


@pytest.fixture(scope="module")
def subject() -> Subject:
    with toy("+student.model.architecture.initializer_range=0.3") as cfg:
        return admit(cfg)
