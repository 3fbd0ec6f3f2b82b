"""What tests of the codec share: the shipped bundle, small pictures, small files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

import edgecodec
from edgecodec.bundle.embedded import default_bundle_path
from edgecodec.bundle.reading import Bundle, sha256_of, short_id
from edgecodec.codec import Codec
from edgecodec.format.coder import LatentCoder
from tests.support.streams import likely_tables

UInt8Array = npt.NDArray[np.uint8]
Run = Callable[..., subprocess.CompletedProcess[bytes]]

DATA = default_bundle_path().parent

# Machines that test are busy; time limits would only say so. Examples are the same every run.
settings.register_profile(
    "edgecodec",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("edgecodec")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither believe nor change what the user's machine remembers of its backends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGECODEC_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name in ("EDGECODEC_BACKEND", "EDGECODEC_DISABLE", "EDGECODEC_RISKY"):
            patch.delenv(name, raising=False)
        # A trial of each in another process, for every cache that is empty, would take minutes.
        patch.setenv("EDGECODEC_TRUST", "onnxruntime,openvino,tflite,torch")
        yield


@pytest.fixture(scope="session")
def shipped() -> Iterator[Bundle]:
    """The bundle that ships with the package."""
    with Bundle() as bundle:
        yield bundle


@pytest.fixture(scope="session")
def tables() -> bytes:
    """Tables for tests of the coder itself, which must not depend on what was trained last."""
    return likely_tables().to_bytes()


@pytest.fixture(scope="session")
def core(tables: bytes) -> LatentCoder:
    return LatentCoder(tables, "c")


@pytest.fixture(scope="session")
def twin(tables: bytes) -> LatentCoder:
    return LatentCoder(tables, "numpy")


@pytest.fixture(scope="session")
def photo() -> UInt8Array:
    """The demo photo, (512, 768, 3)."""
    with Image.open(DATA / "demo.png") as image:
        return np.array(image.convert("RGB"))


@pytest.fixture(scope="session")
def codec(shipped: Bundle) -> Iterator[Codec]:
    """A codec on the backend that is always there."""
    with Codec(shipped, "onnxruntime", "fp32", threads=1) as made:
        yield made


@pytest.fixture(scope="session")
def small(photo: UInt8Array) -> UInt8Array:
    """A crop that makes four tiles of 32 pixels."""
    return np.ascontiguousarray(photo[200:250, 300:361])


@pytest.fixture(scope="session")
def small_file(codec: Codec, small: UInt8Array) -> bytes:
    """The crop as a file of four tiles, with metadata."""
    image = Image.fromarray(small)
    image.info["exif"] = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"
    image.info["icc_profile"] = b"a profile"
    return codec.encode(image, 50, tile=32)


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped bundle with other tables: a model that cannot read the shipped one's files."""
    path = tmp_path_factory.mktemp("other") / "other.bundle"
    shutil.copytree(default_bundle_path(), path)
    with Bundle(path) as bundle:
        changed = bytearray(bundle.tables())
        manifest = bundle.manifest
    changed[-1] ^= 1  # the gain of one hyper-latent channel: still usable
    (path / "tables.bin").write_bytes(changed)
    values = {**vars(manifest), "tables_id": short_id(bytes(changed))}
    values["files"] = {**manifest.files, "tables.bin": sha256_of(path / "tables.bin")}
    (path / "manifest.json").write_text(type(manifest)(**values).to_json())
    return path


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made, so that leftovers show."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Variables with which another process finds the package that is tested here."""
    home = str(Path(edgecodec.__file__).parents[1])
    path = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


@pytest.fixture(scope="session")
def run_cli(environment: dict[str, str]) -> Run:
    """Run the command line in a process of its own."""

    def run(*args: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "edgecodec", *map(str, args)],
            input=stdin,
            capture_output=True,
            check=False,
            timeout=300,
            env=environment,
        )

    return run
