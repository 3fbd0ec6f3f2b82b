"""What importing costs, and who may import whom."""

from __future__ import annotations

import ast
import inspect
import json
import pkgutil
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

import edgecodec

PACKAGE = Path(edgecodec.__file__).parent
HEAVY = {
    "torch", "onnx", "onnxruntime", "openvino", "ai_edge_litert", "tflite_runtime", "tensorflow",
    "flatbuffers", "scipy", "PIL",
}  # fmt: skip
HOST = ("edgecodec.model", "edgecodec.training", "edgecodec.converters")
"""What needs torch; nothing that runs on a device may need it."""


def modules_after(code: str, environment: dict[str, str]) -> set[str]:
    """Return the modules a fresh interpreter holds after running some code."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        check=True,
        env=environment,
    )
    return set(json.loads(result.stdout.splitlines()[-1]))


def top(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def test_importing_the_package_imports_nothing_heavy(environment: dict[str, str]) -> None:
    loaded = modules_after("import edgecodec", environment)
    assert not top(loaded) & HEAVY
    assert not {m for m in loaded if m.startswith((*HOST, "edgecodec.runtimes"))}


def test_command_line_imports_nothing_heavy_before_it_runs(environment: dict[str, str]) -> None:
    loaded = modules_after("from edgecodec.cli import build_parser; build_parser()", environment)
    assert not top(loaded) & HEAVY
    assert not {m for m in loaded if m.startswith((*HOST, "edgecodec.device_tests"))}


def test_info_needs_no_model_and_no_runtime(
    environment: dict[str, str], tmp_path: Path, small_file: bytes
) -> None:
    path = tmp_path / "x.ecx"
    path.write_bytes(small_file)
    code = f"from edgecodec.cli import main; assert main(['info', {str(path)!r}]) == 0"
    loaded = modules_after(code, environment)
    assert not top(loaded) & (HEAVY - {"PIL"})


def test_codec_imports_one_runtime_and_nothing_of_the_host(environment: dict[str, str]) -> None:
    code = (
        "import numpy as np; from edgecodec import Codec\n"
        "with Codec(backend='onnxruntime', threads=1) as codec:\n"
        "    codec.decode(codec.encode(np.zeros((8, 8, 3), np.uint8)))"
    )
    loaded = modules_after(code, environment)
    assert top(loaded) & HEAVY == {"onnxruntime", "PIL"}
    assert not {m for m in loaded if m.startswith(HOST)}


def test_importing_the_package_is_quick(environment: dict[str, str]) -> None:
    """Beyond NumPy, in processor time; generous, because machines that test are busy."""
    code = (
        "import time, numpy\nbegin = time.process_time()\nimport edgecodec\n"
        "print(time.process_time() - begin)"
    )
    command = [sys.executable, "-c", code]
    best = min(
        float(subprocess.run(command, capture_output=True, check=True, env=environment).stdout)
        for _ in range(3)
    )
    assert best < 0.5


def test_all_is_sorted_and_names_what_is_visible() -> None:
    assert edgecodec.__all__ == sorted(edgecodec.__all__)
    visible = {
        name
        for name, value in vars(edgecodec).items()
        if not name.startswith("_") and name != "annotations" and not inspect.ismodule(value)
    }
    assert visible | {"__version__"} == set(edgecodec.__all__)


def all_modules() -> list[str]:
    return [m.name for m in pkgutil.walk_packages([str(PACKAGE)], "edgecodec.")]


def test_every_exported_name_exists() -> None:
    for name in all_modules():
        if name.startswith("edgecodec.core._") or name == "edgecodec.__main__":
            continue
        module: ModuleType = __import__(name, fromlist=["_"])
        for exported in getattr(module, "__all__", ()):
            assert hasattr(module, exported), f"{name}.{exported}"


@cache
def sources() -> list[Path]:
    """All modules, also behind the links of a source tree."""
    folders = [PACKAGE, *(PACKAGE / name for name in ("converters", "runtimes", "device_tests"))]
    return sorted({path for folder in folders for path in folder.rglob("*.py")})


def test_every_class_has_a_name_of_its_own() -> None:
    """A reader who looks for a name finds one thing."""
    places: dict[str, list[Path]] = {}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(path)
    assert not {name: found for name, found in places.items() if len(found) > 1}


@cache
def imports_of(path: Path) -> set[str]:
    """Return the modules a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


ROOMS = (
    "errors", "forks", "lazy", "text_table", "_version", "arrays", "files", "core", "format",
    "bundle", "coding",
    "evaluation", "runtimes", "runtimes.device", "runtimes.layers", "runtimes.backends",
    "runtimes.selection", "codec", "edgecodec", "model", "training", "converters.graph",
    "converters.sources", "converters.int8", "converters.writers", "converters.checks",
    "converters", "device_tests.measuring", "device_tests.reports", "device_tests",
    "device_tests.conformance", "device_tests.remote", "cli", "device_tests.studies", "__main__",
)  # fmt: skip
"""Modules import from their own room and from those before it."""
EXCEPTIONS = {
    # To see what values a graph takes, it is run by the torch runtime, which reads that target.
    ("converters.int8.ranges", "converters.writers.to_torch"),
}


def imports_within() -> dict[str, set[str]]:
    """Return which modules each module of the package imports, by names without `edgecodec.`."""
    paths = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sources()
    }
    return {
        module: {
            name
            for found in imports_of(path)
            if (name := found.removeprefix("edgecodec.")) in paths and name != module
        }
        for module, path in paths.items()
    }


def room(module: str) -> str:
    """Return the room of a module: the longest name that it begins with."""
    if module == "__init__":
        return "edgecodec"
    fitting = [name for name in ROOMS if f"{module}.".startswith(f"{name}.")]
    assert fitting, f"{module} stands in no room; ROOMS says what there is"
    return max(fitting, key=len)


def test_imports_point_one_way() -> None:
    for module, imported in imports_within().items():
        for name in imported:
            if (module, name) not in EXCEPTIONS:
                order = ROOMS.index(room(name)), ROOMS.index(room(module))
                assert order[0] <= order[1], f"{module} imports {name}"


def test_no_imports_go_in_circles() -> None:
    assert list(TopologicalSorter(imports_within()).static_order())


def test_only_some_rooms_know_of_torch() -> None:
    may = {PACKAGE / "cli/train_command.py", PACKAGE / "runtimes/backends/torch_graph.py"}
    for path in sources():
        inside = path.relative_to(PACKAGE).parts[0]
        if inside not in ("model", "training", "converters") and path not in may:
            assert "torch" not in {m.partition(".")[0] for m in imports_of(path)}, path


def test_device_side_never_imports_the_host_side() -> None:
    host = ("model", "training", "converters")
    may = {PACKAGE / "cli" / f"{name}_command.py" for name in ("train", "convert", "demo")}
    for path in sources():
        if path.relative_to(PACKAGE).parts[0] in host or path in may:
            continue
        wrong = {m for m in imports_of(path) if m.startswith(HOST)}
        assert not wrong, f"{path}: {wrong}"


def test_nothing_imports_the_device_tests() -> None:
    may = {PACKAGE / "cli" / f"{name}_command.py" for name in ("bench", "device_test")}
    for path in sources():
        inside = path.relative_to(PACKAGE).parts[0] == "device_tests"
        if not inside and path not in may:
            assert not {m for m in imports_of(path) if m.startswith("edgecodec.device_tests")}


def test_nothing_of_the_wheel_imports_the_studies() -> None:
    """They are commands of the source tree."""
    for path in sources():
        if path.parent.name != "studies":
            assert not {
                m for m in imports_of(path) if m.startswith("edgecodec.device_tests.studies")
            }


@pytest.mark.parametrize("folder", ["converters", "runtimes", "device_tests"])
def test_folders_are_imported_by_their_full_name(folder: str) -> None:
    """`import converters` would make a second copy of every class."""
    for path in sources():
        assert folder not in {m.partition(".")[0] for m in imports_of(path)}
