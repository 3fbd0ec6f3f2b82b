from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgecodec.cli import Terminated
from edgecodec.errors import BackendError, BackendUnavailableError, ConfigError, UnknownPluginError
from edgecodec.runtimes import registry
from edgecodec.runtimes.base import Artefact, SessionOptions
from edgecodec.runtimes.registry import BUILTIN, backend_names, get_backend
from edgecodec.runtimes.vendor import import_vendor

BACKEND = """
from edgecodec.runtimes.base import Availability

class Mine:
    name = "mine"
    target = "onnx"
    def probe(self):
        return Availability(True, "always", "1.0")
    def load(self, artefact, options):
        raise NotImplementedError
"""


def install(folder: Path, name: str, entry_points: str, modules: dict[str, str]) -> None:
    """Lay out a distribution as an installer would."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[edgecodec.backends]\n{entry_points}\n")
    for module, source in modules.items():
        (folder / f"{module}.py").write_text(source)


def test_backend_names_starts_with_ours() -> None:
    assert backend_names()[:4] == ("onnxruntime", "openvino", "tflite", "torch")


@pytest.mark.parametrize("spec", BUILTIN, ids=lambda spec: spec.name)
def test_every_target_resolves_to_a_backend_of_that_name(spec: registry.PluginSpec) -> None:
    assert get_backend(spec.name).name == spec.name


def test_get_backend_lists_names_when_unknown() -> None:
    with pytest.raises(UnknownPluginError, match="no backend named 'tensorrt'; there are: onnxr"):
        get_backend("tensorrt")


def test_third_party_backend_is_found_through_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(
        tmp_path, "vendor-pack", "mine = edgecodec_test_mine:Mine", {"edgecodec_test_mine": BACKEND}
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert backend_names()[-1] == "mine"
    assert get_backend("mine").probe().version == "1.0"
    assert get_backend("mine") is get_backend("mine")


def test_entry_points_of_a_former_release_of_ours_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "edgecodec", "openvino = edgecodec.runtimes.old:OpenVinoBackend", {})
    monkeypatch.syspath_prepend(tmp_path)
    assert backend_names() == tuple(spec.name for spec in BUILTIN)


def test_a_name_claimed_by_another_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "usurper", "openvino = usurper:Mine", {"usurper": BACKEND})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"'openvino' is registered twice.*usurper.*uninstall"):
        backend_names()


def test_third_party_backend_that_does_not_import_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "vendor-pack", "mine = edgecodec_no_such_module:Mine", {})
    monkeypatch.syspath_prepend(tmp_path)
    found = get_backend("mine")
    assert not found.probe().ok
    assert "vendor-pack is installed but does not load: No module named" in found.probe().reason
    with pytest.raises(BackendUnavailableError, match="vendor-pack"):
        found.load(Artefact("synthesis", "onnx", "fp32", tmp_path), SessionOptions())


def test_third_party_backend_that_breaks_the_protocol_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = BACKEND.replace("def load", "def open")
    install(
        tmp_path, "vendor-pack", "mine = edgecodec_test_half:Mine", {"edgecodec_test_half": source}
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendError, match="edgecodec_test_half:Mine of vendor-pack has no load"):
        get_backend("mine")


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        (
            "onnxruntime",
            "onnxruntime",
            "onnxruntime is not installed; run: pip install 'edgecodec[o",
        ),
        (
            "openvino",
            "openvino",
            "openvino is not installed; run: pip install 'edgecodec[openvino]'",
        ),
        ("tflite", "ai_edge_litert", "ai_edge_litert or tflite_runtime is not installed; run: pip"),
        ("torch", "torch", "torch is not installed; run: pip install 'edgecodec[torch]'"),
    ],
)
def test_absent_package_is_told_with_the_line_to_install_it(
    monkeypatch: pytest.MonkeyPatch, name: str, module: str, message: str
) -> None:
    for loaded in [m for m in sys.modules if m.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    found = get_backend(name)
    assert found.probe().reason.startswith(message)
    assert found.target == {"onnxruntime": "onnx"}.get(name, name)
    with pytest.raises(BackendUnavailableError, match="not installed"):
        found.load(Artefact("synthesis", "", "fp32", Path("x")), SessionOptions())


@pytest.mark.parametrize(
    "fault", ["ImportError('libfoo.so.1: no such file')", "OSError('bad ELF')"]
)
def test_broken_package_is_told_apart_from_an_absent_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    (tmp_path / "edgecodec_test_broken.py").write_text(f"raise {fault}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        BackendUnavailableError, match="edgecodec_test_broken is installed but does not load: "
    ):
        import_vendor("some", ("edgecodec_test_broken",), "some")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Terminated])
def test_interrupted_import_is_an_interruption_and_no_fault_of_the_runtime(
    kind: type[KeyboardInterrupt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Extension modules turn Ctrl-C into an ImportError of their own."""
    module = f"edgecodec_test_stopped_by_{kind.__name__}"
    (tmp_path / f"{module}.py").write_text(
        "from edgecodec.cli import Terminated\n"
        f"try:\n    raise {kind.__name__}\n"
        "except KeyboardInterrupt as exc:\n    raise ImportError('it failed') from exc\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt) as caught:
        import_vendor("some", (module,), "some")
    assert caught.type is kind


def test_broken_first_choice_gives_way_to_the_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "edgecodec_test_broken2.py").write_text("raise ImportError('no')\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = import_vendor("some", ("edgecodec_absent", "edgecodec_test_broken2", "json"), "some")
    assert module.__name__ == "json"


def test_importing_runtimes_imports_no_runtime() -> None:
    script = """
import sys
import edgecodec.runtimes.selection.report, edgecodec.runtimes.selection.selector
from edgecodec.runtimes.registry import BUILTIN, get_backend
for spec in BUILTIN:
    get_backend(spec.name)
heavy = {"torch", "onnx", "onnxruntime", "openvino", "ai_edge_litert", "tflite_runtime"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert not [m for m in sys.modules if m.startswith("edgecodec.converters")]
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
