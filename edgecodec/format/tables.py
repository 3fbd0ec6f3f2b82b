"""`tables.bin`: the integers that file and decoder share (docs/FORMAT.md, section Tables).

Writing and reading of the raw arrays; what they mean is in `edgecodec.format.coder`.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecodec.errors import BundleError, ConfigError
from edgecodec.format.container import MAX_TILE
from edgecodec.format.strides import HYPER_STRIDE, LATENTS_PER_HYPER

MAGIC = b"\x89ECT\r\n\x1a\n"
VERSION = 2
PRECISION = 14
QUALITIES = 100
Y_FRAC = 4
"""Fractional bits of mu and y_hat: latents are integers in units of 1/16."""
Z_FRAC = 4
"""Fractional bits of dequantized hyper-latents, the input of the hyper-synthesis."""
ACTIVATION_FRAC = 4
"""Fractional bits of the uint8 activations inside the hyper-synthesis."""
WEIGHT_FRAC = 6
"""Fractional bits of its int8 weights."""
HEAD_GAIN_LOG2 = 2
"""Its two heads are multiplied by 2**HEAD_GAIN_LOG2, that is, shifted less."""
STEP_FRAC = 6
"""Fractional bits of a latent's step beyond Y_FRAC."""
Z_STEP_FRAC = 4
"""Fractional bits of a hyper-latent's step beyond Z_FRAC."""
RESIDUAL_FRAC = 2
"""Fractional bits of y_hat - mu where it enters the context of later latents of a cell."""
RESIDUAL_LIMIT = 511
"""Its largest magnitude there, in units of 2**-RESIDUAL_FRAC."""
CELL_ORDER = ((0, 0), (1, 1), (0, 1), (1, 0))
"""Order of coding within the 2x2 latents of a hyper-latent, as (dy, dx)."""
SYMBOL_LIMIT = 8191
"""Symbols of y lie in [-SYMBOL_LIMIT, SYMBOL_LIMIT]."""
HYPER_LIMIT = 127
"""Symbols of z lie in [-HYPER_LIMIT, HYPER_LIMIT]."""
RELUCTANCES = 4
"""Thresholds per scale index of rate-distortion optimised quantization; the encoder's alone."""
ESCAPE_BITS = 8.0
"""What follows most escapes, where symbols are priced: the count of nibbles and one nibble."""
MAX_SIDE = MAX_TILE // HYPER_STRIDE
"""Hyper-latents per side of a tile; these limits are those of core/edgecodec_core.h."""
FORMATS = (
    Y_FRAC,
    Z_FRAC,
    ACTIVATION_FRAC,
    WEIGHT_FRAC,
    HEAD_GAIN_LOG2,
    STEP_FRAC,
    Z_STEP_FRAC,
    LATENTS_PER_HYPER,
    RESIDUAL_FRAC,
)
SCALE_LEVELS = 64
SCALE_MIN = 0.13
SCALE_MAX = 64.0


def log_scale_step() -> float:
    """Return the ratio of neighbouring entries of the scale table, as a natural logarithm."""
    return math.log(SCALE_MAX / SCALE_MIN) / (SCALE_LEVELS - 1)


def scale_of(index: int) -> float:
    """Return the standard deviation, in quantization steps, that a scale index stands for."""
    return SCALE_MIN * math.exp(index * log_scale_step())


_HEADER = struct.Struct("<8s6H2B9BB")
_MAX_CHANNELS = 512


@dataclass(frozen=True)
class Tables:
    """The arrays of `tables.bin`.

    M latent channels, Z hyper channels, H hidden units, F features of z, C of the context.

    Attributes:
        frequencies: one (2 w + 2,) uint16 array per scale index, of sum 2**14: symbols -w..w and
            the escape. The array of index 0 is empty: such symbols are zero and not coded.
        w1: (H, Z) int8. w2: (4 F, H) int8, row 4 f + 2 dy + dx.
        c1: (C, M) int8. c2: (C, 2 M) int8. c3: (C, 3 M) int8: the context of the second, third
            and fourth latent of a cell, earlier latents first.
        w3: (2 M, F + C) int8, rows of mu then of scale, columns of features then of context.
        b1: (100, H) int32. b2: (4 F,) int32. bc: (3, C) int32, of c1 to c3. b3: (M,) int32, of mu.
        index_bias: (100, M) int32.
        step_y: (100, M) int32, dequantization step in units of 2**-10.
        step_z: (100, Z) int32, in units of 2**-8.
        index_z: (100, Z) uint8, scale index of each hyper-latent channel.
        gain_z: (100, Z) float32, for the encoder alone.
    """

    frequencies: tuple[npt.NDArray[np.uint16], ...]
    w1: npt.NDArray[np.int8]
    w2: npt.NDArray[np.int8]
    c1: npt.NDArray[np.int8]
    c2: npt.NDArray[np.int8]
    c3: npt.NDArray[np.int8]
    w3: npt.NDArray[np.int8]
    b1: npt.NDArray[np.int32]
    b2: npt.NDArray[np.int32]
    bc: npt.NDArray[np.int32]
    b3: npt.NDArray[np.int32]
    index_bias: npt.NDArray[np.int32]
    step_y: npt.NDArray[np.int32]
    step_z: npt.NDArray[np.int32]
    index_z: npt.NDArray[np.uint8]
    gain_z: npt.NDArray[np.float32]

    @property
    def latent_channels(self) -> int:
        """M."""
        return int(self.b3.shape[0])

    @property
    def gain_y(self) -> npt.NDArray[np.float32]:
        """(100, M) float32, what an encoder multiplies with: one over the step."""
        return np.float32(1 << (Y_FRAC + STEP_FRAC)) / self.step_y.astype(np.float32)

    @property
    def hyper_channels(self) -> int:
        """Z."""
        return int(self.w1.shape[1])

    def bits(self) -> list[npt.NDArray[np.float64]]:
        """Return what each symbol costs, one (2 w + 2,) array per scale index as `frequencies`."""
        return [PRECISION - np.log2(row.astype(np.float64)) for row in self.frequencies]

    def to_bytes(self) -> bytes:
        """Return the content of `tables.bin`.

        Raises:
            ConfigError: an array is not of the type or shape documented above.
        """
        sizes = self._sizes()
        for name, kind, shape in _layout(*sizes):
            array = getattr(self, name)
            if array.dtype != np.dtype(kind) or array.shape != shape:
                raise ConfigError(
                    f"{name} is {array.dtype} of shape {array.shape}, expected "
                    f"{np.dtype(kind)} of shape {shape}"
                )
        head = _HEADER.pack(MAGIC, VERSION, *sizes, PRECISION, len(self.frequencies), *FORMATS, 0)
        halves = [max(0, len(row) - 2) // 2 for row in self.frequencies]
        parts: list[bytes] = [head, np.asarray(halves, "<u2").tobytes()]
        parts += [row.astype("<u2").tobytes() for row in self.frequencies[1:]]
        parts += [_little(getattr(self, name)) for name, _, _ in _layout(*sizes)]
        return b"".join(parts)

    def _sizes(self) -> tuple[int, int, int, int, int]:
        context, m = self.c1.shape
        hidden, z = self.w1.shape
        return int(m), int(z), int(hidden), int(self.w3.shape[1] - context), int(context)

    @classmethod
    def from_bytes(cls, data: bytes) -> Tables:
        """Parse the content of `tables.bin`.

        Raises:
            BundleError: another format or version, or damaged.
        """
        try:
            return cls._parse(data)
        except (struct.error, ValueError) as exc:
            if isinstance(exc, BundleError):
                raise
            raise BundleError(f"tables.bin is damaged ({exc})") from exc

    @classmethod
    def _parse(cls, data: bytes) -> Tables:
        magic, version, *rest = _HEADER.unpack_from(data)
        m, z, h, f, c, precision, levels, *formats, zero = rest
        if magic != MAGIC or version != VERSION:
            raise BundleError("tables.bin is not of a version this edgecodec reads")
        if precision != PRECISION or tuple(formats) != FORMATS or zero or not 2 <= levels <= 64:
            raise BundleError("tables.bin uses number formats this edgecodec does not know")
        if not all(1 <= n <= _MAX_CHANNELS for n in (m, z, h, f, c)):
            raise BundleError("tables.bin names impossible channel counts")
        at = _HEADER.size
        halves = np.frombuffer(data, "<u2", levels, at)
        at += 2 * levels
        if halves[0]:
            raise BundleError("tables.bin holds a frequency table for symbols that are not coded")
        rows = [np.zeros(0, np.uint16)]
        for half in halves[1:].tolist():
            row = np.frombuffer(data, "<u2", 2 * half + 2, at)
            if not 1 <= half <= 2047 or int(row.sum()) != 1 << PRECISION or not row.all():
                raise BundleError("tables.bin holds a frequency table that does not add up")
            rows.append(row.astype(np.uint16))
            at += row.nbytes
        arrays: dict[str, Any] = {}
        for name, kind, shape in _layout(m, z, h, f, c):
            count = int(np.prod(shape))
            arrays[name] = np.frombuffer(data, kind, count, at).reshape(shape)
            at += arrays[name].nbytes
        if at != len(data):
            raise BundleError("tables.bin is longer than its content")
        for names, low, high in _bounds(levels):
            for name in names:
                if arrays[name].min() < low or arrays[name].max() > high:
                    raise BundleError(f"tables.bin holds values of {name} beyond {low}..{high}")
        return cls(frequencies=tuple(rows), **arrays)


def _layout(m: int, z: int, h: int, f: int, c: int) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    return (
        ("w1", "<i1", (h, z)),
        ("w2", "<i1", (4 * f, h)),
        ("c1", "<i1", (c, m)),
        ("c2", "<i1", (c, 2 * m)),
        ("c3", "<i1", (c, 3 * m)),
        ("w3", "<i1", (2 * m, f + c)),
        ("b1", "<i4", (QUALITIES, h)),
        ("b2", "<i4", (4 * f,)),
        ("bc", "<i4", (3, c)),
        ("b3", "<i4", (m,)),
        ("index_bias", "<i4", (QUALITIES, m)),
        ("step_y", "<i4", (QUALITIES, m)),
        ("step_z", "<i4", (QUALITIES, z)),
        ("index_z", "<u1", (QUALITIES, z)),
        ("gain_z", "<f4", (QUALITIES, z)),
    )


def _bounds(levels: int) -> tuple[tuple[tuple[str, ...], int, int], ...]:
    """Within these no sum of the hyper-synthesis leaves 32 bits."""
    return (
        (("b1", "b2", "bc", "b3", "index_bias"), -(1 << 23), 1 << 23),
        (("step_y",), 1, 131071),
        (("step_z",), 1, 32767),
        (("index_z",), 1, levels - 1),
    )


def _little(array: npt.NDArray[Any]) -> bytes:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
