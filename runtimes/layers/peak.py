"""What this machine can do at most: matrix products, the yardstick for layers.

ONNX Runtime multiplies by a constant matrix, as networks do, in float32 and in int8. Where it is
absent, NumPy gives the float32 figure. What is measured is a large product in good order, so a
layer that reaches half of it does well.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecodec.errors import BackendUnavailableError
from edgecodec.runtimes.device.probe import usable_cores
from edgecodec.runtimes.layers.base import FLOAT32, INT8
from edgecodec.runtimes.vendor import import_vendor

SIDE = 512
BUDGET_S = 1.0
_FLOAT, _UINT8, _INT8, _INT32 = 1, 2, 3, 6  # of onnx.TensorProto
_OPSET, _IR_VERSION = 17, 8


@dataclass(frozen=True)
class Peak:
    """The best of a few products.

    Attributes:
        arithmetic: `float32` or `int8`.
        gmacs_per_s: billions of multiply-accumulates per second.
        source: what did it.
    """

    arithmetic: str
    gmacs_per_s: float
    source: str


def measure_peaks(threads: int | None = None, side: int = SIDE) -> dict[str, Peak]:
    """Return the peaks that can be measured here, by arithmetic.

    Args:
        threads: of ONNX Runtime; None leaves it to it. NumPy takes as many as it likes.
        side: of the square matrices.
    """
    try:
        ort = import_vendor("onnxruntime", ("onnxruntime",), "onnxruntime")
        found = {kind: _ort_peak(ort, kind, threads, side) for kind in (FLOAT32, INT8)}
    except BackendUnavailableError:
        left, right = np.random.default_rng(0).random((2, side, side), np.float32)
        best = _best(lambda: left @ right)
        return {FLOAT32: Peak(FLOAT32, side**3 / best * 1e-9, f"NumPy {np.__version__}")}
    return {kind: peak for kind, peak in found.items() if peak is not None}


def _ort_peak(ort: Any, arithmetic: str, threads: int | None, side: int) -> Peak | None:
    """Return ONNX Runtime's peak, None where it refuses."""
    generator = np.random.default_rng(0)
    given: npt.NDArray[Any]
    if arithmetic == FLOAT32:
        given, constant = generator.random((2, side, side), np.float32)
        model = product_model("MatMul", _FLOAT, _FLOAT, _FLOAT, constant)
    else:
        given = generator.integers(0, 256, (side, side), np.uint8)
        constant = generator.integers(-127, 128, (side, side)).astype(np.int8)
        model = product_model("MatMulInteger", _UINT8, _INT8, _INT32, constant)
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = min(threads or 0, usable_cores())
    try:
        session = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        best = _best(lambda: session.run(None, {"a": given}))
    except Exception:  # no such kernel in this build
        return None
    return Peak(arithmetic, side**3 / best * 1e-9, f"ONNX Runtime {ort.__version__}")


def _best(run: Callable[[], object]) -> float:
    """Return the least seconds of a few runs, for about BUDGET_S."""
    best, begin = float("inf"), time.perf_counter()
    while True:
        start = time.perf_counter()
        run()
        end = time.perf_counter()
        best = min(best, end - start)
        if end - begin > BUDGET_S:
            return best


def product_model(
    operator: str, given: int, constant: int, result: int, matrix: npt.NDArray[Any]
) -> bytes:
    """Return an ONNX model `c = a * matrix`, as bytes.

    Args:
        operator: `MatMul` or `MatMulInteger`.
        given: type of `a`, as TensorProto numbers them.
        constant: type of the matrix.
        result: type of `c`.
        matrix: square.
    """
    side = len(matrix)
    node = _text(1, "a") + _text(1, "b") + _text(2, "c") + _text(4, operator)
    tensor = _number(1, side) + _number(1, side) + _number(2, constant)
    tensor += _text(8, "b") + _bytes(9, matrix.tobytes())
    graph = _bytes(1, node) + _text(2, "product") + _bytes(5, tensor)
    graph += _bytes(11, _value("a", given, side)) + _bytes(12, _value("c", result, side))
    return _number(1, _IR_VERSION) + _bytes(7, graph) + _bytes(8, _number(2, _OPSET))


def _value(name: str, kind: int, side: int) -> bytes:
    dimension = _bytes(1, _number(1, side))
    tensor = _number(1, kind) + _bytes(2, dimension + dimension)
    return _text(1, name) + _bytes(2, _bytes(1, tensor))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _text(field: int, content: str) -> bytes:
    return _bytes(field, content.encode())
