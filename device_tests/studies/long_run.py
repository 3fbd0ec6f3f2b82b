"""Thousands of pictures in one process: does anything grow, does any result change?

    python -m edgecodec.device_tests.studies.long_run --cycles 10000

A cycle encodes a picture on one backend and decodes the file on another. The same jobs come again
and again, in rounds: small and odd pictures, some of many tiles, of all qualities, on every backend
and precision there is. Files and pixels must be those of the first round; memory, open files and
threads must stay what they were when everything had been used once. Now and then a codec is closed
and made anew, which must leave nothing behind either.

Prints a table and a verdict; 1 is returned where something grew or differed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import hashlib
import random
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecodec.bundle.reading import Bundle
from edgecodec.cli.common import check_outputs, name_list, whole_number, write_json
from edgecodec.codec import Codec
from edgecodec.device_tests.studies.large_photo import textured
from edgecodec.errors import BackendError, BundleError, EdgeCodecError
from edgecodec.runtimes.device.facts import SystemFiles, whole
from edgecodec.runtimes.device.probe import Device, probe_device
from edgecodec.runtimes.registry import backend_names
from edgecodec.text_table import align

UInt8Array = npt.NDArray[np.uint8]

SHAPES = (
    # height, width, side of a tile
    (1, 1, 1536),
    (1, 97, 1536),
    (31, 33, 1536),
    (64, 64, 1536),
    (77, 50, 32),
    (65, 63, 64),
    (100, 75, 1536),
    (128, 128, 1536),
    (120, 160, 64),
    (33, 257, 1536),
    (192, 192, 96),
    (199, 300, 1536),
    (256, 384, 128),
)
QUALITIES = (1, 10, 35, 60, 85, 100)
SAMPLES = 100
"""How often the process is looked at in a run, at most."""
WARM_UP = 0.2
"""Share of the samples that do not count: allocators and runtimes settle."""
ALLOWED_HELD = 8 << 20
"""Bytes by which the memory held may grow: less than a kilobyte per cycle in a run of 10,000."""
ALLOWED_RSS = 0.05
"""Share by which the resident memory may: it moves with what the allocator keeps in reserve."""
ALLOWED_FILES = 0
ALLOWED_THREADS = 0


@dataclass(frozen=True)
class CodingJob:
    """A cycle: what is encoded how, and who reads it.

    Attributes:
        picture: number in SHAPES.
        quality: 1 to 100.
        effort: of encoding.
        encoder: backend and precision, `onnxruntime fp32`.
        decoder: likewise.
    """

    picture: int
    quality: int
    effort: int
    encoder: str
    decoder: str


@dataclass(frozen=True)
class ProcessSample:
    """The process at one moment; None where the system does not tell.

    Attributes:
        cycles: done so far.
        seconds: from the begin of the run.
        rss_bytes: resident memory, as it was found.
        held_bytes: of that, what is no page of a file and stays when Python has collected its
            garbage and the C library returned what is free.
        files: open file descriptors.
        threads: of the process.
        blocks: of memory that Python holds.
    """

    cycles: int
    seconds: float
    rss_bytes: int | None
    held_bytes: int | None
    files: int | None
    threads: int
    blocks: int


def sample(cycles: int, seconds: float) -> ProcessSample:
    """Look at this process."""
    rss = _status("VmRSS")
    gc.collect()
    _return_free_memory()
    files = None
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            files = len(list(Path(folder).iterdir())) - 1  # without the one that lists them
            break
    return ProcessSample(
        cycles,
        seconds,
        None if rss is None else 1024 * rss,
        None if (held := _status("RssAnon")) is None else 1024 * held,
        files,
        _status("Threads") or threading.active_count(),
        sys.getallocatedblocks(),
    )


def _status(name: str) -> int | None:
    """Return a number of /proc/self/status; None where there is none."""
    for line in SystemFiles().read("/proc/self/status").splitlines():
        if line.startswith(f"{name}:"):
            return whole(line.split()[1])
    return None


def _return_free_memory() -> None:
    """Have the C library give back what it keeps in reserve, where it can."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # other than the GNU one
            ctypes.CDLL(None).malloc_trim(0)


@dataclass
class LongRun:
    """What was found.

    Attributes:
        codecs: backends and precisions that took part.
        jobs: different cycles.
        device: machine and versions.
        date: when, in UTC.
        skipped: backends and precisions that did not take part, with the reason.
        cycles: done.
        reopened: codecs that were closed and made anew.
        differences: cycles whose file or pixels were not those of the first time, or that failed.
        samples: in order.
    """

    codecs: list[str]
    jobs: int
    device: Device = field(default_factory=probe_device)
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M", time.gmtime()))
    skipped: dict[str, str] = field(default_factory=dict)
    cycles: int = 0
    reopened: int = 0
    differences: list[str] = field(default_factory=list)
    samples: list[ProcessSample] = field(default_factory=list)

    def growth(self, name: str) -> int | None:
        """Return how much more of something there was late than early, by medians.

        The samples after the warm-up count, the last quarter of them against the first.
        """
        settled = self.samples[int(len(self.samples) * WARM_UP) :]
        values = [getattr(s, name) for s in settled]
        if not values or None in values:
            return None
        quarter = max(1, len(values) // 4)
        return int(median(values[-quarter:]) - median(values[:quarter]))

    def grown(self) -> list[str]:
        """Return what grew by more than it may."""
        usual = median([s.rss_bytes or 0 for s in self.samples] or [0])
        allowed = {
            "rss_bytes": ALLOWED_RSS * usual,
            "held_bytes": ALLOWED_HELD,
            "files": ALLOWED_FILES,
            "threads": ALLOWED_THREADS,
        }
        return [name for name, most in allowed.items() if (self.growth(name) or 0) > most]

    @property
    def passed(self) -> bool:
        """Nothing grew, and every result was that of the first time."""
        return bool(self.codecs) and not self.differences and not self.grown()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-compatible values."""
        names = ("rss_bytes", "held_bytes", "files", "threads", "blocks")
        growth = {name: self.growth(name) for name in names}
        more = {"growth": growth, "grown": self.grown(), "passed": self.passed}
        return {**asdict(self), "device": self.device.to_dict(), **more}

    def text(self, rows: int = 11) -> str:
        """Return a table of some of the samples, and the verdict."""
        packages = ", ".join(f"{name} {v}" for name, v in self.device.packages.items())
        lines = [f"{self.date} UTC", self.device.text(), packages]
        lines += [f"{self.cycles} cycles of {self.jobs} jobs on {', '.join(self.codecs)}"]
        lines += [f"{name}: takes no part ({reason})" for name, reason in self.skipped.items()]
        table = [("cycles", "seconds", "RSS MB", "held MB", "files", "threads", "blocks")]
        last = len(self.samples) - 1
        shown = sorted({round(last * k / (rows - 1)) for k in range(rows)}) if last > 0 else [last]
        for s in (self.samples[k] for k in shown if k >= 0):
            files = "?" if s.files is None else str(s.files)
            memory = (_mb(s.rss_bytes), _mb(s.held_bytes))
            counts = (files, str(s.threads), str(s.blocks))
            table.append((str(s.cycles), f"{s.seconds:.0f}", *memory, *counts))
        lines += align(table, left=())
        lines.append(
            f"growth after the warm-up: {_mb(self.growth('rss_bytes'))} MB RSS, "
            f"{_mb(self.growth('held_bytes'))} MB held, "
            f"{self.growth('files')} files, {self.growth('threads')} threads; "
            f"{self.reopened} codecs made anew; {len(self.differences)} results differ"
        )
        lines += self.differences[:10]
        lines += [f"{name} grew" for name in self.grown()]
        lines.append("passed" if self.passed else "FAILED")
        return "\n".join(lines)


def _mb(value: int | None) -> str:
    return "?" if value is None else f"{value / 1e6:.1f}"


class Crew:
    """A codec of one thread for each backend and precision that works here."""

    def __init__(self, bundle: Bundle, backends: Sequence[str]) -> None:
        self._bundle = bundle
        self.codecs: dict[str, Codec] = {}
        self.skipped: dict[str, str] = {}
        for backend in backends:
            for precision in sorted({entry.precision for entry in bundle.manifest.artefacts}):
                name = f"{backend} {precision}"
                try:
                    self.codecs[name] = self._open(name)
                except (BackendError, BundleError) as exc:
                    self.skipped[name] = str(exc)

    def _open(self, name: str) -> Codec:
        backend, precision = name.split()
        codec = Codec(self._bundle, backend, precision, threads=1)
        try:
            codec.choice("analysis")
            codec.choice("synthesis")
        except EdgeCodecError:
            codec.close()
            raise
        return codec

    def reopen(self, name: str) -> None:
        """Close a codec and make it anew."""
        self.codecs.pop(name).close()
        self.codecs[name] = self._open(name)

    def close(self) -> None:
        """Close all."""
        for codec in self.codecs.values():
            codec.close()


def make_pictures() -> list[UInt8Array]:
    """Return a picture per entry of SHAPES: detail, noise, flat ones, and some in grey."""
    rng = np.random.default_rng(1)
    pictures = []
    for number, (height, width, _) in enumerate(SHAPES):
        pixels = textured(height, width)
        if number % 5 == 3:
            pixels = rng.integers(0, 256, pixels.shape, np.uint8)
        elif number % 5 == 1:
            pixels = np.full_like(pixels, 200)
        pictures.append(pixels[:, :, 0].copy() if number % 4 == 2 else pixels)
    return pictures


def make_jobs(codecs: Sequence[str]) -> list[CodingJob]:
    """Return every picture on every encoder, shuffled, always alike.

    Qualities and decoders take turns, so that each encoder meets all of them.
    """
    jobs = []
    for picture in range(len(SHAPES)):
        for number, encoder in enumerate(codecs):
            decoder = codecs[(number + picture) % len(codecs)]
            quality = QUALITIES[(number + picture) % len(QUALITIES)]
            effort = 3 if picture == 3 else 1
            jobs.append(CodingJob(picture, quality, effort, encoder, decoder))
    random.Random(0).shuffle(jobs)
    return jobs


def run_job(crew: Crew, job: CodingJob, pixels: UInt8Array) -> tuple[str, str]:
    """Encode and decode; return hashes of the file and of the pixels."""
    data = crew.codecs[job.encoder].encode(
        pixels, job.quality, effort=job.effort, tile=SHAPES[job.picture][2]
    )
    shown = np.asarray(crew.codecs[job.decoder].decode(data))
    return hashlib.sha256(data).hexdigest(), hashlib.sha256(shown.tobytes()).hexdigest()


def long_run(
    bundle: Bundle,
    cycles: int,
    backends: Sequence[str] | None = None,
    reopen: int = 100,
) -> LongRun:
    """Do the cycles.

    Args:
        bundle: the model.
        cycles: how many; the first round only sets what the others are compared with.
        backends: names; None takes all there are.
        reopen: cycles after which the next codec is closed and made anew; 0 leaves all open.
    """
    crew = Crew(bundle, backends or backend_names())
    try:
        names = list(crew.codecs)
        jobs, pictures = make_jobs(names), make_pictures()
        result = LongRun(names, len(jobs), skipped=crew.skipped)
        first: dict[CodingJob, tuple[str, str]] = {}
        begin = time.perf_counter()
        for number in range(cycles if jobs else 0):
            job = jobs[number % len(jobs)]
            try:
                found = run_job(crew, job, pictures[job.picture])
            except EdgeCodecError as exc:
                result.differences.append(f"cycle {number}, {job}: {exc}")
                continue
            expected = first.setdefault(job, found)
            for what, a, b in zip(("file", "pixels"), expected, found, strict=True):
                if a != b:
                    result.differences.append(f"cycle {number}, {job}: its {what} changed")
            result.cycles = number + 1
            if reopen and result.cycles % reopen == 0:
                crew.reopen(names[result.reopened % len(names)])
                result.reopened += 1
            if result.cycles % max(1, cycles // SAMPLES) == 0:
                result.samples.append(sample(result.cycles, time.perf_counter() - begin))
        return result
    finally:
        crew.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Thousands of pictures in one process.")
    add = parser.add_argument
    add("--cycles", type=whole_number(1, 10**9), default=10000)
    add("--backends", type=name_list, metavar="LIST", help="default: all that work here")
    add("--reopen", type=whole_number(0, 10**9), default=100, metavar="CYCLES",
        help="close a codec and make it anew this often; 0 never does (default 100)")  # fmt: skip
    add("--bundle")
    add("--json", metavar="FILE", help="write the results; - is stdout")
    args = parser.parse_args(argv)
    check_outputs({"--json": args.json})
    with Bundle(args.bundle) as bundle:
        result = long_run(bundle, args.cycles, args.backends, args.reopen)
    print(result.text(), file=sys.stderr if args.json == "-" else sys.stdout)
    if args.json:
        write_json(args.json, result.to_dict())
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main())
