"""Environment variables that steer the selection.

EDGECODEC_BACKEND names the backend to use wherever none is named, EDGECODEC_DISABLE those never to
use and EDGECODEC_RISKY those to try in a process of their own first, separated by commas.
EDGECODEC_CACHE is the folder for what was measured; empty keeps nothing. EDGECODEC_TIMEOUT is the
least number of seconds after which a call that does not return is given up, 0 waits for ever.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from edgecodec.errors import ConfigError, UnknownPluginError
from edgecodec.runtimes.registry import backend_names

BACKEND = "EDGECODEC_BACKEND"
DISABLE = "EDGECODEC_DISABLE"
RISKY = "EDGECODEC_RISKY"
TRUST = "EDGECODEC_TRUST"
CACHE = "EDGECODEC_CACHE"
TIMEOUT = "EDGECODEC_TIMEOUT"
TIMEOUT_S = 20.0
AUTO = "auto"


def wanted_backend(backend: str) -> str:
    """Return the backend to use: the one named, else that of EDGECODEC_BACKEND, else `auto`.

    Raises:
        UnknownPluginError: the variable names none there is.
    """
    forced = os.environ.get(BACKEND, "").strip()
    if backend != AUTO or forced in ("", AUTO):
        return backend
    _check(BACKEND, (forced,))
    return forced


def disabled_backends() -> tuple[str, ...]:
    """Return the backends that EDGECODEC_DISABLE forbids, sorted.

    Raises:
        UnknownPluginError: it names one there is not.
    """
    return _names(DISABLE)


def risky_backends() -> tuple[str, ...]:
    """Return the backends that EDGECODEC_RISKY names, sorted.

    Raises:
        UnknownPluginError: it names one there is not.
    """
    return _names(RISKY)


def trusted_backends() -> tuple[str, ...]:
    """Return the backends that EDGECODEC_TRUST names, sorted.

    Raises:
        UnknownPluginError: it names one there is not.
    """
    return _names(TRUST)


def call_limit() -> float | None:
    """Return the least seconds after which a call is given up; None waits for ever.

    Raises:
        ConfigError: EDGECODEC_TIMEOUT is no such number.
    """
    text = os.environ.get(TIMEOUT, "").strip()
    try:
        seconds = float(text) if text else TIMEOUT_S
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise ConfigError(
            f"{TIMEOUT} must be a number of seconds, 0 to wait for ever, not {text!r}"
        )
    return seconds or None


def watches_every_call() -> bool:
    """Say whether calls are watched that need not be: EDGECODEC_TIMEOUT asks for a limit."""
    return bool(os.environ.get(TIMEOUT, "").strip())


def cache_folder(
    environ: Mapping[str, str] = os.environ, platform: str = sys.platform
) -> Path | None:
    """Return the folder for what was measured, made by whoever writes to it; None for none.

    Args:
        environ: variables of the environment.
        platform: as in `sys.platform`.
    """
    if CACHE in environ:
        chosen = environ[CACHE].strip()
        return Path(chosen) if chosen else None
    try:
        if platform == "win32":
            local = environ.get("LOCALAPPDATA")
            return (Path(local) if local else Path.home() / "AppData" / "Local") / "edgecodec"
        if platform == "darwin":
            return Path.home() / "Library" / "Caches" / "edgecodec"
        base = environ.get("XDG_CACHE_HOME", "")
        # The specification has relative paths ignored.
        return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "edgecodec"
    except RuntimeError:  # no home folder
        return None


def _names(variable: str) -> tuple[str, ...]:
    text = os.environ.get(variable, "")
    names = tuple(sorted({part.strip() for part in text.split(",") if part.strip()}))
    _check(variable, names)
    return names


def _check(variable: str, names: tuple[str, ...]) -> None:
    for name in names:
        if name not in backend_names():
            raise UnknownPluginError(f"backend for {variable}", name, backend_names())
