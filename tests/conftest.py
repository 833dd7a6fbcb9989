"""What every test may name in a config: the suite's own classes and functions."""

import os
from pathlib import Path

os.environ.setdefault("KD_ALLOW", ",".join(["tests", *(path.stem for path in Path(__file__).parent.glob("test_*.py"))]))
