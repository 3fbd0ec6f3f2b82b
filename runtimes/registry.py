"""The backends there are: ours and, through the entry-point group, those of other packages.

A package adds a backend with two lines of its pyproject.toml:

    [project.entry-points."edgecodec.backends"]
    mine = "my_package.backend:MyBackend"

The class takes no arguments and follows `edgecodec.runtimes.base.Backend`. Ours are in the table
below alone, so that a source tree has them where nothing is installed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
from dataclasses import dataclass

from edgecodec.errors import (
    BackendError,
    BackendUnavailableError,
    ConfigError,
    UnknownPluginError,
)
from edgecodec.runtimes.base import Artefact, Availability, Backend, Session, SessionOptions
from edgecodec.runtimes.vendor import is_installed, metadata_line, missing_reason, one_line

GROUP = "edgecodec.backends"
OURS = "edgecodec"


@dataclass(frozen=True)
class PluginSpec:
    """Where a backend is.

    Attributes:
        name: what `--backend` calls it.
        target: class that implements it, `module:Class`.
        requires: packages of which it needs one; empty when it is for the backend to say.
        extra: the extra of edgecodec that brings the first of them.
        package: distribution that registered it.
        version: of that distribution; empty for ours, which are part of edgecodec.
    """

    name: str
    target: str
    requires: tuple[str, ...] = ()
    extra: str = ""
    package: str = OURS
    version: str = ""


BUILTIN = (
    PluginSpec(
        "onnxruntime",
        "edgecodec.runtimes.backends.onnxruntime_backend:OnnxRuntimeBackend",
        ("onnxruntime",),
        "onnxruntime",
    ),
    PluginSpec(
        "openvino",
        "edgecodec.runtimes.backends.openvino_backend:OpenVinoBackend",
        ("openvino",),
        "openvino",
    ),
    PluginSpec(
        "tflite",
        "edgecodec.runtimes.backends.tflite_backend:TfliteBackend",
        ("ai_edge_litert", "tflite_runtime"),
        "tflite",
    ),
    PluginSpec(
        "torch", "edgecodec.runtimes.backends.torch_backend:TorchBackend", ("torch",), "torch"
    ),
)


@dataclass
class UnavailableBackend:
    """Stands for a backend whose own module cannot be loaded.

    Attributes:
        name: what `--backend` calls it.
        reason: one line: why not.
        target: unknown, since its module would have to say.
    """

    name: str
    reason: str
    target: str = ""

    def probe(self) -> Availability:
        """Say why it cannot be used."""
        return Availability(False, self.reason)

    def load(self, artefact: Artefact, options: SessionOptions) -> Session:
        """Refuse.

        Raises:
            BackendUnavailableError: always.
        """
        raise BackendUnavailableError(self.name, self.reason)


@functools.cache
def plugin_specs() -> dict[str, PluginSpec]:
    """Return all backends by name, ours first, then the others by name.

    Metadata are read once; `refresh` forgets them.

    Raises:
        ConfigError: two packages claim the same name.
    """
    specs = {spec.name: spec for spec in BUILTIN}
    for point in sorted(_entry_points()):
        package = point.dist.name if point.dist is not None else "an unnamed package"
        if package == OURS:  # of a release that listed its own
            continue
        if known := specs.get(point.name):
            raise ConfigError(
                f"backend {point.name!r} is registered twice: {known.target} by {known.package} "
                f"and {point.value} by {package}; uninstall one of them"
            )
        version = point.dist.version if point.dist is not None else ""
        specs[point.name] = PluginSpec(point.name, point.value, package=package, version=version)
    return specs


def _entry_points() -> list[importlib.metadata.EntryPoint]:
    """Return the entry points of our group.

    `importlib.metadata.entry_points` parses those of all packages, which takes longer than all else
    that a start with a warm cache has to do.
    """
    found: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for package in importlib.metadata.distributions():
        if GROUP not in (package.read_text("entry_points.txt") or ""):
            continue
        name = metadata_line(package, "Name")
        if name not in found:  # of several of a name the first on the path is the one
            first = package
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                first = importlib.metadata.distribution(name)
            found[name] = list(first.entry_points.select(group=GROUP))
    return [point for points in found.values() for point in points]


def refresh() -> None:
    """Forget which backends there are, for example after installing a package."""
    plugin_specs.cache_clear()
    _load_backend.cache_clear()


def backend_names() -> tuple[str, ...]:
    """Return the names of all registered backends, usable here or not."""
    return tuple(plugin_specs())


def get_backend(name: str) -> Backend:
    """Return a backend, importing its module but not yet the runtime.

    One that cannot be loaded is returned as well; its `probe` says why.

    Raises:
        UnknownPluginError: there is none of that name.
        BackendError: what is registered does not follow the protocol.
    """
    specs = plugin_specs()
    if name not in specs:
        raise UnknownPluginError("backend", name, tuple(specs))
    return _load_backend(specs[name])


@functools.cache
def _load_backend(spec: PluginSpec) -> Backend:
    if spec.requires and not any(is_installed(package) for package in spec.requires):
        # The module itself would load; asking for its target must still work.
        return _with_target(spec)
    module, _, attribute = spec.target.partition(":")
    try:
        backend = getattr(importlib.import_module(module), attribute)()
    except Exception as exc:  # code of other packages may raise anything
        reason = f"{spec.package} is installed but does not load: {one_line(exc)}"
        return UnavailableBackend(spec.name, reason)
    missing = [part for part in ("name", "target", "probe", "load") if not hasattr(backend, part)]
    if missing:
        raise BackendError(
            spec.name, f"{spec.target} of {spec.package} has no {' and no '.join(missing)}"
        )
    found: Backend = backend
    return found


def _with_target(spec: PluginSpec) -> Backend:
    module, _, attribute = spec.target.partition(":")
    target: str = getattr(importlib.import_module(module), attribute).target
    return UnavailableBackend(spec.name, missing_reason(spec.requires, spec.extra), target)
