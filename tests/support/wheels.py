"""Wheels packed again from what is installed, so that a test can install without an index."""

from __future__ import annotations

import re
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path


def needed_by(name: str) -> dict[str, Distribution]:
    """Return a distribution and, without extras, all that it needs, as far as installed."""
    found: dict[str, Distribution] = {}
    waiting = [name]
    while waiting:
        known = distribution(waiting.pop())
        if known.name in found:
            continue
        found[known.name] = known
        for line in known.requires or ():
            required, _, condition = line.partition(";")
            if not condition:
                match = re.match(r"[\w.-]+", required)
                assert match
                waiting.append(match[0])
    return found


def pack_again(known: Distribution, folder: Path) -> Path:
    """Write a wheel of the files of an installed distribution."""
    tags = [
        line.partition(":")[2].strip()
        for line in (known.read_text("WHEEL") or "").splitlines()
        if line.startswith("Tag:")
    ]
    parts = zip(*(tag.split("-") for tag in tags), strict=True)
    tag = "-".join(".".join(dict.fromkeys(part)) for part in parts)
    name = known.name.replace("-", "_")
    path = folder / f"{name}-{known.version}-{tag}.whl"
    record = next(str(f) for f in known.files or () if f.name == "RECORD")
    with zipfile.ZipFile(path, "w") as archive:
        lines = []
        for file in known.files or ():
            inside = file.as_posix()
            if inside.startswith("..") or inside.endswith(".pyc") or inside == record:
                continue
            archive.write(str(known.locate_file(file)), inside)
            lines.append(f"{inside},,")
        archive.writestr(record, "\n".join([*lines, f"{record},,", ""]))
    return path
