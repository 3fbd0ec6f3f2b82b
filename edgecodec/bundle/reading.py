"""The unit of deployment: a folder or a zip file with manifest, integer tables and graphs.

    manifest.json     what is here, with a SHA-256 of every other file
    tables.bin        integer CDFs, hyper-synthesis and gains (docs/FORMAT.md)
    golden.npz        a small picture with its expected latents and pixels
    weights.bin       the tensors of all graphs, each once
    predictions.bin   what integers among them are predicted from
    onnx/ openvino/ tflite/ torch/   graphs: <stage>.<precision>.<suffix>

A file may be stored in parts, as `<file>.parts`; it is put together when it is first used.

All artefacts of a bundle share the tables, so that any of them decodes any other's files.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import threading
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy.typing as npt

from edgecodec.bundle.embedded import default_bundle_path, find_bundle
from edgecodec.bundle.manifest import (
    MANIFEST,
    MANIFEST_LIMIT,
    ArtefactEntry,
    Manifest,
    manifest_text,
)
from edgecodec.bundle.npz import read_npz
from edgecodec.bundle.parts import SUFFIX, Parts
from edgecodec.bundle.predictions import Predictions
from edgecodec.bundle.scratch import Scratch
from edgecodec.errors import BundleError, ScratchError
from edgecodec.forks import tell_of_fork
from edgecodec.lazy import lazy_property

TABLES = "tables.bin"
GOLDEN = "golden.npz"
WEIGHTS = "weights.bin"
PREDICTIONS = "predictions.bin"
UNPACKED_LIMIT = 256 << 20
"""Bytes that the files of a zipped bundle may have in all, and those put together of parts."""
_BLOCK = 1 << 20
_GOLDEN_LIMIT = 64 << 20
_GOLDEN_KINDS = {
    "x": ("uint8", 3),
    "file": ("uint8", 1),
    "y_hat": ("int16", 3),
    "x_hat": ("uint8", 3),
    "y": ("float32", 3),
    "z": ("float32", 3),
}
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def short_id(data: bytes) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()[:16]


def _inside(name: str) -> bool:
    """Say whether a relative path stays within a folder, on any system."""
    parts = PurePosixPath(name)
    return not (parts.is_absolute() or ".." in parts.parts or set(name) & set("\\:\0"))


class Bundle:
    """A bundle opened for reading. Files are checked against their hash when first used.

    Can be shared among threads. Temporary copies, of a zip file's content and of the graphs in use,
    live until `close`, or until the bundle is forgotten.

    Args:
        path: folder or zip file, or the name of an embedded bundle; None takes the default one.

    Raises:
        BundleError: nothing there, or not a bundle.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = default_bundle_path() if path is None else find_bundle(path)
        self._lock = threading.RLock()
        self._scratch: Scratch | None = None
        self._paths: dict[str, Path] = {}
        self._put_together: dict[str, int] = {}
        tell_of_fork(self)
        if not self.path.exists():
            raise BundleError(f"{self.path}: no such bundle")
        self._packed = not self.path.is_dir()
        if self._packed and not self.path.is_file():  # a pipe may never end
            raise BundleError(f"{self.path}: neither a folder nor a zip file")
        self.root = self._temporary("bundle") if self._packed else self.path
        try:
            self.manifest = self._unpack() if self._packed else self._read_manifest()
        except BundleError:
            self.close()
            raise

    def after_fork(self) -> None:
        """See `edgecodec.forks`."""
        self._lock = threading.RLock()

    @lazy_property
    def content_id(self) -> str:
        """What changes with any file or artefact listed, wherever the bundle lies."""
        return short_id(self._manifest_text.encode())

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _read_manifest(self) -> Manifest:
        self._manifest_text = manifest_text(self.root, self.path)
        return Manifest.from_json(self._manifest_text, str(self.path))

    def _temporary(self, name: str) -> Path:
        """Return a folder that vanishes with this bundle; a new one where it was cleaned away."""
        if self._scratch is not None and not self._scratch.is_there():
            self._scratch = None
            self._paths.clear()
        if self._scratch is None:
            try:
                self._scratch = Scratch()
            except OSError as exc:
                raise ScratchError(exc) from exc
        return self._scratch.path / name

    def _check_scratch(self, exc: OSError) -> None:
        """Tell a temporary folder that takes no more from a bundle that cannot be read.

        Raises:
            ScratchError: it is the folder.
        """
        if exc.errno in _NO_ROOM:
            raise ScratchError(f"{self._temporary('')}: {exc.strerror}") from exc

    def _unpack(self) -> Manifest:
        try:
            with zipfile.ZipFile(self.path) as archive:
                return self._extract(archive)
        except BundleError:
            raise
        except zipfile.BadZipFile as exc:
            raise BundleError(f"{self.path}: neither a folder nor an intact zip file") from exc
        except MemoryError:
            raise
        except OSError as exc:
            self._check_scratch(exc)
            raise BundleError(f"{self.path}: the zip file cannot be read ({exc})") from exc
        except Exception as exc:  # zlib.error, NotImplementedError, RuntimeError, ...
            raise BundleError(f"{self.path}: the zip file is damaged ({exc})") from exc

    def _extract(self, archive: zipfile.ZipFile) -> Manifest:
        """Take the manifest out of an archive, then what it lists and nothing else."""
        members = {member.filename: member for member in archive.infolist()}
        if MANIFEST not in members:
            raise BundleError(f"{self.path}: not a bundle, it holds no {MANIFEST}")
        if members[MANIFEST].file_size > MANIFEST_LIMIT:
            raise BundleError(f"{self.path}: not a bundle, its {MANIFEST} is too large")
        archive.extract(members[MANIFEST], self.root)
        manifest = self._read_manifest()
        listed = [members[name] for name in manifest.files if name in members and _inside(name)]
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

    def _stored(self, name: str) -> Path:
        """Return where a stored file lies; a zip file is unpacked again where that is gone.

        Raises:
            BundleError: the zip file is not there any more.
        """
        if not self._packed:
            return self.root / name
        root = self._temporary("bundle")
        if root != self.root or not (root / name).is_file():
            known, self.root = self._manifest_text, root
            self._unpack()
            self._manifest_text = known  # whose hashes hold, should the zip file be another one
        return self.root / name

    def file(self, name: str) -> Path:
        """Return the path of a file of the bundle after checking its content.

        A file stored in parts is put together on first use, in a temporary folder.

        Raises:
            BundleError: not listed, missing, too large, or its hash differs.
        """
        with self._lock:
            if name + SUFFIX in self.manifest.files:
                return self._private(name)
            return self._copied(name, None)

    def _listed(self, name: str) -> str:
        """Return the hash that the manifest lists, for names that stay within a folder."""
        expected = self.manifest.files.get(name)
        if expected is None or not _inside(name):
            raise BundleError(f"{self.path}: the manifest lists no file {name}")
        return expected

    def _copied(self, name: str, target: Path | None) -> Path:
        """Check the content of a stored file, on its way to `target` where one is given.

        Returns:
            the target, else the file itself.
        """
        expected, path, digest = self._listed(name), self._stored(name), hashlib.sha256()
        try:
            if not path.is_file():
                raise BundleError(f"{self.path}: {name} is missing; convert or install it again")
            with contextlib.ExitStack() as stack:
                source, out = stack.enter_context(path.open("rb")), None
                if target is not None:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    out = stack.enter_context(target.open("wb"))
                while block := source.read(_BLOCK):
                    digest.update(block)
                    if out is not None:
                        out.write(block)
        except OSError as exc:
            if target is not None:
                self._check_scratch(exc)
            what = "read" if target is None else "copied"
            raise BundleError(f"{self.path}: {name} cannot be {what} ({exc.strerror})") from exc
        if digest.hexdigest() != expected:
            raise BundleError(
                f"{self.path}: {name} is damaged, its hash differs from the manifest's; "
                "convert or install it again"
            )
        return path if target is None else target

    def _content(self, name: str) -> bytes:
        """Return the content of a file; what is checked is what is returned."""
        try:
            path = self.file(name)
            if path.stat().st_size > UNPACKED_LIMIT:
                raise BundleError(
                    f"{self.path}: {name} has more than the {UNPACKED_LIMIT >> 20} MB it may have"
                )
            data = path.read_bytes()
        except OSError as exc:
            raise BundleError(f"{self.path}: {name} cannot be read ({exc.strerror})") from exc
        if hashlib.sha256(data).hexdigest() != self.manifest.files[name]:
            raise BundleError(f"{self.path}: {name} changes while it is read; open it again")
        return data

    def _make(self, name: str) -> Path:
        """Put together a file that is stored in parts."""
        expected = self._listed(name)
        recipe = self.file(name + SUFFIX)
        self._check_room(name, recipe.stat().st_size)
        parts = Parts.from_bytes(self._content(name + SUFFIX), f"{self.path}: {name}{SUFFIX}")
        self._check_room(name, parts.size)
        predictions = self._predictions
        path, digest = self._temporary("graphs") / name, hashlib.sha256()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._stored(WEIGHTS).open("rb") as weights, path.open("wb") as out:
                for chunk in parts.chunks(weights, predictions):
                    digest.update(chunk)
                    out.write(chunk)
        except (OSError, ValueError) as exc:
            if isinstance(exc, OSError):
                self._check_scratch(exc)
            self.file(WEIGHTS)  # where that is what is wrong, it is named
            raise BundleError(f"{self.path}: {name} cannot be put together ({exc})") from exc
        if digest.hexdigest() != expected:
            self.file(WEIGHTS)
            raise BundleError(
                f"{self.path}: the parts of {name} do not make the file that the manifest lists; "
                "convert or install it again"
            )
        self._put_together[name] = parts.size
        return path

    @lazy_property
    def _predictions(self) -> Predictions:
        """What tensors in `weights.bin` are predicted from; nothing where there is no list."""
        if PREDICTIONS not in self.manifest.files:
            return Predictions()
        return Predictions.from_bytes(self._content(PREDICTIONS), f"{self.path}: {PREDICTIONS}")

    def _check_room(self, name: str, size: int) -> None:
        others = sum(known for other, known in self._put_together.items() if other != name)
        if others + size > UNPACKED_LIMIT:
            raise BundleError(
                f"{self.path}: {name} would have {size / 2**20:.0f} MB; files stored in parts may "
                f"have {UNPACKED_LIMIT >> 20} MB in all"
            )

    def tables(self) -> bytes:
        """Return `tables.bin`.

        Raises:
            BundleError: missing, damaged, or not the tables the manifest names.
        """
        data = self._content(TABLES)
        if short_id(data) != self.manifest.tables_id:
            raise BundleError(f"{self.path}: {TABLES} is not the one the manifest names")
        return data

    def artefact_file(self, entry: ArtefactEntry) -> Path:
        """Return the file of an artefact, with those of the same stem beside it, all checked.

        They lie in a temporary folder: what a runtime reads, at once or later on, is what was
        checked, whatever becomes of the bundle; and it meets no file there that was not.

        Raises:
            BundleError: see `file`; or they cannot be copied.
        """
        stem = entry.path.rsplit(".", 1)[0] + "."
        own = [name for name in self.manifest.files if name.startswith(stem)]
        with self._lock:
            for name in own:
                if not name.endswith(SUFFIX):
                    self._private(name)
            return self._private(entry.path)

    def _private(self, name: str) -> Path:
        """Return a checked file among those that nobody else changes.

        One that was cleaned away is made again.
        """
        target = self._temporary("graphs") / name  # first: all of them may be gone
        if name not in self._paths or not self._paths[name].is_file():
            stored_whole = name + SUFFIX not in self.manifest.files
            self._paths[name] = self._copied(name, target) if stored_whole else self._make(name)
        return self._paths[name]

    def golden(self) -> dict[str, npt.NDArray[Any]]:
        """Return the golden vector.

        Keys: `x` (H, W, 3) uint8; `quality` int; `file` uint8, the expected bytes decode to
        `y_hat` (h, w, M) int16; `x_hat` (H, W, 3) uint8 of the reference; `y` (h, w, M) and
        `z` (h/2, w/2, Z) float32 of the reference. What is there has these types and axes; so have
        results of a precision, such as `x_hat_int8`. `y_hat_extreme` and `x_hat_extreme`, if
        there, are latents and pixels of a second picture, of colours at full strength.

        Raises:
            BundleError: missing, damaged, or of other types.
        """
        source = f"{self.path}: {GOLDEN}"
        arrays = read_npz(self._content(GOLDEN), _GOLDEN_LIMIT, source)
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
            if self._scratch is not None:
                self._scratch.remove()
            self._scratch = None
            self._paths.clear()
            self._put_together.clear()
