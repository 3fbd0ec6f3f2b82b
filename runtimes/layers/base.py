"""Time per layer: what each runtime's own profiler says, brought to one shape.

A backend takes part by having `profile_layers`, with the signature of `LayerProfiler`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from edgecodec.arrays import Float32Array
from edgecodec.runtimes.base import Artefact, SessionOptions

WARM_UP = 2
"""Profiled runs that are not counted."""

FLOAT32, BFLOAT16, FLOAT16, INT8 = "float32", "bfloat16", "float16", "int8"


@dataclass(frozen=True)
class Layer:
    """One step of a runtime's plan, which may do several operators of the graph at once.

    Attributes:
        name: in the runtime's plan.
        operator: what the runtime calls it.
        samples_s: seconds of each run.
        macs: multiply-accumulates of a run; None for what is no convolution, and where unknown.
        arithmetic: `float32`, `bfloat16`, `float16` or `int8`; empty where the runtime does not
            tell.
    """

    name: str
    operator: str
    samples_s: tuple[float, ...]
    macs: int | None = None
    arithmetic: str = ""

    @property
    def median_s(self) -> float:
        """Median of the runs."""
        return statistics.median(self.samples_s)


@runtime_checkable
class LayerProfiler(Protocol):
    """A backend that can say where the time of a network goes."""

    def profile_layers(
        self,
        artefact: Artefact,
        options: SessionOptions,
        inputs: Mapping[str, Float32Array],
        runs: int,
    ) -> list[Layer]:
        """Run an artefact and time its layers.

        Args:
            artefact: what to run.
            options: how.
            inputs: as for `Session.run`.
            runs: how often, beside WARM_UP.

        Raises:
            BackendUnavailableError: the runtime is not there, or has no profiler here.
            BackendError: it failed.
        """
        ...


def convolution_macs(output: Sequence[int], weights: Sequence[int]) -> int:
    """Return the multiply-accumulates of a convolution.

    Args:
        output: shape, in any layout.
        weights: of one output value: input channels of its group, then the kernel.
    """
    return math.prod(output) * math.prod(weights)


def collect(order: Mapping[str, Layer], samples: Mapping[str, Sequence[float]]) -> list[Layer]:
    """Return layers with their samples, warm-up left out, in the order of the plan."""
    return [
        Layer(
            layer.name, layer.operator, tuple(samples[key][WARM_UP:]), layer.macs, layer.arithmetic
        )
        for key, layer in order.items()
        if len(samples[key]) > WARM_UP
    ]
