"""Bytes <-> latents, in integers only: the C core, or its NumPy twin where it is not built.

    >>> from edgecodec.bundle.reading import Bundle
    >>> coder = LatentCoder(Bundle().tables())
    >>> z = np.zeros((2, 3, coder.hyper_channels), np.int16)
    >>> y = np.zeros((4, 6, coder.latent_channels), np.float32)
    >>> s, index = coder.quantize(50, z, y)
    >>> data = coder.encode(50, z, index, s)
    >>> z_hat, y_hat = coder.decode(50, 2, 3, data)
    >>> bool((z_hat == z).all()), y_hat.shape[:2]
    (True, (4, 6))

Everything here is *bit-exact everywhere* but `quantize` and `quantize_hyper`, which only the
encoder uses.
"""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgecodec.arrays import Float32Array, Int16Array, UInt8Array
from edgecodec.errors import BitstreamError, BundleError, ConfigError, TruncatedBitstreamError
from edgecodec.format.strides import LATENTS_PER_HYPER
from edgecodec.format.tables import (
    ESCAPE_BITS,
    HYPER_LIMIT,
    MAX_SIDE,
    QUALITIES,
    RELUCTANCES,
    SYMBOL_LIMIT,
    Tables,
)
from edgecodec.lazy import lazy_property


class Implementation(Protocol):
    """What the C core and the twin have in common; failures are a ValueError of one word."""

    name: str

    def predict(self, quality: int, z: Int16Array, s: Int16Array) -> tuple[Int16Array, UInt8Array]:
        """See LatentCoder.predict."""
        ...

    def quantize(
        self, quality: int, z: Int16Array, y: Float32Array, reluctance: Float32Array | None
    ) -> tuple[Int16Array, UInt8Array]:
        """See LatentCoder.quantize."""
        ...

    def price(
        self,
        quality: int,
        z: Int16Array,
        y: Float32Array,
        reluctance: Float32Array | None,
        weight: float,
    ) -> Float32Array:
        """See LatentCoder.price."""
        ...

    def encode(self, quality: int, z: Int16Array, index: UInt8Array, s: Int16Array) -> bytes:
        """See LatentCoder.encode."""
        ...

    def decode(self, quality: int, zh: int, zw: int, data: bytes) -> tuple[Int16Array, Int16Array]:
        """See LatentCoder.decode."""
        ...


class CoreImplementation:
    """The C core."""

    name = "c"

    def __init__(self, tables: bytes, parsed: Tables) -> None:
        from edgecodec.core import _binding  # noqa: PLC0415 - absent where no compiler was

        self._core: Any = _binding
        self._model = _binding.load(tables)
        self._latent, self._hyper = _binding.channels(self._model)
        self._tables = parsed

    @lazy_property
    def _bits(self) -> Float32Array:
        """What symbols cost, as the core wants it: it skips one entry behind each table."""
        rows = [np.append(bits, 0.0) for bits in self._tables.bits()[1:]]
        return np.concatenate(rows).astype(np.float32)

    def predict(self, quality: int, z: Int16Array, s: Int16Array) -> tuple[Int16Array, UInt8Array]:
        """See LatentCoder.predict."""
        zh, zw, _ = z.shape
        mu = np.empty((2 * zh, 2 * zw, self._latent), np.int16)
        index = np.empty(mu.shape, np.uint8)
        self._core.predict(self._model, quality, zh, zw, z, s, mu, index)
        return mu, index

    def quantize(
        self, quality: int, z: Int16Array, y: Float32Array, reluctance: Float32Array | None
    ) -> tuple[Int16Array, UInt8Array]:
        """See LatentCoder.quantize."""
        zh, zw, _ = z.shape
        s = np.empty((2 * zh, 2 * zw, self._latent), np.int16)
        index = np.empty(s.shape, np.uint8)
        thresholds = b"" if reluctance is None else reluctance
        self._core.quantize(self._model, quality, zh, zw, z, y, thresholds, s, index)
        return s, index

    def price(
        self,
        quality: int,
        z: Int16Array,
        y: Float32Array,
        reluctance: Float32Array | None,
        weight: float,
    ) -> Float32Array:
        """See LatentCoder.price."""
        zh, zw, _ = z.shape
        cost = np.empty((zh, zw), np.float32)
        thresholds = b"" if reluctance is None else reluctance
        self._core.price(self._model, quality, zh, zw, z, y, thresholds, self._bits, weight, cost)
        return cost

    def encode(self, quality: int, z: Int16Array, index: UInt8Array, s: Int16Array) -> bytes:
        """See LatentCoder.encode."""
        zh, zw, _ = z.shape
        data: bytes = self._core.encode(self._model, quality, zh, zw, z, index, s)
        return data

    def decode(self, quality: int, zh: int, zw: int, data: bytes) -> tuple[Int16Array, Int16Array]:
        """See LatentCoder.decode."""
        z = np.empty((zh, zw, self._hyper), np.int16)
        y_hat = np.empty((2 * zh, 2 * zw, self._latent), np.int16)
        self._core.decode(self._model, quality, zh, zw, data, z, y_hat)
        return z, y_hat


NO_CORE = (
    "the C core of edgecodec is not built, so coding takes more than a thousand times as long; "
    "install a wheel, or a C compiler and then edgecodec again"
)


def core_available() -> bool:
    """Say whether the C core was built."""
    try:
        from edgecodec.core import _binding  # noqa: F401, PLC0415
    except ImportError:
        return False
    return True


class LatentCoder:
    """Codes the latents of one tile with the tables of one bundle. Safe to share among threads.

    Args:
        tables: content of `tables.bin`.
        implementation: `auto` (the C core where it is built), `c` or `numpy`.

    Raises:
        BundleError: unusable tables.
        ConfigError: no such implementation, or the C core is asked for and not built.
    """

    def __init__(self, tables: bytes, implementation: str = "auto") -> None:
        self.tables = Tables.from_bytes(tables)
        if implementation not in ("auto", "c", "numpy"):
            raise ConfigError(f"no entropy coder named {implementation!r}: auto, c or numpy")
        built = implementation != "numpy" and core_available()
        if implementation == "c" and not built:
            raise ConfigError("the C core is not built; install a wheel, or gcc and reinstall")
        self._impl: Implementation
        if built:
            try:
                self._impl = CoreImplementation(tables, self.tables)
            except ValueError as exc:
                raise BundleError(f"tables.bin is damaged ({exc})") from exc
        else:
            from edgecodec.format.numpy_coder import NumpyImplementation  # noqa: PLC0415

            if implementation == "auto":
                warnings.warn(NO_CORE, RuntimeWarning, stacklevel=2)  # Python shows it once
            self._impl = NumpyImplementation(self.tables)

    @property
    def implementation(self) -> str:
        """`c` or `numpy`."""
        return self._impl.name

    @property
    def latent_channels(self) -> int:
        """M."""
        return self.tables.latent_channels

    @property
    def hyper_channels(self) -> int:
        """Z."""
        return self.tables.hyper_channels

    def quantize_hyper(self, quality: int, z: Float32Array) -> Int16Array:
        """Quantize hyper-latents as the analysis gives them.

        Args:
            quality: 1..100.
            z: (zh, zw, Z) float32.

        Returns:
            (zh, zw, Z) int16 in [-127, 127].
        """
        z = _checked("z", z, np.float32, self.hyper_channels)
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = np.nan_to_num(z * self.tables.gain_z[_row(quality)], copy=False)
        clipped = np.clip(np.floor(scaled + np.float32(0.5)), -HYPER_LIMIT, HYPER_LIMIT)
        return np.ascontiguousarray(clipped, np.int16)

    def predict(self, quality: int, z: Int16Array, s: Int16Array) -> tuple[Int16Array, UInt8Array]:
        """Run the hyper-synthesis: what the decoder knows of each symbol before it reads it.

        Args:
            quality: 1..100.
            z: (zh, zw, Z) int16 in [-127, 127].
            s: (2 zh, 2 zw, M) int16 symbols; those at scale index 0 count as 0.

        Returns:
            mu (2 zh, 2 zw, M) int16 in units of 1/16, and scale index uint8 of the same shape.
        """
        _row(quality)
        z = self._checked_hyper(z)
        s = _checked("s", s, np.int16, self.latent_channels, LATENTS_PER_HYPER)
        _check_cells(z, s, "s")
        if s.min() < -SYMBOL_LIMIT or s.max() > SYMBOL_LIMIT:
            raise ConfigError(f"symbols must lie in [-{SYMBOL_LIMIT}, {SYMBOL_LIMIT}]")
        return self._impl.predict(quality, z, s)

    def quantize(
        self, quality: int, z: Int16Array, y: Float32Array, reluctance: Float32Array | None = None
    ) -> tuple[Int16Array, UInt8Array]:
        """Return symbols `round((y - mu) * gain)`, zero where the scale index is 0, and that index.

        Args:
            quality: 1..100.
            z: (zh, zw, Z) int16 in [-127, 127].
            y: (2 zh, 2 zw, M) float32 as the analysis gives it.
            reluctance: (levels, 4) float32 or None. A symbol of magnitude k and scale index i is
                lowered to k - 1 while `|y - mu| * gain < k - 1/2 + reluctance[i, min(k, 4) - 1]`:
                rate-distortion optimised quantization (see `edgecodec.coding.effort`).

        Returns:
            s (2 zh, 2 zw, M) int16 and scale index uint8 of the same shape.
        """
        _row(quality)
        z = self._checked_hyper(z)
        y = _checked("y", y, np.float32, self.latent_channels, LATENTS_PER_HYPER)
        _check_cells(z, y, "y")
        return self._impl.quantize(quality, z, y, self._thresholds(reluctance))

    def price(
        self,
        quality: int,
        z: Int16Array,
        y: Float32Array,
        reluctance: Float32Array | None = None,
        *,
        weight: float,
    ) -> Float32Array:
        """Say what quantizing y with these hyper-latents would cost, cell by cell.

        Cells share nothing, so that a choice of hyper-latents can be judged for all at once.

        Args:
            quality: 1..100.
            z: (zh, zw, Z) int16 in [-127, 127].
            y: (2 zh, 2 zw, M) float32 as the analysis gives it.
            reluctance: as in `quantize`.
            weight: bits that a squared error of one step is worth.

        Returns:
            (zh, zw) float32: bits of z and of the symbols, plus `weight` times the sum of the
            squared errors in steps. Escapes are priced roughly.
        """
        row = _row(quality)
        z = self._checked_hyper(z)
        y = _checked("y", y, np.float32, self.latent_channels, LATENTS_PER_HYPER)
        _check_cells(z, y, "y")
        cost = self._impl.price(quality, z, y, self._thresholds(reluctance), weight)
        bits = self._hyper_bits[self.tables.index_z[row], z.astype(np.int64) + HYPER_LIMIT]
        cost += bits.sum(2)
        return cost

    @lazy_property
    def _hyper_bits(self) -> Float32Array:
        """What hyper-latents cost, (levels, 255) for -127..127; escapes roughly."""
        values = np.arange(-HYPER_LIMIT, HYPER_LIMIT + 1)
        rows = [np.zeros(len(values))]
        for bits in self.tables.bits()[1:]:
            half = len(bits) // 2 - 1
            inside = bits[np.clip(values + half, 0, 2 * half)]
            rows.append(np.where(np.abs(values) <= half, inside, bits[-1] + ESCAPE_BITS))
        return np.stack(rows).astype(np.float32)

    def _thresholds(self, reluctance: Float32Array | None) -> Float32Array | None:
        if reluctance is None:
            return None
        wanted = (len(self.tables.frequencies), RELUCTANCES)
        if reluctance.shape != wanted or reluctance.dtype != np.float32:
            raise ConfigError(f"reluctance must be float32 of shape {wanted}")
        return np.require(reluctance, requirements=["C", "A", "E"])

    def _checked_hyper(self, z: Int16Array) -> Int16Array:
        z = _checked("z", z, np.int16, self.hyper_channels)
        if z.min() < -HYPER_LIMIT or z.max() > HYPER_LIMIT:
            raise ConfigError(f"hyper-latents must lie in [-{HYPER_LIMIT}, {HYPER_LIMIT}]")
        return z

    def encode(self, quality: int, z: Int16Array, index: UInt8Array, s: Int16Array) -> bytes:
        """Write one substream.

        Args:
            quality: 1..100.
            z: (zh, zw, Z) int16.
            index: (2 zh, 2 zw, M) uint8 from `quantize`.
            s: (2 zh, 2 zw, M) int16 from `quantize`.

        Raises:
            ConfigError: a symbol out of range, or not 0 where the index is 0.
        """
        _row(quality)
        z = _checked("z", z, np.int16, self.hyper_channels)
        s = _checked("s", s, np.int16, self.latent_channels, LATENTS_PER_HYPER)
        index = _checked("index", index, np.uint8, self.latent_channels, LATENTS_PER_HYPER)
        _check_cells(z, s, "s")
        _check_cells(z, index, "index")
        try:
            return self._impl.encode(quality, z, index, s)
        except ValueError as exc:
            raise ConfigError(f"symbols cannot be coded ({exc})") from exc

    def compress(self, quality: int, y: Float32Array, z: Float32Array) -> bytes:
        """Quantize what the analysis gives of one tile, and write it as a substream.

        Args:
            quality: 1..100.
            y: (2 zh, 2 zw, M) float32.
            z: (zh, zw, Z) float32.
        """
        z_hat = self.quantize_hyper(quality, z)
        s, index = self.quantize(quality, z_hat, y)
        return self.encode(quality, z_hat, index, s)

    def decode(self, quality: int, zh: int, zw: int, data: bytes) -> tuple[Int16Array, Int16Array]:
        """Read one substream.

        Args:
            quality: 1..100, from the header.
            zh: rows of hyper-latents.
            zw: columns of hyper-latents.
            data: the substream, exactly.

        Returns:
            z (zh, zw, Z) int16 and y_hat (2 zh, 2 zw, M) int16 in units of 1/16.

        Raises:
            BitstreamError: the bytes are not what an encoder with these tables wrote.
            TruncatedBitstreamError: they end too early.
        """
        _row(quality)
        if not (1 <= zh <= MAX_SIDE and 1 <= zw <= MAX_SIDE):
            raise ConfigError(f"a tile has 1 to {MAX_SIDE} hyper-latents per side, not {zh}x{zw}")
        try:
            return self._impl.decode(quality, zh, zw, bytes(data))
        except ValueError as exc:
            if str(exc) == "truncated":
                raise TruncatedBitstreamError("the compressed data end too early") from exc
            raise BitstreamError("the compressed data are damaged") from exc


def _checked(
    name: str, array: npt.NDArray[Any], dtype: type[np.generic], channels: int, factor: int = 1
) -> npt.NDArray[Any]:
    """Return an aligned array in C order; refuse other types and shapes, converting nothing."""
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise ConfigError(f"{name} must be an array of {dtype.__name__}, not {found}")
    sides = array.shape[:2]
    fits = array.ndim == 3 and array.shape[2] == channels
    if not fits or any(n < 1 or n % factor or n > MAX_SIDE * factor for n in sides):
        raise ConfigError(
            f"{name} has shape {array.shape}, expected (h, w, {channels}), "
            f"h and w from {factor} to {MAX_SIDE * factor}"
        )
    return np.require(array, requirements=["C", "A", "E"])


def _check_cells(z: npt.NDArray[Any], latents: npt.NDArray[Any], name: str) -> None:
    if latents.shape[:2] != (2 * z.shape[0], 2 * z.shape[1]):
        raise ConfigError(f"z {z.shape} and {name} {latents.shape} must agree")


def _row(quality: int) -> int:
    if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= QUALITIES:
        raise ConfigError(f"quality must be a whole number from 1 to {QUALITIES}, not {quality!r}")
    return quality - 1
