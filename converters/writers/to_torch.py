"""Write a `Graph` for torch: the reference artefact, run by `runtimes.backends.torch_graph`.

One file for `torch.load(weights_only=True)`: a dictionary with format, stage, precision, names of
inputs and outputs, `nodes` (dictionaries of strings and integers) and `tensors` (weights by name,
float16 where that holds them exactly). Channel order and operations are torch's own.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgecodec.arrays import Float32Array
from edgecodec.bundle.manifest import Precision
from edgecodec.converters.graph.convolutions import Conv2d
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.graph.nodes import (
    Add,
    DepthToSpace,
    Node,
    Relu,
    ReplicatePad,
    SpaceToDepth,
)
from edgecodec.converters.graph.tensors import fits_half
from edgecodec.converters.writers.targets import check_precision

FORMAT = "edgecodec-torch-graph-1"
_OPS = {
    Conv2d: "conv2d",
    Relu: "relu",
    Add: "add",
    DepthToSpace: "pixel_shuffle",
    SpaceToDepth: "pixel_unshuffle",
    ReplicatePad: "replicate_pad",
}


def describe(graph: Graph, precision: Precision = "fp32") -> dict[str, Any]:
    """Return the content of the file, also what `runtimes.torch_graph.TorchGraph` takes."""
    tensors: dict[str, torch.Tensor] = {}
    return {
        "format": FORMAT,
        "stage": graph.stage,
        "precision": precision,
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
        "nodes": [_describe(node, tensors) for node in graph.nodes],
        "tensors": tensors,
    }


def write_torch(graph: Graph, path: Path, precision: Precision = "fp32") -> dict[str, int]:
    """Write `<path>` (.pt); return how often each operator occurs.

    Raises:
        ConversionError: a precision other than fp32, of which the reference has no use, or a
            shuffle that is not in torch's order.
    """
    check_precision(precision, ("fp32",), graph.stage)
    payload = describe(graph, precision)
    with path.open("wb") as handle:  # by name, torch.save would put the name into the file
        torch.save(payload, handle)
    return dict(sorted(Counter(str(node["op"]) for node in payload["nodes"]).items()))


def _tensor(array: Float32Array) -> torch.Tensor:
    stored = array.astype(np.float16) if fits_half(array) else array.copy()
    return torch.from_numpy(stored)


def _describe(node: Node, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    known: dict[str, Any] = {
        "op": _OPS[type(node)],
        "name": node.name,
        "inputs": list(node.inputs),
        "output": node.output,
    }
    for what, array in node.arrays().items():
        tensors[f"{node.name}.{what}"] = _tensor(array)
    for what, value in node.attributes().items():
        known[what] = list(value) if isinstance(value, tuple) else value
    return known
