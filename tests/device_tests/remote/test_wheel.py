"""The wheel packed from this installation holds what runs here."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import edgecodec
from edgecodec.device_tests.remote.wheel import pack_wheel


def test_holds_the_package_and_is_the_same_each_time() -> None:
    name, data = pack_wheel(core=False)
    assert pack_wheel(core=False) == (name, data)
    assert name == f"edgecodec-{edgecodec.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        recorded = archive.read(f"edgecodec-{edgecodec.__version__}.dist-info/RECORD").decode()
    assert len(names) == len(set(names))
    assert {line.split(",")[0] for line in recorded.splitlines()} == set(names)
    for expected in (
        "edgecodec/cli/device_test_command.py",
        "edgecodec/runtimes/selection/selector.py",
        "edgecodec/converters/convert.py",
        "edgecodec/device_tests/kit/model.zip",
        "edgecodec/data/default.bundle/manifest.json",
    ):
        assert expected in names
    assert not [n for n in names if n.endswith((".so", ".pyd", ".pt", ".pyc"))]


def test_core_goes_along_only_where_it_runs() -> None:
    compiled = [*Path(edgecodec.__file__).parent.glob("core/_binding*.so")]
    with zipfile.ZipFile(io.BytesIO(pack_wheel(core=True)[1])) as archive:
        held = [n for n in archive.namelist() if n.endswith(".so")]
    assert held == [f"edgecodec/core/{path.name}" for path in compiled]
