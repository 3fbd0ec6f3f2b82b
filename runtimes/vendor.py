"""Import of the packages that run networks, with a reason when that fails.

A package that is absent and one that is there but broken (a missing system library, a wheel for
another machine) need different advice, so they give different reasons.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from types import ModuleType

from edgecodec.errors import BackendUnavailableError

BROKEN = "is installed but does not"
"""In the reason why a runtime cannot be used that is there, unlike one that is not."""


_REPORTER = "openvino_telemetry"


def one_line(exc: BaseException, limit: int = 300) -> str:
    """Return the message of an exception on one line, its type where it has no message."""
    text = " ".join(str(exc).split())
    return text[:limit] if text else type(exc).__name__


def is_installed(module: str) -> bool:
    """Say whether a module could be found, without importing it (parents of a dotted name are)."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # no such parent; or a stub in sys.modules without a spec
        return False


def metadata_line(package: importlib.metadata.Distribution, name: str) -> str:
    """Return a field of a package's metadata, such as `Version`.

    `importlib.metadata` parses all of them as a mail message, several times as slow: that was most
    of the time of a start that finds its choices in the cache.
    """
    text = package.read_text("METADATA") or package.read_text("PKG-INFO") or ""
    for line in text.splitlines():
        found, _, value = line.partition(":")
        if found == name:
            return value.strip()
        if not line:  # the end of the fields
            break
    return str(package.metadata[name])


def missing_reason(packages: Iterable[str], extra: str) -> str:
    """Return what to tell a user who has none of `packages`."""
    return f"{' or '.join(packages)} is not installed; run: pip install 'edgecodec[{extra}]'"


@contextlib.contextmanager
def _reporting_nothing() -> Iterator[None]:
    """Import a runtime without its reports to its maker.

    onnxruntime (from 1.29, on Linux too) reports each model that is loaded, openvino that it is
    imported, where its package `openvino_telemetry` is found. Nobody who decodes a photo was asked.
    Who wants the former sets ORT_DISABLE_TELEMETRY to 0, or imports the runtime first.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the first model is loaded
    hide = _REPORTER not in sys.modules  # None there makes importing it fail
    if hide:
        sys.modules[_REPORTER] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hide:
            sys.modules.pop(_REPORTER, None)


def _interruption(exc: BaseException) -> type[KeyboardInterrupt] | None:
    """Return what of Ctrl-C is behind it: extension modules raise their own ImportError then."""
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, KeyboardInterrupt):
            return type(seen)
        seen = seen.__cause__ or seen.__context__
    return None


def import_vendor(backend: str, modules: tuple[str, ...], extra: str) -> ModuleType:
    """Import the first of `modules` that is installed.

    Args:
        backend: name of the backend, for the error.
        modules: alternatives, dotted names, best first.
        extra: the extra of edgecodec that brings the first.

    Raises:
        BackendUnavailableError: none is installed, or those that are do not load.
    """
    broken = ""
    for module in modules:
        package = module.partition(".")[0]
        if not is_installed(package):
            continue
        try:
            with _reporting_nothing():
                return importlib.import_module(module)
        except Exception as exc:  # a broken wheel may raise anything; the next one may work
            if interruption := _interruption(exc):
                raise interruption from exc
            broken = broken or f"{package} {BROKEN} load: {one_line(exc)}"
            cause = exc
    if broken:
        raise BackendUnavailableError(backend, broken) from cause
    packages = dict.fromkeys(module.partition(".")[0] for module in modules)
    raise BackendUnavailableError(backend, missing_reason(packages, extra))


def version_of(module: ModuleType, *distributions: str) -> str:
    """Return the version a module states, or that of the first distribution installed."""
    stated = getattr(module, "__version__", "")
    if isinstance(stated, str) and stated:
        return stated
    for distribution in distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""
