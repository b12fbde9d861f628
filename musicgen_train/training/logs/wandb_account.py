"""Whether Weights & Biases would send, and has an account to send with; known without importing it."""

from __future__ import annotations

import configparser
import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

WITHOUT_ACCOUNT = ("offline", "dryrun", "disabled")
"""Values of WANDB_MODE, and of its loggers' `mode`, with which nothing is sent."""

_HOST = "https://api.wandb.ai"


def has_account() -> bool:
    """Whether wandb finds a key where it looks: the environment, its settings, and the netrc file that `wandb login`
    writes."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    settings = _settings()
    if settings.get("api_key"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or settings.get("base_url", _HOST)).netloc
    named = os.environ.get("NETRC")
    files = [Path(named).expanduser()] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    return any(_has_key(file, host) for file in files)


def _settings() -> dict[str, str]:
    """What `wandb login --host` and its like have stored, for the user and for this folder."""
    user = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read([user / "settings", Path("wandb") / "settings"])
    except (OSError, configparser.Error):
        return {}
    return dict(parser["default"]) if parser.has_section("default") else {}


def _has_key(file: Path, host: str) -> bool:
    try:
        return netrc.netrc(file).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
