"""What is read from torch, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgecodec.converters.graph import Conv2d, Graph
from edgecodec.converters.torch_to_graph import graph_from_module
from edgecodec.errors import ConversionError, UnsupportedOpError


class Lambda(nn.Module):
    """A module of one function."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function
        self.offset = nn.Parameter(torch.ones(1, 3, 1, 1))

    def forward(self, x: Tensor) -> object:
        return self.function(x)


def read(module: nn.Module, outputs: tuple[str, ...] = ("x_hat",)) -> Graph:
    return graph_from_module(module, stage="synthesis", inputs={"x": 3}, outputs=outputs)


@pytest.mark.parametrize(
    ("function", "op"),
    [
        (torch.sigmoid, "sigmoid"),
        (lambda x: torch.nn.functional.interpolate(x, scale_factor=2), "upsample_nearest2d"),
        (lambda x: x + 1.0, "add with a constant"),
        (lambda x: x + torch.ones(1), "ones"),
        (lambda x: torch.add(x, x, alpha=2), "add with a factor"),
        (lambda x: x + x[:, :1], "slice"),
        (lambda x: torch.conv2d(x, x[:1]), "slice"),
    ],
)
def test_other_operations_are_refused_by_name(
    function: Callable[[Tensor], Tensor], op: str
) -> None:
    with pytest.raises(UnsupportedOpError) as caught:
        read(Lambda(function))
    assert caught.value.stage == "synthesis"
    assert caught.value.op.startswith(op)
    assert str(caught.value).startswith(f"synthesis: operation {op}")
    assert "conv2d, relu, add, pixel_shuffle, pixel_unshuffle" in str(caught.value)


def test_add_of_a_parameter_is_refused() -> None:
    module = Lambda(lambda x: x)
    module.function = lambda x: x + module.offset
    with pytest.raises(UnsupportedOpError, match="add with a constant"):
        read(module)


def test_computed_weight_is_refused() -> None:
    with pytest.raises(UnsupportedOpError, match="conv2d with a computed weight"):
        read(Lambda(lambda x: torch.conv2d(x, torch.relu(x))))


def test_add_of_different_shapes_is_refused() -> None:
    class Broadcast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.add(x, self.one(x))

    with pytest.raises(UnsupportedOpError, match="add of different shapes"):
        read(Broadcast())


def test_module_that_cannot_be_traced_says_so() -> None:
    def branch(x: Tensor) -> Tensor:
        return x if x.sum() > 0 else torch.relu(x)

    with pytest.raises(ConversionError, match=r"synthesis: cannot be traced by torch.export"):
        read(Lambda(branch))


def test_results_must_be_as_named() -> None:
    with pytest.raises(ConversionError, match="returns 2 results, expected x_hat"):
        read(Lambda(lambda x: (torch.relu(x), x + x)))
    with pytest.raises(ConversionError, match="an output is not made by any node"):
        read(Lambda(lambda x: x))


def test_graph_holds_the_numbers_of_the_module() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, (3, 5), stride=(2, 1), padding=(1, 2), bias=False))
    (node,) = read(module).nodes
    assert isinstance(node, Conv2d)
    assert (node.stride, node.padding, node.groups) == ((2, 1), (1, 2, 1, 2), 1)
    assert np.array_equal(node.weight, module.get_parameter("0.weight").detach().numpy())
    assert not node.bias.any()


def test_layers_are_called_what_the_module_calls_them() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1))

        def forward(self, x: Tensor) -> Tensor:
            kept: Tensor = self.inner(self.inner(x))
            return kept

    names = [node.name for node in read(Twice()).nodes if isinstance(node, Conv2d)]
    assert names[:2] == ["inner.0", "inner.2"]
    assert len(set(names)) == 4


def test_size_traced_with_is_not_in_the_graph() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.PixelShuffle(2))
    digests = {
        graph_from_module(
            module, stage="s", inputs={"x": 3}, outputs=["y"], size=size
        ).weights_digest()
        for size in ((4, 4), (32, 8))
    }
    assert len(digests) == 1
