"""Run the torch artefacts of a bundle: a few operations, read from a file of plain data.

Imports torch, so that only the torch backend may import it, and no converter: a machine that
decodes with torch needs nothing that wrote the file.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecodec.errors import BackendError

FORMAT = "edgecodec-torch-graph-1"
_OPS = ("conv2d", "relu", "add", "pixel_shuffle", "pixel_unshuffle", "replicate_pad")


class TorchGraph(nn.Module):
    """A stage: named channels-last float32 tensors to named channels-last float32 tensors.

    Args:
        description: content of the file, see `edgecodec.converters.writers.to_torch`.

    Raises:
        BackendError: not such a file, or an operation this version does not know.
    """

    def __init__(self, description: Mapping[str, Any]) -> None:
        super().__init__()
        if description.get("format") != FORMAT:
            raise BackendError("torch", f"not a graph of format {FORMAT}; convert it again")
        self.stage = str(description["stage"])
        self.inputs: tuple[str, ...] = tuple(description["inputs"])
        self.outputs: tuple[str, ...] = tuple(description["outputs"])
        self.nodes: list[dict[str, Any]] = list(description["nodes"])
        unknown = sorted({str(node["op"]) for node in self.nodes} - set(_OPS))
        if unknown:
            raise BackendError("torch", f"unknown operations {', '.join(unknown)}")
        if any(node.get("order", "crd") != "crd" for node in self.nodes):
            raise BackendError("torch", "shuffles must have torch's channel order")
        for name, tensor in description["tensors"].items():
            self.register_buffer(name.replace(".", "__"), tensor.float())
        self._done_with = self._last_uses()

    def _last_uses(self) -> list[list[str]]:
        """Return, for each node, the values that nothing after it reads."""
        last = {name: i for i, node in enumerate(self.nodes) for name in node["inputs"]}
        return [
            [name for name, at in last.items() if at == i and name not in self.outputs]
            for i in range(len(self.nodes))
        ]

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the stage.

        Args:
            inputs: (1, H, W, C) float32 by name.

        Returns:
            (1, h, w, c) float32 by name, contiguous.
        """
        values = {name: inputs[name].permute(0, 3, 1, 2) for name in self.inputs}
        for node, done_with in zip(self.nodes, self._done_with, strict=True):
            values[node["output"]] = self._run(node, [values[name] for name in node["inputs"]])
            for name in done_with:  # large pictures: no activation outlives its last use
                del values[name]
        return {name: values[name].permute(0, 2, 3, 1).contiguous() for name in self.outputs}

    def _run(self, node: Mapping[str, Any], given: list[Tensor]) -> Tensor:
        match node["op"]:
            case "conv2d":
                return self._convolve(node, given[0])
            case "relu":
                return torch.relu(given[0])
            case "add":
                return given[0] + given[1]
            case "replicate_pad":
                top, left, bottom, right = node["padding"]
                return F.pad(given[0], (left, right, top, bottom), mode="replicate")
            case "pixel_shuffle":
                return F.pixel_shuffle(given[0], node["block"])
        return F.pixel_unshuffle(given[0], node["block"])

    def _convolve(self, node: Mapping[str, Any], x: Tensor) -> Tensor:
        name = node["name"].replace(".", "__")
        weight, bias = self.get_buffer(f"{name}__weight"), self.get_buffer(f"{name}__bias")
        top, left, bottom, right = node["padding"]
        padding = (top, left)
        if (top, left) != (bottom, right):
            x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
        return F.conv2d(x, weight, bias, node["stride"], padding, node["dilation"], node["groups"])


def load_torch_graph(path: Path) -> TorchGraph:
    """Read an artefact, in evaluation mode.

    Raises:
        BackendError: the file is missing, damaged or of another kind.
    """
    try:
        description = torch.load(path, map_location="cpu", weights_only=True)
        return TorchGraph(description).eval()
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as exc:
        if isinstance(exc, BackendError):
            raise
        reason = str(exc).split("\n", 1)[0]
        raise BackendError("torch", f"{path}: cannot be read ({reason})") from exc
    except (AttributeError, KeyError, TypeError) as exc:
        raise BackendError("torch", f"{path}: not a graph of edgecodec ({exc})") from exc
