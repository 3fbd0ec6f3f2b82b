"""Fuzz the C core with libFuzzer, for as many executions as asked, over any number of sittings.

    nice python -m tests.core.fuzz --executions 10000000 --state DIR
    python -m tests.core.fuzz --coverage --state DIR   # what of the core the corpus there reaches

Needs clang with its sanitizers, and LLVM's tools for the coverage. DIR keeps the corpus, what was
found (`crash-*` and the like) and `log.jsonl`, a line for each stretch; started again, it goes on
from there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgecodec.bundle.reading import Bundle
from edgecodec.format.coder import LatentCoder
from edgecodec.format.tables import Tables
from tests.core.programs import CORE, build, clang
from tests.support.streams import likely_tables, symbols, wild_tables

TARGET = ("fuzz.c", "fuzz_mutate.c", "plain.c")
SANITIZERS = ("-g", "-O2", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# Comparisons are not traced: there are no magic numbers to guess that the mutator does not know,
# and it halves the speed.
GUIDED = ("-fsanitize=fuzzer", "-fno-sanitize-coverage=trace-cmp")
DECODE, ENCODE, BROKEN = 1, 2, 4
SHAPES = ((1, 1, 1, 1, 1, 2), (3, 2, 5, 2, 3, 6), (2, 3, 17, 4, 18, 5), (9, 1, 2, 17, 1, 12))
"""M, Z, H, F, C and levels of tables to begin with."""
GIVEN_EVERY, GIVEN_SHARE = 8, 50
"""Each eighth stretch uses the tables of the shipped model, which are slow, for a 50th as long."""
MAX_LENGTH = 20000
"""Bytes of an input, INPUT_MAX of fuzz.h."""
HANG_S = 300
"""Seconds on the wall for one input, a matter of milliseconds: a machine may stop meanwhile."""


def fuzz_input(what: int, quality: int, size: tuple[int, int], tables: bytes, data: bytes) -> bytes:
    """Return an input of the target, see fuzz.h; `tables` empty for those in ECX_TABLES."""
    tile = size[0] - 1 | size[1] - 1 << 2
    head = bytes([what, quality + 1, tile]) + len(tables).to_bytes(2, "little")
    return head + tables + data


def seeds_of(tables: Tables, seed: int, given: bool) -> list[bytes]:
    """Return inputs that work: substreams to decode, bytes to encode, of several sizes."""
    content = tables.to_bytes()
    coder = LatentCoder(content, "c")
    inline = b"" if given else content
    rng = np.random.default_rng(seed)
    found = []
    for number, size in enumerate([(1, 1), (2, 3)] if not given else [(1, 1)]):
        quality = 1 + (37 * number + 11 * seed) % 100
        for extremes in (0.0, 0.3):
            stream = symbols(coder, seed, quality, *size, extremes).encode(coder)
            found.append(fuzz_input(DECODE, quality, size, inline, stream))
        for what in (ENCODE, ENCODE | BROKEN):
            data = rng.integers(0, 256, int(rng.integers(40, 400)), np.uint8).tobytes()
            found.append(fuzz_input(what, quality, size, inline, data))
    return [item for item in found if len(item) <= MAX_LENGTH]


def write_seeds(folder: Path, given: bytes | None = None) -> list[Path]:
    """Write inputs with tables of several shapes, or for the tables given, in ECX_TABLES."""
    items = []
    if given is not None:
        items = seeds_of(Tables.from_bytes(given), 9, given=True)
    else:
        for seed, shape in enumerate(SHAPES):
            items += seeds_of(wild_tables(seed, *shape), seed, given=False)
        items += seeds_of(likely_tables(1, 4, 3, 5, 3, 4), 5, given=False)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, item in enumerate(items):
        paths.append(folder / f"seed-{number:02}")
        paths[-1].write_bytes(item)
    return paths


def stretch(program: Path, state: Path, executions: int, tables: Path | None) -> dict[str, Any]:
    """Run the fuzzer once and return what it says of itself.

    Args:
        program: the target.
        state: folder of corpus and findings.
        executions: how many.
        tables: of the inputs that bring none; None where all do.

    Raises:
        SystemExit: it found something; names the report.
    """
    kind = "given" if tables else "own"
    corpus, seeds = state / f"corpus-{kind}", state / f"seeds-{kind}"
    corpus.mkdir(exist_ok=True)
    write_seeds(seeds, tables.read_bytes() if tables else None)
    environment = {**os.environ, "ASAN_OPTIONS": "quarantine_size_mb=2"}
    if tables:
        environment["ECX_TABLES"] = str(tables)
    begin = time.perf_counter()
    command = [str(program), f"-runs={executions}", f"-max_len={MAX_LENGTH}", f"-timeout={HANG_S}"]
    command += ["-rss_limit_mb=1024", "-malloc_limit_mb=64", "-print_final_stats=1"]
    command += [f"-artifact_prefix={state}/", str(corpus), str(seeds)]
    result = subprocess.run(command, capture_output=True, check=False, env=environment)
    text = result.stderr.decode(errors="replace")
    if result.returncode:
        (state / "failure.txt").write_text(text)
        raise SystemExit(f"found something, see {state}/failure.txt\n{text[-2000:]}")
    counted = re.findall(r"stat::number_of_executed_units: (\d+)", text)
    reached = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", text)[-1]
    return {
        "tables": kind,
        "executions": int(counted[-1]),
        "seconds": round(time.perf_counter() - begin, 1),
        **dict(zip(("edges", "features", "corpus"), map(int, reached), strict=True)),
    }


def coverage(state: Path, compiler: str) -> str:
    """Return which lines and branches of the core the corpora in `state` execute, and which not."""
    flags = ("-g", "-O1", "-fsanitize=fuzzer", "-fprofile-instr-generate", "-fcoverage-mapping")
    program = build(state, TARGET, *flags, compiler=compiler, name="fuzz-coverage")

    def tool(name: str, *arguments: str | Path) -> str:
        found = subprocess.check_output([compiler, f"--print-prog-name={name}"], text=True)
        return subprocess.check_output([found.strip(), *map(str, arguments)], text=True)

    profiles = []
    for kind in ("own", "given"):
        profiles.append(state / f"{kind}.profraw")
        environment = {**os.environ, "LLVM_PROFILE_FILE": str(profiles[-1])}
        if kind == "given":
            environment["ECX_TABLES"] = str(state / "tables.bin")
        command: list[str | Path] = [
            program,
            "-runs=0",
            f"-max_len={MAX_LENGTH}",
            state / f"corpus-{kind}",
        ]
        subprocess.run(command, env=environment, capture_output=True, check=True)
    merged = state / "merged.profdata"
    tool("llvm-profdata", "merge", "-sparse", *profiles, "-o", merged)
    what = (program, f"-instr-profile={merged}", CORE / "edgecodec_core.c")
    lines = tool("llvm-cov", "show", "-show-branches=count", *what).splitlines()
    missed = [line for line in lines if re.match(r"\s+\d+\|\s+0\|", line)]
    return "\n".join([tool("llvm-cov", "report", *what), "lines not reached:", *missed])


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz the C core with libFuzzer.")
    parser.add_argument("--executions", type=int, default=100_000)
    parser.add_argument("--stretch", type=int, default=250_000, help="executions per process")
    parser.add_argument("--state", type=Path, required=True, help="folder to keep and go on from")
    parser.add_argument("--coverage", action="store_true", help="of the corpus; fuzzes nothing")
    parser.add_argument("--compiler", default=clang(), help="a clang with its sanitizers")
    args = parser.parse_args()
    if args.compiler is None:
        raise SystemExit("no clang here; install it, for example: apt-get install clang")
    args.state.mkdir(parents=True, exist_ok=True)
    if args.coverage:
        sys.stdout.write(coverage(args.state, args.compiler) + "\n")
        return
    flags = (*SANITIZERS, *GUIDED)
    programs = [
        build(args.state, TARGET, *flags, *more, compiler=args.compiler, name=name)
        for name, more in (("fuzz", ()), ("fuzz-sse2", ("-DPLAIN_BEST=0",)))
    ]
    tables = args.state / "tables.bin"
    with Bundle() as bundle:
        tables.write_bytes(bundle.tables())
    log = args.state / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    done = sum(json.loads(line)["executions"] for line in lines)
    for number in itertools.count(len(lines)):
        if done >= args.executions:
            break
        count, given = min(args.stretch, args.executions - done), number % GIVEN_EVERY == 0
        program = programs[number // 2 % 2]
        if given:
            found = stretch(program, args.state, 1 + count // GIVEN_SHARE, tables)
        else:
            found = stretch(program, args.state, count, None)
        done += found["executions"]
        with log.open("a") as out:
            out.write(json.dumps(found) + "\n")
        sys.stdout.write(f"{done} executions, {json.dumps(found)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
