"""edgecodec: learned image compression that runs, fast and exactly, on phones and edge devices.

    import edgecodec
    data = edgecodec.encode(image, quality=60)   # PIL.Image or (H, W, 3) uint8 -> bytes
    image = edgecodec.decode(data)               # -> PIL.Image

Importing this package loads neither a runtime nor a model; both come with the first use.
"""

from __future__ import annotations

import logging

from edgecodec._version import __version__
from edgecodec.codec import Codec, decode, encode
from edgecodec.coding.profiling import Profile
from edgecodec.errors import (
    BackendError,
    BitstreamError,
    BundleError,
    ConversionError,
    EdgeCodecError,
)

__all__ = [
    "BackendError",
    "BitstreamError",
    "BundleError",
    "Codec",
    "ConversionError",
    "EdgeCodecError",
    "Profile",
    "__version__",
    "decode",
    "encode",
]

logging.getLogger("edgecodec").addHandler(logging.NullHandler())
