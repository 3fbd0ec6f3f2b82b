"""Contenders without a codec, clocks that obey, reports made by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecodec.device_tests.measuring.contenders import Coded, Contender
from edgecodec.device_tests.measuring.sampling import Float64Array
from edgecodec.device_tests.measuring.steady import Series, Steady, YardstickSeries
from edgecodec.device_tests.reports.bench_report import (
    BenchConditions,
    BenchReport,
    MeasuredPicture,
)
from edgecodec.runtimes.device.probe import Device, probe_device

UInt8Array = npt.NDArray[np.uint8]
CHOICE = {"backend": "tflite", "precision": "fp32"}
SETTINGS = {"quality": 60, "entropy_coder": "c", "analysis": CHOICE, "synthesis": CHOICE}


class Clock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Scripted(Contender):
    """Takes the seconds it is told, in turn, then the last for ever; writes its name to a log."""

    def __init__(
        self, name: str, clock: Clock, *seconds: float, log: list[str] | None = None
    ) -> None:
        super().__init__(name, {"quality": 1, "library": "none"}, bytes, bytes)
        self.clock, self.left, self.log = clock, list(seconds), [] if log is None else log

    def once(self, pixels: UInt8Array) -> Coded:
        taken = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        self.clock.now += taken
        self.log.append(self.name)
        return Coded({"encode": 0.75 * taken, "decode": 0.25 * taken}, b"12345", ())


@cache
def device() -> Device:
    """This machine, asked once."""
    return probe_device()


def series(values: Float64Array | list[float], **stages: Float64Array | list[float]) -> Series:
    """A series whose encode takes `values`, with other stages beside."""
    return Series(
        starts_s=np.arange(len(values), dtype=float).tolist(),
        stages={"encode": list(values), "decode": list(values)}
        | {name.replace("_", "/", 1): list(v) for name, v in stages.items()},
        warm_up=[1.0],
        bytes=1000,
    )


def report_of(
    ours: Series,
    classical: Series | None = None,
    yardstick: Float64Array | list[float] | None = None,
    change: Callable[[dict[str, Any]], None] = lambda values: None,
) -> BenchReport:
    """A report of one picture, by hand."""
    noop = Contender("auto", SETTINGS, bytes, bytes, ours=True)
    contenders = [noop]
    found = {("auto", "p.png"): ours}
    if classical is not None:
        contenders.append(Contender("jpeg", {"quality": 80, "library": "j 1"}, bytes, bytes))
        found["jpeg", "p.png"] = classical
    conditions: dict[str, Any] = {
        "bundle": {"name": "m", "model": "1", "tables": "2", "files": "3"},
        "quality": 60, "threads": 2, "cores": (0, 1), "runs": 3, "seconds": 0.0, "created": "now",
    }  # fmt: skip
    change(conditions)
    fixed = [] if yardstick is None else list(yardstick)
    starts = list(np.arange(len(fixed), dtype=float))
    return BenchReport(
        device(),
        BenchConditions(**conditions),
        (MeasuredPicture("p.png", 1000, 500, "ab"),),
        tuple(contenders),
        Steady(found, [YardstickSeries("serial", "fixed", starts, fixed)] if fixed else []),
    )
