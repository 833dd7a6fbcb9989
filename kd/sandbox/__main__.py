"""Self-test: `python -m kd.sandbox` prints the mechanism, the outcome of attacks with and without it, and its cost."""

import argparse
import sys
import time
from operator import add

from kd.sandbox.attacks import ATTACKS, inside, outside, targets
from kd.sandbox.pool import mechanism, run, verdict

WIDTH = 80


def main(arguments: list[str] | None = None) -> int:
    """Command line of `python -m kd.sandbox`; 1 where an attack succeeded, 2 where there is no sandbox."""
    parser = argparse.ArgumentParser(prog="python -m kd.sandbox", description=__doc__)
    parser.add_argument("--verdicts", type=int, default=200, help="number of verdicts to time")
    options = parser.parse_args(arguments)
    try:
        print(f"mechanism: {mechanism()}\n")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    escaped = attacks()
    print(f"{len(ATTACKS) - escaped} of {len(ATTACKS)} attacks contained")
    timed("verdict", options.verdicts, lambda: verdict(add, (1, 2)))
    timed("program", options.verdicts, lambda: run("pass"))
    return min(escaped, 1)


def attacks() -> int:
    """Print the table; returns the number of attacks that succeeded."""
    print(f"{'attack':36}{'without':10}{'sandbox':11}how it ended")
    escaped = 0
    with targets() as at:
        for attack in ATTACKS:
            succeeded, how = inside(attack, at)
            escaped += succeeded
            without = "succeeds" if outside(attack, at) else "fails"
            how = how.partition("] ")[2].partition(": ")[0] or how  # an OSError's number and path are left out
            print(f"{attack:36}{without:10}{'ESCAPES' if succeeded else 'contained':11}{how}"[:WIDTH], flush=True)
    return escaped


def timed(what: str, count: int, call: object) -> None:
    """Print the median and the 95th percentile of the call's time."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        call()  # type: ignore[operator]
        seconds.append(time.perf_counter() - start)
    seconds.sort()
    middle, late = seconds[count // 2] * 1e3, seconds[min(count * 95 // 100, count - 1)] * 1e3
    print(f"{what}: {middle:.1f} ms at the median, {late:.1f} ms at the 95th percentile of {count}")


if __name__ == "__main__":
    sys.exit(main())
