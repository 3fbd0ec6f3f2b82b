"""The reference artefact: plain data, exact numbers, and clear refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgecodec.converters.graph.convolutions import Conv2d
from edgecodec.converters.graph.tensors import fits_half
from edgecodec.converters.writers.to_torch import write_torch
from edgecodec.errors import BackendError
from edgecodec.runtimes.backends.torch_graph import TorchGraph, load_torch_graph


def test_file_is_plain_data_with_exact_numbers(small_graph: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    write_torch(small_graph, path)
    content = torch.load(path, weights_only=True)
    assert (content["stage"], content["precision"]) == ("synthesis", "fp32")
    for node in small_graph.nodes:
        if isinstance(node, Conv2d):
            tensor = content["tensors"][f"{node.name}.weight"]
            assert (tensor.dtype == torch.float16) == fits_half(node.weight)
            assert np.array_equal(tensor.float().numpy(), node.weight)


def test_file_is_the_same_whatever_it_is_called(small_graph: Any, tmp_path: Path) -> None:
    write_torch(small_graph, tmp_path / "a.pt")
    write_torch(small_graph, tmp_path / "other.pt")
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "other.pt").read_bytes()


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04"])
def test_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(BackendError, match=r"a\.pt"):
        load_torch_graph(path)
    with pytest.raises(BackendError, match="cannot be read"):
        load_torch_graph(tmp_path / "missing.pt")


def test_other_content_is_refused(small_graph: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save([1, 2], path)
    with pytest.raises(BackendError, match="not a graph of edgecodec"):
        load_torch_graph(path)
    write_torch(small_graph, path)
    content = torch.load(path, weights_only=True)
    with pytest.raises(BackendError, match="not a graph of format"):
        TorchGraph({**content, "format": "edgecodec-torch-graph-9"})
    with pytest.raises(BackendError, match="unknown operations gdn"):
        TorchGraph({**content, "nodes": [{"op": "gdn"}]})
    with pytest.raises(BackendError, match="channel order"):
        TorchGraph({**content, "nodes": [{"op": "pixel_shuffle", "order": "dcr"}]})
