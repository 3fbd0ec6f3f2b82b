"""What a runtime makes of an artefact: its operations after all it does while loading.

Each runtime is asked in its own way: ONNX Runtime writes the model it has optimised, OpenVINO
describes the one it has compiled, TFLite runs the operators of the file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from edgecodec.runtimes.base import Artefact

Role: TypeAlias = Literal["compute", "layout", "shuffle", "pass", "end"]
"""Whether an operation computes, changes nothing but the order in memory, moves pixels between
channels and positions, takes one value element by element or not at all, or is where the graph
begins or ends."""


@dataclass(frozen=True)
class Operation:
    """One operation as executed.

    Attributes:
        kind: what the runtime calls it.
        name: which one.
        role: see `Role`.
        inputs: names of what it reads, weights aside.
        outputs: names of what it makes.
        integer: whether it convolves integers.
    """

    kind: str
    name: str
    role: Role
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integer: bool = False


def executed_operations(artefact: Artefact) -> list[Operation] | None:
    """Return the operations in the order they run, None for a target that cannot tell."""
    reader = _READERS.get(artefact.target)
    return None if reader is None else reader(artefact)


_ONNX_ROLES: dict[str, Role] = {
    "ReorderInput": "layout",
    "ReorderOutput": "layout",
    "DepthToSpace": "shuffle",
    "SpaceToDepth": "shuffle",
    "Cast": "pass",
    "Reshape": "pass",
    "Squeeze": "pass",
    "Unsqueeze": "pass",
}
_ONNX_BY_ELEMENT = {"Add", "Clip", "DequantizeLinear", "Floor", "Mul", "QuantizeLinear", "Relu"}


def _from_onnxruntime(artefact: Artefact) -> list[Operation]:
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # warns that the model written is for this machine alone
    with tempfile.TemporaryDirectory(prefix="edgecodec-") as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        providers = ["CPUExecutionProvider"]
        onnxruntime.InferenceSession(str(artefact.path), options, providers=providers)
        graph = onnx.load(options.optimized_model_filepath).graph
    stored = {tensor.name for tensor in graph.initializer}
    found = [_end(value.name, reads=False) for value in graph.input]
    for node in graph.node:
        role: Role = _ONNX_ROLES.get(node.op_type, "compute")
        if node.op_type == "Transpose":
            (order,) = (list(a.ints) for a in node.attribute if a.name == "perm")
            role = "layout" if len(order) == 4 else "shuffle"  # more axes: runs are moved
        inputs = tuple(name for name in node.input if name and name not in stored)
        if node.op_type in _ONNX_BY_ELEMENT and len(inputs) == 1:
            role = "pass"
        integer = node.op_type in ("QLinearConv", "MatMulIntegerToFloat")
        outputs = tuple(node.output)
        found.append(Operation(node.op_type, node.name, role, inputs, outputs, integer))
    return [*found, *(_end(value.name, reads=True) for value in graph.output)]


def _end(name: str, *, reads: bool) -> Operation:
    names = (name,)
    kind = "Output" if reads else "Input"
    return Operation(kind, name, "end", names if reads else (), () if reads else names)


_OPENVINO_ROLES: dict[str, Role] = {
    "Input": "end",
    "Output": "end",
    "Transpose": "layout",
    "Reorder": "layout",
    "DepthToSpace": "shuffle",
    "SpaceToDepth": "shuffle",
    "Reshape": "pass",
}
_OPENVINO_BY_ELEMENT = {"Eltwise", "FakeQuantize"}


def _from_openvino(artefact: Artefact) -> list[Operation]:
    import openvino

    from edgecodec.runtimes.backends.openvino_backend import DEVICE, precision_hint

    core = openvino.Core()
    hint = {"INFERENCE_PRECISION_HINT": precision_hint(core, artefact.precision)}
    compiled = core.compile_model(core.read_model(artefact.path), DEVICE, hint)
    operations: dict[str, tuple[Operation, str]] = {}
    for op in compiled.get_runtime_model().get_ordered_ops():
        kind, layout = _told(op, "layerType"), _told(op, "outputLayouts")
        sources = [
            value.get_source_output().get_node().get_friendly_name() for value in op.inputs()
        ]
        read = [operations[source] for source in sources if source in operations]
        if kind == "Const" or (sources and not read):
            continue  # weights, and what is made of them alone while loading
        role: Role = _OPENVINO_ROLES.get(kind, "compute")
        if kind == "Transpose" and len(op.output(0).get_partial_shape()) > 4:
            role = "shuffle"  # runs are moved
        if kind == "Reorder" and layout == read[0][1]:
            role = "pass"  # another precision, the same order
        if kind in _OPENVINO_BY_ELEMENT and len(read) == 1:
            role = "pass"
        name = op.get_friendly_name()
        integer = kind == "Convolution" and _told(op, "runtimePrecision") in ("i8", "u8")
        inputs = tuple(operation.name for operation, _ in read)
        operations[name] = Operation(kind, name, role, inputs, (name,), integer), layout
    return [operation for operation, _ in operations.values()]


def _told(op: Any, key: str) -> str:
    """Return what OpenVINO says about an operation of a compiled model."""
    return str(op.get_rt_info()[key].astype(str))


_TFLITE_ROLES: dict[str, Role] = {
    "TRANSPOSE": "layout",
    "DEPTH_TO_SPACE": "shuffle",
    "SPACE_TO_DEPTH": "shuffle",
    "RESHAPE": "pass",
}


def _from_tflite(artefact: Artefact) -> list[Operation]:
    from ai_edge_litert import schema_py_generated as schema

    kinds = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}
    model = schema.ModelT.InitFromPackedBuf(artefact.path.read_bytes())
    (graph,) = model.subgraphs
    tensors: Sequence[Any] = graph.tensors
    names = [tensor.name.decode() for tensor in tensors]
    stored = {i for i, t in enumerate(tensors) if model.buffers[t.buffer].data is not None}
    found = [_end(names[i], reads=False) for i in graph.inputs]
    for operator in graph.operators:
        if stored.issuperset(operator.inputs):  # weights are unpacked once
            stored.update(operator.outputs)
            continue
        kind = kinds[model.operatorCodes[operator.opcodeIndex].builtinCode]
        inputs = tuple(names[i] for i in operator.inputs if i not in stored)
        outputs = tuple(names[i] for i in operator.outputs)
        role = _TFLITE_ROLES.get(kind, "compute")
        whole = "CONV" in kind and tensors[operator.inputs[1]].type == schema.TensorType.INT8
        found.append(Operation(kind, outputs[0], role, inputs, outputs, whole))
    return [*found, *(_end(names[i], reads=True) for i in graph.outputs)]


_READERS: dict[str, Callable[[Artefact], list[Operation]]] = {
    "onnx": _from_onnxruntime,
    "openvino": _from_openvino,
    "tflite": _from_tflite,
}
