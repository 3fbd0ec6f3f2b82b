"""`python -m edgecodec`."""

from __future__ import annotations

from edgecodec.cli import entry_point

if __name__ == "__main__":
    entry_point()
