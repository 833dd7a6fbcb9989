"""What every test may name in a config: the suite's own classes and functions."""

import os
from pathlib import Path

TESTS = [path.stem for path in Path(__file__).parent.rglob("test_*.py")]
os.environ.setdefault("KD_ALLOW", ",".join(["tests", *TESTS]))
