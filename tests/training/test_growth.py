"""A grown codec does what the smaller one did; a narrower synthesis nearly."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgecodec.model.checkpoint import load_checkpoint, save_checkpoint
from edgecodec.model.config import SHAPES, CodecConfig
from edgecodec.model.folding import fold_latent_layers
from edgecodec.model.network import NeuralCodec
from edgecodec.training.growth import check_growth, grow
from edgecodec.training.loss import rate_distortion_loss
from edgecodec.training.options import SavedRun, TrainingOptions
from edgecodec.training.photos import CropStream, load_photos, to_images
from edgecodec.training.train import train
from tests.training.conftest import SMALL

OLD = replace(SMALL, fine_blocks=2)
WIDER = replace(
    OLD,
    latent_channels=24,
    fine_channels=20,
    coarse_channels=24,
    analysis_fine_channels=24,
    analysis_coarse_channels=24,
    depthwise=5,
    overlap=4,
    z_hidden=12,
    flat_cells=1,
)
QUALITIES = torch.tensor([10.0, 40.0, 70.0, 95.0])


@pytest.fixture(scope="module")
def crops(photos: Path) -> Tensor:
    """(4, 3, 128, 128), levels."""
    stream = CropStream(load_photos([photos]), batch=4, size=128, seed=3, start=0)
    try:
        return to_images(stream.next(), torch.device("cpu"))
    finally:
        stream.close()


@pytest.fixture(scope="module")
def old(crops: Tensor) -> NeuralCodec:
    """A codec whose every part does something, trained for a moment."""
    torch.manual_seed(0)
    codec = NeuralCodec(OLD).train()
    optimiser = torch.optim.Adam(codec.parameters(), lr=3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        loss = rate_distortion_loss(codec, crops, QUALITIES).loss
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return codec.eval()


@torch.no_grad()
def passed(codec: NeuralCodec, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, x_hat and bits of y."""
    x_hat, bits, _ = codec(x, QUALITIES)
    return codec.analyse(x)[0], x_hat, bits


def test_a_wider_codec_begins_as_the_old_one(old: NeuralCodec, crops: Tensor) -> None:
    torch.manual_seed(1)
    grown = grow(old, WIDER, crops)
    y, x_hat, bits = passed(old, crops)
    got_y, got_x, _ = passed(grown, crops)
    m = OLD.latent_channels
    assert torch.allclose(got_y[:, :m], y, atol=1e-3 * float(y.abs().max()))
    assert float((got_x - x_hat).abs().mean()) < 0.05  # A symbol or two may round otherwise.
    quiet = copy.deepcopy(grown)
    with torch.no_grad():
        quiet.h_s.heads.bias[WIDER.latent_channels + m :] = -100.0  # new latents skipped
        assert torch.allclose(passed(quiet, crops)[2], bits, rtol=0.02)
        # Scales of hyper-latents are whole numbers now.
        assert torch.allclose(grown(crops, QUALITIES)[2], old(crops, QUALITIES)[2], rtol=0.1)


def test_replicated_borders_change_borders_alone(old: NeuralCodec, crops: Tensor) -> None:
    grown = grow(old, replace(WIDER, replicate=1), crops)
    y, got = passed(old, crops)[0], passed(grown, crops)[0][:, : OLD.latent_channels]
    close = (got - y).abs() < 1e-3 * float(y.abs().max())
    assert close[:, :, 3:-3, 3:-3].all()
    assert not close.all()


def test_gradients_reach_what_is_new(old: NeuralCodec, crops: Tensor) -> None:
    grown = grow(old, WIDER, crops).train()
    for _ in range(2):
        loss = rate_distortion_loss(grown, crops, QUALITIES).loss
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for p in grown.parameters():
                assert p.grad is not None
                p.sub_(1e-4 * p.grad.sign())
    for name, p in grown.named_parameters():
        if name.startswith(("g_a", "g_s")) and name.endswith("weight") and p.grad is not None:
            assert p.grad.flatten(1).abs().sum(1).count_nonzero() > 0.8 * len(p), name
            assert p.grad[:, -1].any(), name


def test_new_latents_are_quiet_and_their_layers_fold(old: NeuralCodec, crops: Tensor) -> None:
    grown = grow(old, WIDER, crops)
    with torch.no_grad():
        new = grown.analyse(crops)[0][:, OLD.latent_channels :]
    step = float(grown.log_step_y.values.detach()[-1, -1].exp())
    assert float(new.std()) / step == pytest.approx(0.3, abs=0.05)
    assert float(new.mean().abs()) / step < 0.05
    assert fold_latent_layers(grown) == (True, True)


def test_tables_are_those_of_the_same_lambda(old: NeuralCodec, crops: Tensor) -> None:
    old = copy.deepcopy(old)
    with torch.no_grad():
        old.log_step_y.values.copy_(torch.linspace(2, -1, 9)[:, None].expand(9, 16))
    wide = replace(WIDER, lambda_max=OLD.lambda_max**2 / OLD.lambda_min)  # twice the range
    grown = grow(old, wide, crops)
    got = grown.log_step_y(torch.tensor([1.0, 50.5, 100.0]))
    assert torch.allclose(got[:, 0], torch.tensor([2.0, -1.0, -4.0]), atol=1e-4)
    assert torch.allclose(got[:, -1], got[:, 0], atol=1e-4)


def test_a_narrower_synthesis_does_nearly_the_same(old: NeuralCodec, crops: Tensor) -> None:
    narrow = replace(
        OLD, analysis_fine_blocks=2, fine_blocks=1, fine_expansion=20, coarse_expansion=24
    )
    grown = grow(old, narrow, crops)
    assert len(grown.g_s) == len(old.g_s) - 1
    want, got = passed(old, crops)[1], passed(grown, crops)[1]
    plain = copy.deepcopy(old)
    plain.g_s = torch.nn.Sequential(*(m for i, m in enumerate(old.g_s) if i != 4))
    without = passed(plain, crops)[1]
    assert torch.isfinite(got).all()
    error, cut = (float((x - want).square().mean()) for x in (got, without))
    assert error < 0.5 * cut
    assert error < 0.1 * float((want - want.mean()).square().mean())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"latent_channels": 8}, "latent_channels 8, less than 16"),
        ({"fine_blocks": 3}, "fine_blocks 3, more than 2"),
        ({"hyper_hidden": 32}, "hyper_hidden 32, not 16"),
        ({"analysis_coarse_blocks": 2}, "analysis_coarse_blocks 2, not 1"),
    ],
)
def test_shapes_without_a_place_for_all_are_refused(change: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=f"cannot be grown to that shape: {words}"):
        check_growth(OLD, replace(OLD, **change))


def test_the_second_shape_grows_from_the_first_alone() -> None:
    check_growth(SHAPES["first"], SHAPES["second"])
    with pytest.raises(ValueError, match="already"):
        check_growth(SHAPES["second"], SHAPES["second"])


def test_a_run_begins_with_a_grown_codec_and_resumes(
    old: NeuralCodec, photos: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "old.pt", tmp_path / "new.pt"
    save_checkpoint(source, {"config": OLD.to_dict(), "weights": old.state_dict()})
    options = TrainingOptions.for_new_run(
        grown=True, steps=8, batch=2, size=64, final_size=64, validate_photos=0
    )
    assert options.learning_rate == 5e-4
    log = io.StringIO()
    saved = SavedRun.load(source)
    train([photos], [], out, options, device="cpu", grow_from=saved, config=WIDER, minutes=0,
          log=log)  # fmt: skip
    begun = load_checkpoint(out)
    assert CodecConfig.from_dict(begun["config"]) == WIDER
    kept = begun["weights"]["h_s.second.weight"]
    assert torch.equal(kept, old.state_dict()["h_s.second.weight"])
    train([photos], [], out, options, device="cpu", resume=SavedRun.load(out), log=log)
    assert load_checkpoint(out)["step"] == 8
    with pytest.raises(ValueError, match="cannot be grown"):
        train([photos], [], out, options, device="cpu", grow_from=saved, config=SMALL, log=log)
