# The compiled binding; arrays are C-contiguous buffers, checked for size; those of `pack` may have
# gaps between rows.
from typing import Any

def load(tables: bytes, /) -> Any: ...
def channels(model: Any, /) -> tuple[int, int]: ...
def predict(
    model: Any, quality: int, zh: int, zw: int, z: Any, s: Any, mu: Any, index: Any, /
) -> None: ...
def quantize(
    model: Any,
    quality: int,
    zh: int,
    zw: int,
    z: Any,
    y: Any,
    reluctance: Any,
    s: Any,
    index: Any,
    /,
) -> None: ...
def price(
    model: Any,
    quality: int,
    zh: int,
    zw: int,
    z: Any,
    y: Any,
    reluctance: Any,
    bits: Any,
    weight: float,
    cost: Any,
    /,
) -> None: ...
def encode(model: Any, quality: int, zh: int, zw: int, z: Any, index: Any, s: Any, /) -> bytes: ...
def decode(
    model: Any, quality: int, zh: int, zw: int, data: bytes, z: Any, y_hat: Any, /
) -> None: ...
def pack(levels: Any, samples: Any, /) -> bool: ...
def share(data: Any, /) -> tuple[object, object]: ...
