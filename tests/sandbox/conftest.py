import pytest

from kd.sandbox.mechanisms import missing

MECHANISMS = ("bubblewrap", "landlock")


@pytest.fixture(params=MECHANISMS)
def mechanism(request, monkeypatch):
    """Each mechanism in turn, where the machine has it."""
    if reason := missing(request.param):
        pytest.skip(reason)
    monkeypatch.setenv("KD_SANDBOX", request.param)
    return request.param
