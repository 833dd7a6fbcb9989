"""Architectures of known checkpoints, by their hub address: `architectures.yaml`."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).with_suffix(".yaml")


@dataclass(frozen=True)
class Architecture:
    """The architecture of a checkpoint.

    Attributes:
        name: of its entry.
        hub: the checkpoints that have it, as org/name.
        parameters: their published number, tied ones once.
        fields: of the transformers config, `model_type` among them.
    """

    name: str
    hub: tuple[str, ...]
    parameters: int
    fields: Mapping[str, Any]


@cache
def architectures() -> Mapping[str, Architecture]:
    """All known architectures by name."""
    page: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    found: dict[str, Architecture] = {}
    for name, entry in page.items():
        base = found[entry["like"]].fields if "like" in entry else {}
        found[name] = Architecture(name, tuple(entry["hub"]), entry["parameters"], {**base, **entry["fields"]})
    return found


def architecture_of(repository: str) -> Architecture | None:
    """The architecture of a hub repository, `org/name`; None where it is not known."""
    wanted = repository.lower()
    return next((one for one in architectures().values() if wanted in map(str.lower, one.hub)), None)
