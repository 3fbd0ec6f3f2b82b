"""What is read from torch, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edgecodec.converters.graph.convolutions import Conv2d
from edgecodec.converters.graph.from_torch import graph_from_module
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.graph.nodes import Size
from edgecodec.converters.writers.to_torch import describe
from edgecodec.errors import ConversionError, UnsupportedOpError
from edgecodec.runtimes.backends.torch_graph import TorchGraph


class Lambda(nn.Module):
    """A module of one function."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function
        self.offset = nn.Parameter(torch.ones(1, 3, 1, 1))

    def forward(self, x: Tensor) -> object:
        return self.function(x)


def in_half(x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return torch.conv2d(x, torch.ones(3, 3, 1, 1))


def read(module: nn.Module, outputs: tuple[str, ...] = ("x_hat",)) -> Graph:
    return graph_from_module(module, stage="synthesis", inputs={"x": 3}, outputs=outputs)


@pytest.mark.parametrize(
    ("function", "op"),
    [
        (torch.sigmoid, "sigmoid"),
        (lambda x: x * x, "mul of two values"),
        (lambda x: torch.ones(3, 1, 1) / x, "div of two values"),
        (lambda x: x + torch.ones(96), "add with a constant that is no number per channel"),
        (lambda x: torch.div(x, 2, rounding_mode="floor"), "div with rounding_mode"),
        (lambda x: x + torch.rand(1), "rand"),
        (lambda x: torch.nn.functional.interpolate(x, scale_factor=2), "upsample_nearest2d"),
        (lambda x: x + x[:, :1], "add of different shapes"),
        (lambda x: torch.conv2d(x, x[:1]), "slice"),
        (lambda x: F.dropout(x, 0.5, training=True), "dropout"),
        (lambda x: x.half().float(), "to (torch.float16)"),
        (lambda x: F.pad(torch.relu(x), (1, 1, 1, 1)), "pad by zeros of what no convolution alone"),
        (lambda x: F.pad(x, (1, 1, 1, 1), "reflect"), "pad (reflect)"),
        (lambda x: F.pad(x, (1, 1, 1, 1), value=1.0), "pad by a number"),
        (lambda x: F.pad(x, (0, -1, 0, 0), "replicate"), "pad by"),
        (lambda x: torch.conv2d(x.clamp(0, 255), torch.ones(3, 3, 1, 1)), "clamp other than to 0"),
        (lambda x: x.clamp(0, 1) * 200, "clamp other than to 0"),
        (lambda x: x.clamp(0, 255) - 10, "clamp other than to 0"),
        (lambda x: F.relu6(x), "relu6 other than to 0"),
        (lambda x: F.hardtanh(x), "hardtanh other than to 0"),
        (lambda x: torch.maximum(x, torch.ones(1)), "maximum of other than"),
        (lambda x: x[:, :, 1:-1], "slice"),
        (lambda x: torch.relu(x[:, :, :256]), "alias"),  # a crop, of larger pictures than traced
        (lambda x: x.transpose(1, 2), "transpose that is neither"),
        (lambda x: x.flatten(2), "flatten that is neither"),
        (lambda x: torch.cat([x, torch.relu(x)], 1), "cat"),
        (lambda x: x.flip(3), "flip that is neither"),
        (in_half, "autocast"),
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
    assert "supported: conv2d, conv_transpose2d, relu" in str(caught.value)


def test_place_of_an_operation_is_told() -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.ReLU(), nn.GELU()))
    with pytest.raises(UnsupportedOpError, match=r"^synthesis: operation gelu in 1\.1 \(GELU\) is"):
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


class Normalised(nn.Module):
    """Numbers per channel and in all, before, between and after convolutions and shuffles."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.linspace(-0.4, 0.6, 3)[:, None, None])
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.first, self.norm = nn.Conv2d(3, 12, 3, padding=padding), norm(12)
        self.last = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = (x / 4 - self.get_buffer("mean")) * 2.0
        x = nn.functional.pixel_shuffle(self.norm(self.first(x)), 2) * torch.relu(self.gain)
        x = 1.5 - torch.relu(torch.tensor([[[0.5]]]) + x).contiguous()
        x = nn.functional.pixel_unshuffle(self.last(x) - 0.25, 2) * 3
        return x.clone()


def norm(channels: int) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(channels)
    for tensor, low, high in zip(
        (made.weight, made.bias, made.running_mean, made.running_var),
        (0.5, -1.0, -1.0, 0.2),
        (2.0, 1.0, 1.0, 3.0),
        strict=True,
    ):
        assert tensor is not None
        nn.init.uniform_(tensor, low, high)
    return made


ANY: tuple[Size, ...] = ((1, 1), (5, 9), (8, 3))
REWRITTEN: dict[str, tuple[Callable[[], nn.Module], tuple[Size, ...]]] = {
    "normalised": (lambda: Normalised(0), ((3, 3), (6, 9))),
    "normalised_and_padded": (lambda: Normalised(1), ANY),
    "leaky": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.LeakyReLU(0.3, inplace=True), norm(4)), ANY
    ),
    "leaky_by_default": (nn.LeakyReLU, ANY),
    "norm_alone": (
        lambda: nn.Sequential(nn.PixelUnshuffle(2), norm(12), nn.ReLU()), ((2, 4), (8, 6))
    ),
    "norm_without_weights": (lambda: nn.BatchNorm2d(3, affine=False), ANY),
    "weight_norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3, padding=1)), ANY
    ),
    "prelu": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.PReLU(4), nn.PReLU()), ANY),
    "spectral_norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 1)), ANY),
    "replicated": (lambda: nn.Conv2d(3, 4, 5, padding=2, padding_mode="replicate"), ANY),
    "replicated_normalised": (
        lambda: nn.Sequential(norm(3), nn.ReplicationPad2d(1), nn.Conv2d(3, 4, 3)), ANY
    ),
    "transposed": (
        lambda: nn.ConvTranspose2d(3, 5, 5, stride=2, padding=2, output_padding=1), ANY
    ),
    "transposed_even": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1), nn.ReLU()), ANY
    ),
    "transposed_groups": (
        lambda: nn.ConvTranspose2d(3, 6, 8, stride=8, groups=3, bias=False), ((1, 1), (2, 3))
    ),
    "transposed_by_3": (lambda: nn.ConvTranspose2d(3, 4, (5, 7), stride=3, padding=(1, 2)), ANY),
    "transposed_unstrided": (lambda: nn.ConvTranspose2d(3, 4, 3, padding=1), ANY),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REWRITTEN))
def test_what_is_rewritten_gives_the_same_numbers(name: str) -> None:
    build, sizes = REWRITTEN[name]
    module = build().eval()
    runner = TorchGraph(describe(read(module)))
    for size in sizes:
        x = torch.randn(1, 3, *size)
        with torch.inference_mode():
            found = runner({"x": x.permute(0, 2, 3, 1)})["x_hat"].permute(0, 3, 1, 2)
            assert torch.allclose(found, module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "nodes"),
    [
        (Lambda(lambda x: torch.conv2d(x / 255 - 0.5, torch.ones(2, 3, 2, 2))), 1),
        (Lambda(lambda x: torch.conv2d(x / 255, torch.ones(2, 3, 3, 3), padding=1)), 1),
        (Lambda(lambda x: torch.conv2d(x / 255 - 0.5, torch.ones(2, 3, 3, 3), padding=1)), 2),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()), 2),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.PixelShuffle(2), nn.BatchNorm2d(1)), 2),
        (nn.Sequential(nn.BatchNorm2d(3), nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 1)), 2),
        (nn.ConvTranspose2d(3, 4, 2, stride=2), 2),
    ],
)
def test_factors_go_into_convolutions_where_they_can(module: nn.Module, nodes: int) -> None:
    assert len(read(module).nodes) == nodes


def test_a_relu_goes_before_the_shuffle_it_reads_alone() -> None:
    graph = read(nn.Sequential(nn.ConvTranspose2d(3, 4, 2, stride=2), nn.ReLU()))
    assert [type(node).__name__ for node in graph.nodes] == ["Conv2d", "Relu", "DepthToSpace"]


def test_a_transposed_convolution_that_crops_otherwise_is_refused() -> None:
    for module in (
        nn.ConvTranspose2d(3, 4, 5, stride=2, padding=2),
        nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1, dilation=2),
        nn.ConvTranspose2d(3, 4, (2, 3), stride=(2, 3)),
    ):
        with pytest.raises(UnsupportedOpError, match="to another size than input"):
            read(module)


def test_norm_of_the_batch_is_refused() -> None:
    with pytest.raises(UnsupportedOpError, match="batch_norm by the statistics of its input"):
        read(nn.BatchNorm2d(3, track_running_stats=False))


def test_infinite_factors_are_not_lost() -> None:
    (node,) = read(Lambda(lambda x: x / 0.0)).nodes
    assert isinstance(node, Conv2d)
    assert np.isinf(node.weight).all()


def shuffled_by_hand(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)


def unshuffled_by_hand(x: Tensor) -> Tensor:
    """In TFLite's order of channels."""
    n, c, h, w = x.shape
    x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).contiguous()
    return x.view(n, 4 * c, h // 2, w // 2)


def without_gradient(x: Tensor) -> Tensor:
    x = torch.relu(x) + 1
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        x = x * 2
    return torch.relu(x)


KERNEL = torch.linspace(-1, 1, 12 * 3 * 9).reshape(12, 3, 3, 3)
COMPUTE_NOTHING: dict[str, tuple[Callable[[Tensor], Tensor], list[str]]] = {
    "dropout": (lambda x: torch.relu(F.dropout2d(F.dropout(x, 0.5, False), 0.5, False)), ["Relu"]),
    "no_grad": (torch.no_grad()(torch.relu), ["Relu"]),
    "no_grad_inside": (without_gradient, ["Relu", "Conv2d", "Relu"]),
    "no_grad_in_place": (torch.no_grad()(lambda x: torch.relu_(x + 1)), ["Conv2d", "Relu"]),
    "checkpoint": (lambda x: checkpoint(torch.relu, x, use_reentrant=False), ["Relu"]),
    "float": (lambda x: torch.relu(x.float().to(torch.float32).type_as(x).cpu()), ["Relu"]),
    "memory": (lambda x: torch.relu(x.contiguous().clone().detach()), ["Relu"]),
    "plus": (lambda x: torch.relu(+x), ["Relu"]),
    "one": (lambda x: torch.conv2d(x * 1.0 + 0, KERNEL), ["Conv2d"]),
    "negation": (lambda x: torch.conv2d(-x, -KERNEL), ["Conv2d"]),
    "difference": (lambda x: torch.relu(x) - x, ["Relu", "Conv2d", "Add"]),
    "alpha": (lambda x: torch.add(torch.relu(x), x, alpha=-2), ["Relu", "Conv2d", "Add"]),
    "alpha_reversed": (lambda x: torch.rsub(torch.relu(x), x, alpha=3), ["Relu", "Conv2d", "Add"]),
    "alpha_of_a_constant": (
        lambda x: torch.rsub(torch.sub(torch.add(x, 3, alpha=2), 1, alpha=3), 2, alpha=5),
        ["Conv2d"],
    ),
    "zero_pad": (lambda x: torch.conv2d(F.pad(x, (1, 2, 0, 3)), KERNEL), ["Conv2d"]),
    "zero_pad_twice": (
        lambda x: torch.conv2d(nn.ZeroPad2d(1)(x), KERNEL, padding=(1, 0)), ["Conv2d"]
    ),
    "pad_by_nothing": (lambda x: torch.relu(F.pad(x, (0, 0, 0, 0), "replicate")), ["Relu"]),
    "relus": (
        lambda x: F.threshold(torch.maximum(x.clamp(min=0), torch.zeros(1)), 0, 0).clamp_min(0),
        ["Relu", "Relu", "Relu"],  # the last is at the end of a synthesis
    ),
    "shape": (lambda x: torch.relu(x.flatten(2).view(x.shape).squeeze(0).unsqueeze(0)), ["Relu"]),
    "permuted_back": (
        lambda x: torch.relu(x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)), ["Relu"]
    ),
    "chunks": (lambda x: torch.relu(torch.cat(x.chunk(3, 1), 1)), ["Relu"]),
    "unbound": (lambda x: torch.relu(torch.stack(x.unbind(1), 1)), ["Relu"]),
    "channels": (lambda x: torch.conv2d(x[:, [2, 1, 0]], KERNEL), ["Conv2d", "Conv2d"]),
    "some_channels": (lambda x: torch.relu(x[:, 1:]), ["Conv2d", "Relu"]),
    "shuffle": (lambda x: shuffled_by_hand(torch.conv2d(x, KERNEL)), ["Conv2d", "DepthToSpace"]),
    "unshuffle": (
        lambda x: torch.relu(unshuffled_by_hand(x)), ["SpaceToDepth", "Conv2d", "Relu"]
    ),
    "last_clamp": (lambda x: torch.relu(x).clamp(0, 255), ["Relu"]),
    "last_clamp_of_one": (lambda x: torch.relu(x).clamp(0, 1).mul(255), ["Relu", "Conv2d"]),
    "last_clamp_before_a_shuffle": (
        lambda x: F.pixel_shuffle(F.hardtanh(torch.conv2d(x, KERNEL)), 2) * 127.5 + 127.5,
        ["Conv2d", "DepthToSpace"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(COMPUTE_NOTHING))
def test_what_computes_nothing_costs_nothing(name: str) -> None:
    function, nodes = COMPUTE_NOTHING[name]
    module = Lambda(function).eval()
    graph = read(module)
    assert [type(node).__name__ for node in graph.nodes] == nodes
    x = 100 * torch.randn(1, 3, 6, 10)
    with torch.inference_mode():
        found = TorchGraph(describe(graph))({"x": x.permute(0, 2, 3, 1)})["x_hat"]
        expected = module(x)
    if name.startswith(("last_clamp", "relus")):  # as whoever reads a picture clips it
        found, expected = found.clamp(0, 255), expected.clamp(0, 255)
    assert torch.allclose(found.permute(0, 3, 1, 2), expected, rtol=1e-4, atol=1e-3)


def test_a_clamp_at_the_end_of_an_analysis_is_refused() -> None:
    module = Lambda(lambda x: torch.relu(x).clamp(0, 255))
    with pytest.raises(UnsupportedOpError, match="clamp other than to 0 and above"):
        graph_from_module(module, stage="analysis", inputs={"x": 3}, outputs=["y"])


class _UnderInference(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 16, stride=16)
        self.second = torch.nn.Conv2d(8, 4, 2, stride=2)

    @torch.inference_mode()
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.first(x)
        return y, self.second(y)


def test_a_forward_under_inference_mode_is_read() -> None:
    """What it keeps for a second layer cannot have a gradient, and tracing asks for none."""
    graph = graph_from_module(
        _UnderInference().eval(), stage="analysis", inputs={"x": 3}, outputs=["y", "z"]
    )
    assert [type(node).__name__ for node in graph.nodes] == ["Conv2d", "Conv2d"]
