"""Each backend broken on purpose, in processes as users have them: the picture still comes out.

What breaks is put into the interpreter before anything of ours runs, by a module that Python
imports at its start, so that processes started for trials have it as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecodec.bundle.manifest import MANIFEST
from edgecodec.bundle.reading import Bundle
from edgecodec.bundle.writing import hash_files
from tests.support.tiny_codec import write_tiny_codec

BACKENDS = {"onnxruntime": "onnx", "openvino": "openvino", "tflite": "tflite"}
PACKAGES = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tflite": "ai_edge_litert.interpreter",
}
SIZE = (96, 160)
EACH = [  # one of them is enough for a quick run: each case starts up to four processes
    pytest.param(name, marks=() if name == "tflite" else pytest.mark.slow) for name in BACKENDS
]

# A backend's session is changed when its module is imported, whichever process that is in.
PATCH = """
import contextlib, ctypes, importlib.abc, importlib.util, os, sys

KIND, NAME, VENDOR = {kind!r}, {name!r}, {vendor!r}

def misbehave(inputs):
    large = all(v.shape[1] not in (64, 4) for v in inputs.values())  # not golden
    if KIND == "crash":
        os.abort()
    if KIND == "hang" or (KIND == "hang later" and large):
        ctypes.CDLL(None).pause()
    if KIND == "raise later" and large:
        raise RuntimeError("device lost")

def changed(outputs):
    if KIND != "wrong answers":
        return outputs
    return {{n: v + 3 * abs(v).max() for n, v in outputs.items()}}

def break_infer(session, infer):
    def broken(self, inputs):
        misbehave(inputs)
        return changed(infer(self, inputs))
    session._infer = broken

def break_results(session, results):
    @contextlib.contextmanager
    def broken(self, inputs):
        misbehave(inputs)
        with results(self, inputs) as outputs:
            yield changed(outputs)
    session._results = broken

def break_session(module):
    for name, value in vars(module).items():
        if name.endswith("Session") and value.__module__ == module.__name__:
            if "_results" in vars(value):
                break_results(value, value._results)
            elif "_infer" in vars(value):
                break_infer(value, value._infer)

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        missing = fullname == VENDOR and KIND == "broken library"
        if fullname != f"edgecodec.runtimes.backends.{{NAME}}_backend" and not missing:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        sys.meta_path.insert(0, self)
        run = spec.loader.exec_module
        def exec_module(module):
            if missing:
                raise ImportError("libsomething.so: cannot open shared object file")
            run(module)
            break_session(module)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


@pytest.fixture(scope="module")
def codec_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_codec(tmp_path_factory.mktemp("broken"), tuple(BACKENDS.values()))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "in.png"
    rows, columns = np.indices(SIZE)
    pixels = np.stack([rows, columns, rows + columns], 2) % 200
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def environment(tmp_path: Path, kind: str, name: str) -> dict[str, str]:
    """Return what processes need to have one kind of damage to one backend."""
    site = tmp_path / "site"
    site.mkdir()
    source = PATCH.format(kind=kind, name=name, vendor=PACKAGES[name])
    (site / "usercustomize.py").write_text("")
    (site / "sitecustomize.py").write_text(source)
    values = {k: v for k, v in os.environ.items() if k != "EDGECODEC_TRUST"}
    others = [other for other in BACKENDS if other != name]
    return {
        **values,
        "PYTHONPATH": str(site),
        "EDGECODEC_CACHE": str(tmp_path / "cache"),
        "EDGECODEC_TIMEOUT": "1",
        # One sound backend is left: which one is chosen beside the broken one is not the question.
        "EDGECODEC_DISABLE": f"{others[0]},torch",
    }


def run_cli(env: dict[str, str], *arguments: object) -> list[str]:
    """Run the command line and return its warnings."""
    done = subprocess.run(
        [sys.executable, "-m", "edgecodec", *map(str, arguments)],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("edgecodec.runtimes")]


def damaged(path: Path, target: str, tmp_path: Path, honest: bool) -> Path:
    """Return a copy of a bundle whose graphs for a target are damaged.

    Args:
        path: of the bundle.
        target: whose graphs.
        tmp_path: where the copy goes.
        honest: whether the manifest knows the hashes of the damaged files.
    """
    copy = tmp_path / "damaged.bundle"
    for file in path.rglob("*"):
        if file.is_file():
            (copy / file.relative_to(path)).parent.mkdir(parents=True, exist_ok=True)
            data = bytearray(file.read_bytes())
            if file.parent.name == target and file.suffix != ".bin":
                data[: len(data) // 2] = b"\xa5" * (len(data) // 2)
            (copy / file.relative_to(path)).write_bytes(bytes(data))
    if honest:
        with Bundle(copy) as bundle:
            manifest = replace(bundle.manifest, files=hash_files(copy))
        (copy / MANIFEST).write_text(manifest.to_json())
    return copy


def check(env: dict[str, str], bundle: Path, picture: Path, tmp_path: Path, name: str) -> list[str]:
    """Encode and decode; the picture comes out, and each names the backend in one warning."""
    coded, shown = tmp_path / "out.ecx", tmp_path / "out.png"
    warnings = run_cli(env, "encode", "--bundle", bundle, picture, coded)
    assert len(warnings) == 1
    assert name in warnings[0]
    warnings += run_cli(env, "decode", "--bundle", bundle, coded, shown)
    assert len(warnings) == 2
    assert name in warnings[1]
    with Image.open(shown) as image:
        assert image.size == (SIZE[1], SIZE[0])
    return warnings


REASONS = {
    "broken library": "is installed but does not load",
    "wrong answers": "differs from the reference",
    "hang": "did not answer within",
    "hang later": "did not answer within",
    "crash": "its trial in another process crashed (signal 6)",
    "raise later": "device lost",
}


@pytest.mark.skipif(os.name != "posix", reason="needs functions of a POSIX system")
@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("kind", REASONS)
def test_broken_backend_gives_way_with_one_warning(
    codec_path: Path, picture: Path, tmp_path: Path, kind: str, name: str
) -> None:
    env = environment(tmp_path, kind, name)
    if kind.endswith("later"):
        prefer(env, codec_path, name)
    for warning in check(env, codec_path, picture, tmp_path, name):
        assert REASONS[kind] in warning


@pytest.mark.parametrize("honest", [False, True], ids=["hash differs", "hash agrees"])
@pytest.mark.parametrize("name", EACH)
def test_corrupt_artefact_gives_way_with_one_warning(
    codec_path: Path, picture: Path, tmp_path: Path, name: str, honest: bool
) -> None:
    env = environment(tmp_path, "", name)
    bundle = damaged(codec_path, BACKENDS[name], tmp_path, honest)
    for warning in check(env, bundle, picture, tmp_path, name):
        assert ("hash differs" in warning) is not honest


def test_backend_that_is_not_installed_is_no_warning(
    codec_path: Path, picture: Path, tmp_path: Path
) -> None:
    """Nobody has all of them."""
    env = environment(tmp_path, "", "openvino")
    hide = "import sys\nsys.modules['openvino'] = None\n"
    (tmp_path / "site" / "sitecustomize.py").write_text(hide)
    coded = tmp_path / "out.ecx"
    assert run_cli(env, "encode", "--bundle", codec_path, picture, coded) == []
    assert run_cli(env, "decode", "--bundle", codec_path, coded, tmp_path / "out.png") == []


RANK_FIRST = """
import sys
from edgecodec.bundle.reading import Bundle
from edgecodec.runtimes.selection import competition
from edgecodec.runtimes.selection.selector import choose
from edgecodec.runtimes.selection.stage_runner import size_class

def timed(candidates, *_):
    for candidate in candidates:
        candidate.median_s = 1.0 if candidate.name == sys.argv[2] else 2.0

competition.time_candidates = timed
with Bundle(sys.argv[1]) as bundle:
    choose(bundle, size=(96, 160))
"""


def prefer(env: dict[str, str], bundle: Path, name: str) -> None:
    """Have the cache say that a backend, which is sound at the size of trials, is the fastest."""
    trial = {**env, "EDGECODEC_TRUST": ",".join(BACKENDS)}
    command = [sys.executable, "-c", RANK_FIRST, str(bundle), name]
    subprocess.run(command, env=trial, check=True, timeout=120)
