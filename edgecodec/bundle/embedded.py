"""The bundles that ship with the package, by their names."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from edgecodec.bundle.manifest import Manifest, manifest_text
from edgecodec.errors import BundleError

DEFAULT = "default"
EMBEDDED = Path(__file__).parents[1] / "data"
"""Where they lie, each in `<name>.bundle`."""


def default_bundle_path() -> Path:
    """Return the folder of the bundle that is used where none is named."""
    return EMBEDDED / f"{DEFAULT}.bundle"


def embedded_bundles() -> dict[str, Path]:
    """Return the bundles that can be named, the default one first."""
    found = {path.stem: path for path in sorted(EMBEDDED.glob("*.bundle"))}
    return dict(sorted(found.items(), key=lambda item: item[0] != DEFAULT))


def find_bundle(name_or_path: str | Path) -> Path:
    """Return the path of a bundle: one that exists, else the embedded bundle of that name.

    Raises:
        BundleError: neither; lists the names there are.
    """
    known = embedded_bundles()
    path = Path(name_or_path)
    if os.path.lexists(path):
        return path
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    raise BundleError(
        f"{name_or_path}: no such bundle; give its path, or the name of an embedded one: "
        f"{', '.join(known) or 'none'}"
    )


def bundles_with_tables(tables_id: str) -> dict[str, Manifest]:
    """Return the embedded bundles with these tables, the default one first, from manifests alone.

    Their networks may differ all the same: a file names the tables that made it, not the networks.
    """
    found = {}
    for name, path in embedded_bundles().items():
        with suppress(BundleError):
            manifest = Manifest.from_json(manifest_text(path, path), str(path))
            if manifest.tables_id == tables_id:
                found[name] = manifest
    return found
