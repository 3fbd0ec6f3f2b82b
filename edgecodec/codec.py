"""The codec: photo -> bytes -> photo, on any backend.

    encode: pad -> g_a, h_a (backend) -> quantize -> entropy coder (integers) -> container
    decode: container -> entropy coder (integers) -> latents -> g_s (backend) -> crop

Only the two network calls differ between backends. Latents are integers and the same everywhere.
"""

from __future__ import annotations

import operator
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from edgecodec.bundle import Bundle, bundle_with_tables
from edgecodec.container import (
    MAX_TILE,
    ContainerFile,
    Header,
    Tile,
    read_container,
    read_header,
    write_container,
)
from edgecodec.effort import PLANS, decide
from edgecodec.entropy import LatentCoder
from edgecodec.errors import (
    BitstreamError,
    BundleError,
    ConfigError,
    EdgeCodecError,
    ModelMismatchError,
)
from edgecodec.tiling import Window, read_padded, window_of

if TYPE_CHECKING:
    from PIL import Image

    from edgecodec.runtimes.base import Session, StageName
    from edgecodec.runtimes.select import Choice

Int16Array = npt.NDArray[np.int16]
UInt8Array = npt.NDArray[np.uint8]
_Scalar = TypeVar("_Scalar", bound=np.generic)

DEFAULT_QUALITY = 60
DEFAULT_TILE = 1536
"""Side of a tile in pixels: one tile for small photos, bounded work space for large ones."""


class Profile:
    """Seconds spent per stage, added up over calls. Not to be shared among threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of a block to a stage."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - begin
            self.seconds[name] = self.seconds.get(name, 0.0) + spent


class Codec:
    """A model and a backend, loaded once and used many times, from many threads.

    Args:
        bundle: folder or zip file of a bundle, the name of an embedded one, or an open Bundle.
            None encodes with the default one and decodes with whichever embedded one a file names.
        backend: `auto` measures what is here; a name takes that backend or fails.
        precision: `auto`, `fp32`, `fp16` or `int8`.
        threads: worker threads of the runtime; None leaves the choice to it.
        entropy_coder: `auto` (the C core where it is built), `c` or `numpy`.
        embedded: folder of the embedded bundles; None is that of the package.

    Raises:
        BundleError: the bundle is damaged or missing, or no embedded one has that name.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle | None = None,
        backend: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        *,
        entropy_coder: str = "auto",
        embedded: Path | None = None,
    ) -> None:
        if threads is not None:
            threads = _whole("threads", threads, 1, 1024)
        self._owns_bundle = not isinstance(bundle, Bundle)
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle, embedded=embedded)
        self.backend, self.precision, self.threads = backend, precision, threads
        self._any_embedded, self._embedded = bundle is None, embedded
        self._entropy_coder = entropy_coder
        try:
            self.coder = self._load_coder(entropy_coder)
        except EdgeCodecError:
            self._close_bundle()
            raise
        self._lock = threading.Lock()
        self._closed = False
        self._sessions: dict[str, tuple[Session, Choice]] = {}
        self._others: dict[str, Codec] = {}

    def _load_coder(self, implementation: str) -> LatentCoder:
        m, coder = self.bundle.manifest, LatentCoder(self.bundle.tables(), implementation)
        if (coder.latent_channels, coder.hyper_channels) != (m.latent_channels, m.hyper_channels):
            raise BundleError(f"{self.bundle.path}: manifest and tables disagree about channels")
        return coder

    def _close_bundle(self) -> None:
        if self._owns_bundle:
            self.bundle.close()

    def _open(self, stage: StageName) -> tuple[Session, Choice]:
        with self._lock:
            if self._closed:
                raise ConfigError("the codec is closed; make a new one")
            if stage not in self._sessions:
                from edgecodec.runtimes.select import open_stage  # noqa: PLC0415 - heavy

                self._sessions[stage] = open_stage(
                    self.bundle, stage, self.backend, self.precision, self.threads
                )
            return self._sessions[stage]

    def choice(self, stage: StageName) -> Choice:
        """Return which backend and precision runs a stage, opening it where needed.

        Raises:
            BackendError: none works; says what was tried.
        """
        return self._open(stage)[1]

    def run_stage(
        self, stage: StageName, inputs: dict[str, npt.NDArray[np.float32]]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Run one network alone; names and shapes as in `edgecodec.runtimes.base`.

        Raises:
            BackendError: the runtime failed or an input does not fit.
        """
        return self._open(stage)[0].run(inputs)

    def close(self) -> None:
        """Release sessions and unpacked files; a Bundle that was passed in stays open."""
        with self._lock:
            self._closed = True
            for session, _ in self._sessions.values():
                session.close()
            self._sessions.clear()
            for other in self._others.values():
                other.close()
            self._others.clear()
        self._close_bundle()

    def __enter__(self) -> Codec:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- encoding ---------------------------------------------------------------------------

    def encode(
        self,
        image: Image.Image | npt.NDArray[Any],
        quality: int = DEFAULT_QUALITY,
        *,
        effort: int = 1,
        tile: int = DEFAULT_TILE,
        profile: Profile | None = None,
    ) -> bytes:
        """Compress a picture.

        Args:
            image: a Pillow image, or (H, W, 3) or (H, W) uint8.
            quality: 1 (smallest) to 100.
            effort: 1 is the plain fast path; up to 9 spend more time on smaller files. Decoding
                is the same.
            tile: side in pixels of what is coded independently, a multiple of 32 up to 4096.
            profile: collects the time of each stage.

        Returns:
            the bytes of an `.ecx` file. Encoders on different backends may differ in a few
            symbols; every file decodes to the same latents everywhere.

        Raises:
            ConfigError: quality, tile or image out of range.
            BackendError: the runtime failed.
        """
        from edgecodec.image import to_picture  # noqa: PLC0415 - Pillow only where pixels are

        quality = _whole("quality", quality, 1, 100)
        effort = _whole("effort", effort, 1, max(PLANS))
        if (tile := _whole("tile", tile, 32, MAX_TILE)) % 32:
            raise ConfigError(f"tile must be a multiple of 32, not {tile}")
        profile = profile or Profile()
        picture = to_picture(image)
        height, width = picture.pixels.shape[:2]
        header = Header(width, height, picture.mode, quality, tile, self.bundle.manifest.tables_id)
        self._open("analysis")  # so that loading it counts as no stage
        if effort > 1:
            self._open("synthesis")
        substreams = [
            self._encode_tile(picture.pixels, header, part, effort, profile)
            for part in header.tiles()
        ]
        return write_container(header, substreams, picture.metadata)

    def _encode_tile(
        self, pixels: UInt8Array, header: Header, tile: Tile, effort: int, profile: Profile
    ) -> bytes:
        m = self.bundle.manifest
        with profile.stage("pixels in"):
            window = window_of(tile, m.analysis_halo, *header.padded)
            x = read_padded(pixels, window)
        with profile.stage("analysis"):
            out = self.run_stage("analysis", {"x": x})
        top, left = window.inner_top, window.inner_left
        if effort == 1:
            with profile.stage("entropy coding"):
                y = _cut(out["y"][0], top, left, tile, m.latent_stride)
                z = _cut(out["z"][0], top, left, tile, m.hyper_stride)
                return self.coder.compress(header.quality, y, z)
        y, z = out["y"][0], out["z"][0]
        if max(window.height, window.width) > MAX_TILE:  # more than the coder takes at once
            y = _cut(y, top, left, tile, m.latent_stride)
            z = _cut(z, top, left, tile, m.hyper_stride)
            top = left = 0
        with profile.stage("optimisation"):
            # With the halo where possible, as the errors of neighbours count.
            choice = decide(self.coder, header.quality, y, z, effort, self._reanalyse)
        with profile.stage("entropy coding"):
            y = np.ascontiguousarray(_cut(choice.y, top, left, tile, m.latent_stride))
            z_hat = np.ascontiguousarray(_cut(choice.z, top, left, tile, m.hyper_stride))
            s, index = self.coder.quantize(header.quality, z_hat, y, choice.reluctance)
            return self.coder.encode(header.quality, z_hat, index, s)

    def _reanalyse(self, y_hat: Int16Array) -> npt.NDArray[np.float32]:
        """Return the y of the picture that y_hat decodes to, both (h, w, M)."""
        shown = self.run_stage("synthesis", {"y_hat": y_hat[None].astype(np.float32)})["x_hat"]
        x = np.floor(np.clip(shown + np.float32(0.5), 0, 255))
        y: npt.NDArray[np.float32] = self.run_stage("analysis", {"x": x})["y"][0]
        return y

    # -- decoding ---------------------------------------------------------------------------

    def for_file(self, data: bytes) -> Codec:
        """Return the codec that `decode` uses for a file.

        Args:
            data: the bytes of an `.ecx` file.

        Returns:
            this codec; or where no bundle was asked for and an embedded one other than the
            default has the tables that the file names, one with that bundle and the same options,
            which is made once and closed with this one.

        Raises:
            BitstreamError: not an `.ecx` file, or its header is damaged.
            BundleError: the embedded bundle is damaged.
        """
        wanted = read_header(_as_bytes(data)).tables_id
        if not self._any_embedded or wanted == self.bundle.manifest.tables_id:
            return self
        with self._lock:
            if self._closed:
                raise ConfigError("the codec is closed; make a new one")
            if wanted not in self._others:
                path = bundle_with_tables(wanted, self._embedded)
                if path is None:
                    return self  # which refuses the file, naming both
                self._others[wanted] = Codec(
                    path,
                    self.backend,
                    self.precision,
                    self.threads,
                    entropy_coder=self._entropy_coder,
                )
            return self._others[wanted]

    def decode(
        self, data: bytes, *, keep_going: bool = False, profile: Profile | None = None
    ) -> Image.Image:
        """Decompress a file.

        Args:
            data: the bytes of an `.ecx` file.
            keep_going: show a damaged tile as flat grey instead of refusing the file; the
                numbers of such tiles, from 1, are in `image.info["damaged_tiles"]`.
            profile: collects the time of each stage.

        Returns:
            an RGB or L image with its metadata in `info`.

        Raises:
            BitstreamError: not an intact `.ecx` file of this model, or of an embedded one.
            BackendError: the runtime failed.
        """
        from edgecodec.image import from_pixels  # noqa: PLC0415

        if (other := self.for_file(data)) is not self:
            return other.decode(data, keep_going=keep_going, profile=profile)
        profile = profile or Profile()
        with profile.stage("entropy decoding"):
            file, latents, intact = self._latents(data, keep_going)
        header = file.header
        self._open("synthesis")  # so that loading it counts as no stage
        pixels = np.full((header.height, header.width, 3), 128, np.uint8)
        lost = None
        if len(intact) < header.tile_count:
            lost = np.ones(latents.shape[:2], bool)
            for number in intact:
                area = _latent_area(header.tile_at(number), self.bundle.manifest.latent_stride)
                lost[area] = False
        for number in intact:
            self._decode_tile(latents, lost, header, header.tile_at(number), pixels, profile)
        image = from_pixels(pixels, header.mode, file.metadata)
        if lost is not None:
            damaged = sorted(set(range(header.tile_count)).difference(intact))
            image.info["damaged_tiles"] = [number + 1 for number in damaged]
        return image

    def decode_latents(self, data: bytes) -> Int16Array:
        """Return the latents of a file: integers, identical on every device.

        Args:
            data: the bytes of an `.ecx` file.

        Returns:
            (h, w, M) int16 in units of 1/16, for the padded image.

        Raises:
            BitstreamError: not an intact `.ecx` file of this model, or of an embedded one.
        """
        return self.for_file(data)._latents(data, keep_going=False)[1]

    def _latents(
        self, data: bytes, keep_going: bool
    ) -> tuple[ContainerFile, Int16Array, list[int]]:
        """Return a file, its latents, and the numbers of the tiles that are intact, ascending.

        What a header claims costs nothing until the first tile has decoded.
        """
        file = read_container(_as_bytes(data), keep_going=keep_going)
        header, m = file.header, self.bundle.manifest
        if header.tables_id != m.tables_id:
            raise ModelMismatchError(header.tables_id, m.tables_id)
        height, width = header.padded
        latents: Int16Array | None = None
        intact = []
        for number, substream in enumerate(file.substreams):
            if substream is None:
                continue
            tile = header.tile_at(number)
            zh, zw = tile.height // m.hyper_stride, tile.width // m.hyper_stride
            try:
                _, y_hat = self.coder.decode(header.quality, zh, zw, substream)
            except BitstreamError:
                if not keep_going:
                    raise
                continue
            if latents is None:
                shape = (height // m.latent_stride, width // m.latent_stride, m.latent_channels)
                latents = np.zeros(shape, np.int16)
            latents[_latent_area(tile, m.latent_stride)] = y_hat
            intact.append(number)
        if latents is None:
            raise BitstreamError("no tile of the file is intact")
        return file, latents, intact

    def _decode_tile(
        self,
        latents: Int16Array,
        lost: npt.NDArray[np.bool_] | None,
        header: Header,
        tile: Tile,
        pixels: UInt8Array,
        profile: Profile,
    ) -> None:
        m = self.bundle.manifest
        window = window_of(tile, m.synthesis_halo, *header.padded, m.latent_stride)
        part = latents[window.slices()]
        if lost is not None:
            part = _without(latents, lost, window, tile, m.latent_stride)
        with profile.stage("synthesis"):
            y_hat = part[None].astype(np.float32)
            x_hat = self.run_stage("synthesis", {"y_hat": y_hat})["x_hat"][0]
        with profile.stage("pixels out"):
            top, left = (n * m.latent_stride for n in (window.inner_top, window.inner_left))
            levels = _cut(x_hat, top, left, tile, 1)
            bottom = min(tile.top + tile.height, header.height)
            right = min(tile.left + tile.width, header.width)
            levels = levels[: bottom - tile.top, : right - tile.left]
            # In place: the array is ours, and memory traffic is what this step costs.
            np.add(levels, np.float32(0.5), out=levels)
            np.clip(levels, 0, 255, out=levels)
            pixels[tile.top : bottom, tile.left : right] = levels.astype(np.uint8)


def _whole(name: str, value: Any, low: int, high: int) -> int:
    """Return a whole number, NumPy's included, or say what is wrong with it."""
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or not low <= number <= high:
        raise ConfigError(f"{name} must be a whole number from {low} to {high}, not {value!r}")
    return number


def _as_bytes(data: Any) -> bytes:
    try:
        return data if isinstance(data, bytes) else bytes(memoryview(data))
    except TypeError as exc:
        raise ConfigError(f"a file is given as bytes, not {type(data).__name__}") from exc


def _cut(
    array: npt.NDArray[_Scalar], top: int, left: int, tile: Tile, stride: int
) -> npt.NDArray[_Scalar]:
    """Cut a tile out of what a network made of its window.

    Args:
        array: (h, w, C), `stride` pixels per position.
        top: first row of the tile within the window, in pixels.
        left: first column of the tile within the window, in pixels.
        tile: in pixels.
        stride: pixels per position.
    """
    rows, columns = top // stride, left // stride
    return array[rows : rows + tile.height // stride, columns : columns + tile.width // stride]


def _latent_area(tile: Tile, stride: int) -> tuple[slice, slice]:
    return (
        slice(tile.top // stride, (tile.top + tile.height) // stride),
        slice(tile.left // stride, (tile.left + tile.width) // stride),
    )


def _without(
    latents: Int16Array, lost: npt.NDArray[np.bool_], window: Window, tile: Tile, stride: int
) -> Int16Array:
    """Return a window in which lost neighbours are replaced by the tile's own nearest latents."""
    rows, columns = window.slices()
    own_rows, own_columns = _latent_area(tile, stride)
    near_rows = np.clip(np.arange(rows.start, rows.stop), own_rows.start, own_rows.stop - 1)
    near_columns = np.clip(
        np.arange(columns.start, columns.stop), own_columns.start, own_columns.stop - 1
    )
    gone = lost[rows, columns, None]
    return np.where(gone, latents[near_rows[:, None], near_columns], latents[rows, columns])


_default: dict[str, Codec] = {}
_default_lock = threading.Lock()


def default_codec() -> Codec:
    """Return the codec with the shipped model and automatic choices, made on first use."""
    with _default_lock:
        if "codec" not in _default:
            _default["codec"] = Codec()
        return _default["codec"]


def encode(
    image: Image.Image | npt.NDArray[Any], quality: int = DEFAULT_QUALITY, *, effort: int = 1
) -> bytes:
    """Compress a picture with the shipped model; see `Codec.encode`."""
    return default_codec().encode(image, quality, effort=effort)


def decode(data: bytes) -> Image.Image:
    """Decompress a file made with any embedded model; see `Codec.decode`."""
    return default_codec().decode(data)
