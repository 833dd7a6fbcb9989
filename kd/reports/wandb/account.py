"""Whether this machine has an account of W&B."""

import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit


def logged_in() -> bool:
    """Return whether WANDB_API_KEY, a token or `wandb login` gives an account of the server of WANDB_BASE_URL."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        file = os.environ.get("NETRC") or Path("~/.netrc").expanduser()
        return netrc.netrc(str(file)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
