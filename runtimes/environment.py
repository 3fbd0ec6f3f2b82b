"""Environment variables that steer the selection.

EDGECODEC_BACKEND names the backend to use wherever none is named, EDGECODEC_DISABLE those never to
use and EDGECODEC_TRUST those to run without a trial in a process of their own, separated by commas.
EDGECODEC_CACHE is the folder for what was measured; empty keeps nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from edgecodec.errors import UnknownPluginError
from edgecodec.runtimes.base import AUTO
from edgecodec.runtimes.registry import backend_names

BACKEND = "EDGECODEC_BACKEND"
DISABLE = "EDGECODEC_DISABLE"
TRUST = "EDGECODEC_TRUST"
CACHE = "EDGECODEC_CACHE"


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


def trusted_backends() -> tuple[str, ...]:
    """Return the backends that EDGECODEC_TRUST names, sorted.

    Raises:
        UnknownPluginError: it names one there is not.
    """
    return _names(TRUST)


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
