"""Arrays from anyone: only numbers, only as many as there are bytes for."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecodec.bundle.npz import read_npz
from edgecodec.errors import BundleError

LIMIT = 1 << 20


class Trap:
    """Says so when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def npz(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def npy(descr: str, shape: str, values: bytes = b"", order: str = "False") -> bytes:
    text = f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + values


def test_reads_what_numpy_writes() -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "bytes": rng.integers(0, 256, (3, 5), np.uint8),
        "turned": np.asfortranarray(rng.normal(size=(2, 3, 4)).astype(np.float32)),
        "number": np.array(7),
        "truth": np.array([True, False]),
        "none": np.zeros((0, 4), np.int16),
    }
    for save in (np.savez, np.savez_compressed):
        out = io.BytesIO()
        save(out, **arrays)
        found = read_npz(out.getvalue(), LIMIT, "x")
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            assert np.array_equal(found[name], array)
            assert found[name].flags.writeable


HOSTILE = {
    "more than memory": npy("|u1", "(1000000000000000,)"),
    "more than a number holds": npy("<f8", "(4611686018427387904, 4611686018427387904)"),
    "one more": npy("|u1", "(5,)", b"1234"),
    "one less": npy("|u1", "(3,)", b"1234"),
    "half a number": npy("<i2", "(2,)", b"123"),
    "negative": npy("|u1", "(-1,)", b"1234"),
    "negative twice": npy("|u1", "(-2, -2)", b"1234"),
    "too many axes": npy("|u1", str((1,) * 100), b"1"),
    "text": npy("<U4", "(1,)", b"1234" * 4),
    "dates": npy("<M8[s]", "(1,)", bytes(8)),
    "void": npy("|V4", "(1,)", b"1234"),
    "no shape": npy("|u1", "None", b"1"),
    "code": npy("|u1", "__import__('os').getpid()", b"1"),
    "version 3": b"\x93NUMPY\x03" + npy("|u1", "(1,)", b"1")[7:],
    "no array": b"hello",
    "empty": b"",
}


@pytest.mark.parametrize("array", HOSTILE.values(), ids=HOSTILE)
def test_hostile_arrays_are_refused_in_one_line_and_little_memory(array: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match=r"^here\.npz cannot be read \(.+\)$") as caught:
            read_npz(npz({"x.npy": array}), LIMIT, "here.npz")
        assert tracemalloc.get_traced_memory()[1] < LIMIT
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"no zip", npz({"x.npy": HOSTILE["empty"]})[:-9]])
def test_damaged_archive_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        read_npz(data, LIMIT, "here.npz")


def test_archive_that_swells_is_refused_before_it_does() -> None:
    data = npz({"x.npy": npy("|u1", "(100000000,)", bytes(10**8))})
    assert len(data) < LIMIT
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match="more than 1 MB"):
            read_npz(data, LIMIT, "here.npz")
        assert tracemalloc.get_traced_memory()[1] < LIMIT
    finally:
        tracemalloc.stop()


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    stored = io.BytesIO()
    np.save(stored, np.array([Trap(mark)], object), allow_pickle=True)
    for content in (stored.getvalue(), pickle.dumps(Trap(mark))):
        with pytest.raises(BundleError):
            read_npz(npz({"x.npy": content}), LIMIT, "here.npz")
    with pytest.raises(BundleError):
        read_npz(pickle.dumps(Trap(mark)), LIMIT, "here.npz")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Trap(mark)))
    assert mark.exists()  # the trap works
