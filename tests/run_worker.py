"""`python tests/run_worker.py JOBS`: the fits of a json list, one after another, in a process of their own.

A job is what `tests.runs.job` makes. With `trainer=ddp_cpu` Lightning starts this script again as the second rank. A
job with a signal to stop ends the process with its exit code.
"""

import faulthandler
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path += map(str, Path(__file__).parent.glob("*/"))  # a module of a test is named as pytest names it

from tests import runs

if __name__ == "__main__":
    faulthandler.dump_traceback_later(240)  # where a process stands that hangs
    for job in json.loads(sys.argv[1]):
        runs.train(runs.config(*job["overrides"], **job["nodes"]), Path(job["path"]), job["synchronised"])
