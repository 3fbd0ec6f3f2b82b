"""Smoke test of robustness: damaged, foreign and boastful files are refused, by one kind of error.

    edgecodec device-test

A few golden files are cut short and have bits flipped, with checksums that then are wrong and with
checksums that are right again; a file of another model and one that claims to be huge are offered.
Nothing but BitstreamError may come of it, and at once. It shows that the core built for this device
checks what it reads; finding new faults is what fuzzing is for.
"""

from __future__ import annotations

import random
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgecodec.bundle.reading import Bundle
from edgecodec.codec import Codec
from edgecodec.device_tests.conformance.kit import KIT, kit_model
from edgecodec.device_tests.conformance.matrix import open_backends
from edgecodec.errors import BitstreamError, BundleError, EdgeCodecError, ModelMismatchError
from edgecodec.format.container import MAX_SIDE, read_container, write_container

FILES = 4
CUTS, FLIPS, REPAIRED = 8, 16, 16
"""Of each file: places to cut, bits to flip, and bits to flip with checksums made right."""
AT_ONCE_S = 2.0
"""How long refusing a file that claims to be huge may take on the slowest of boards."""
_SIZE = slice(20, 24)  # width and height, 4 bytes into the header's payload
_HEAD = slice(8, 34)  # kind, length and payload, before their checksum
Read = Callable[[bytes], object]


@dataclass
class RobustnessReport:
    """What was found.

    Attributes:
        checks: how many files were offered, by what was wrong with them.
        problems: one line each.
        skipped: why nothing could be checked; empty where it was.
    """

    checks: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    skipped: str = ""

    @property
    def passed(self) -> bool:
        """Everything was refused as it should, and something was offered."""
        return bool(self.checks) and not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-compatible values."""
        return {**asdict(self), "passed": self.passed}

    def text(self) -> str:
        """Return what was offered, the problems, and the outcome."""
        offered = ", ".join(f"{count} {what}" for what, count in self.checks.items())
        lines = [f"robustness: {offered or f'nothing checked ({self.skipped})'}", *self.problems]
        return "\n".join([*lines, f"robustness {'passed' if self.passed else 'FAILED'}"])


def check_robustness(threads: int | None = None) -> RobustnessReport:
    """Offer damaged files to the first backend that works here.

    Args:
        threads: for the runtimes; None leaves it to them.

    Raises:
        BundleError: the kit's model is damaged.
    """
    report = RobustnessReport()
    with ExitStack() as stack:
        bundle = stack.enter_context(Bundle(kit_model()))
        here = open_backends(bundle, stack, None, threads, stages=("synthesis",))
        if not here.decoders:
            report.skipped = "no backend works"
            return report
        read = next(iter(here.decoders.values())).decode
        files = sorted(KIT.glob("*.ecx"))
        chosen = [path.read_bytes() for path in files[:: max(1, len(files) // FILES)]][:FILES]
        source = random.Random(1)  # the same on every device
        for data in chosen:
            _damage(data, read, source, report)
        _claim_to_be_huge(chosen[0], read, report)
        shipped = stack.enter_context(Bundle())
        foreign = stack.enter_context(Codec(shipped))
        _offer(report, "of another model", chosen[0], foreign.decode, ModelMismatchError)
    _cut_a_bundle(kit_model(), report)
    return report


def _damage(data: bytes, read: Read, source: random.Random, report: RobustnessReport) -> None:
    for _ in range(CUTS):
        _offer(report, "cut short", data[: source.randrange(len(data))], read)
    for _ in range(FLIPS):
        _offer(report, "with a bit flipped", _flipped(data, source), read)
    file = read_container(data)
    for _ in range(REPAIRED):
        parts = [substream or b"" for substream in file.substreams]
        which = source.randrange(len(parts))
        parts[which] = _flipped(parts[which], source)
        lying = write_container(file.header, parts, file.metadata)
        # Any picture will do, since the checksum vouches for it.
        _offer(report, "damaged before their checksum", lying, read, may_pass=True)


def _claim_to_be_huge(data: bytes, read: Read, report: RobustnessReport) -> None:
    """Offer files of a few bytes whose headers name more pixels than are allowed, or just so many.

    The tiles that a picture of that size needs are not there.
    """
    for width, height in ((MAX_SIDE, MAX_SIDE), (MAX_SIDE, 8192), (22000, 24000)):
        lying = bytearray(data)
        lying[_SIZE] = struct.pack("<HH", width, height)
        lying[_HEAD.stop : _HEAD.stop + 4] = struct.pack("<I", zlib.crc32(lying[_HEAD]))
        started = time.monotonic()
        _offer(report, "claiming to be huge", bytes(lying), read)
        taken = time.monotonic() - started
        if taken > AT_ONCE_S:
            report.problems.append(
                f"refusing a file that claims {width}x{height} pixels took {taken:.1f} s"
            )


def _cut_a_bundle(model: Path, report: RobustnessReport) -> None:
    with tempfile.TemporaryDirectory(prefix="edgecodec-") as folder:
        path = Path(folder) / model.name
        path.write_bytes(model.read_bytes()[:-1000])
        _offer(report, "bundle cut short", b"", lambda _: Bundle(path).close(), BundleError)


def _offer(
    report: RobustnessReport,
    what: str,
    data: bytes,
    read: Read,
    expected: type[EdgeCodecError] = BitstreamError,
    may_pass: bool = False,
) -> None:
    """Read a file that ought to be refused, and note what else became of it."""
    report.checks[what] = report.checks.get(what, 0) + 1
    try:
        read(data)
    except expected:
        return
    except Exception as exc:  # what must not be, whatever it is
        report.problems.append(f"file {what}: {type(exc).__name__} ({exc})")
    else:
        if not may_pass:
            report.problems.append(f"file {what}: was read as if nothing were wrong")


def _flipped(data: bytes, source: random.Random) -> bytes:
    """Return data with one bit changed."""
    changed = bytearray(data)
    for place in _places(len(changed), source):
        changed[place] ^= 1 << source.randrange(8)
    return bytes(changed)


def _places(length: int, source: random.Random) -> Iterable[int]:
    return (source.randrange(length),) if length else ()
