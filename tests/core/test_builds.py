"""Whatever compiles the core, and however: the same bytes, the same latents, no report.

Compilers and processors that are not here are skipped by name.
"""

from __future__ import annotations

import platform
import shutil
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from edgecodec.errors import BitstreamError, TruncatedBitstreamError
from edgecodec.format.coder import LatentCoder
from edgecodec.format.tables import Tables
from tests.core.programs import build, checksum, clang
from tests.format.test_coder_bounds import EXTREMES, STEPS, flat_tables
from tests.support.streams import Symbols, likely_tables, predicted, symbols, wild_tables

SANITIZED = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
CUT_SHORT, DAMAGED = -1, -2


@dataclass(frozen=True)
class Build:
    """A way to compile the core and to run what comes out.

    Attributes:
        compiler: names it may have; the first that is found is taken.
        flags: what it is told.
        runner: what runs the program, for another processor.
        floats: whether the encoder's rounding of floats must be the same, too. What decodes, and
            what writes symbols, uses none.
    """

    compiler: tuple[str, ...]
    flags: tuple[str, ...]
    runner: tuple[str, ...] = ()
    floats: bool = True


GCC = ("gcc", "gcc-12")
X86 = platform.machine() in ("x86_64", "AMD64")
NO_AVX2 = "-D__builtin_cpu_supports(feature)=0"
FAST = ("-O3", "-ffast-math")


def cross(name: str, compiler: str, qemu: str, library: str) -> dict[str, Build]:
    """Return a build for another processor, run in emulation."""
    names = (compiler, *(f"{compiler}-{version}" for version in range(20, 8, -1)))
    runner = (qemu, "-L", library)
    return {
        f"{name} {flag}": Build(names, (flag, "-ffp-contract=off"), runner)
        for flag in ("-O0", "-O3")
    }


BUILDS = {
    "gcc -O0": Build(GCC, ("-O0",)),
    "gcc -O3 -ffast-math": Build(GCC, FAST, floats=False),
    "gcc -O2": Build(GCC, ("-O2",)),
    "gcc -Os unsigned char": Build(GCC, ("-Os", "-funsigned-char")),
    "gcc portable": Build(GCC, ("-O3", "-DECX_NO_DISPATCH")),
    "gcc native": Build(GCC, ("-O3", "-march=native", "-ffp-contract=off")),
    "gcc sanitizers": Build(GCC, SANITIZED),
    "gcc portable sanitizers": Build(GCC, (*SANITIZED, "-DECX_NO_DISPATCH")),
    "clang -O0": Build(("clang",), ("-O0",)),
    "clang -O3 -ffast-math": Build(("clang",), FAST, floats=False),
    "clang -O2": Build(("clang",), ("-O2", "-ffp-contract=off")),
    "clang native": Build(("clang",), ("-O3", "-march=native", "-ffp-contract=off")),
    "clang sanitizers": Build(("clang",), (*SANITIZED, "-fsanitize=integer-divide-by-zero,bounds")),
    **cross("arm64", "aarch64-linux-gnu-gcc", "qemu-aarch64", "/usr/aarch64-linux-gnu"),
    **cross("s390x (big-endian)", "s390x-linux-gnu-gcc", "qemu-s390x", "/usr/s390x-linux-gnu"),
}
if X86:
    BUILDS |= {
        "gcc sse2": Build(GCC, ("-O3", NO_AVX2)),
        "gcc avx2": Build(GCC, ("-O3", "-DECX_BEST=1")),
        "gcc avx2 sanitizers": Build(GCC, (*SANITIZED, "-DECX_BEST=1")),
        "gcc avx-vnni": Build(GCC, ("-O3", "-DECX_BEST=2")),
        "gcc avx-vnni sanitizers": Build(GCC, (*SANITIZED, "-DECX_BEST=2")),
        "clang avx-vnni": Build(("clang",), ("-O3", "-DECX_BEST=2", "-ffp-contract=off")),
        "gcc sse2 sanitizers": Build(GCC, (*SANITIZED, NO_AVX2)),
        "gcc 32 bits": Build(("gcc-12", "gcc"), ("-O2", "-m32", "-msse2", "-mfpmath=sse")),
        "gcc 32 bits, x87": Build(("gcc-12", "gcc"), ("-O2", "-m32", "-mno-sse"), floats=False),
        "gcc 32 bits, sanitizers": Build(("gcc-12", "gcc"), (*SANITIZED, "-m32"), floats=False),
        "clang 32 bits": Build(("clang",), ("-O2", "-m32", "-msse2")),
        "clang sse2": Build(("clang",), ("-O3", NO_AVX2, "-ffp-contract=off")),
    }
QUICK = ("gcc -O0", "gcc -O3 -ffast-math", "gcc portable", "gcc avx2", "gcc avx-vnni")


@dataclass
class CaseFile:
    """Cases of one set of tables, and what the installed core makes of them."""

    tables: Tables
    content: bytes = b""
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        data = self.tables.to_bytes()
        self.coder = LatentCoder(data, "c")
        self.content = struct.pack("<I", len(data)) + data

    def add(self, many: Symbols, stream: bytes) -> None:
        """Add symbols to write, with floats of about their size to quantize, and a substream."""
        coder, quality, (zh, zw) = self.coder, many.quality, many.size
        rng = np.random.default_rng(len(self.lines))
        y = (many.mu / 16 + rng.normal(0, 5, many.s.shape)).astype("<f4")
        head = struct.pack("<4i", quality, zh, zw, len(stream))
        arrays = (many.z.astype("<i2"), many.s.astype("<i2"), y)
        self.content += head + b"".join(a.tobytes() for a in arrays) + stream
        mu, index = coder.predict(quality, many.z, many.s)
        data = many.encode(coder)
        words = [f"predict 0 {checksum(mu)} {checksum(index)}"]
        words += [f"encode 0 {len(data)} {checksum(np.frombuffer(data, np.uint8))}"]
        try:
            z, y_hat = coder.decode(quality, zh, zw, stream)
            words.append(f"decode 0 {checksum(z)} {checksum(y_hat)}")
        except TruncatedBitstreamError:
            words.append(f"decode {CUT_SHORT}")
        except BitstreamError:
            words.append(f"decode {DAMAGED}")
        s, level = coder.quantize(quality, many.z, y)
        words.append(f"quantize 0 {checksum(s)} {checksum(level)}")
        self.lines.append(" ".join(words))


def random_cases(tables: Tables, seed: int) -> CaseFile:
    """Ordinary and extreme symbols; substreams whole, cut short and damaged."""
    cases = CaseFile(tables)
    rng = np.random.default_rng(seed)
    for number, size in enumerate([(1, 1), (2, 3), (1, 9), (4, 4)]):
        for extremes in (0.0, 0.2):
            many = symbols(cases.coder, seed + number, 1 + 31 * number, *size, extremes)
            data = many.encode(cases.coder)
            damaged = bytearray(data)
            damaged[int(rng.integers(len(data)))] ^= 0x10
            for stream in (data, data[: len(data) // 2], bytes(damaged), data + b"\0\0"):
                cases.add(many, stream)
    return cases


@pytest.fixture(scope="module")
def case_files() -> list[CaseFile]:
    files = [
        random_cases(likely_tables(), 0),
        random_cases(likely_tables(2, 16, 32, 16, 16, 16), 9),
    ]
    files += [random_cases(wild_tables(n, 3 + n, 17, 5, 33, 2 + n, 40), n) for n in range(2)]
    for values, z_value, s_value in EXTREMES.values():  # the largest sums there are
        cases = CaseFile(flat_tables(512, **values, **STEPS))
        z, s = np.full((1, 1, 512), z_value, np.int16), np.full((2, 2, 512), s_value, np.int16)
        many = predicted(cases.coder, 100, z, s)
        cases.add(many, many.encode(cases.coder))
        files.append(cases)
    return files


def made(folder: Path, name: str) -> tuple[Path, tuple[str, ...]]:
    """Compile a build, or skip where something for it is missing."""
    what = BUILDS[name]
    compiler = next(filter(None, map(shutil.which, what.compiler)), None)
    if what.compiler == ("clang",):
        compiler = clang()
    if compiler is None:
        pytest.skip(f"no {what.compiler[0]} here")
    if what.runner and shutil.which(what.runner[0]) is None:
        pytest.skip(f"no {what.runner[0]} here")
    try:
        return build(folder, ["cases.c"], *what.flags, compiler=compiler), what.runner
    except AssertionError as exc:
        if "-m32" in what.flags and any(word in str(exc) for word in ("bits/", "skipping incomp")):
            pytest.skip(f"{compiler} has no libraries of 32 bits here")
        if "-fsanitize" in str(what.flags) and "san" in str(exc) and "cannot find" in str(exc):
            pytest.skip(f"{compiler} has no sanitizers here")
        raise


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in BUILDS],
)
def test_build_gives_the_same_bytes_and_latents(
    tmp_path: Path, case_files: list[CaseFile], name: str
) -> None:
    program, runner = made(tmp_path, name)
    for number, cases in enumerate(case_files):
        path = tmp_path / f"cases-{number}"
        path.write_bytes(cases.content)
        command = [*runner, str(program), str(path)]
        result = subprocess.run(command, capture_output=True, check=False)
        assert result.stderr == b""
        assert result.returncode == 0
        *found, packed = result.stdout.decode().splitlines()
        assert packed == "pack 0" or not BUILDS[name].floats
        if not BUILDS[name].floats:
            found, wanted = ([line.partition(" quantize")[0] for line in lines]
                             for lines in (found, cases.lines))  # fmt: skip
        else:
            wanted = cases.lines
        assert found == wanted


def test_cases_see_every_answer(case_files: list[CaseFile]) -> None:
    answers = {line.partition("decode ")[2].split()[0] for f in case_files for line in f.lines}
    assert answers == {"0", str(CUT_SHORT), str(DAMAGED)}
