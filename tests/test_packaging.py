"""What is built is what is in the tree, and works where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("converters", "runtimes", "device_tests")
STUDIES = "edgecodec/device_tests/studies/"
"""Commands of the source tree, which no wheel holds."""
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".*_cache", "__pycache__", "build", "dist", "*.egg-info", "*.so", "venv", ".venv*"
)

if not (ROOT / "pyproject.toml").is_file():
    pytest.skip("no source tree here", allow_module_level=True)


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def modules_of_the_wheel() -> set[str]:
    """Return the .py files of the tree that a wheel must hold, by their path in it."""
    found = {p.relative_to(ROOT).as_posix() for p in (ROOT / "edgecodec").rglob("*.py")}
    for folder in FOLDERS:
        found = {name for name in found if not name.startswith(f"edgecodec/{folder}/")}
        found |= {
            f"edgecodec/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / folder).rglob("*.py")
        }
    assert any(name.startswith(STUDIES) for name in found)
    return {name for name in found if not name.startswith(STUDIES)}


def test_links_point_home() -> None:
    for folder in FOLDERS:
        link = ROOT / "edgecodec" / folder
        if not link.is_symlink():
            pytest.skip("this checkout has no symbolic links")
        assert link.readlink() == Path("..") / folder
        assert link.resolve() == (ROOT / folder).resolve()


def test_every_package_of_the_tree_is_listed(project: dict[str, Any]) -> None:
    """One that is not works from the tree and is missing in the wheel, without a word."""
    listed = set(project["tool"]["setuptools"]["packages"])
    present = {".".join(Path(name).parent.parts) for name in modules_of_the_wheel()}
    assert listed == present
    mapped = project["tool"]["setuptools"]["package-dir"]
    assert mapped == {"edgecodec": "edgecodec", **{f"edgecodec.{f}": f for f in FOLDERS}}


def test_backends_are_registered_as_they_are_built_in(project: dict[str, Any]) -> None:
    from edgecodec.runtimes.registry import BUILTIN, GROUP

    assert project["project"]["entry-points"][GROUP] == {s.name: s.target for s in BUILTIN}
    extras = project["project"]["optional-dependencies"]
    assert {s.extra for s in BUILTIN} <= set(extras)


def test_typed_folders_say_so() -> None:
    for folder in ("edgecodec", *FOLDERS):
        assert (ROOT / folder / "py.typed").is_file()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An sdist of the tree, and a wheel from that sdist."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(ROOT, folder / "tree", symlinks=True, ignore=LEFT_OUT)
    command = [sys.executable, "-m", "build", "--no-isolation", "-o", str(folder / "dist")]
    result = subprocess.run([*command, str(folder / "tree")], capture_output=True, check=False)
    assert result.returncode == 0, (result.stdout + result.stderr).decode()[-3000:]
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_sdist_holds_the_sources_once(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        members = {m.name.partition("/")[2]: m for m in archive.getmembers()}
    assert not [name for name, m in members.items() if m.issym() or m.islnk()]
    names = {name for name, m in members.items() if m.isfile()}
    for folder in FOLDERS:
        tree = {p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob("*.py")}
        assert tree <= names
        assert not {n for n in names if n.startswith(f"edgecodec/{folder}/")}
    for name in ("edgecodec/core/edgecodec_core.c", "edgecodec/core/edgecodec_core.h", "LICENSE"):
        assert name in names
    assert "tests/conftest.py" in names
    assert not [n for n in names if n.endswith((".so", ".pyc"))]


@pytest.mark.slow
def test_wheel_holds_the_tree_and_the_data(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
        models = [i.compress_size for i in archive.infolist() if ".bundle/" in i.filename]
    assert {n for n in names if n.endswith(".py")} == modules_of_the_wheel()
    data = ROOT / "edgecodec" / "data"
    assert {n for n in names if n.startswith("edgecodec/data/")} == {
        p.relative_to(ROOT).as_posix()
        for p in data.rglob("*")
        if p.is_file() and (p.parent != data or p.suffix != ".pt")
    }
    kit = {f"edgecodec/device_tests/kit/{p.name}" for p in (ROOT / "device_tests/kit").iterdir()}
    assert {n for n in names if n.startswith("edgecodec/device_tests/kit/")} == kit
    for folder in ("", "converters/", "runtimes/", "device_tests/"):
        assert f"edgecodec/{folder}py.typed" in names
    assert {n.partition("/")[0].split("-")[0] for n in names} == {"edgecodec"}
    assert sum(models) < 10_000_000
    assert built[1].stat().st_size < 11_000_000


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no compiler here")
def test_wheel_holds_the_core_for_every_python(built: tuple[Path, Path]) -> None:
    assert "-cp311-abi3-" in built[1].name
    with zipfile.ZipFile(built[1]) as archive:
        compiled = [n for n in archive.namelist() if n.endswith((".so", ".pyd"))]
    assert len(compiled) == 1
    assert compiled[0].startswith("edgecodec/core/_binding")
    assert "abi3" in compiled[0] or compiled[0].endswith(".pyd")


@pytest.mark.slow
def test_installed_wheel_works_outside_the_tree(built: tuple[Path, Path], tmp_path: Path) -> None:
    """Unpacked where no tree is in sight, it encodes, decodes and checks itself."""
    with zipfile.ZipFile(built[1]) as archive:
        archive.extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

    def run(*args: str) -> str:
        command = [sys.executable, "-m", "edgecodec", *args]
        result = subprocess.run(
            command, capture_output=True, check=False, cwd=tmp_path, env=environment
        )
        assert result.returncode == 0, result.stderr.decode()
        return result.stdout.decode()

    photo = tmp_path / "site" / "edgecodec" / "data" / "demo.png"
    fast = ("--backend", "onnxruntime")
    assert "kit passed" in run("device-test", "--qualities", "50", "--threads", "1")
    run("encode", str(photo), "x.ecx", *fast)
    run("decode", "x.ecx", "x.png", *fast)
    assert "768 x 512" in run("info", "x.ecx")
    assert "onnxruntime" in run("devices")
    code = "import edgecodec.format.coder as e; print(e.__file__, e.core_available())"
    command = [sys.executable, "-c", code]
    where = subprocess.run(command, capture_output=True, check=True, cwd=tmp_path, env=environment)
    assert str(tmp_path).encode() in where.stdout
    if shutil.which("gcc"):
        assert where.stdout.split()[-1] == b"True"
