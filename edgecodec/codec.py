"""The codec: photo -> bytes -> photo, on any backend.

    encode: pad -> g_a, h_a (backend) -> quantize -> entropy coder (integers) -> container
    decode: container -> entropy coder (integers) -> latents -> g_s (backend) -> crop

Only the two network calls differ between backends. Latents are integers and the same everywhere.
"""

from __future__ import annotations

import operator
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgecodec.bundle.embedded import bundles_with_tables, embedded_bundles
from edgecodec.bundle.reading import Bundle
from edgecodec.coding.decoder import TileDecoder
from edgecodec.coding.effort import PLANS
from edgecodec.coding.encoder import TileEncoder
from edgecodec.coding.layout import Layout
from edgecodec.coding.profiling import Profile, stage
from edgecodec.coding.spare_memory import SpareMemory
from edgecodec.errors import (
    CODEC_CLOSED,
    BundleError,
    ConfigError,
    EdgeCodecError,
    ModelMismatchError,
)
from edgecodec.format.coder import LatentCoder
from edgecodec.format.container import (
    MAX_TILE,
    ContainerFile,
    Header,
    read_container,
    read_header,
    write_container,
)

if TYPE_CHECKING:
    from PIL import Image

    from edgecodec.runtimes.base import StageName
    from edgecodec.runtimes.selection.choice import Choice
    from edgecodec.runtimes.selection.stage_runner import StageRunner

Int16Array = npt.NDArray[np.int16]
UInt8Array = npt.NDArray[np.uint8]

DEFAULT_QUALITY = 60


class Codec:
    """A model and a backend, loaded once and used many times, from many threads.

    Args:
        bundle: folder or zip file of a bundle, the name of an embedded one, or an open Bundle.
            None encodes with the default one and decodes with whichever embedded one a file names.
        backend: `auto` measures what is here; a name takes that backend or fails.
        precision: `auto`, `fp32`, `fp16`, `bf16` or `int8`.
        threads: worker threads of the runtime; None measures with `auto`, and leaves the choice
            to a backend that is named.
        entropy_coder: `auto` (the C core where it is built), `c` or `numpy`.

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
    ) -> None:
        if threads is not None:
            threads = _whole("threads", threads, 1, 1024)
        self._owns_bundle = not isinstance(bundle, Bundle)
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
        self.backend, self.precision, self.threads = backend, precision, threads
        self._any_embedded = bundle is None
        self._entropy_coder = entropy_coder
        try:
            self.coder = self._load_coder(entropy_coder)
        except EdgeCodecError:
            self._close_bundle()
            raise
        self._lock = threading.Lock()
        self._closed = False
        self._runners: dict[str, StageRunner] = {}
        self._others: dict[str, Codec] = {}
        self._memory = SpareMemory()

    def _load_coder(self, implementation: str) -> LatentCoder:
        m, coder = self.bundle.manifest, LatentCoder(self.bundle.tables(), implementation)
        if (coder.latent_channels, coder.hyper_channels) != (m.latent_channels, m.hyper_channels):
            raise BundleError(f"{self.bundle.path}: manifest and tables disagree about channels")
        return coder

    def _close_bundle(self) -> None:
        if self._owns_bundle:
            self.bundle.close()

    def _runner(self, stage: StageName) -> StageRunner:
        with self._lock:
            if self._closed:
                raise ConfigError(CODEC_CLOSED)
            if stage not in self._runners:
                from edgecodec.runtimes.selection.stage_runner import StageRunner  # noqa: PLC0415 - heavy

                self._runners[stage] = StageRunner(
                    self.bundle, stage, self.backend, self.precision, self.threads
                )
            return self._runners[stage]

    def choice(self, stage: StageName, size: tuple[int, int] | None = None) -> Choice:
        """Return what runs a stage, opening it if needed.

        Args:
            stage: which network.
            size: height and width in pixels of a picture to come; None takes what ran last, or
                what would run a picture of 768 x 512.

        Raises:
            BackendError: none works; says what was tried.
        """
        return self._runner(stage).open(size and self.layout(*size).network_size(stage))

    def layout(self, height: int, width: int, tile: int | None = None) -> Layout:
        """Return how a picture is cut: its tiles, and what the networks get of it.

        Args:
            height: of the picture, in pixels.
            width: likewise.
            tile: side of its tiles; None is what `encode` takes by itself.
        """
        return Layout.of(height, width, tile, self.bundle.manifest)

    def run_stage(
        self,
        stage: StageName,
        inputs: dict[str, npt.NDArray[np.float32]],
        size: tuple[int, int] | None = None,
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Run one network alone; names and shapes as in `edgecodec.runtimes.base`, x_hat as pixels.

        With the backend left open, one that fails gives way to the next, with a warning.

        Args:
            stage: which network.
            inputs: what it takes.
            size: height and width in pixels of the pictures it is chosen for; None keeps to
                what `choice` says.

        Raises:
            BackendError: the runtime failed or an input does not fit.
        """
        return self._runner(stage).run(inputs, size)

    def _open(self, stages: tuple[StageName, ...], size: tuple[int, int]) -> None:
        """Load what a picture needs, so that loading is in no stage's time."""
        for name in stages:
            self._runner(name).open(size)

    def close(self) -> None:
        """Release sessions and unpacked files; a Bundle that was passed in stays open."""
        with self._lock:
            self._closed = True
            for runner in self._runners.values():
                runner.close()
            self._runners.clear()
            for other in self._others.values():
                other.close()
            self._others.clear()
        self._memory.close()
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
        tile: int | None = None,
        profile: Profile | None = None,
    ) -> bytes:
        """Compress a picture.

        Args:
            image: a Pillow image, or (H, W, 3) or (H, W) uint8; not to be changed meanwhile.
            quality: 1 (smallest) to 100; 60 unless told.
            effort: 1 is the plain fast path; up to 9 spend more time on smaller files. Decoding
                is the same.
            tile: side in pixels of what is coded independently, a multiple of 32 up to 4096; None
                takes one tile for pictures of up to 1.5 megapixels, else 1024.
            profile: collects the time of each stage.

        Returns:
            the bytes of an `.ecx` file. Encoders on different backends may differ in a few
            symbols; every file decodes to the same latents everywhere.

        Raises:
            ConfigError: quality, tile or image out of range.
            BackendError: the runtime failed.
        """
        from edgecodec.coding.pictures import to_picture  # noqa: PLC0415 - Pillow only where pixels are

        quality = _whole("quality", quality, 1, 100)
        effort = _whole("effort", effort, 1, max(PLANS))
        if tile is not None and (tile := _whole("tile", tile, 32, MAX_TILE)) % 32:
            raise ConfigError(f"tile must be a multiple of 32, not {tile}")
        with stage(profile, "read"):
            picture = to_picture(image)
        height, width = picture.pixels.shape[:2]
        layout = self.layout(height, width, tile)
        size = layout.network_size("analysis")  # at higher efforts that of its synthesis, too
        self._open(("analysis", "synthesis") if effort > 1 else ("analysis",), size)
        run_stage = partial(self.run_stage, size=size)
        encoder = TileEncoder(self.coder, run_stage, layout, quality, effort, profile)
        substreams = encoder.encode(picture.pixels)
        tables_id = self.bundle.manifest.tables_id
        header = Header(width, height, picture.mode, quality, layout.tile, tables_id)
        with stage(profile, "write"):
            return write_container(header, substreams, picture.metadata)

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
                raise ConfigError(CODEC_CLOSED)
            if wanted not in self._others:
                names = bundles_with_tables(wanted)
                if not names:
                    return self  # which refuses the file, naming both
                self._others[wanted] = Codec(
                    embedded_bundles()[next(iter(names))],
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
            an RGB or L image with its metadata in `info`. With Pillow 13 and later an RGB one has
            its pixels where they were decoded to, and is read-only to the pixel access of
            `image.load()`; all else copies it when it writes, and so does `image.copy()`.

        Raises:
            BitstreamError: not an intact `.ecx` file of this model, or of an embedded one.
            BackendError: the runtime failed.
        """
        from edgecodec.coding.pictures import from_samples  # noqa: PLC0415

        if (other := self.for_file(data)) is not self:
            return other.decode(data, keep_going=keep_going, profile=profile)
        file, decoder = self._decoder(data, keep_going, profile)
        size = decoder.layout.network_size("synthesis")
        self._open(("synthesis",), size)
        lend = partial(self._runner("synthesis").lend, size=size)
        pixels = decoder.pixels(lend)
        with stage(profile, "pack"):
            image = from_samples(pixels, file.header.mode, file.metadata)
        if decoder.damaged:
            image.info["damaged_tiles"] = [number + 1 for number in sorted(decoder.damaged)]
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
        return self.for_file(data)._decoder(data, keep_going=False)[1].latents()

    def _decoder(
        self, data: bytes, keep_going: bool, profile: Profile | None = None
    ) -> tuple[ContainerFile, TileDecoder]:
        with stage(profile, "parse"):
            file = read_container(_as_bytes(data), keep_going=keep_going)
        header, own = file.header, self.bundle.manifest.tables_id
        if header.tables_id != own:
            raise ModelMismatchError(header.tables_id, own)
        layout = self.layout(header.height, header.width, header.tile)
        decoder = TileDecoder(
            self.coder, file, layout, self._memory, keep_going=keep_going, profile=profile
        )
        return file, decoder


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
    """Compress a picture with the shipped model, on the backend that `auto` chooses.

    Args:
        image: a Pillow image, or (H, W, 3) or (H, W) uint8.
        quality: 1 (smallest) to 100; 60 unless told.
        effort: 1 (fast) to 9 (fewest bits at equal quality).

    Returns:
        the bytes of an `.ecx` file.

    Raises:
        ConfigError: quality, effort or image out of range.
        BackendError: no runtime worked.
    """
    return default_codec().encode(image, quality, effort=effort)


def decode(data: bytes) -> Image.Image:
    """Decompress a file made with any shipped model, on the backend that `auto` chooses.

    Args:
        data: the bytes of an `.ecx` file.

    Returns:
        an RGB or L image with its metadata in `info`.

    Raises:
        BitstreamError: not an intact `.ecx` file of a shipped model.
        BackendError: no runtime worked.
    """
    return default_codec().decode(data)
