"""The benchmark as a whole: who takes part, what the report, its table and its page say."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgecodec.bundle.reading import Bundle
from edgecodec.codec import Codec
from edgecodec.coding.profiling import Profile, Span
from edgecodec.device_tests import bench
from edgecodec.device_tests.bench import DEMO_PHOTO, Options, benchmark, load_pictures
from edgecodec.device_tests.measuring import steady
from edgecodec.device_tests.measuring.cold_start import PHASES, ColdStart
from edgecodec.device_tests.measuring.contenders import (
    BackendRequest,
    Contender,
    expand_requests,
    our_contender,
)
from edgecodec.device_tests.measuring.sampling import summarise
from edgecodec.device_tests.measuring.steady import Limits
from edgecodec.device_tests.measuring.sustained import Sustained
from edgecodec.device_tests.reports.compare import compare
from edgecodec.device_tests.reports.page import render_page
from edgecodec.errors import BackendError, ConfigError, EdgeCodecError
from edgecodec.runtimes.base import StageName
from edgecodec.runtimes.device.facts import Conditions
from edgecodec.runtimes.selection.choice import Choice
from tests.support.bench_fakes import Clock, report_of, series

UInt8Array = npt.NDArray[np.uint8]
QUICK = Options(backends=("onnxruntime:fp32",), limits=Limits(3, 0.0), cold_starts=0, threads=1)


@pytest.fixture
def photo_file(tmp_path: Path, small: UInt8Array) -> Path:
    Image.fromarray(small).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_everything_is_in_the_report(photo_file: Path) -> None:
    options = Options(
        backends=QUICK.backends, against=("jpeg",), limits=Limits(4, 0.0), threads=1, cold_starts=1,
        minutes=0.001,
    )  # fmt: skip
    lines: list[str] = []
    outcome = benchmark([photo_file, DEMO_PHOTO], options, lines.append)
    values = json.loads(json.dumps(outcome.report.to_dict(), allow_nan=False))
    assert [c["codec"] for c in values["contenders"]] == ["onnxruntime:fp32", "jpeg"]
    assert {(m["codec"], m["image"]) for m in values["measurements"]} == {
        (c, i) for c in ("onnxruntime:fp32", "jpeg") for i in ("photo.png", "demo.png")
    }
    for m in values["measurements"]:
        assert {len(s) for s in m["stages_s"].values()} == {2} == {len(m["starts_s"])}
        assert m["bytes"] > 100
    assert {s["n"] for s in values["summaries"]} == {4}
    assert {(s["codec"], s["action"]) for s in values["cold_starts"]} == {
        (c, a) for c in ("onnxruntime:fp32", "jpeg") for a in ("encode", "decode")
    }
    assert values["sustained"]["codec"] == "onnxruntime:fp32"
    assert values["conditions"]["bundle"]["tables"] == Bundle().manifest.tables_id
    assert len(values["images"][0]["sha256"]) == 64
    assert [y["name"] for y in values["yardsticks"]] == ["serial", "parallel"]
    assert outcome.traced == ("onnxruntime:fp32", "photo.png")
    assert {e["name"] for e in outcome.trace()["traceEvents"]} >= {"encode", "analysis", "pack"}
    assert any("steady" in line for line in lines)
    assert set(r.verdict for r in compare(values, values).rows) == {"no difference"}
    text = outcome.report.text()
    for word in ("outside the networks", "energy", "peak MB", "sustained", "threads 1"):
        assert word in text
    render_page(values)


def test_layers_are_in_the_report(photo_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecodec.runtimes.layers.peak.BUDGET_S", 0.01)
    report = benchmark([photo_file], replace(QUICK, layers=True)).report
    assert [(p.stage, p.backend) for p in report.layers] == [
        ("analysis", "onnxruntime"), ("synthesis", "onnxruntime"),
    ]  # fmt: skip
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert all(len(p["layers"]) > 10 for p in values["layers"])
    assert values["peaks"]["float32"]["gmacs_per_s"] > 0
    assert "synthesis, onnxruntime fp32, 1 thread, 61 x 50 pixels" in report.text()
    assert "peak of matrix products here, by ONNX Runtime" in report.text()
    page = render_page(values)
    assert "Measured peaks: float32" in page
    assert values["layers"][0]["layers"][0]["name"] in page


def test_stages_of_the_bench_make_up_its_whole(codec: Codec, photo: UInt8Array) -> None:
    contender = our_contender(BackendRequest("onnxruntime"), codec, 60)
    contender.once(photo)
    best = {"encode": 1.0, "decode": 1.0}
    for _ in range(3):
        seconds = contender.once(photo).seconds
        for action in best:
            parts = [s for name, s in seconds.items() if name.startswith(f"{action}/")]
            assert sum(parts) == pytest.approx(seconds[action])
            best[action] = min(best[action], seconds[f"{action}/other"] / seconds[action])
    assert max(best.values()) < 0.02


def test_summaries_pool_pictures_in_the_order_of_time(photo_file: Path) -> None:
    report = benchmark([photo_file, DEMO_PHOTO], QUICK).report
    codec = "onnxruntime:fp32"
    pooled = report.pooled(codec, "encode")
    first, second = (report.steady.series[codec, p.name].stages["encode"] for p in report.pictures)
    assert pooled == [first[0], second[0], first[1], second[1]]
    found = {stage: s for c, stage, s in report.summaries()}
    assert found["encode"] == summarise(pooled)
    speed = report.megapixels_per_second(codec, "encode")
    medians = float(np.median(first)) + float(np.median(second))
    assert speed == pytest.approx((50 * 61 + 512 * 768) / 1e6 / medians)
    share = report.outside_networks(codec, "encode")
    assert share is not None
    assert 0 < share < 1


def test_requests_name_backends_and_precisions(shipped: Bundle) -> None:
    assert BackendRequest.parse("tflite:int8") == BackendRequest("tflite", "int8")
    assert str(BackendRequest.parse("tflite")) == "tflite"
    everything = expand_requests(("all", "auto"), shipped)
    assert everything[0] == BackendRequest("auto")
    assert BackendRequest("openvino", "fp32") in everything
    assert len(set(everything)) == len(everything)
    assert BackendRequest("torch", "int8") not in everything  # the bundle has none
    kept = [e for e in shipped.manifest.artefacts if e.target != "tflite"]
    few = SimpleNamespace(manifest=replace(shipped.manifest, artefacts=tuple(kept)))
    found = [r for r in expand_requests(("all",), cast("Bundle", few)) if r.backend == "tflite"]
    assert found == [BackendRequest("tflite", "fp32")]  # which says why it does not take part


def test_backend_that_does_not_work_is_skipped_with_its_reason(photo_file: Path) -> None:
    options = Options(
        backends=("onnxruntime:fp32", "onnxruntime:fp16"), limits=QUICK.limits, cold_starts=0
    )
    report = benchmark([photo_file], options).report
    assert list(report.skipped) == ["onnxruntime:fp16"]
    assert "onnxruntime:fp16: not here (" in report.text()
    with pytest.raises(BackendError, match="onnxruntime:fp16"):
        benchmark([photo_file], Options(backends=("onnxruntime:fp16",), cold_starts=0))


def test_wrong_inputs_are_errors_of_ours(photo_file: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"x\.png"):
        benchmark([tmp_path / "x.png"], QUICK)
    with pytest.raises(EdgeCodecError, match="there are"):
        benchmark([photo_file], Options(backends=QUICK.backends, against=("gif",), cold_starts=0))
    with pytest.raises(EdgeCodecError, match="there are"):
        benchmark([photo_file], Options(backends=("cuda",), cold_starts=0))


def test_pictures_of_one_name_are_told_apart(photo_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "photo.png").write_bytes(photo_file.read_bytes())
    assert list(load_pictures([photo_file, other / "photo.png", DEMO_PHOTO])) == [
        str(photo_file), str(other / "photo.png"), "demo.png",
    ]  # fmt: skip


def test_table_gives_p99_only_with_enough_samples() -> None:
    times = (0.001 * np.arange(1, 101)).tolist()
    many, few = (report_of(series(times[:n])).text() for n in (100, 99))
    row = next(line for line in many.splitlines() if line.startswith("  encode"))
    assert row.split() == [
        "encode",
        "100",
        "1.00",
        "50.50",
        "50.50",
        "90.10",
        "99.01",
        "9.90",
        "1000",
    ]
    row = next(line for line in few.splitlines() if line.startswith("  encode"))
    assert row.split()[6] == "-"


def test_energy_and_ratios_are_told() -> None:
    ours, jpeg = series([0.03] * 10), series([0.01] * 10)
    report = report_of(ours, jpeg)
    assert "energy of both: unknown" in report.text()
    assert "auto / jpeg encode: 3.000 (3.000 to 3.000)" in report.text()
    ours.joules = jpeg.joules = 2.5
    assert report.joules_per_megapixel("auto") == pytest.approx(0.5)
    assert "energy of both: 0.500 J per megapixel, by RAPL" in report.text()


class Page(HTMLParser):
    """Notes what a browser would load, and checks that elements are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.charts = 0
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.charts += tag == "svg" and any(name == "role" for name, _ in attrs)
        self.loads += [v or "" for name, v in attrs if name in ("src", "href", "xlink:href")]
        self.loads += [tag] if tag in ("script", "iframe", "object", "link") else []
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_and_loads_nothing() -> None:
    rng = np.random.default_rng(0)
    report = report_of(
        series(rng.random(120), encode_analysis=rng.random(120), decode_pack=rng.random(120)),
        series(0.1 * rng.random(120)),
    )
    report.cold_starts = [
        ColdStart("auto", "encode", {p: [0.1, 0.2] for p in PHASES}, [0.5, 1.0], [0.1, 0.1], [1, 1])
    ]
    times = np.arange(200.0)
    report.sustained = Sustained(
        "auto", times.tolist(), rng.random(200).tolist(), rng.random(200).tolist(), [0.4] * 200,
        [(t, Conditions({"<cpu>": 50.0}, 10**9)) for t in times],
    )  # fmt: skip
    report.skipped = {"<b>": "absent & gone"}
    text = render_page(json.loads(json.dumps(report.to_dict())), "A <title>")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.loads == []
    assert page.charts == 6
    assert "A &lt;title&gt;" in text
    assert "<b>" not in text
    assert "absent &amp; gone" in text
    for number in re.findall(r'd="([^"]*)"', text):
        assert "nan" not in number
        assert "inf" not in number


def test_outside_is_the_time_in_which_no_network_is_at_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two tiles: the coder of the first beside the network of the second."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)

    def encode(pixels: UInt8Array, profile: Profile) -> bytes:
        stages = (
            ("unpack", 0.0, 1.0), ("analysis", 1.0, 3.0), ("entropy", 3.0, 5.5),
            ("analysis", 3.0, 6.0), ("entropy", 6.0, 7.0),
        )  # fmt: skip
        profile.spans += [Span(name, start, end, 1) for name, start, end in stages]
        clock.now = 8.0
        return b""

    contender = Contender("auto", {}, encode, lambda data, profile: None, ours=True)
    seconds = contender.once(np.zeros((1, 1, 3), np.uint8)).seconds
    assert seconds["encode"] == 8.0
    assert seconds["outside/encode"] == 3.0
    assert seconds["encode/other"] == 1.0
    assert seconds["outside/decode"] == seconds["decode"] == 0.0


def test_report_names_what_ran_the_pictures_not_what_was_opened_before(
    photo_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Choices go by the size of a picture, and what fails in use is replaced."""
    ask = Codec.choice
    coded: list[object] = []

    def choice(self: Codec, stage: StageName) -> Choice:
        return replace(ask(self, stage), threads=7 if coded else 3)

    measure = steady.measure_steady

    def measure_steady(*args: Any) -> Any:
        coded.append(args)
        return measure(*args)

    monkeypatch.setattr(Codec, "choice", choice)
    monkeypatch.setattr(bench, "measure_steady", measure_steady)
    report = benchmark([photo_file], QUICK).report
    (contender,) = report.contenders
    assert contender.settings["analysis"]["threads"] == 7
    shown = "onnxruntime:fp32: onnxruntime fp32, 7 threads / onnxruntime fp32, 7 threads"
    assert shown in report.text()


def test_layers_are_those_of_what_a_network_gets_of_a_large_picture(codec: Codec) -> None:
    for size, analysis, synthesis in (
        ((3000, 4000), (1024, 1024), (768, 1024)),
        ((1000, 1500), (1000, 1500), (1000, 768)),
        ((50, 4000), (50, 4000), (50, 4000)),
        ((512, 768), (512, 768), (512, 768)),
    ):
        pixels = np.broadcast_to(np.zeros(3, np.uint8), (*size, 3))
        sizes = bench._network_sizes(codec, pixels)
        assert sizes == {"analysis": analysis, "synthesis": synthesis}
