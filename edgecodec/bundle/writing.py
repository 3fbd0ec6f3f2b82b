"""Bundles that appear whole or not at all, as a folder or a zip file."""

from __future__ import annotations

import contextlib
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from edgecodec.bundle.manifest import MANIFEST
from edgecodec.bundle.reading import sha256_of
from edgecodec.errors import BundleError

ZIP = ".zip"


@contextlib.contextmanager
def writing_bundle(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Give a folder to fill that becomes `target` when all went well, and vanishes otherwise.

    A `target` ending in `.zip` becomes a zip file. An earlier bundle is replaced only at the end,
    and only with `force`.

    Raises:
        BundleError: `target` exists and is not a bundle, or is one and `force` is not set; its
            folder is missing; it cannot be written.
    """
    try:
        _check_target(target, force)
        # `.` has no name; `Path.resolve` has an error of its own for a link that leads to itself.
        place = Path(os.path.realpath(target))
        if place.is_symlink():
            raise BundleError(f"{target}: a link that leads to itself; choose another name")
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as scratch:
            folder = Path(scratch) / "bundle"
            folder.mkdir()
            yield folder
            _check_target(target, force)  # again, as filling it may have taken minutes
            _move(folder, place, target.suffix == ZIP)
    except BrokenPipeError:
        raise  # of who listens to the progress, not of the file
    except OSError as exc:
        raise BundleError(f"{target}: cannot be written ({exc})") from exc


def _check_target(target: Path, force: bool) -> None:
    """Refuse a target that cannot be written, or whose replacement could lose data."""
    if not target.parent.is_dir():
        raise BundleError(f"{target.parent}: no such folder")
    zipped, is_folder = target.suffix == ZIP, target.is_dir()
    if not target.exists() or (is_folder and not zipped and not any(target.iterdir())):
        return
    if is_folder == zipped or not _holds_manifest(target):
        kind = "a zipped bundle" if zipped else "a bundle"
        raise BundleError(f"{target}: exists and is not {kind}; choose another name")
    if not force:
        raise BundleError(f"{target}: exists already; add --force to replace it")


def _holds_manifest(path: Path) -> bool:
    if path.is_dir():
        return (path / MANIFEST).is_file()
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return MANIFEST in archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def _move(folder: Path, target: Path, zipped: bool) -> None:
    """Put a filled folder, or a zip file of its content, where the target is to be."""
    if zipped:
        packed = folder.with_suffix(ZIP)
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                archive.write(path, path.relative_to(folder).as_posix())
        packed.replace(target)
        return
    old = folder.with_name("old")
    try:
        if target.is_dir():
            target.rename(old)
        folder.rename(target)
    except BaseException:  # also of who interrupts between the two
        if old.exists() and not target.exists():
            old.rename(target)
        raise


def hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below `folder` but the manifest, by relative path."""
    return {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def size_of(folder: Path) -> int:
    """Return the bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
