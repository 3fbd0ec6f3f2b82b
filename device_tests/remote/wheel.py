"""This installation of edgecodec packed into a wheel, whether it is a source tree or installed.

Nothing is built and nothing is fetched: the files that run here are those that run there. The
compiled core goes along where the other machine is of the same kind; its source, where it is here,
goes along anyway.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import edgecodec
from edgecodec.errors import ConfigError

MAPPED = ("converters", "runtimes", "device_tests")
"""Packages that may lie elsewhere than in the folder of the first."""
COMPILED = (".so", ".pyd", ".dylib")
_LEFT_OUT = (".pyc", ".pt")
_EPOCH = (1980, 1, 1, 0, 0, 0)


def pack_wheel(core: bool) -> tuple[str, bytes]:
    """Return the file name and the bytes of a wheel; equal files give equal bytes.

    Args:
        core: whether the compiled core goes along.

    Raises:
        ConfigError: this edgecodec is not installed.
    """
    about = installed()
    files = {
        name: path.read_bytes() for name, path in _files() if core or path.suffix not in COMPILED
    }
    info = f"edgecodec-{about.version}.dist-info"
    # The folder that a build leaves in a source tree has the same under another name.
    metadata = about.read_text("METADATA") or about.read_text("PKG-INFO") or ""
    files[f"{info}/METADATA"] = metadata.encode()
    files[f"{info}/entry_points.txt"] = (about.read_text("entry_points.txt") or "").encode()
    # The tag says "any" of the core, too: who asks for it knows that it fits.
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: edgecodec\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return f"edgecodec-{about.version}-py3-none-any.whl", out.getvalue()


def installed() -> Distribution:
    """Return what is known of this installation.

    Raises:
        ConfigError: nothing is.
    """
    try:
        return distribution("edgecodec")
    except PackageNotFoundError as exc:
        raise ConfigError("edgecodec is not installed here; run: pip install -e .") from exc


def _files() -> Iterator[tuple[str, Path]]:
    """Yield all files of the package by their path in the wheel, in order."""
    root = Path(edgecodec.__file__).parent
    roots = [(root, "edgecodec")]
    for name in MAPPED:
        spec = find_spec(f"edgecodec.{name}")
        if spec is None or spec.origin is None:
            raise ConfigError(f"edgecodec.{name} is missing here; install edgecodec again")
        roots.append((Path(spec.origin).parent, f"edgecodec/{name}"))
    for folder, prefix in roots:
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder)
            if prefix == "edgecodec" and inside.parts[0] in MAPPED:
                continue
            if path.is_file() and path.suffix not in _LEFT_OUT:
                yield f"{prefix}/{inside.as_posix()}", path


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
