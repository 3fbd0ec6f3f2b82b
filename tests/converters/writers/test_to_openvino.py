"""The OpenVINO file: exact constants, half where that is exact, and its precision in writing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest

from edgecodec.converters.graph.channel_order import with_dcr_shuffles
from edgecodec.converters.graph.convolutions import Conv2d
from edgecodec.converters.graph.tensors import fits_half
from edgecodec.converters.writers.to_openvino import _check_constants, write_openvino
from edgecodec.errors import ConversionError


def constants(path: Path) -> list[Any]:
    model = openvino.Core().read_model(path)
    return [
        op.get_data()
        for op in model.get_ordered_ops()
        if op.get_type_name() == "Constant" and op.get_element_type().is_real()
    ]


def test_fp32_keeps_every_constant_and_stores_half_where_exact(
    small_graph: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.xml"
    write_openvino(small_graph, path)
    found = {np.asarray(c, np.float32).tobytes(): c.dtype for c in constants(path)}
    for node in with_dcr_shuffles(small_graph).nodes:
        if isinstance(node, Conv2d):
            half = fits_half(node.weight) and node.weight.size >= 256
            assert found[node.weight.tobytes()] == (np.float16 if half else np.float32)
            assert node.bias.tobytes() in found
    assert np.dtype(np.float16) in found.values()
    assert np.dtype(np.float32) in found.values()


def test_fp16_has_no_other_constants(small_graph: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    write_openvino(small_graph, path, "fp16")
    assert {c.dtype for c in constants(path) if c.size > 1} == {np.dtype(np.float16)}
    written = openvino.Core().read_model(path)
    assert written.get_rt_info(["edgecodec", "precision"]).astype(str) == "fp16"


def test_bf16_stores_what_fp32_stores(small_graph: Any, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        write_openvino(small_graph, tmp_path / f"{precision}.xml", precision)
        written = openvino.Core().read_model(tmp_path / f"{precision}.xml")
        assert written.get_rt_info(["edgecodec", "precision"]).astype(str) == precision
    weights = [(tmp_path / f"{precision}.bin").read_bytes() for precision in ("fp32", "bf16")]
    assert weights[0] == weights[1]


def test_operators_are_counted_and_size_is_free(small_graph: Any, tmp_path: Path) -> None:
    operators = write_openvino(small_graph, tmp_path / "a.xml")
    assert operators["Convolution"] == 4
    assert operators["GroupConvolution"] == 1
    model = openvino.Core().read_model(tmp_path / "a.xml")
    assert str(model.input("y_hat").get_partial_shape()) == "[1,?,?,3]"
    assert str(model.output("x_hat").get_partial_shape()).endswith(",3]")


def test_a_changed_constant_is_noticed(small_graph: Any, tmp_path: Path) -> None:
    write_openvino(small_graph, tmp_path / "a.xml")
    model = openvino.Core().read_model(tmp_path / "a.xml")
    graph = with_dcr_shuffles(small_graph)
    first = graph.nodes[0]
    assert isinstance(first, Conv2d)
    changed = replace(first, weight=first.weight * np.float32(1.001))
    with pytest.raises(ConversionError, match=rf"OpenVINO changed {first.name}.weight"):
        _check_constants(replace(graph, nodes=(changed, *graph.nodes[1:])), model, "fp32")
