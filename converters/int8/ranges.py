"""How large the values of a network become on real photos, channel by channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from edgecodec.arrays import Float32Array, Float64Array
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.writers.to_torch import describe
from edgecodec.runtimes.backends.torch_graph import TorchGraph

_SAMPLES = 20_000

_STEPS = 3
"""Scales tried per octave."""
_OCTAVES = 5


@dataclass(frozen=True, eq=False)
class Statistics:
    """What was seen of a value.

    Attributes:
        samples: (C, n) float32, at n places drawn at random.
        largest: (C,) float32, the largest magnitude anywhere.
    """

    samples: Float32Array
    largest: Float32Array


def pooled(parts: Sequence[Statistics]) -> Statistics:
    """Return what was seen of several values of the same channels."""
    return Statistics(
        np.concatenate([part.samples for part in parts], 1),
        np.max([part.largest for part in parts], 0),
    )


@torch.inference_mode()
def collect(
    graph: Graph,
    inputs: Sequence[Mapping[str, Float32Array]],
) -> dict[str, Statistics]:
    """Run a float graph and look at every value.

    Args:
        graph: to run.
        inputs: (1, H, W, C) float32 by name, one mapping per run.
    """
    everything = replace(graph, outputs=tuple(node.output for node in graph.nodes))
    network = TorchGraph(describe(everything)).eval()
    rng = np.random.default_rng(0)
    seen: dict[str, list[Statistics]] = {}
    for given in inputs:
        tensors = {name: torch.from_numpy(array) for name, array in given.items()}
        for name, value in {**tensors, **network(tensors)}.items():
            flat = value.reshape(-1, value.shape[-1])
            rows = torch.from_numpy(rng.integers(0, len(flat), -(-_SAMPLES // len(inputs))))
            seen.setdefault(name, []).append(
                Statistics(flat[rows].T.numpy().copy(), flat.abs().amax(0).numpy())
            )
    return {name: pooled(parts) for name, parts in seen.items()}


def best_scale(
    seen: Statistics, low: int, high: int, grid: Float64Array | None = None
) -> Float64Array:
    """Return the scale of each channel at which codes low..high have the least squared error.

    Clipping a few extremes makes all other steps finer: scales from the largest magnitude down to
    a 32nd of it are tried.

    Args:
        seen: of the value.
        low: least code.
        high: largest code.
        grid: (C,), where scales have to be these times a power of two not below one.

    Returns:
        (C,), above zero.
    """
    top = np.maximum(seen.largest.astype(np.float64), 1e-6) / high
    if grid is not None:
        top = grid * np.exp2(np.maximum(0.0, np.ceil(np.log2(top / grid))))
    best = np.full(len(top), np.inf)
    chosen = top.copy()
    for step in range(_OCTAVES + 1 if grid is not None else _STEPS * _OCTAVES + 1):
        scale = top * np.exp2(-step if grid is not None else -step / _STEPS)
        scale = scale if grid is None else np.maximum(scale, grid)
        codes = np.clip(np.rint(seen.samples / scale[:, None]), low, high)
        error = np.mean(np.square(codes * scale[:, None] - seen.samples), 1)
        # At equal errors (a channel that is always zero) the first, largest one stays.
        chosen = np.where(error < best, scale, chosen)
        best = np.minimum(error, best)
    return chosen
