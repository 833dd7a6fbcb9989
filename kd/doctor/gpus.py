"""GPUs by name: `gpus.yaml`."""

from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

import yaml

FILE = Path(__file__).with_suffix(".yaml")
UNITS = {"memory": 2**30, "bf16": 1e12, "float32": 1e12, "bandwidth": 1e9}  # of the file's numbers


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: as `h100-80`.
        bf16, float32: dense FLOP per second.
        memory: bytes.
        bandwidth: bytes of memory per second.
        source: the data sheet that has these numbers.
    """

    name: str
    bf16: float
    float32: float
    memory: float
    bandwidth: float
    source: str


@cache
def gpus() -> dict[str, Gpu]:
    """All GPUs by name."""
    page = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {
        name: Gpu(name, source=facts["source"], **{key: float(facts[key]) * unit for key, unit in UNITS.items()})
        for name, facts in page.items()
    }


def gpu(name: str) -> Gpu:
    """The GPU of that name. Raises ValueError, with all names, where there is none."""
    known = gpus()
    if name in known:
        return known[name]
    near = get_close_matches(name.lower(), known, n=1, cutoff=0.4)
    meant = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"--gpu {name}: there is no such GPU; {meant}there are {', '.join(known)}")
