"""Fuzz what loads bundles: manifest, tables, golden vector, files in parts, zip files.

    nice python -m tests.fuzzing.bundles --executions 200000 --state DIR

Contents are changed and mostly hashed again, so that the readers behind the hashes are reached.
Graphs are not given to a runtime: what those do with damaged ones is theirs.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from edgecodec.bundle.manifest import MANIFEST
from edgecodec.bundle.parts import SUFFIX, Parts, Slice
from edgecodec.bundle.reading import GOLDEN, TABLES, WEIGHTS, Bundle, short_id
from edgecodec.codec import Codec
from edgecodec.errors import BundleError
from edgecodec.format.coder import LatentCoder
from edgecodec.runtimes.selection.golden import Golden
from tests.fuzzing.campaign import Outcome, Target, end_of, main
from tests.support.streams import mutated
from tests.support.tiny_codec import write_tiny_codec

ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 32, 2**31, 2**63, 10**400, 1.5, 1e308, "", "x", "x" * 5000, "../x",
    "/etc/passwd", "a\0b", "\ud800", "a/../../x", "onnx", ".", "..", [], [1], {}, {"a": 1},
    [[]] * 3, {"": ""},
)  # fmt: skip
ODD_NAMES = ("../out", "/out", "a/../../out", "..\\out", "TABLES.BIN", "tables.bin/x", "onnx", "",
             "\ud800", ".", "nul\0x", "x" * 300, MANIFEST, TABLES, GOLDEN, WEIGHTS,
             "c:out")  # fmt: skip
IN_PARTS = "onnx/synthesis.fp32.onnx"


@dataclass(frozen=True)
class Contents:
    """A bundle to be.

    Attributes:
        files: content by name, of all files but the manifest.
        manifest: its values; where bytes, its text.
        hashed: whether hashes and tables id are made right at the end.
        zipped: a zip file instead of a folder.
        members: what the zip file holds beside, or again.
        lies: places and masks of bytes that change in the finished zip file.
    """

    files: dict[str, bytes]
    manifest: Any
    hashed: bool = True
    zipped: bool = False
    members: tuple[tuple[str, bytes, int], ...] = ()
    lies: tuple[tuple[int, int], ...] = field(default=())

    def manifest_bytes(self) -> bytes:
        if isinstance(self.manifest, bytes):
            return self.manifest
        values = self.manifest
        listed = values.get("files") if isinstance(values, dict) else None
        if self.hashed and isinstance(listed, dict):
            right = {name: sha256(data).hexdigest() for name, data in self.files.items()}
            values = {**values, "files": {**listed, **right}}
            if TABLES in self.files:
                values["tables_id"] = short_id(self.files[TABLES])
        return json.dumps(values).encode()

    def write(self, path: Path) -> None:
        """Write it as a folder, or as a zip file of that name."""
        everything = {**self.files, MANIFEST: self.manifest_bytes()}
        if self.zipped:
            path.write_bytes(self._zip(everything))
            return
        for name, data in everything.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)

    def _zip(self, everything: dict[str, bytes]) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in everything.items():
                archive.writestr(name, data)
            for name, data, attributes in self.members:
                info = zipfile.ZipInfo(name)
                info.external_attr = attributes
                with suppress(ValueError), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # names that are there already
                    archive.writestr(info, data)
        data_out = bytearray(out.getvalue())
        for place, mask in self.lies:
            data_out[place % len(data_out)] ^= mask
        return bytes(data_out)


def _change_value(source: random.Random, values: Any) -> Any:
    """Return JSON values with one of them, at any depth, replaced, removed or added."""
    if isinstance(values, dict) and values and source.random() < 0.8:
        key = source.choice(sorted(values))
        move = source.randrange(8)
        if move == 0:
            return {k: v for k, v in values.items() if k != key}
        if move == 1:
            return {**values, source.choice(ODD_NAMES): values[key]}
        return {**values, key: _change_value(source, values[key])}
    if isinstance(values, list) and values and source.random() < 0.8:
        at = source.randrange(len(values))
        move = source.randrange(6)
        changed = [values[at]] * 2 if move == 0 else [] if move == 1 else None
        new = [_change_value(source, values[at])] if changed is None else changed
        return [*values[:at], *new, *values[at + 1 :]]
    return source.choice(ODD_VALUES)


def _change_npz(source: random.Random, data: bytes) -> bytes:
    """Change an array of a golden vector: its header, its values, or whether it is there."""
    out = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # changed before
        return mutated(data, source)
    if not members:
        return data
    name = source.choice(sorted(members))
    move = source.randrange(6)
    if move == 0:
        del members[name]
    elif move == 1:
        members[name] = members[source.choice(sorted(members))]
    elif move == 2:
        members[name] = mutated(members[name], source)
    else:
        members[name] = _change_header(source, members[name])
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, value in members.items():
            archive.writestr(key, value)
    return out.getvalue()


def _change_header(source: random.Random, array: bytes) -> bytes:
    """Write another type or shape before the values of an array."""
    if len(array) < 10:
        return array
    (length,) = struct.unpack_from("<H", array, 8)
    kind = source.choice(["|u1", "<i2", "<f4", "<f8", "|O", "|S9", "<U3", "<M8", ">i4", "?", "x"])
    shape = source.choice(["()", "(1,)", "(64, 96, 3)", "(4, 6, 4)", "(2, 3, 3)", "(0, 0, 0)",
                           "(-1,)", "(10**12,)", "(2**40, 2**40)", "(1,) * 40", "[3]", "None",
                           f"({10**13},)", f"({2**31}, {2**31})"])  # fmt: skip
    text = f"{{'descr': '{kind}', 'fortran_order': {source.choice(['False', 'True', '1'])}, "
    text += f"'shape': {shape}, }}\n"
    return array[:8] + struct.pack("<H", len(text)) + text.encode() + array[10 + length :]


def _change_parts(source: random.Random, files: dict[str, bytes]) -> dict[str, bytes]:
    """Store a file in parts, rightly or wrongly."""
    whole = files.get(IN_PARTS, b"whole")
    numbers = source.choice([0, 1, 3, 8, 2**31, 2**32 - 1])
    piece = Slice(
        source.choice([0, 1, len(whole), 2**32 - 1]),
        source.choice([0, 1, 2**32 - 1]),
        source.choice([1, 2, 4, 8]),
        (numbers,) * source.randint(1, 8),
        tuple(range(source.randint(1, 8))),
    )
    if len(piece.shape) != len(piece.axes):
        piece = replace(piece, axes=tuple(range(len(piece.shape))))
    recipe = source.choice([Parts((), whole), Parts((piece,), whole), Parts((piece,) * 9, whole)])
    content = recipe.to_bytes()
    if source.random() < 0.3:
        content = mutated(content, source)
    return {**files, IN_PARTS + SUFFIX: content, WEIGHTS: source.randbytes(source.randrange(64))}


def mutate(source: random.Random, case: Contents) -> Contents:
    """Return a changed bundle."""
    move = source.randrange(10)
    files = dict(case.files)
    name = source.choice(sorted(files)) if files else TABLES
    if move in (0, 1):
        manifest = case.manifest
        if isinstance(manifest, bytes) or source.random() < 0.1:
            manifest = mutated(case.manifest_bytes(), source)
        else:
            manifest = _change_value(source, manifest)
        return replace(case, manifest=manifest)
    if move == 2:
        return replace(case, hashed=not case.hashed, zipped=source.random() < 0.5)
    if move == 3:
        kind = source.choice([0, 0o120777, 0o40755, 0o10644])  # nothing, link, folder, pipe
        content = source.choice([b"", b"/etc/passwd", bytes(999)])
        member = (source.choice(ODD_NAMES), content, kind << 16)
        return replace(case, zipped=True, members=(*case.members[-3:], member))
    if move == 4 and case.zipped:
        place = (source.randrange(1 << 20), 1 << source.randrange(8))
        return replace(case, lies=(*case.lies[-3:], place))
    if move == 5 and GOLDEN in files:
        files[GOLDEN] = _change_npz(source, files[GOLDEN])
    elif move == 6:
        files = _change_parts(source, files)
    elif move == 7 and files:
        del files[name]
    elif move == 8 and TABLES in files:
        files[TABLES] = mutated(files[TABLES], source)
    elif files:
        files[name] = mutated(files[name], source)
    return replace(case, files=files)


def _attempt(step: Callable[[], object]) -> Outcome:
    try:
        step()
    except BundleError as exc:
        if "\n" in str(exc) or not str(exc):
            raise AssertionError(f"not one line: {exc}") from exc
        return end_of(exc)
    return ()


def run(folder: Path, case: Contents) -> Outcome:
    """Load a bundle and everything in it; give how each part ended.

    Raises:
        BundleError: it does not even open.
    """
    inside, path = folder / "in", folder / "in" / ("b.zip" if case.zipped else "b.bundle")
    shutil.rmtree(inside, ignore_errors=True)
    inside.mkdir()
    case.write(path)
    before = {p.name for p in folder.iterdir()}
    try:
        with Bundle(path) as bundle:
            entries = bundle.manifest.artefacts
            outcome = (
                _attempt(lambda: LatentCoder(bundle.tables(), "c")),
                _attempt(lambda: LatentCoder(bundle.tables(), "numpy")),
                _attempt(lambda: Codec(bundle).close()),
                _attempt(lambda: Golden.of(bundle)),
                *[_attempt(partial(bundle.artefact_file, entry)) for entry in entries[:4]],
                _attempt(lambda: [bundle.file(name) for name in bundle.manifest.files]),
            )
    finally:
        assert {p.name for p in folder.iterdir()} == before, "something lies outside"
        assert {p.name for p in inside.iterdir()} == {path.name}, "something lies outside"
    return outcome


def save(path: Path, case: Contents) -> None:
    """Write an input that found something."""
    if not case.zipped:
        path.mkdir(parents=True, exist_ok=True)
    case.write(path)


def targets_in(folder: Path) -> list[Target[Contents]]:
    path = write_tiny_codec(folder)
    files = {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    manifest = json.loads(files.pop(MANIFEST))
    plain = Contents(files, manifest)
    rest = {name: data for name, data in files.items() if name != IN_PARTS}
    numbers = bytes(range(48))
    content = Parts((Slice(3, 0, 2, (2, 3, 4), (2, 0, 1)),), b"abc" + files[IN_PARTS])
    whole = b"".join(content.chunks(io.BytesIO(numbers)))
    rest |= {IN_PARTS + SUFFIX: content.to_bytes(), WEIGHTS: numbers}
    parted = {**manifest, "files": {**manifest["files"], IN_PARTS: sha256(whole).hexdigest()}}
    seeds = [plain, replace(plain, zipped=True), Contents(rest, parted)]
    scratch = folder / "temporary"
    scratch.mkdir()
    tempfile.tempdir = str(scratch)
    work = folder / "work"
    work.mkdir()
    return [Target("bundles", seeds, mutate, partial(run, work), (BundleError,), save)]


if __name__ == "__main__":
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        main(lambda: targets_in(Path(name)))
