"""The unit of deployment: a folder or a zip file with manifest, integer tables and graphs.

    manifest.json     what is here, with a SHA-256 of every other file
    tables.bin        integer CDFs, hyper-synthesis and gains (docs/FORMAT.md)
    golden.npz        a small picture with its expected latents and pixels
    weights.bin       the tensors of all graphs, each once
    onnx/ openvino/ tflite/ torch/   graphs: <stage>.<precision>.<suffix>

A file may be stored in parts, as `<file>.parts`; it is put together when it is first used.

All artefacts of a bundle share the tables, so that any of them decodes any other's files.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
import threading
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy.typing as npt

from edgecodec.errors import BundleError
from edgecodec.manifest import ArtefactEntry, Manifest
from edgecodec.npz import read_npz
from edgecodec.parts import SUFFIX, Parts

MANIFEST = "manifest.json"
TABLES = "tables.bin"
GOLDEN = "golden.npz"
WEIGHTS = "weights.bin"
UNPACKED_LIMIT = 256 << 20
"""Bytes that the files of a zipped bundle may have in all, and those put together of parts."""
DEFAULT = "default"
EMBEDDED = Path(__file__).with_name("data")
"""Where the bundles lie that ship with the package, each in `<name>.bundle`."""
_MANIFEST_LIMIT = 1 << 20
_GOLDEN_LIMIT = 64 << 20
_GOLDEN_KINDS = {
    "x": ("uint8", 3),
    "file": ("uint8", 1),
    "y_hat": ("int16", 3),
    "x_hat": ("uint8", 3),
    "y": ("float32", 3),
    "z": ("float32", 3),
}


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def short_id(data: bytes) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()[:16]


def default_bundle_path(embedded: Path | None = None) -> Path:
    """Return the folder of the bundle that is used where none is named."""
    return (embedded or EMBEDDED) / f"{DEFAULT}.bundle"


def embedded_bundles(embedded: Path | None = None) -> dict[str, Path]:
    """Return the bundles that can be named, the default one first.

    Args:
        embedded: folder they lie in; None is that of the package.
    """
    found = {path.stem: path for path in sorted((embedded or EMBEDDED).glob("*.bundle"))}
    return dict(sorted(found.items(), key=lambda item: item[0] != DEFAULT))


def find_bundle(name_or_path: str | Path, embedded: Path | None = None) -> Path:
    """Return the path of a bundle: one that exists, else the embedded bundle of that name.

    Raises:
        BundleError: neither; lists the names there are.
    """
    known = embedded_bundles(embedded)
    path = Path(name_or_path)
    if os.path.lexists(path):
        return path
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    raise BundleError(
        f"{name_or_path}: no such bundle; give its path, or the name of an embedded one: "
        f"{', '.join(known) or 'none'}"
    )


def bundle_with_tables(tables_id: str, embedded: Path | None = None) -> Path | None:
    """Return the embedded bundle with these tables, from the manifests alone; None without one."""
    for path in embedded_bundles(embedded).values():
        with contextlib.suppress(BundleError), Bundle(path) as bundle:
            if bundle.manifest.tables_id == tables_id:
                return path
    return None


class Bundle:
    """A bundle opened for reading. Files are checked against their hash when first used.

    Can be shared among threads. Temporary copies, of a zip file's content or of files stored in
    parts, live until `close`, or until the bundle is forgotten.

    Args:
        path: folder or zip file, or the name of an embedded bundle; None takes the default one.
        embedded: folder of the embedded bundles; None is that of the package.

    Raises:
        BundleError: nothing there, or not a bundle.
    """

    def __init__(self, path: str | Path | None = None, *, embedded: Path | None = None) -> None:
        self.path = default_bundle_path(embedded) if path is None else find_bundle(path, embedded)
        self._lock = threading.RLock()
        self._scratch: Path | None = None
        self._remove: Callable[[], object] = lambda: None
        self._paths: dict[str, Path] = {}
        self._put_together = 0
        if not self.path.exists():
            raise BundleError(f"{self.path}: no such bundle")
        packed = not self.path.is_dir()
        self.root = self._temporary("bundle") if packed else self.path
        try:
            self.manifest = self._unpack() if packed else self._read_manifest()
        except BundleError:
            self.close()
            raise

    @functools.cached_property
    def content_id(self) -> str:
        """What changes with any file or artefact listed, wherever the bundle lies."""
        return short_id(self.manifest.to_json().encode())

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _read_manifest(self) -> Manifest:
        try:
            text = (self.root / MANIFEST).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise BundleError(f"{self.path}: not a bundle, {MANIFEST} cannot be read") from exc
        return Manifest.from_json(text, str(self.path))

    def _temporary(self, name: str) -> Path:
        """Return a folder that vanishes with this bundle."""
        if self._scratch is None:
            try:
                self._scratch = Path(tempfile.mkdtemp(prefix="edgecodec-"))
            except OSError as exc:
                raise BundleError(f"{self.path}: no temporary folder can be made ({exc})") from exc
            self._remove = weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        return self._scratch / name

    def _unpack(self) -> Manifest:
        try:
            with zipfile.ZipFile(self.path) as archive:
                return self._extract(archive)
        except BundleError:
            raise
        except zipfile.BadZipFile as exc:
            raise BundleError(f"{self.path}: neither a folder nor an intact zip file") from exc
        except Exception as exc:  # zlib.error, NotImplementedError, RuntimeError, ...
            raise BundleError(f"{self.path}: the zip file is damaged ({exc})") from exc

    def _extract(self, archive: zipfile.ZipFile) -> Manifest:
        """Take the manifest out of an archive, then what it lists and nothing else."""
        members = {member.filename: member for member in archive.infolist()}
        if MANIFEST not in members:
            raise BundleError(f"{self.path}: not a bundle, it holds no {MANIFEST}")
        if members[MANIFEST].file_size > _MANIFEST_LIMIT:
            raise BundleError(f"{self.path}: not a bundle, its {MANIFEST} is too large")
        archive.extract(members[MANIFEST], self.root)
        manifest = self._read_manifest()
        listed = [members[name] for name in manifest.files if name in members]
        # zipfile reads no more than `file_size` bytes of a member, whatever is packed in it.
        size = sum(member.file_size for member in listed)
        if size > UNPACKED_LIMIT:
            raise BundleError(
                f"{self.path}: its files have {size / 2**20:.0f} MB in all, more than the "
                f"{UNPACKED_LIMIT >> 20} MB that a zip file may hold; unpack it into a folder"
            )
        for member in listed:
            archive.extract(member, self.root)  # refuses to leave `root`
        return manifest

    def file(self, name: str) -> Path:
        """Return the path of a file of the bundle after checking its content.

        A file stored in parts is put together on first use, in a temporary folder.

        Raises:
            BundleError: not listed, missing, too large, or its hash differs.
        """
        with self._lock:
            if name not in self._paths:
                stored_in_parts = name + SUFFIX in self.manifest.files
                self._paths[name] = self._make(name) if stored_in_parts else self._checked(name)
            return self._paths[name]

    def _listed(self, name: str) -> str:
        """Return the hash that the manifest lists, for names that stay within a folder."""
        expected = self.manifest.files.get(name)
        parts = PurePosixPath(name)
        outside = parts.is_absolute() or ".." in parts.parts or set(name) & set("\\:\0")
        if expected is None or outside:
            raise BundleError(f"{self.path}: the manifest lists no file {name}")
        return expected

    def _checked(self, name: str) -> Path:
        """Return a stored file, its content checked."""
        expected = self._listed(name)
        path = self.root / name
        try:
            if not path.is_file():
                raise BundleError(f"{self.path}: {name} is missing; convert or install it again")
            found = sha256_of(path)
        except OSError as exc:
            raise BundleError(f"{self.path}: {name} cannot be read ({exc.strerror})") from exc
        if found != expected:
            raise BundleError(
                f"{self.path}: {name} is damaged, its hash differs from the manifest's; "
                "convert or install it again"
            )
        return path

    def _make(self, name: str) -> Path:
        """Put together a file that is stored in parts."""
        expected = self._listed(name)
        recipe = self._checked(name + SUFFIX)
        self._check_room(name, recipe.stat().st_size)
        parts = Parts.from_bytes(recipe.read_bytes(), f"{self.path}: {name}{SUFFIX}")
        self._check_room(name, parts.size)
        path, digest = self._temporary("parts") / name, hashlib.sha256()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with (self.root / WEIGHTS).open("rb") as weights, path.open("wb") as out:
                for chunk in parts.chunks(weights):
                    digest.update(chunk)
                    out.write(chunk)
        except (OSError, ValueError) as exc:
            self._checked(WEIGHTS)  # where that is what is wrong, it is named
            raise BundleError(f"{self.path}: {name} cannot be put together ({exc})") from exc
        if digest.hexdigest() != expected:
            self._checked(WEIGHTS)
            raise BundleError(
                f"{self.path}: the parts of {name} do not make the file that the manifest lists; "
                "convert or install it again"
            )
        self._put_together += parts.size
        return path

    def _check_room(self, name: str, size: int) -> None:
        if self._put_together + size > UNPACKED_LIMIT:
            raise BundleError(
                f"{self.path}: {name} would have {size / 2**20:.0f} MB; files stored in parts may "
                f"have {UNPACKED_LIMIT >> 20} MB in all"
            )

    def tables(self) -> bytes:
        """Return `tables.bin`.

        Raises:
            BundleError: missing, damaged, or not the tables the manifest names.
        """
        data = self.file(TABLES).read_bytes()
        if short_id(data) != self.manifest.tables_id:
            raise BundleError(f"{self.path}: {TABLES} is not the one the manifest names")
        return data

    def artefact_file(self, entry: ArtefactEntry) -> Path:
        """Return the file of an artefact; those beside it of the same stem are checked too.

        Where one of them is stored in parts, all of them are beside each other in a temporary
        folder.

        Raises:
            BundleError: see `file`.
        """
        stem = entry.path.rsplit(".", 1)[0] + "."
        own = [name for name in self.manifest.files if name.startswith(stem)]
        own = [name for name in own if not name.endswith(SUFFIX)]
        with self._lock:
            found = {name: self.file(name) for name in (*own, entry.path)}
            if any(name + SUFFIX in self.manifest.files for name in own):
                for name, path in found.items():
                    self._paths[name] = self._beside(name, path)
            return self._paths[entry.path]

    def _beside(self, name: str, path: Path) -> Path:
        """Return a checked file as it lies among those put together, copied where it does not."""
        target = self._temporary("parts") / name
        if path != target:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            except OSError as exc:
                raise BundleError(f"{self.path}: {name} cannot be copied ({exc})") from exc
        return target

    def golden(self) -> dict[str, npt.NDArray[Any]]:
        """Return the golden vector.

        Keys: `x` (H, W, 3) uint8; `quality` int; `file` uint8, the expected bytes decode to
        `y_hat` (h, w, M) int16; `x_hat` (H, W, 3) uint8 of the reference; `y` (h, w, M) and
        `z` (h/2, w/2, Z) float32 of the reference. What is there has these types and axes; so have
        results of a precision, such as `x_hat_int8`.

        Raises:
            BundleError: missing, damaged, or of other types.
        """
        source = f"{self.path}: {GOLDEN}"
        arrays = read_npz(self.file(GOLDEN).read_bytes(), _GOLDEN_LIMIT, source)
        for name, array in arrays.items():
            known = [key for key in _GOLDEN_KINDS if name == key or name.startswith(f"{key}_")]
            kind, axes = _GOLDEN_KINDS[max(known, key=len)] if known else (array.dtype, array.ndim)
            if array.dtype != kind or array.ndim != axes:
                raise BundleError(
                    f"{source} holds {name} as {array.dtype} with {array.ndim} axes; "
                    "convert the checkpoint again"
                )
        return arrays

    def close(self) -> None:
        """Remove temporary copies: of a zip file's content, and of files stored in parts."""
        with self._lock:
            self._remove()
            self._scratch = None
            self._paths.clear()
            self._put_together = 0
