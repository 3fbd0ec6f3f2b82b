"""Layers of ONNX Runtime, from the trace that a session with profiling writes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgecodec.arrays import Float32Array
from edgecodec.errors import BackendError
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

_KERNEL = "_kernel_time"
_ARITHMETIC = {"float": FLOAT32, "float16": FLOAT16, "uint8": INT8, "int8": INT8}


def profile_session(
    ort: Any, settings: Any, artefact: Artefact, inputs: Mapping[str, Float32Array], runs: int
) -> list[Layer]:
    """Run a session with profiling and read what it wrote.

    Args:
        ort: the module.
        settings: session options.
        artefact: an `.onnx` file.
        inputs: as for `Session.run`.
        runs: how often, beside the warm-up.
    """
    events = _trace(ort, settings, artefact, inputs, runs + WARM_UP)
    # Weights that a kernel has put in an order of its own are missing from the trace.
    settings.add_session_config_entry("session.disable_prepacking", "1")
    macs = {
        event["name"]: _macs(event["args"])
        for event in _trace(ort, settings, artefact, inputs, 1)
        if _is_layer(event)
    }
    return layers_of(events, macs)


def _trace(
    ort: Any, settings: Any, artefact: Artefact, inputs: Mapping[str, Float32Array], runs: int
) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="edgecodec-profile-") as folder:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(folder) / "ort")
        session = ort.InferenceSession(
            str(artefact.path), settings, providers=["CPUExecutionProvider"]
        )
        for _ in range(runs):
            session.run(None, dict(inputs))
        events: list[dict[str, Any]] = json.loads(
            Path(session.end_profiling()).read_text(encoding="utf-8")
        )
        return events


def _is_layer(event: Mapping[str, Any]) -> bool:
    return event.get("cat") == "Node" and str(event.get("name", "")).endswith(_KERNEL)


def layers_of(events: list[dict[str, Any]], macs: Mapping[str, int | None]) -> list[Layer]:
    """Return the layers of a trace.

    Args:
        events: of all runs.
        macs: multiply-accumulates by name of event.

    Raises:
        BackendError: it holds none.
    """
    order: dict[str, Layer] = {}
    samples: dict[str, list[float]] = {}
    for event in events:
        if not _is_layer(event):
            continue
        name, arguments = event["name"], event.get("args", {})
        key = f"{arguments.get('node_index', '')} {name}"
        samples.setdefault(key, []).append(event["dur"] / 1e6)
        if key not in order:
            operator = str(arguments.get("op_name", "unknown"))
            order[key] = Layer(
                name.removesuffix(_KERNEL), operator, (), macs.get(name),
                _arithmetic(arguments),
            )  # fmt: skip
    if not order:
        raise BackendError("onnxruntime", "its profile holds no layers")
    return collect(order, samples)


def _shapes(listed: Any) -> list[tuple[str, list[int]]]:
    """Return type and shape of each tensor, as the trace lists them."""
    return [(kind, shape) for tensor in listed or () for kind, shape in tensor.items()]


def _macs(arguments: Mapping[str, Any]) -> int | None:
    operator = str(arguments.get("op_name", ""))
    outputs = _shapes(arguments.get("output_type_shape"))
    inputs = [shape for _, shape in _shapes(arguments.get("input_type_shape"))]
    if not outputs:
        return None
    if "Conv" in operator:  # weights are (O, I / groups, height, width), behind the picture
        weights = [shape for shape in inputs[1:] if len(shape) == 4]
        return convolution_macs(outputs[0][1], weights[0][1:]) if weights else None
    if operator in ("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "MatMulInteger", "QLinearMatMul"):
        factors = [shape for shape in inputs if len(shape) >= 2]
        return convolution_macs(outputs[0][1], factors[0][-1:]) if factors else None
    return None


def _arithmetic(arguments: Mapping[str, Any]) -> str:
    inputs = _shapes(arguments.get("input_type_shape"))
    return _ARITHMETIC.get(inputs[0][0], "") if inputs else ""
