"""The gate: what a pair of artefacts costs in bits at equal quality."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from edgecodec.arrays import Float32Array, Int16Array, UInt8Array
from edgecodec.converters.checks.gate import Gate, GateVerdict
from edgecodec.converters.sources.source import Source, read_source
from edgecodec.evaluation.metrics import bd_rate, ms_ssim, ms_ssim_db
from edgecodec.evaluation.ssimulacra2 import ssimulacra2
from edgecodec.model.checkpoint import save_checkpoint
from edgecodec.model.network import NeuralCodec
from tests.support.painting import CONFIG

QUALITIES = (10, 30, 50, 70)


def photos() -> list[UInt8Array]:
    rng = np.random.default_rng(3)
    coarse = rng.integers(40, 216, (2, 4, 6, 3))
    fine = coarse.repeat(16, 1).repeat(16, 2) + rng.integers(-6, 7, (2, 64, 96, 3))
    return list(fine.astype(np.uint8))


def means(photo: UInt8Array) -> tuple[Float32Array, Float32Array]:
    """Colours of squares of 16 as y: a codec whose quality grows with its rate."""
    height, width = photo.shape[0] // 16, photo.shape[1] // 16
    y = np.zeros((height, width, CONFIG.latent_channels), np.float32)
    squares = photo.reshape(height, 16, width, 16, 3).astype(np.float32).mean((1, 3))
    y[..., :3] = squares - 128
    return y, np.zeros((height // 2, width // 2, CONFIG.hyper_channels), np.float32)


def paint(y_hat: Int16Array) -> Float32Array:
    colours = y_hat[..., :3].astype(np.float32) / 16 + 128
    picture: Float32Array = colours.repeat(16, 0).repeat(16, 1).astype(np.float32)
    return picture


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    torch.manual_seed(1)
    codec = NeuralCodec(CONFIG)
    path = tmp_path_factory.mktemp("codec") / "codec.pt"
    save_checkpoint(path, {"config": CONFIG.to_dict(), "weights": codec.state_dict(), "step": 0})
    source: Source = read_source(path)
    return source.tables


@pytest.fixture(scope="module")
def gate(tables: bytes) -> Gate:
    return Gate(tables, photos(), means, paint, QUALITIES)


def with_noise(deviation: float) -> Callable[[Int16Array], Float32Array]:
    def synthesise(y_hat: Int16Array) -> Float32Array:
        rng = np.random.default_rng(0)
        x_hat = paint(y_hat)
        return x_hat + rng.normal(size=x_hat.shape).astype(np.float32) * np.float32(deviation)

    return synthesise


def test_the_reference_itself_costs_nothing(gate: Gate) -> None:
    verdict = gate.judge(means, paint)
    assert verdict.synthesis_loss == verdict.pair_loss == verdict.analysis_loss == 0
    assert verdict.synthesis_worst == verdict.analysis_worst == verdict.worst_level == 0
    assert (verdict.qualities, verdict.photos) == (QUALITIES, 2)
    assert [len(curve) for curve in gate.points] == [len(QUALITIES)] * 2


def test_where_a_stage_is_missing_the_reference_stands_for_it(gate: Gate) -> None:
    noisy = with_noise(1.0)
    alone, both = gate.judge(None, noisy), gate.judge(means, noisy)
    assert alone == both
    assert alone.synthesis_loss > 0
    assert gate.judge(means, None) == gate.judge(means, paint)


def test_the_loss_grows_with_the_noise(gate: Gate) -> None:
    verdicts = [gate.judge(means, with_noise(deviation)) for deviation in (0.5, 1.0, 2.0)]
    losses = [verdict.synthesis_loss for verdict in verdicts]
    assert 0 < losses[0] < losses[1] < losses[2]
    for verdict in verdicts:
        assert verdict.synthesis_worst >= verdict.synthesis_loss
        assert verdict.analysis_loss == pytest.approx(0, abs=1e-9)
        assert verdict.worst_level >= 2


def test_a_worse_analysis_is_told_from_a_worse_synthesis(gate: Gate) -> None:
    def analyse(photo: UInt8Array) -> tuple[Float32Array, Float32Array]:
        y, z = means(photo)
        return y + np.random.default_rng(0).normal(size=y.shape).astype(np.float32) * 4, z

    verdict = gate.judge(analyse, paint)
    assert verdict.synthesis_loss == 0
    assert verdict.pair_loss == verdict.analysis_loss > 0


@pytest.mark.parametrize("value", [0.0, 1e9, -1e9])
def test_a_destroyed_picture_is_beyond_any_limit(gate: Gate, value: float) -> None:
    verdict: GateVerdict = gate.judge(means, lambda y_hat: np.full_like(paint(y_hat), value))
    assert verdict.synthesis_loss > 1000
    assert verdict.synthesis_worst >= verdict.synthesis_loss
    assert verdict.pair_loss == math.inf
    assert verdict.analysis_loss == verdict.analysis_worst == 0  # judged with another synthesis
    assert json.loads(json.dumps(verdict.to_dict(), allow_nan=False))["pair_loss"] is None


def test_photos_that_more_bits_do_not_improve_are_left_out(gate: Gate, tables: bytes) -> None:
    good = photos()[0]
    noise = np.random.default_rng(0).integers(0, 256, good.shape, dtype=np.uint8)
    again = Gate(tables, [noise, good], means, paint, QUALITIES)
    assert [photo is good for photo in again.photos] == [True]
    assert np.array_equal(again.points[0][1].y_hat, gate.points[0][1].y_hat)
    assert again.sample[0] is noise
    assert Gate(tables, [noise], means, paint, QUALITIES).photos == []
    assert gate.part(1).judge(means, with_noise(1.0)).photos == 1


def test_a_verdict_is_written_as_json(gate: Gate) -> None:
    found = gate.judge(means, with_noise(1.0)).to_dict()
    assert found["pair_loss"] == pytest.approx(found["synthesis_loss"] + found["analysis_loss"])
    assert set(found) >= {"synthesis_worst", "analysis_worst", "worst_level", "photos"}


def test_what_was_not_measured_is_not_written(gate: Gate) -> None:
    found = gate.judge(None, with_noise(1.0)).to_dict({"synthesis"})
    common = {"qualities", "photos", "metric"}
    assert set(found) == {"synthesis_loss", "synthesis_worst", "worst_level", *common}
    assert found["synthesis_loss"] > 0
    found = gate.judge(means, None).to_dict({"analysis"})
    assert set(found) == {"analysis_loss", "analysis_worst", *common}


def test_a_codec_trained_for_ms_ssim_is_judged_by_it(tables: bytes) -> None:
    """By the average over photos, in dB afterwards, as `edgecodec eval` does."""
    small = photos()[0]
    large = [np.tile(photo, (3, 2, 1)) for photo in photos()]
    gate = Gate(tables, [small, *large], means, paint, QUALITIES, "ms-ssim")
    assert [photo.shape for photo in gate.photos] == [(192, 192, 3)] * 2
    assert gate.sample[0] is small
    found = gate.decoded(with_noise(1.0))
    curves = []
    for points in (gate.points, found):
        curves.append([float(np.mean([c[q].rate for c in points])) for q in range(len(QUALITIES))])
        similar = [
            np.mean([ms_ssim(photo, c[q].picture) for photo, c in zip(large, points, strict=True)])
            for q in range(len(QUALITIES))
        ]
        curves.append([ms_ssim_db(float(value)) for value in similar])
    verdict = gate.judge(means, with_noise(1.0))
    assert verdict.synthesis_loss == pytest.approx(bd_rate(*curves)) != 0
    assert verdict.metric == verdict.to_dict()["metric"] == "ms-ssim"
    by_psnr = Gate(tables, large, means, paint, QUALITIES)
    assert by_psnr.judge(means, with_noise(1.0)).synthesis_loss != verdict.synthesis_loss
    assert Gate(tables, [small], means, paint, QUALITIES, "ms-ssim").photos == []


def test_a_codec_trained_for_eyes_is_judged_by_ssimulacra2(tables: bytes) -> None:
    gate = Gate(tables, photos(), means, paint, QUALITIES, "ssimulacra2")
    curve = gate.points[0]
    assert curve[0].score == ssimulacra2(gate.photos[0], curve[0].picture)
    assert curve[-1].score > curve[0].score
    verdict = gate.judge(means, with_noise(1.0))
    assert verdict.metric == "ssimulacra2"
    assert verdict.synthesis_loss > 0
    assert gate.judge(means, paint).pair_loss == 0
