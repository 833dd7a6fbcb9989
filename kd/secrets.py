"""Values that a config takes from the environment: written as the interpolation `${oc.env:KEY}`, never as the value.

A token may be part of a server's URL or of an address. So all that is stored, logged or printed has the interpolation,
and the hash of a run does not depend on the value; only objects that are built from the config receive it.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, Node, OmegaConf
from omegaconf.resolvers import oc

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|PWD|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE)  # names of secrets
SHORTEST = 6  # characters that are masked in texts; what is shorter occurs by chance
PUBLIC = frozenset({"WANDB_MODE"})  # that the project's own yamls read
_read: set[str] = set()  # variables that configs of this process refer to


def note(config: DictConfig) -> None:
    """Remember which variables a config refers to, so that their values are masked from here on."""
    text = OmegaConf.to_yaml(config, resolve=False)
    _read.update(re.findall(r"oc\.env:\s*['\"]?(\w+)", text))
    if values():
        os.environ["WANDB_CONSOLE"] = "off"  # which would record what is printed before it is masked


def values() -> dict[str, str]:
    """Value -> interpolation of the variables that were referred to, the longest value first."""
    found = {os.environ.get(name, ""): f"${{oc.env:{name}}}" for name in _read - PUBLIC}
    return {value: found[value] for value in sorted(found, key=len, reverse=True) if len(value) >= SHORTEST}


def masked(text: str) -> str:
    """The text with the interpolation for every value."""
    for value, interpolation in values().items():
        text = text.replace(value, interpolation)
    return text


def unrevealed(config: Any) -> Any:
    """Plain containers: interpolations are resolved, except those that read the environment."""
    with _env(lambda name, default, node: True):
        return OmegaConf.to_container(config, resolve=True)


def hashable(config: Any) -> Any:
    """Plain containers for a hash: of the environment's values, those that cannot be secrets, as no number can."""
    with _env(lambda name, default, node: _secret(name, node)):
        hidden = OmegaConf.to_container(config, resolve=True)
    return _with_numbers(hidden, OmegaConf.to_container(config, resolve=True))


def _with_numbers(hidden: Any, plain: Any) -> Any:
    """`hidden`, but for values that are no text: that of a variable MAX_TOKENS is no secret in spite of its name."""
    if isinstance(plain, dict) and isinstance(hidden, dict):
        return {key: _with_numbers(hidden[key], value) for key, value in plain.items()}
    if isinstance(plain, list) and isinstance(hidden, list):
        return [_with_numbers(one, other) for one, other in zip(hidden, plain, strict=True)]
    return hidden if isinstance(plain, str) else plain


def _secret(name: str, node: Node | None) -> bool:
    """Return whether a variable may be a secret: by its name, or because it is part of an address."""
    whole = "" if node is None else str(node._value())
    return bool(SECRET.search(name)) or "://" in whole or "@" in whole


@contextmanager
def _env(hidden: Any) -> Iterator[None]:
    """Make `oc.env` give its own text where `hidden(name, default, node)` holds."""

    def env(name: str, *default: Any, _node_: Any = None) -> Any:
        if not hidden(name, default, _node_):
            return oc.env(name, *default)
        words = [name, *("null" if value is None else str(value) for value in default)]
        return f"${{oc.env:{','.join(words)}}}"

    def decode(text: Any, *, _parent_: Any, _node_: Any) -> Any:
        kept = isinstance(text, str) and text.startswith("${oc.env:")
        return f"${{oc.decode:{text}}}" if kept else oc.decode(text, _parent_, _node_)

    OmegaConf.register_new_resolver("oc.env", env, replace=True)
    OmegaConf.register_new_resolver("oc.decode", decode, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
        OmegaConf.register_new_resolver("oc.decode", oc.decode, replace=True)


class _MaskedStream:
    """A stream that masks what is written to it."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(masked(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def masked_output() -> Iterator[None]:
    """Mask, in all that is printed inside, by any library, the values of the environment that a config refers to."""
    before = sys.stdout, sys.stderr
    if values():
        sys.stdout, sys.stderr = (_MaskedStream(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
