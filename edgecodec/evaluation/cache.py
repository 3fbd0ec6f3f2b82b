"""Results of slow codecs, kept between runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgecodec.errors import ConfigError
from edgecodec.files import refuse_device, write_output

_FORMAT = 1


class ResultCache:
    """Results kept in a JSON file between runs, because AVIF is slow.

    A key names all that a result depends on, so an entry is never stale. Safe for use from
    several threads: every method does a single operation on the entries.
    """

    def __init__(self, path: Path | None) -> None:
        """Read the file when it exists; None keeps nothing beyond this object.

        Raises:
            ConfigError: the file is something else.
        """
        self._path = path
        self._entries: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            refuse_device(path)
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
                if data["format"] != _FORMAT:
                    raise KeyError("format")
                self._entries = {key: dict(entry) for key, entry in data["results"].items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
                raise ConfigError(
                    f"{path} is not a cache of this version; delete it or name another file"
                ) from exc

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the entry of that key, if any."""
        return self._entries.get(key)

    def put(self, key: str, entry: dict[str, Any]) -> None:
        """Add an entry; it must be JSON-serialisable."""
        self._entries[key] = entry

    def save(self) -> None:
        """Write the file, where there is one."""
        if self._path is not None:
            # A copy: other threads may add entries while this one writes.
            content = {"format": _FORMAT, "results": dict(self._entries)}
            write_output(str(self._path), (json.dumps(content, indent=0) + "\n").encode())
