"""What was measured, kept on disk: one small JSON file per question, in the user's cache folder.

A file holds its whole key, so that a damaged or foreign one is never believed. Whatever goes wrong
with the folder costs the memory of a measurement and nothing else.

Beside the verdicts lie markers, `trial-*`: made before a candidate runs in this process for the
first time, removed after. One that is still there tells of a process that died of it. And notes,
`passed-*`, of what ran well in a process of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgecodec.bundle.reading import Bundle
from edgecodec.files import replacing
from edgecodec.runtimes.base import RunSettings
from edgecodec.runtimes.device.probe import Device, probe_device, usable_cores
from edgecodec.runtimes.environment import cache_folder, disabled_backends
from edgecodec.runtimes.registry import plugin_specs
from edgecodec.runtimes.selection.choice import StageVerdict

FORMAT = 1
SIZE_LIMIT = 1 << 20
"""Bytes of a verdict's file; more is none of ours."""

BUSY_S = 60.0
"""Seconds after which a marker tells of a death where processes cannot be asked for."""

_log = logging.getLogger(__name__)


class Store:
    """What is remembered on this machine, and what machine it is remembered for.

    Args:
        folder: where files lie; None keeps nothing. Asked each time.
        probe: tells the machine and its packages, once.
        cores: tells how many logical cores this process may use. Asked each time.
    """

    def __init__(
        self,
        folder: Callable[[], Path | None] = cache_folder,
        probe: Callable[[], Device] = probe_device,
        cores: Callable[[], int] = usable_cores,
    ) -> None:
        self._folder, self._probe, self.usable_cores = folder, probe, cores
        self._known: Device | None = None

    def device(self) -> Device:
        """Return what machine and packages these are."""
        if self._known is None:
            self._known = self._probe()
        return self._known

    def make_key(self, bundle: Bundle, request: Mapping[str, Any]) -> str:
        """Return all that a verdict depends on as JSON text.

        Args:
            bundle: the artefacts.
            request: what is asked of them, JSON-compatible.

        Raises:
            UnknownPluginError: a variable of the environment names a backend there is not.
        """
        key = {
            "format": FORMAT,
            "device": self.device().identity(),
            "packages": self.device().packages,
            "usable_cores": self.usable_cores(),
            "bundle": bundle.content_id,
            "backends": [f"{s.name} {s.target} {s.version}" for s in plugin_specs().values()],
            "disabled": disabled_backends(),
            "request": request,
        }
        return json.dumps(key, sort_keys=True)

    def read(self, key: str) -> StageVerdict | None:
        """Return the verdict kept for a key, None where there is none that can be believed."""
        if (folder := self._folder()) is None:
            return None
        path = folder / _name(key)
        try:
            if path.exists() and not path.is_file():  # a pipe would be waited for
                raise ValueError("it is no file")
            with path.open("rb") as handle:
                values = json.loads(handle.read(SIZE_LIMIT))
            if values["key"] != json.loads(key):
                raise ValueError("it answers another question")
            return StageVerdict.from_dict(values["verdict"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
            _log.debug("%s: ignored, %s", path, exc)
            return None

    def write(self, key: str, verdict: StageVerdict) -> None:
        """Keep a verdict, replacing the one there is; whole or not at all."""
        if (folder := self._folder()) is None:
            return
        values = {"key": json.loads(key), "verdict": verdict.to_dict()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / _name(key)) as temporary:
                temporary.write_text(json.dumps(values, indent=1), encoding="utf-8")
        except OSError as exc:
            _log.debug("%s: not kept, %s", folder, exc)

    def remove(self, key: str) -> None:
        """Forget a verdict."""
        if (folder := self._folder()) is not None:
            _unlink(folder / _name(key))

    @contextlib.contextmanager
    def marking(self, what: str) -> Iterator[None]:
        """Leave a marker for the time of the block, which outlives a process that dies in it.

        Args:
            what: is run for the first time.
        """
        folder = self._folder()
        if folder is None:
            yield
            return
        path = folder / f"{_marker(what)}-{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(what, encoding="utf-8")
        except OSError as exc:
            _log.debug("%s: not marked, %s", path, exc)
        try:
            yield
        finally:
            _unlink(path)

    def is_marked(self, what: str) -> bool:
        """Say whether a process died in `marking`."""
        return any(not _is_running(path) for path in self._markers(what))

    def unmark(self, what: str) -> None:
        """Forget that a process died in `marking`."""
        for path in self._markers(what):
            if not _is_running(path):
                _unlink(path)

    def note_passed(self, what: str) -> None:
        """Remember that something ran well in a process of its own."""
        if (folder := self._folder()) is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _passed(what)).write_text(what, encoding="utf-8")
        except OSError as exc:
            _log.debug("%s: not noted, %s", folder, exc)

    def has_passed(self, what: str) -> bool:
        """Say whether something ran well in a process of its own."""
        folder = self._folder()
        try:
            return folder is not None and (folder / _passed(what)).exists()
        except OSError:
            return False

    def _markers(self, what: str) -> list[Path]:
        folder = self._folder()
        try:
            return [] if folder is None else list(folder.glob(f"{_marker(what)}-*"))
        except OSError:
            return []

    def trial_name(self, bundle: Bundle, stage: str, settings: RunSettings) -> str:
        """Return the name under which the trial of an artefact on a backend is marked.

        The machine is part of it: a folder may serve several, and what one processor lacks, and
        therefore refuses in good order, another one runs.
        """
        machine = json.dumps(
            {"device": self.device().identity(), "packages": self.device().packages}, sort_keys=True
        )
        return f"{stage} {' '.join(settings.artefact)} of bundle {bundle.content_id} on {machine}"

    def forget_machine(self) -> None:
        """Read again what machine and packages this is."""
        self._known = None


def _is_running(marker: Path) -> bool:
    """Say whether the process that made a marker may still be at it."""
    try:
        pid = int(marker.name.rpartition("-")[2])
        if os.name != "posix":  # where signal 0 would end it
            return time.time() - marker.stat().st_mtime < BUSY_S
        if pid == os.getpid():  # of a namesake: our own are gone when this is asked
            return False
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return True


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as exc:
        _log.debug("%s: not removed, %s", path, exc)


def _name(key: str) -> str:
    return f"verdict-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _marker(what: str) -> str:
    return f"trial-{hashlib.sha256(what.encode()).hexdigest()[:32]}"


def _passed(what: str) -> str:
    return f"passed-{hashlib.sha256(what.encode()).hexdigest()[:32]}"
