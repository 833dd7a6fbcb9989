"""The composed config of a run folder, read without OmegaConf; thousands of runs share most of their sections."""

import re
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

try:
    from yaml import CSafeLoader as LOADER
except ImportError:  # a PyYAML without libyaml
    from yaml import SafeLoader as LOADER  # type: ignore[assignment]

SECTION = re.compile(r"^(?=[^\s#-])", flags=re.MULTILINE)  # lists are not indented: a dash continues a section


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.yaml by section; sections of the same text are the same objects and stay unchanged.

    Raises ValueError, which names the file: it is missing or torn.
    """
    path = folder / "config.yaml"
    try:
        return sections(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError) as error:  # also of bytes that are no text
        raise ValueError(f"{path} is torn ({error})") from None


def sections(text: str) -> dict[str, Any]:
    """The content of a config's YAML by section. Raises yaml.YAMLError or ValueError where it is none."""
    return {key: value for section in SECTION.split(text) for key, value in _section(section).items()}


@lru_cache(maxsize=2**16)
def _section(text: str) -> MappingProxyType[str, Any]:
    found = yaml.load(text, LOADER) if text.strip() else {}
    if found is not None and not isinstance(found, dict):
        raise ValueError("it has no sections")
    return MappingProxyType(found or {})
