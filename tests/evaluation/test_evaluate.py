"""Evaluation on real bytes, its cache, its files and its page."""

import csv
import io
import json
import xml.etree.ElementTree as ET
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecodec.arrays import UInt8Array
from edgecodec.errors import BackendError, ConfigError, UnknownPluginError
from edgecodec.evaluation.classical import JPEG, WEBP, ClassicalCodec
from edgecodec.evaluation.evaluate import Average, Evaluation, ImageResult, compare, evaluate
from edgecodec.evaluation.metrics import METRICS, Metric, ms_ssim, psnr_rgb
from edgecodec.evaluation.page import render_page, text_table
from edgecodec.evaluation.ssimulacra2 import ssimulacra2

DEMO = Path(__file__).parents[2] / "edgecodec" / "data" / "demo.png"
QUALITIES = (20, 50, 80)


class StubCodec:
    """WebP behind the interface of ours: keyword quality, a PIL image out."""

    def __init__(self) -> None:
        self.calls = 0

    def encode(self, image: UInt8Array, quality: int = 60) -> bytes:
        self.calls += 1
        return WEBP.encode(image, quality)

    def decode(self, data: bytes) -> Image.Image:
        return Image.fromarray(WEBP.decode(data))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    with Image.open(DEMO) as image:
        image.crop((150, 90, 330, 260)).save(folder / "bird.png")
        image.crop((400, 100, 561, 270)).save(folder / "branch.png")
    return [folder / "bird.png", folder / "branch.png"]


@pytest.fixture(scope="module")
def evaluation(images: list[Path]) -> Evaluation:
    return evaluate(images, StubCodec(), QUALITIES, name="stub", against=("jpeg", "webp"))


def pixels(path: Path) -> UInt8Array:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_evaluate_reports_real_sizes_and_distortions(
    evaluation: Evaluation, images: list[Path]
) -> None:
    row = next(
        r for r in evaluation.rows if (r.codec, r.image, r.quality) == ("stub", "bird.png", 50)
    )
    original = pixels(images[0])
    data = WEBP.encode(original, 50)
    assert (row.width, row.height, row.bytes) == (180, 170, len(data))
    assert row.bpp == 8 * len(data) / (180 * 170)
    decoded = WEBP.decode(data)
    assert row.scores == {
        "psnr": psnr_rgb(original, decoded),
        "ms-ssim": ms_ssim(original, decoded),
        "ssimulacra2": ssimulacra2(original, decoded),
    }
    assert row.encode_s is not None
    assert row.encode_s > 0


def test_evaluate_covers_codecs_qualities_and_images(evaluation: Evaluation) -> None:
    expected = 2 * (len(QUALITIES) + len(JPEG.qualities) + len(WEBP.qualities))
    assert len(evaluation.rows) == expected
    assert evaluation.images == ("bird.png", "branch.png")
    assert [a.quality for a in evaluation.curve("stub")] == list(QUALITIES)
    assert [a.codec for a in evaluation.averages][:: len(QUALITIES)][:2] == ["stub", "jpeg"]
    average = evaluation.curve("stub")[0]
    rows = [r for r in evaluation.rows if r.codec == "stub" and r.quality == 20]
    assert average.bpp == pytest.approx(sum(r.bpp for r in rows) / 2)
    assert average.images == 2


def test_evaluate_finds_no_difference_from_itself(evaluation: Evaluation) -> None:
    rates = {(rate.anchor, rate.metric): rate for rate in evaluation.bd_rates}
    for metric in ("psnr", "ms-ssim", "ssimulacra2"):
        itself = rates["webp", metric]
        # Fewer points than the anchor's sweep, so not exactly zero.
        assert itself.percent == pytest.approx(0.0, abs=2.0)
        against_jpeg = rates["jpeg", metric].percent
        assert against_jpeg is not None
        assert against_jpeg < -10


def test_evaluate_gives_the_same_with_threads(evaluation: Evaluation, images: list[Path]) -> None:
    threaded = evaluate(
        images, StubCodec(), QUALITIES, name="stub", against=("jpeg", "webp"), workers=2
    )

    def timeless(rows: tuple[ImageResult, ...]) -> list[ImageResult]:
        return [replace(row, encode_s=None, decode_s=None) for row in rows]

    assert timeless(threaded.rows) == timeless(evaluation.rows)
    assert threaded.bd_rates == evaluation.bd_rates


def test_evaluate_reuses_cached_classical_results(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache.json"
    first = evaluate(images, StubCodec(), (30, 60), against=("jpeg",), cache=cache)
    renamed = tmp_path / "renamed.png"
    renamed.write_bytes(images[0].read_bytes())

    def fail(*_: object) -> bytes:
        raise AssertionError("not from the cache")

    codec = StubCodec()
    monkeypatch.setattr(ClassicalCodec, "encode", fail)
    monkeypatch.setattr(codec, "encode", lambda image, quality: b"")
    monkeypatch.setattr(codec, "decode", lambda data: pixels(renamed))
    second = evaluate([renamed], codec, (30,), against=("jpeg",), cache=cache)
    old = [r for r in first.rows if r.codec == "jpeg" and r.image == "bird.png"]
    new = [r for r in second.rows if r.codec == "jpeg"]
    assert [(r.quality, r.bytes, r.scores) for r in new] == [
        (r.quality, r.bytes, r.scores) for r in old
    ]
    assert {r.image for r in new} == {"renamed.png"}
    # Times belong to the machine and moment they were taken on.
    assert all(r.encode_s is None and r.decode_s is None for r in new)
    assert second.curve("jpeg")[0].encode_s is None
    entries = json.loads(cache.read_text())["results"].values()
    assert all(entry.keys() == {"bytes", "score"} for entry in entries)


def test_evaluate_measures_the_metrics_that_the_cache_lacks(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*metrics: str) -> Evaluation:
        return evaluate(
            images[:1], StubCodec(), (50,), against=("jpeg",), metrics=metrics,
            cache=tmp_path / "cache.json",
        )  # fmt: skip

    asked: list[str] = []
    for name in ("psnr", "ssimulacra2"):

        def measure(
            a: UInt8Array, b: UInt8Array, name: str = name, metric: Metric = METRICS[name]
        ) -> float:
            asked.append(name)
            return metric.measure(a, b)

        monkeypatch.setitem(METRICS, name, replace(METRICS[name], measure=measure))
    first = run("psnr")
    assert set(asked) == {"psnr"}
    asked.clear()
    both = run("ssimulacra2", "psnr")
    assert asked.count("psnr") == 1
    assert asked.count("ssimulacra2") == 1 + len(JPEG.qualities)
    assert [list(row.scores) for row in both.rows] == [["ssimulacra2", "psnr"]] * len(both.rows)
    assert [r.scores["psnr"] for r in both.rows] == [r.scores["psnr"] for r in first.rows]


def test_evaluate_has_no_ms_ssim_for_small_images_nor_psnr_for_lossless(tmp_path: Path) -> None:
    path = tmp_path / "small.png"
    Image.new("RGB", (40, 30), (10, 20, 30)).save(path)

    class Lossless:
        def encode(self, image: UInt8Array, *, quality: int) -> bytes:
            return image.tobytes()

        def decode(self, data: bytes) -> UInt8Array:
            return np.frombuffer(data, np.uint8).reshape(30, 40, 3)

    found = evaluate([path], Lossless(), (1, 2), against=("jpeg",))
    assert found.rows[0].scores == {"psnr": None, "ms-ssim": None, "ssimulacra2": 100.0}
    assert all(rate.percent is None and rate.reason for rate in found.bd_rates)
    assert "two or more points" in text_table(found)
    assert "two or more points" in render_page(found)


def test_evaluate_refuses_bad_arguments(images: list[Path], tmp_path: Path) -> None:
    codec = StubCodec()
    for paths, qualities in (([], (1,)), (images, ()), ([images[0], images[0]], (1,))):
        with pytest.raises(ConfigError):
            evaluate(paths, codec, qualities, against=())
    with pytest.raises(ConfigError, match=r"absent\.png"):
        evaluate([tmp_path / "absent.png"], codec, (50,), against=())
    with pytest.raises(ConfigError, match="anchor"):
        evaluate(images, codec, (50,), name="jpeg", against=("jpeg",))
    with pytest.raises(UnknownPluginError):
        evaluate(images, codec, (50,), against=("heic",))
    with pytest.raises(
        UnknownPluginError, match="no metric named 'vmaf'; there are: psnr, ms-ssim"
    ):
        evaluate(images, codec, (50,), metrics=("vmaf",))
    assert codec.calls == 0


def test_evaluate_refuses_a_picture_of_another_size(images: list[Path]) -> None:
    class Cropping(StubCodec):
        def decode(self, data: bytes) -> Image.Image:
            return super().decode(data).crop((0, 0, 100, 100))

    with pytest.raises(BackendError, match=r"bird\.png"):
        evaluate(images, Cropping(), (50,), against=())


def test_evaluate_reports_progress_and_tells_equal_names_apart(
    images: list[Path], tmp_path: Path
) -> None:
    twin = tmp_path / "bird.png"
    twin.write_bytes(images[1].read_bytes())
    seen: list[ImageResult] = []
    found = evaluate([images[0], twin], StubCodec(), (50,), against=(), progress=seen.append)
    assert tuple(seen) == found.rows
    assert found.images == (str(images[0]), str(twin))


def test_compare_says_why_there_is_no_number() -> None:
    averages = [
        Average(codec, q, 1, rate, {"psnr": rate * 10 + offset, "ms-ssim": None}, None, None)
        for codec, offset in (("a", 0.0), ("b", 50.0))
        for q, rate in ((10, 1.0), (20, 2.0))
    ]
    assert "no quality in common" in compare(averages, "a", "b", "psnr").reason
    assert compare(averages, "a", "b", "ms-ssim").percent is None


def test_json_has_everything(evaluation: Evaluation) -> None:
    found = json.loads(evaluation.to_json())
    assert found.pop("format") == 3
    assert found == json.loads(json.dumps(asdict(evaluation)))


def test_csv_has_one_line_per_row(evaluation: Evaluation) -> None:
    lines = list(csv.DictReader(io.StringIO(evaluation.to_csv())))
    assert len(lines) == len(evaluation.rows)
    assert float(lines[0]["bpp"]) == evaluation.rows[0].bpp
    assert float(lines[0]["ssimulacra2"]) == evaluation.rows[0].scores["ssimulacra2"]


def test_text_table_ends_with_the_bd_rates(evaluation: Evaluation) -> None:
    lines = text_table(evaluation).splitlines()
    assert lines[0].split()[:3] == ["codec", "quality", "bpp"]
    assert lines[1].startswith("stub")
    assert [line.split()[1] for line in lines[-2:]] == ["jpeg", "webp"]
    assert max(map(len, lines)) <= 80


def test_page_is_self_contained_and_well_formed(evaluation: Evaluation, tmp_path: Path) -> None:
    named = replace(
        evaluation,
        codec="<x&y>",
        averages=tuple(
            replace(a, codec="<x&y>") if a.codec == "stub" else a for a in evaluation.averages
        ),
    )
    page = render_page(named, title="A & B")
    assert "A &amp; B" in page
    assert "<x&y>" not in page
    for outside in ("http", "<script", "<link", "@import", "url(//"):
        assert outside not in page
    for chart in page.split("<svg")[1:]:
        ET.fromstring("<svg" + chart.split("</svg>")[0] + "</svg>")
    assert page.count("<svg viewBox") == 3 + 3
    assert "nan" not in page
    assert f"{evaluation.curve('stub')[0].scores['psnr']:.2f}" in page


def test_page_of_one_quality_has_a_frame(images: list[Path]) -> None:
    page = render_page(evaluate(images[:1], StubCodec(), (50,), against=()))
    assert page.count('<path class="tick"') > 6


def test_an_image_that_cannot_be_read_or_coded_is_named_and_the_others_are_measured(
    images: list[Path], evaluation: Evaluation, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.png"
    cut.write_bytes(images[0].read_bytes()[:2000])
    wide = tmp_path / "wide.png"
    Image.new("RGB", (16384, 1)).save(wide)
    found = evaluate(
        [cut, images[0], wide, images[1]], StubCodec(), QUALITIES, name="stub",
        against=("jpeg", "webp"), workers=2,
    )  # fmt: skip
    assert found.averages[0].bpp == evaluation.averages[0].bpp
    assert found.images == evaluation.images
    assert list(found.failures) == ["cut.png", "wide.png"]
    assert f"{cut}: the image is damaged" in found.failures["cut.png"]
    assert "16384" in found.failures["wide.png"]
    assert json.loads(found.to_json())["failures"] == found.failures


def test_evaluate_has_nothing_to_say_where_every_image_fails(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"b\.png: not an image"):
        evaluate([tmp_path / "a.png", tmp_path / "b.png"], StubCodec(), (50,), against=())


def test_a_metric_where_less_is_better_is_compared_and_drawn(
    images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = Metric(
        "error", "levels", lambda a, b: float(np.abs(a.astype(float) - b).mean()),
        lambda value: -value, least_rise=0.5, higher_is_better=False,
    )  # fmt: skip
    monkeypatch.setitem(METRICS, "error", error)
    found = evaluate(
        images, StubCodec(), QUALITIES, name="stub", against=("jpeg", "webp"), metrics=("error",)
    )
    rates = {rate.anchor: rate for rate in found.bd_rates}
    assert rates["jpeg"].percent is not None
    assert rates["jpeg"].percent < -10
    assert rates["webp"].percent == pytest.approx(0.0, abs=2.0)
    assert rates["webp"].low is not None
    assert rates["webp"].low < 0
    page = render_page(found)
    assert "lower (drawn higher) is better" in page
    assert 'text-anchor="end">-' not in page
