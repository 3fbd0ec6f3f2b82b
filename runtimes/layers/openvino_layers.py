"""Layers of OpenVINO, from the performance counters of an inference request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgecodec.arrays import Float32Array
from edgecodec.runtimes.layers.base import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    INT8,
    WARM_UP,
    Layer,
    collect,
    convolution_macs,
)

_ARITHMETIC = {"f32": FLOAT32, "bf16": BFLOAT16, "f16": FLOAT16, "i8": INT8, "u8": INT8}


def profile_model(compiled: Any, inputs: Mapping[str, Float32Array], runs: int) -> list[Layer]:
    """Run a model that was compiled with `PERF_COUNT` and read its counters.

    Args:
        compiled: the model.
        inputs: as for `Session.run`.
        runs: how often, beside the warm-up.
    """
    request = compiled.create_infer_request()
    order: dict[str, Layer] = {}
    samples: dict[str, list[float]] = {}
    for number in range(runs + WARM_UP):
        request.infer(dict(inputs), share_inputs=True)
        # Not by their status: a node that takes less than a microsecond is told as not run.
        nodes = request.get_profiling_info()
        if number == 0:  # only now are the shapes of the plan known
            macs = _macs(compiled.get_runtime_model())
            for info in nodes:
                order[info.node_name] = Layer(
                    info.node_name, f"{info.node_type} ({info.exec_type})", (),
                    macs.get(info.node_name), arithmetic_of(info.exec_type),
                )  # fmt: skip
        for info in nodes:
            samples.setdefault(info.node_name, []).append(info.real_time.total_seconds())
    return collect({name: layer for name, layer in order.items() if any(samples[name])}, samples)


def arithmetic_of(kernel: str) -> str:
    """Return the arithmetic that the name of a kernel ends with.

    >>> arithmetic_of("brgconv_avx512_1x1_f32"), arithmetic_of("jit_avx512_I8"), arithmetic_of("x")
    ('float32', 'int8', '')
    """
    return _ARITHMETIC.get(kernel.rpartition("_")[2].lower(), "")


def _macs(plan: Any) -> dict[str, int]:
    """Return multiply-accumulates by name of node, from the shapes that were executed."""
    found = {}
    for node in plan.get_ordered_ops():
        if node.get_input_size() < 2 or not node.get_output_partial_shape(0).is_static:
            continue
        weights = list(node.get_input_partial_shape(1).to_shape())
        kind = _layer_type(node)
        if kind == "Convolution" and len(weights) in (4, 5):
            # (O, I, height, width), or (groups, O / groups, I / groups, height, width)
            each = weights[1:] if len(weights) == 4 else weights[2:]
            output = list(node.get_output_partial_shape(0).to_shape())
            found[node.get_friendly_name()] = convolution_macs(output, each)
    return found


def _layer_type(node: Any) -> str:
    """Return `Convolution` for those with groups, too; other operators by their own names."""
    kind = node.get_rt_info()["layerType"]
    name = str(kind.astype(str) if hasattr(kind, "astype") else kind)
    return "Convolution" if name in ("Convolution", "GroupConvolution") else name
