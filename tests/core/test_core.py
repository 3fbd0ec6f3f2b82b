"""The C core alone, as a phone app links it: what it needs, computes, and never does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgecodec.format.coder import LatentCoder
from edgecodec.format.tables import HYPER_LIMIT, MAX_SIDE, RELUCTANCES, SYMBOL_LIMIT, Tables
from tests.core.fuzz import SANITIZERS, TARGET, write_seeds
from tests.core.programs import CORE, build, checksum, clang
from tests.support.streams import likely_tables, symbols

GCC = shutil.which("gcc")
STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic", "-Wconversion", "-Wsign-conversion")
needs_gcc = pytest.mark.skipif(GCC is None, reason="no gcc here")


def largest_tables() -> Tables:
    """As many channels as there may be, all weights and biases at their ends, all of one sign."""
    small = likely_tables()
    m = z = h = f = c = 512

    def full(shape: tuple[int, ...], value: int, kind: str) -> npt.NDArray[np.generic]:
        return np.full(shape, value, kind)

    bias = 1 << 23
    arrays = {
        "w1": full((h, z), -128, "i1"),
        "w2": full((4 * f, h), -128, "i1"),
        "c1": full((c, m), -128, "i1"),
        "c2": full((c, 2 * m), -128, "i1"),
        "c3": full((c, 3 * m), -128, "i1"),
        "w3": full((2 * m, f + c), -128, "i1"),
        "b1": full((100, h), bias, "i4"),
        "b2": full((4 * f,), bias, "i4"),
        "bc": full((3, c), bias, "i4"),
        "b3": full((m,), -bias, "i4"),
        "index_bias": full((100, m), bias, "i4"),
        "step_y": full((100, m), 131071, "i4"),
        "step_z": full((100, z), 32767, "i4"),
        "index_z": full((100, z), 63, "u1"),
        "gain_z": full((100, z), 1, "f4"),
    }
    return Tables(frequencies=small.frequencies, **arrays)  # type: ignore[arg-type]


@needs_gcc
@pytest.mark.parametrize("flags", [("-O2",), ("-O1", "-DECX_NO_DISPATCH")], ids=" ".join)
def test_c_program_gets_the_latents_of_python(
    tmp_path: Path, core: LatentCoder, tables: bytes, flags: tuple[str, ...]
) -> None:
    program = build(tmp_path, ["decode.c"], *flags)
    many = symbols(core, 11, 60, 2, 3)
    data = many.encode(core)
    (tmp_path / "tables.bin").write_bytes(tables)
    (tmp_path / "data").write_bytes(data)
    (tmp_path / "cut").write_bytes(data[:-2])

    def run(name: str) -> list[bytes]:
        command: list[str | Path] = [program, tmp_path / "tables.bin", tmp_path / name]
        command += ["60", "2", "3"]
        return subprocess.run(command, capture_output=True, check=True).stdout.split()

    y_hat = core.decode(60, 2, 3, data)[1]
    assert run("data") == [b"0", str(checksum(y_hat)).encode()]
    assert run("cut")[0] == b"-1"


@needs_gcc
def test_core_compiles_without_a_warning(tmp_path: Path) -> None:
    for flags in (
        ("-O3", "-Wshadow", "-Wundef", "-Wcast-align=strict"),
        ("-O0", "-Wdouble-promotion"),
    ):
        command = [str(GCC), "-std=c99", *STRICT, *flags, "-c", str(CORE / "edgecodec_core.c")]
        result = subprocess.run(
            [*command, "-o", str(tmp_path / "core.o")], capture_output=True, check=False
        )
        assert result.returncode == 0, result.stderr.decode()


@needs_gcc
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm here")
def test_core_needs_four_functions_of_the_library(tmp_path: Path) -> None:
    """So that it links into anything; what compilers add themselves does not count."""
    target = tmp_path / "core.o"
    flags = ["-std=c99", "-O2", "-fno-stack-protector", "-c", "-U_FORTIFY_SOURCE"]
    command = [str(GCC), *flags, str(CORE / "edgecodec_core.c"), "-o", str(target)]
    subprocess.run(command, check=True)
    listing = subprocess.run(["nm", target], capture_output=True, check=True, text=True).stdout
    symbols_of = [line.split()[-2:] for line in listing.splitlines()]
    undefined = {name for kind, name in symbols_of if kind == "U"}
    allowed = {"memcpy", "memmove", "memset", "memcmp", "__cpu_model", "_GLOBAL_OFFSET_TABLE_"}
    assert undefined <= allowed
    written = {name for kind, name in symbols_of if kind in "bBdDC"}
    assert not written, "the core must have no variables"


PLAINER = {"portable": (), "sse2": ("-DPLAIN_BEST=0",), "avx2": ("-DPLAIN_BEST=1",),
           "avx-vnni": ("-DPLAIN_BEST=2",)}  # fmt: skip


@pytest.fixture(scope="module", params=list(PLAINER.values()), ids=list(PLAINER))
def fuzzer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fuzz target under the sanitizers, which compares the core with a plainer build of it."""
    folder, flags = tmp_path_factory.mktemp("fuzz"), (*SANITIZERS, "-O1", *request.param)
    try:
        return build(folder, (*TARGET, "fuzz_main.c"), *flags)
    except AssertionError as exc:
        if "asan" in str(exc):
            pytest.skip("gcc has no sanitizers here")
        raise


def fuzz(fuzzer: Path, seeds: list[Path], rounds: int, tables: Path | None = None) -> None:
    environment = {**os.environ, "ASAN_OPTIONS": "allocator_may_return_null=1"}
    if tables:
        environment["ECX_TABLES"] = str(tables)
    command = [str(path) for path in (fuzzer, rounds, *seeds)]
    result = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr.decode()[-3000:]
    assert result.stdout == b"done\n"


@needs_gcc
@pytest.mark.parametrize("rounds", [3000, pytest.param(30_000, marks=pytest.mark.slow)])
def test_core_stays_inside_its_memory_whatever_it_is_given(
    fuzzer: Path, tmp_path: Path, rounds: int
) -> None:
    fuzz(fuzzer, write_seeds(tmp_path), rounds)


@needs_gcc
def test_core_does_the_same_with_and_without_special_instructions(
    fuzzer: Path, tmp_path: Path, tables: bytes
) -> None:
    """With tables of many channels, by the blocks of sixteen that those instructions take."""
    path = tmp_path / "tables.bin"
    path.write_bytes(tables)
    fuzz(fuzzer, write_seeds(tmp_path / "seeds", tables), 100, path)


@pytest.mark.slow
@pytest.mark.skipif(clang() is None, reason="no clang here")
def test_guided_fuzzing_finds_nothing(tmp_path: Path) -> None:
    """As long as CI has time for; docs/fuzzing.md tells of more."""
    command = [sys.executable, "-m", "tests.core.fuzz", "--executions", "40000"]
    command += ["--stretch", "20000", "--state", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()[-3000:]


@needs_gcc
def test_largest_sums_stay_inside_32_bits(fuzzer: Path, tmp_path: Path) -> None:
    """The undefined-behaviour sanitizer stops at the first that does not."""
    tables = largest_tables().to_bytes()
    coder, twin = LatentCoder(tables, "c"), LatentCoder(tables, "numpy")
    for sign in (-1, 1):
        z = np.full((1, 1, 512), sign * HYPER_LIMIT, np.int16)
        s = np.full((2, 2, 512), sign * SYMBOL_LIMIT, np.int16)
        for mine, other in zip(coder.predict(1, z, s), twin.predict(1, z, s), strict=True):
            np.testing.assert_array_equal(mine, other)
    path = tmp_path / "tables.bin"
    path.write_bytes(tables)
    fuzz(fuzzer, write_seeds(tmp_path / "seeds", tables), 4, path)


def test_limits_are_those_of_the_core() -> None:
    text = (CORE / "edgecodec_core.h").read_text()
    limits = {
        "SYMBOL_LIMIT": SYMBOL_LIMIT,
        "HYPER_LIMIT": HYPER_LIMIT,
        "MAX_SIDE": MAX_SIDE,
        "RELUCTANCES": RELUCTANCES,
    }
    for name, value in limits.items():
        assert re.search(rf"^#define ECX_{name} {value}\b", text, re.MULTILINE)
