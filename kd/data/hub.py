"""Data sets of the hub, read by `datasets`: `hub:org/name@revision`, `hub:org/name@revision:config`."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kd.data.bad_rows import BadRows
from kd.data.tables import Row

_FORM = re.compile(r"hub:([\w.-]+(?:/[\w.-]+)?)@([^@:\s]+)(?::([^:\s]+))?")


def hub_tables(address: str, names: Mapping[str, str]) -> dict[str | None, list[Callable[[BadRows], Iterator[Row]]]]:
    """The tables of a hub data set by split; its splits are called as in `names`, others are left out.

    Raises:
        ValueError: the address is not of the form, or the data set has none of the splits.
        FileNotFoundError: it is not in the cache and could not be fetched.
    """
    match = _FORM.fullmatch(address)
    if match is None:
        raise ValueError(
            f"skill.path={address} is not of the form hub:org/name@revision or hub:org/name@revision:config"
        )
    found = _loaded(address, *match.groups())
    tables: dict[str | None, list[Callable[[BadRows], Iterator[Row]]]] = {}
    for split, data in found.items():
        if split.lower() in names:
            tables.setdefault(names[split.lower()], []).append(_table(f"{address} {split}", data))
    if not tables and len(found) == 1:
        return {None: [_table(address, next(iter(found.values())))]}
    if not tables:
        raise ValueError(f"{address} has the splits {', '.join(found)}, none of which is train, validation or test")
    return tables


def _loaded(address: str, name: str, revision: str, config: str | None) -> Mapping[str, Any]:
    from datasets import load_dataset  # takes a second
    from datasets.exceptions import DatasetsError

    try:
        return dict(load_dataset(name, config, revision=revision))
    except (DatasetsError, ConnectionError, FileNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{address} is not in the cache of datasets and could not be fetched ({str(error).splitlines()[0]}); run "
            "once with a connection and HF_HUB_OFFLINE unset, or download its files and name them in skill.path"
        ) from error
    except ValueError as error:
        raise ValueError(f"{address}: {str(error).splitlines()[0]}; correct the address") from error


def _table(place: str, data: Any) -> Callable[[BadRows], Iterator[Row]]:
    return lambda bad: (Row(f"{place}: row {i}", row) for i, row in enumerate(undecoded(data), start=1))


def undecoded(data: Any) -> Any:
    """The data set with its images as the bytes of their files."""
    from datasets import Image

    for name in [name for name, feature in data.features.items() if isinstance(feature, Image)]:
        data = data.cast_column(name, Image(decode=False))
    return data
