"""Every error the package raises on purpose.

EdgeCodecError
  ConfigError(ValueError)               an option or argument that cannot be
  MissingDependencyError(ImportError)   an optional package is absent; names the install line
  UnknownPluginError(LookupError)       no backend or converter of that name
  BitstreamError(ValueError)            a file that is not ours, damaged or cut short
    TruncatedBitstreamError
    UnsupportedVersionError
    ModelMismatchError                  made with another model; names both
  BundleError(ValueError)               a model bundle that is damaged, incomplete or foreign
    ScratchError                        no room for temporary files; the bundle is all right
  BackendError(RuntimeError)            a runtime failed; says which and why
    BackendUnavailableError
  ConversionError(RuntimeError)         a checkpoint that cannot be converted; names the stage
    UnsupportedOpError
    ParityError
"""

from __future__ import annotations

from typing import Any

CODEC_CLOSED = "the codec is closed; make a new one"


class EdgeCodecError(Exception):
    """Base of all errors raised on purpose; the message is one line and says what to do.

    All can be pickled, with their attributes: a process pool waits for ever for one that cannot.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        """Say how to make it anew: of its message, while a constructor may take what led to it."""
        _, arguments, *attributes = tuple(super().__reduce__())
        return (_remade, (type(self), arguments), *attributes)


def _remade(kind: type[EdgeCodecError], arguments: tuple[Any, ...]) -> EdgeCodecError:
    error = kind.__new__(kind)
    super(EdgeCodecError, error).__init__(*arguments)
    return error


class ConfigError(EdgeCodecError, ValueError):
    """An option or argument has a value that cannot be."""


class MissingDependencyError(EdgeCodecError, ImportError):
    """An optional package is not installed.

    Attributes:
        package: the module that is missing.
        extra: the extra of edgecodec that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed; run: pip install 'edgecodec[{extra}]'", name=package
        )
        self.package, self.extra = package, extra


class UnknownPluginError(EdgeCodecError, LookupError):
    """No plugin of that name is registered.

    Attributes:
        kind: what was looked for, such as `backend`.
        name: the name asked for.
        known: the names there are.
    """

    def __init__(self, kind: str, name: str, known: tuple[str, ...]) -> None:
        super().__init__(f"no {kind} named {name!r}; there are: {', '.join(known)}")
        self.kind, self.name, self.known = kind, name, known


class BitstreamError(EdgeCodecError, ValueError):
    """A file that is not an edgecodec file, or is damaged."""


class TruncatedBitstreamError(BitstreamError):
    """The file ends before its content does."""


class UnsupportedVersionError(BitstreamError):
    """The file was made by a later version of the format."""


class ModelMismatchError(BitstreamError):
    """The file was made with the tables of another model.

    Attributes:
        expected: tables id in the file, hexadecimal.
        found: tables id of the bundle in use.
    """

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(
            f"the file needs the model with tables {expected}, the bundle in use has {found}; "
            "pass the bundle it was made with (--bundle)"
        )
        self.expected, self.found = expected, found


class BundleError(EdgeCodecError, ValueError):
    """A model bundle is missing, damaged, incomplete or foreign."""


class ScratchError(BundleError):
    """No room for what a bundle unpacks; nothing is wrong with the bundle itself."""

    def __init__(self, reason: object) -> None:
        super().__init__(
            f"temporary files cannot be written ({reason}); make room there, or set TMPDIR to a "
            "folder on another disk"
        )


class BackendError(EdgeCodecError, RuntimeError):
    """A runtime failed.

    Attributes:
        backend: its name.
    """

    def __init__(self, backend: str, message: str) -> None:
        super().__init__(f"{backend}: {message}")
        self.backend = backend


class BackendUnavailableError(BackendError):
    """A runtime cannot be used on this machine; the message says why."""


class ConversionError(EdgeCodecError, RuntimeError):
    """A checkpoint cannot be converted, or an artefact does not do what it must.

    Attributes:
        stage: `analysis`, `synthesis`, or empty where the whole is meant.
    """

    def __init__(self, message: str, stage: str = "") -> None:
        super().__init__(f"{stage}: {message}" if stage else message)
        self.stage = stage


class UnsupportedOpError(ConversionError):
    """The network holds an operation that has no counterpart in a target.

    Attributes:
        op: its name.
        place: path and class of the module it stands in, empty where that is the network itself.
    """

    def __init__(self, op: str, stage: str, known: tuple[str, ...], place: str = "") -> None:
        where = f" in {place}" if place else ""
        super().__init__(
            f"operation {op}{where} is not supported; supported: {', '.join(known)}", stage
        )
        self.op, self.place = op, place


class GoldenVectorError(ConversionError):
    """An artefact answers the golden vector with what every device would refuse."""


class ParityError(ConversionError):
    """An artefact's results differ from the reference by more than allowed.

    Attributes:
        max_abs_err: largest difference seen.
        tolerance: largest difference allowed.
    """

    def __init__(self, stage: str, what: str, max_abs_err: float, tolerance: float) -> None:
        super().__init__(
            f"{what} differs from the reference by {max_abs_err:.4g}, allowed {tolerance:.4g}",
            stage,
        )
        self.max_abs_err, self.tolerance = max_abs_err, tolerance
