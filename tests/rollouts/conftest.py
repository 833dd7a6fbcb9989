from collections.abc import Iterator

import pytest

from kd.generators.account import Meter, metered


@pytest.fixture
def meter() -> Iterator[Meter]:
    """What everything in a test costs."""
    with metered() as spent:
        yield spent
