"""The process a measurement runs in: which cores it may use, and how much memory it took."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from edgecodec.runtimes.device.facts import SystemFiles, whole
from edgecodec.runtimes.device.probe import Device


@contextmanager
def pinned(device: Device, threads: int | None) -> Iterator[tuple[int, ...] | None]:
    """Keep this thread, and those it starts, on as many cores as it runs threads.

    Fast cores are taken first. Nothing happens where no number of threads is given, where it is
    more than there are cores, or where the system has no call for it.

    Args:
        device: whose kinds of cores count.
        threads: how many cores; None leaves the choice to the scheduler.

    Yields:
        the numbers of the cores, or None where nothing was pinned.
    """
    if threads is None or not hasattr(os, "sched_setaffinity"):
        yield None
        return
    before = os.sched_getaffinity(0)
    ranked = [core for cluster in device.clusters for core in cluster.cores if core in before]
    ranked += sorted(before - set(ranked))
    chosen = tuple(sorted(ranked[:threads]))
    if len(chosen) < threads:
        yield None
        return
    os.sched_setaffinity(0, chosen)
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, before)


def peak_bytes() -> int:
    """Return the highest resident memory of this process so far, in bytes; 0 where unknown."""
    if sys.platform == "win32":
        return _windows_peak()
    for line in SystemFiles().read("/proc/self/status").splitlines():
        if line.startswith("VmHWM:"):  # unlike ru_maxrss it is not inherited from the parent
            return 1024 * whole(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _windows_peak() -> int:
    """Return PeakWorkingSetSize of PROCESS_MEMORY_COUNTERS."""
    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009 - not on this system
    counters = (ctypes.c_size_t * 10)()  # cb and PageFaultCount share the first on 64 bits
    ctypes.cast(counters, ctypes.POINTER(ctypes.c_uint32))[0] = ctypes.sizeof(counters)
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    kernel.K32GetProcessMemoryInfo.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32]
    handle = kernel.GetCurrentProcess()
    if not kernel.K32GetProcessMemoryInfo(handle, counters, ctypes.sizeof(counters)):
        return 0
    return int(counters[1])
