"""Training photos: read from folders or tar files, kept decoded, cropped at random.

The crop of a step depends on the seed and the step number alone, so that an interrupted run
continues with exactly the crops it would have seen.
"""

from __future__ import annotations

import lzma
import os
import queue
import tarfile
import threading
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edgecodec.arrays import UInt8Array
from edgecodec.coding.image_files import decode_rgb, is_photo, is_photo_name
from edgecodec.training.synthetic import synthetic_picture


def _blobs(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for entry in sorted(p for p in path.rglob("*") if p.is_file()):
            if entry.suffix == ".tar":
                yield from _tar_blobs(entry)
            elif is_photo(entry):
                yield str(entry), _read(entry)
    else:
        yield from _tar_blobs(path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ValueError(f"{path}: cannot be read ({exc.strerror or exc})") from exc


def _tar_blobs(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.isfile() and is_photo_name(member.name):
                    handle = tar.extractfile(member)
                    if handle is not None:
                        yield f"{path}: {member.name}", handle.read()
    # The last three come from compressed tar files that are damaged.
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as exc:
        reason = " ".join(str(exc).split())
        raise ValueError(f"{path}: neither a folder nor a readable tar file ({reason})") from exc


def load_photos(paths: list[Path], min_side: int = 0) -> list[UInt8Array]:
    """Read every photo below `paths` (folders, tar files, folders of tar files).

    Args:
        paths: where to look.
        min_side: photos with a shorter side than this are left out.

    Returns:
        (H, W, 3) uint8 arrays, in the order of their names.

    Raises:
        ValueError: a path does not exist, is neither folder nor tar file, holds no photo, or a
            photo cannot be read.
    """
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder")
        if not (path.is_dir() or path.is_file()):  # a device has no end
            raise ValueError(f"{path}: neither a folder nor a tar file")
    with ThreadPoolExecutor() as pool:
        found = (item for path in paths for item in _blobs(path))
        photos = list(pool.map(lambda item: decode_rgb(item[1], item[0]), found))
    photos = [p for p in photos if min(p.shape[:2]) >= min_side]
    if not photos:
        raise ValueError(f"no photos of at least {min_side} pixels in {[str(p) for p in paths]}")
    return photos


def random_crop(photo: UInt8Array, size: int, rng: np.random.Generator) -> UInt8Array:
    """Cut a square, usually scaled down, flipped and turned at random.

    Scaling down removes the traces of earlier lossy coding and of chroma subsampling.

    Returns:
        (size, size, 3) uint8.
    """
    height, width = photo.shape[:2]
    largest = min(height, width) / size
    factor = 1.0 if rng.random() < 0.25 else float(rng.uniform(1.0, min(2.0, max(1.0, largest))))
    side = min(round(size * factor), height, width)
    top = int(rng.integers(0, height - side + 1))
    left = int(rng.integers(0, width - side + 1))
    crop = photo[top : top + side, left : left + side]
    if side != size:
        image = Image.fromarray(crop).resize((size, size), Image.Resampling.LANCZOS)
        crop = np.asarray(image)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    if rng.random() < 0.5:
        crop = crop.transpose(1, 0, 2)
    return np.ascontiguousarray(crop)


def to_images(batch: UInt8Array, device: torch.device) -> Tensor:
    """Return (N, H, W, 3) uint8 as (N, 3, H, W) float32, channels last in memory."""
    return torch.from_numpy(batch).to(device).permute(0, 3, 1, 2).float()


class CropStream:
    """Batches of random crops, prepared ahead by threads.

    Args:
        photos: (H, W, 3) uint8 arrays.
        batch: crops per step.
        size: side of a crop in pixels.
        seed: of all random choices.
        start: number of the first step.
        synthetic: share of the crops that are drawn instead of cut.
    """

    def __init__(
        self,
        photos: list[UInt8Array],
        *,
        batch: int,
        size: int,
        seed: int,
        start: int,
        synthetic: float = 0.0,
    ) -> None:
        self._photos, self._batch, self._size, self._seed = photos, batch, size, seed
        self._synthetic = synthetic
        self._pool = ThreadPoolExecutor(min(16, os.cpu_count() or 2))
        self._ready: queue.Queue[UInt8Array] = queue.Queue(maxsize=8)
        self._stop = threading.Event()
        # Large photos are drawn more often, in proportion to the square root of their area.
        weights = np.sqrt([p.shape[0] * p.shape[1] for p in photos])
        self._probabilities = weights / weights.sum()
        self._thread = threading.Thread(target=self._fill, args=(start,), daemon=True)
        self._thread.start()

    def _make(self, step: int) -> UInt8Array:
        rng = np.random.default_rng((self._seed, step))
        chosen = rng.choice(len(self._photos), self._batch, p=self._probabilities)
        drawn = rng.random(self._batch) < self._synthetic if self._synthetic else ()
        crops = [
            synthetic_picture(self._size, rng)
            if any(drawn[k : k + 1])
            else random_crop(self._photos[i], self._size, rng)
            for k, i in enumerate(chosen)
        ]
        return np.stack(crops)

    def _fill(self, step: int) -> None:
        try:
            self._deliver(step)
        except (CancelledError, RuntimeError):
            # Closed while waiting for a crop, or about to ask for another.
            if not self._stop.is_set():
                raise

    def _deliver(self, step: int) -> None:
        pending: deque[Future[UInt8Array]] = deque()
        while not self._stop.is_set():
            while len(pending) < 8:
                pending.append(self._pool.submit(self._make, step))
                step += 1
            batch = pending.popleft().result()
            while not self._stop.is_set():
                try:
                    self._ready.put(batch, timeout=0.5)
                    break
                except queue.Full:
                    continue

    def next(self) -> UInt8Array:
        """Return the next batch, (N, size, size, 3) uint8."""
        while True:
            try:
                return self._ready.get(timeout=1.0)
            except queue.Empty:
                if not self._thread.is_alive():
                    raise RuntimeError("the thread that prepares crops has died") from None

    def close(self) -> None:
        """Stop the threads."""
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
