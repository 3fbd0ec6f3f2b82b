"""Arrays of an `.npz` file from anyone: nothing is unpickled, and no header is taken at its word.

`numpy.load` allocates what the header of an array names before it looks for the values, and unpacks
whatever is packed.
"""

from __future__ import annotations

import io
import math
import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecodec.errors import BundleError

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npz(data: bytes, limit: int, source: str) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays by name.

    Args:
        data: content of the file.
        limit: bytes that the arrays may have in all.
        source: the file's name, for errors.

    Raises:
        BundleError: damaged, too large, or it holds other things than numbers.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > limit:
                raise ValueError(f"it unpacks to more than {limit >> 20} MB")
            # zipfile reads no more than `file_size` bytes of a member, whatever is packed in it.
            return {m.filename.removesuffix(".npy"): _array(archive.read(m)) for m in members}
    except MemoryError:
        raise
    except Exception as exc:  # BadZipFile, zlib.error, NotImplementedError, RuntimeError, ...
        reason = " ".join(str(exc).split()) or type(exc).__name__
        raise BundleError(f"{source} cannot be read ({reason})") from exc


def _array(data: bytes) -> npt.NDArray[Any]:
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"arrays of format {version} are not known")
    shape, fortran, dtype = _HEADERS[version](stream)
    if dtype.kind not in "biuf":
        raise ValueError(f"an array of {dtype} holds no numbers")
    values = np.frombuffer(data, dtype, offset=stream.tell())
    if min(shape, default=1) < 0 or values.size != math.prod(shape):
        raise ValueError(f"an array of shape {shape} has {values.size} values")
    return values.reshape(shape, order="F" if fortran else "C").copy()
