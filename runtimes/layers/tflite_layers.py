"""Layers of TensorFlow Lite: LiteRT's own profiler, reached through its C interface.

The Python interpreter has no profiler, but the library beside it exports one, which reports every
operator of XNNPACK. It is driven in a process of its own: the interface is young, and where a
release has changed it, that process may end in any way without taking this one along.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import edgecodec
from edgecodec.arrays import Float32Array
from edgecodec.errors import BackendUnavailableError
from edgecodec.runtimes.base import Artefact
from edgecodec.runtimes.layers.base import (
    FLOAT16,
    FLOAT32,
    INT8,
    WARM_UP,
    Layer,
    collect,
    convolution_macs,
)

NAME = "tflite"
TIMEOUT_S = 120.0
_PROGRAM = (
    "import sys; from edgecodec.runtimes.layers.tflite_layers import child; child(sys.argv[1])"
)
_ROW = re.compile(r"^\s*(\S.*?)\s+[\d.]+\s+[\d.]+\s+([\d.]+)\s+[\d.]+%\s+[\d.]+%\s+\S+\s+\d+\s+\S")
_CPU, _FLOAT32_TENSOR = 1, 1
_ALIGNMENT = 64
_KERNEL_TYPES = (("F32", FLOAT32), ("F16", FLOAT16), ("QS8", INT8), ("QC8", INT8), ("QU8", INT8))


def profile_file(
    artefact: Artefact,
    inputs: Mapping[str, Float32Array],
    outputs: Sequence[tuple[int, ...]],
    operators: Sequence[tuple[str, int]],
    threads: int,
    runs: int,
) -> list[Layer]:
    """Profile a `.tflite` file in a process of its own.

    Args:
        artefact: the file.
        inputs: one array; files of ours have one input.
        outputs: shapes, in the order of the signature.
        operators: name and multiply-accumulates of each convolution of the file, in its order.
        threads: of XNNPACK.
        runs: how often, beside the warm-up.

    Raises:
        BackendUnavailableError: this LiteRT has no such profiler, or it failed.
    """
    with tempfile.TemporaryDirectory(prefix="edgecodec-profile-") as folder:
        given = Path(folder) / "input.npy"
        np.save(given, next(iter(inputs.values())))
        job = {
            "model": str(artefact.path),
            "input": str(given),
            "outputs": [list(shape) for shape in outputs],
            "threads": threads,
            "runs": runs + WARM_UP,
        }
        told = _run_child(json.dumps(job))
    return layers_of(told, operators)


def _run_child(job: str) -> list[str]:
    home = str(Path(edgecodec.__file__).parents[1])
    path = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, job],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )
    except (OSError, subprocess.SubprocessError) as exc:
        raise BackendUnavailableError(NAME, f"its profiler does not answer: {exc}") from exc
    try:
        summaries: list[str] = json.loads(done.stdout)
    except ValueError as exc:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BackendUnavailableError(
            NAME, f"its profiler failed with exit code {done.returncode}: {last}"
        ) from exc
    return summaries


def layers_of(summaries: Sequence[str], operators: Sequence[tuple[str, int]]) -> list[Layer]:
    """Return layers from LiteRT's summaries of single runs.

    Raises:
        BackendUnavailableError: they hold no rows, or not the same ones.
    """
    rows = [list(_rows(summary)) for summary in summaries]
    names = [name for name, _ in rows[0]] if rows else []
    if not names or any([name for name, _ in run] != names for run in rows):
        raise BackendUnavailableError(NAME, "its profile has a form that is not known")
    convolutions = [n for n, name in enumerate(names) if _is_convolution(name)]
    known: dict[int, tuple[str, int]] = {}
    if len(convolutions) == len(operators):
        known = dict(zip(convolutions, operators, strict=True))
    order: dict[str, Layer] = {}
    samples: dict[str, list[float]] = {}
    for number, operator in enumerate(names):
        name, macs = known.get(number, (str(number), None))
        order[str(number)] = Layer(name, operator, (), macs, _arithmetic(operator))
        samples[str(number)] = [run[number][1] for run in rows]
    return collect(order, samples)


def _rows(summary: str) -> Iterator[tuple[str, float]]:
    """Yield operator and seconds of the part of a summary that is in the order of the run."""
    _, _, text = summary.partition(" Run Order ")
    for line in text.partition("Top by Computation Time")[0].splitlines():
        if match := _ROW.match(line):
            yield match[1].removeprefix("Delegate/"), float(match[2]) / 1e3


def _is_convolution(operator: str) -> bool:
    return operator.upper().startswith(("CONVOLUTION", "CONV_", "DEPTHWISE_CONV", "FULLY"))


def _arithmetic(operator: str) -> str:
    return next((kind for mark, kind in _KERNEL_TYPES if mark in operator), "")


def convolutions_of(interpreter: Any) -> list[tuple[str, int]]:
    """Return name and multiply-accumulates of each convolution, in the order of the file.

    Args:
        interpreter: with its tensors allocated, and no delegate, which would hide their shapes.
    """
    shapes = {d["index"]: [int(n) for n in d["shape"]] for d in interpreter.get_tensor_details()}
    names = {d["index"]: str(d["name"]) for d in interpreter.get_tensor_details()}
    found = []
    for operator in interpreter._get_ops_details():
        if not _is_convolution(operator["op_name"]):
            continue
        weights, output = shapes[operator["inputs"][1]], operator["outputs"][0]
        # (O, height, width, I / groups), (1, height, width, O) where depthwise, or (O, I)
        each = weights[1:-1] if operator["op_name"].startswith("DEPTHWISE") else weights[1:]
        found.append((names[output].partition(";")[0], convolution_macs(shapes[output], each)))
    return found


# -- what the child does ----------------------------------------------------------------------


class _Layout(ctypes.Structure):
    _fields_ = (
        ("rank", ctypes.c_uint, 7),
        ("has_strides", ctypes.c_uint, 1),
        ("dimensions", ctypes.c_int32 * 8),
        ("strides", ctypes.c_uint32 * 8),
    )


class _TensorType(ctypes.Structure):
    _fields_ = (("element_type", ctypes.c_int), ("layout", _Layout))


def child(text: str) -> None:
    """Profile what a job says, and print LiteRT's summary of each run as a JSON list."""
    job = json.loads(text)
    model = _Model(job)
    summaries = [model.profiled_run() for _ in range(job["runs"])]
    sys.stdout.write(json.dumps(summaries))
    sys.stdout.flush()
    os._exit(0)  # without destructors, whose order is another thing to know


class _Model:
    """A compiled model with profiling, and buffers bound to it."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self._library = _library()
        self._kept: list[object] = []
        self._model = self._compiled(job)
        given = np.load(job["input"])
        size = (ctypes.c_int * given.ndim)(*given.shape)
        first, rank = ctypes.c_size_t(0), ctypes.c_size_t(given.ndim)
        self._call("LiteRtCompiledModelResizeInputTensor", self._model, first, first, size, rank)
        self._takes = self._buffers([given])
        self._gives = self._buffers([np.zeros(shape, np.float32) for shape in job["outputs"]])
        self._profiler = ctypes.c_void_p()
        self._call("LiteRtCompiledModelGetProfiler", self._model, ctypes.byref(self._profiler))

    def profiled_run(self) -> str:
        """Run once; return the summary."""
        self._call("LiteRtResetProfiler", self._profiler)
        self._call("LiteRtStartProfiler", self._profiler)
        self._call(
            "LiteRtRunCompiledModel", self._model, ctypes.c_size_t(0),
            ctypes.c_size_t(len(self._takes)), self._takes,
            ctypes.c_size_t(len(self._gives)), self._gives,
        )  # fmt: skip
        self._call("LiteRtStopProfiler", self._profiler)
        summary = ctypes.c_char_p()
        self._call("LiteRtGetProfileSummary", self._profiler, self._model, ctypes.byref(summary))
        return (summary.value or b"").decode(errors="replace")

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise SystemExit(f"{name} returned {status}")

    def _compiled(self, job: Mapping[str, Any]) -> ctypes.c_void_p:
        environment, model, options, compiled = (ctypes.c_void_p() for _ in range(4))
        self._call("LiteRtCreateEnvironment", 0, None, ctypes.byref(environment))
        path = ctypes.c_char_p(os.fsencode(job["model"]))
        self._call("LiteRtCreateModelFromFile", environment, path, ctypes.byref(model))
        self._call("LiteRtCreateOptions", ctypes.byref(options))
        self._call("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
        self._add_options(options, b"runtime_options_string", b"enable_profiling = true\n")
        self._add_options(options, b"xnnpack", b"num_threads = %d\n" % job["threads"])
        self._call("LiteRtCreateCompiledModel", environment, model, options, ctypes.byref(compiled))
        return compiled

    def _add_options(self, options: ctypes.c_void_p, name: bytes, toml: bytes) -> None:
        """Add a group of options, which LiteRT reads as TOML and frees by our function."""
        payload = ctypes.create_string_buffer(toml)
        release = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda pointer: None)
        self._kept += [payload, release]
        group = ctypes.c_void_p()
        self._call(
            "LiteRtCreateOpaqueOptions", ctypes.c_char_p(name),
            ctypes.cast(payload, ctypes.c_void_p), release, ctypes.byref(group),
        )  # fmt: skip
        self._call("LiteRtAddOpaqueOptions", options, group)

    def _buffers(self, arrays: Sequence[Float32Array]) -> Any:
        """Return tensor buffers over aligned copies of arrays."""
        found = (ctypes.c_void_p * len(arrays))()
        for number, array in enumerate(arrays):
            kind = _TensorType(_FLOAT32_TENSOR)
            kind.layout.rank = array.ndim
            kind.layout.dimensions[: array.ndim] = array.shape
            memory = np.zeros(array.nbytes + _ALIGNMENT, np.uint8)
            start = -memory.ctypes.data % _ALIGNMENT
            memory[start : start + array.nbytes] = (
                np.ascontiguousarray(array).view(np.uint8).ravel()
            )
            self._kept += [kind, memory]
            one = ctypes.c_void_p()
            self._call(
                "LiteRtCreateTensorBufferFromHostMemory", ctypes.byref(kind),
                ctypes.c_void_p(memory.ctypes.data + start), ctypes.c_size_t(array.nbytes), None,
                ctypes.byref(one),
            )  # fmt: skip
            found[number] = one.value
        return found


def _library() -> Any:
    import ai_edge_litert

    folder = Path(next(iter(ai_edge_litert.__path__)))
    for name in ("libLiteRt.so", "libLiteRt.dylib", "LiteRt.dll", "libLiteRt.dll"):
        if (folder / name).exists():
            library = ctypes.CDLL(str(folder / name))
            if hasattr(library, "LiteRtGetProfileSummary"):
                return library
    raise SystemExit("this ai-edge-litert has no profiler; 2.3 has")
