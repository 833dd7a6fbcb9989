"""A connection to a Ray cluster, by Ray's public API (extra `ray`)."""

import os
import secrets
import signal
import sys
import threading
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def check_installed(setting: str) -> None:
    """Raises ValueError where Ray is not installed. setting: what needs it, as `hydra/launcher=ray`."""
    if find_spec("ray") is None:
        raise ValueError(f"{setting} needs the package ray; install it with pip install -e '.[ray]'")


def is_connected() -> bool:
    """Return whether this process is connected to a cluster."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def connected(address: str | None, key: str) -> Any:
    """The library `ray`, connected to a cluster; as it is where this process is connected to one already.

    Args:
        address: HOST:PORT, `auto` for the one of this machine; None: one is started here, and ends with this process.
        key: of the config, that holds the address.

    Raises ValueError where there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None and not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else Ray keeps one in the home folder
    ray: Any = import_module("ray")
    if is_connected():
        return ray
    handler = signal.getsignal(signal.SIGTERM)
    options = {"include_dashboard": False} if address is None else {}
    try:
        ray.init(address or "local", log_to_driver=False, logging_level="error", **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{key}={address}: Ray is not reached ({reason}); start it by ray start --head") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray has set one that ends this process without cleaning up
    return ray
