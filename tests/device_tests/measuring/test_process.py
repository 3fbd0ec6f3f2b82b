"""Pinning to cores, and peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from edgecodec.device_tests.measuring.process import peak_bytes, pinned
from edgecodec.runtimes.device.facts import CoreCluster
from edgecodec.runtimes.device.probe import probe_device

DEVICE = probe_device()


class Cores:
    """Stands for the scheduler."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, usable: set[int]) -> None:
        self.now = usable
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: self.now, raising=False)
        monkeypatch.setattr(os, "sched_setaffinity", self._set, raising=False)

    def _set(self, pid: int, cores: tuple[int, ...]) -> None:
        self.now = set(cores)


def test_fast_cores_come_first_and_all_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = Cores(monkeypatch, {0, 1, 2, 3, 6, 7})
    clusters = (
        CoreCluster("big", "performance", (4, 5, 6, 7), 4),
        CoreCluster("little", "efficiency", (0, 1, 2, 3), 4),
    )
    device = replace(DEVICE, clusters=clusters)
    with pinned(device, 3) as chosen:
        assert chosen == (0, 6, 7)
        assert cores.now == {0, 6, 7}
    assert cores.now == {0, 1, 2, 3, 6, 7}
    with pytest.raises(ValueError, match="no"), pinned(device, 1):
        raise ValueError("no")
    assert cores.now == {0, 1, 2, 3, 6, 7}


def test_nothing_is_pinned_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = Cores(monkeypatch, {0, 1})
    for threads in (None, 3):
        with pinned(DEVICE, threads) as chosen:
            assert chosen is None
            assert cores.now == {0, 1}
    with pinned(replace(DEVICE, clusters=()), 1) as chosen:
        assert chosen == (0,)
    monkeypatch.delattr(os, "sched_setaffinity")
    with pinned(DEVICE, 1) as chosen:
        assert chosen is None


PROGRAM = """
import numpy as np
from edgecodec.device_tests.measuring.process import peak_bytes
before = peak_bytes()
used = np.ones(100_000_000, np.uint8)
del used
print(before, peak_bytes())
"""


def test_peak_is_the_highest_of_this_process_alone(environment: dict[str, str]) -> None:
    parents = np.ones(250_000_000, np.uint8)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, env=environment, check=True
    )
    before, after = map(int, done.stdout.split())
    assert after >= before + 90_000_000
    if sys.platform.startswith("linux"):  # elsewhere it may be inherited
        assert after < parents.nbytes
    assert peak_bytes() >= parents.nbytes
