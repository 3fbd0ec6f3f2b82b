"""Write a `Graph` as an ONNX model.

Opset 17 with IR version 8, which ONNX Runtime reads since 1.12. Inputs and outputs are float32
and channels-last with height and width free. Weights that float16 holds exactly are stored so
behind a Cast, which a runtime folds when it loads the model.

`fp16` means float16 throughout, weights rounded where they have to be, between casts at the
ends. A runtime without float16 kernels for an operation (ONNX Runtime on x86-64, for most)
computes it in float32 between casts of its own: smaller there, not faster.

`int8` is for graphs that have int8 codes, and for no others. Weights are int8, biases int32, and
every convolution of codes stands between a DequantizeLinear and a QuantizeLinear, which a runtime
makes one integer operation; one that does not computes the same in float32 (docs/exact-int8.md).
Codes are uint8, 128 more than in the graph, since ONNX Runtime on x86-64 has fast kernels for
those alone.

`write_onnx` orders the model so that ONNX Runtime changes the layout of nothing but what is
shuffled, enters or leaves, once it has loaded it: int8 is channels-last throughout, as its integer
convolutions are, and float32 channels-first, of which it makes blocks of channels.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx

from edgecodec.bundle.manifest import Precision
from edgecodec.converters.graph.channel_order import with_dcr_shuffles
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.graph.unrounded import unrounded
from edgecodec.converters.writers.onnx_layouts import Blocked, ChannelsLast
from edgecodec.converters.writers.onnx_model import ChannelsFirst
from edgecodec.converters.writers.targets import check_graph_precision
from edgecodec.errors import ConversionError


def build_onnx(
    graph: Graph, precision: Precision = "fp32", writer: type[ChannelsFirst] = ChannelsFirst
) -> onnx.ModelProto:
    """Return the model of a stage, checked by onnx.

    Args:
        graph: the stage.
        precision: int8 for a graph with codes, another for one without.
        writer: of the order that a runtime is fastest in.

    Raises:
        ConversionError: the precision is not available for this graph, or a weight is beyond its
            range.
    """
    check_graph_precision(graph, precision)
    model = writer(with_dcr_shuffles(graph), precision).write()
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise ConversionError(f"onnx refuses the model written: {exc}", graph.stage) from exc
    return model


def write_onnx(graph: Graph, path: Path, precision: Precision = "fp32") -> dict[str, int]:
    """Write `<path>`; return how often each operator occurs.

    Raises:
        ConversionError: see `build_onnx`.
    """
    if graph.stage == "analysis":  # which need not be the same on every runtime
        graph = unrounded(graph)
    model = build_onnx(graph, precision, ChannelsLast if precision == "int8" else Blocked)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return dict(sorted(Counter(node.op_type for node in model.graph.node).items()))
