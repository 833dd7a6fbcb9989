"""The licence that a model's own card states: the metadata at the top of the README.md beside the weights."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd.sources.addresses import hub_file, keys_of

NOTHING = {"unknown", "none", "null", ""}


def stated_licence(source: str | Mapping[str, Any]) -> str | None:
    """The licence in the card of a model that is at hand; None: it has no card, or the card states none.

    source: an address, or its keys (`kd.sources.addresses`). Of a model and its adapter both must be stated; it is
    one name if they agree, else both. Nothing is fetched. A GGUF file and a wheel have no card.
    """
    keys = keys_of(source)
    found = [_of_card(_card(keys[key])) for key in ("address", "adapter") if keys.get(key)]
    known = [licence for licence in found if licence is not None]
    return " and ".join(dict.fromkeys(known)) if len(known) == len(found) else None


def _card(address: str) -> Path | None:
    scheme, _, rest = address.partition(":")
    path = hub_file(address, "README.md") if scheme == "hub" else Path(rest).expanduser() / "README.md"
    return path if path is not None and scheme in ("hub", "local") and path.is_file() else None


def _of_card(card: Path | None) -> str | None:
    """The licence in the yaml front matter of a card (`license`; of `other`, its `license_name`)."""
    import yaml

    if card is None:
        return None
    front = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(?:\n|$)", card.read_text(encoding="utf-8", errors="replace"), re.S)
    try:
        facts = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:
        return None
    if not isinstance(facts, Mapping):
        return None
    licence = facts.get("license")
    if isinstance(licence, list):
        licence = " and ".join(map(str, licence))
    if str(licence).lower() == "other":
        licence = facts.get("license_name") or licence
    return None if licence is None or str(licence).strip().lower() in NOTHING else str(licence).strip()
