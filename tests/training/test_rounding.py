from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgecodec.cli import main
from edgecodec.model.checkpoint import load_checkpoint, load_codec, save_checkpoint
from edgecodec.model.folding import fold_latent_layers
from edgecodec.model.network import NeuralCodec, ResidualBlock
from edgecodec.training.options import SavedRun
from edgecodec.training.rounding import (
    TRUNK_BITS,
    GridRounding,
    RoundedBlock,
    Rounding,
    measure_units,
    plain_weights,
    round_blocks,
)
from tests.training.conftest import SMALL


def settled(x: torch.Tensor, codes: tuple[int, int]) -> Rounding:
    rounding = Rounding(x.shape[1], codes)
    rounding.seen = []
    assert rounding(x) is x
    rounding.settle()
    return rounding


def images(count: int = 2) -> list[torch.Tensor]:
    rng = np.random.default_rng(1)
    return [torch.from_numpy(rng.uniform(0, 255, (2, 3, 64, 64))).float() for _ in range(count)]


def codec(seed: int = 0) -> NeuralCodec:
    """A codec whose blocks do something: as torch initialises them."""
    torch.manual_seed(seed)
    return NeuralCodec(SMALL).eval()


@pytest.mark.parametrize("codes", [(-128, 127), (0, 255)])
def test_rounding_gives_codes_of_the_unit(codes: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 16, 16) * torch.tensor([0.01, 1.0, 50.0, 3.0, 0.0])[:, None, None]
    rounding = settled(x, codes)
    out = (rounding(x) / rounding.unit()[:, None, None]).detach()
    assert torch.allclose(out, out.round(), atol=1e-3)
    assert float(out.min()) >= codes[0]
    assert float(out.max()) <= codes[1]
    if codes[0]:
        deviation = x.std((0, 2, 3))[:4]
        error = (rounding(x) - x).detach().square().mean((0, 2, 3)).sqrt()[:4]
        assert (error < deviation / 50).all()


def test_units_clip_an_extreme_that_is_rare() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 1, 1000, 1000)
    x[0, 0, 0, 0] = 40.0
    assert float(settled(x, (-128, 127)).unit().detach()) < 0.5 * 40.0 / 127


def test_gradients_reach_weights_within_the_range_and_units_beyond_it() -> None:
    rounding = Rounding(1, (-128, 127))
    x = torch.tensor([3.4, 500.0]).reshape(1, 1, 1, 2).requires_grad_()
    rounding(x).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [1.0, 0.0]
    assert rounding.log_unit.grad is not None
    # d/dlog2(unit): (round(v) - v) inside, the last code outside, times unit * ln 2.
    expected = ((3.0 - 3.4) + 127.0) * np.log(2.0)
    assert float(rounding.log_unit.grad) == pytest.approx(expected, rel=1e-5)


def test_what_is_added_to_a_trunk_counts_in_whole_steps_of_it() -> None:
    trunk = Rounding(4, (-128, 127))
    grid = GridRounding(trunk)
    with torch.no_grad():
        trunk.log_unit.copy_(torch.tensor([0.3, -2.0, 1.7, 0.0]))
        grid.log_unit.copy_(torch.tensor([0.5, -9.0, 1.7, 3.4]))
    ratio = (grid.unit() / trunk.unit()).log2() + TRUNK_BITS
    assert torch.allclose(ratio, torch.tensor([3.0, 0.0, 3.0, 6.0]), atol=1e-5)
    assert len(list(grid.parameters())) == 1


def test_blocks_along_a_trunk_share_how_it_is_read() -> None:
    model = NeuralCodec(SMALL)
    round_blocks(model)
    blocks = [layer for net in (model.g_a, model.g_s) for layer in net
              if isinstance(layer, ResidualBlock)]  # fmt: skip
    assert all(isinstance(block, RoundedBlock) for block in blocks)
    assert len({id(block.trunk) for block in blocks}) == 4  # fine and coarse, on either side


def test_rounded_codec_is_the_float_one_but_for_its_roundings() -> None:
    plain, rounded = codec(), codec()
    round_blocks(rounded)
    measure_units(rounded, images())
    x, quality = images(1)[0], torch.tensor([20.0, 80.0])
    before = plain(x, quality)[0].detach()
    after = rounded(x, quality)[0].detach()
    error = float((after - before).square().mean().sqrt())
    spread = float(before.std())
    assert 0 < error < 0.1 * spread
    fold_latent_layers(plain, magnitudes=True)
    state = plain_weights(rounded, rounded.state_dict())
    assert state.keys() == plain.state_dict().keys()
    assert all(torch.equal(state[k], v) for k, v in plain.state_dict().items())


def test_qat_trains_resumes_and_leaves_an_ordinary_checkpoint(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, tuned, longer = (tmp_path / f"{n}.pt" for n in ("start", "tuned", "longer"))
    command = ["train", "--images", str(photos), "--device", "cpu"]
    save_checkpoint(start, {"config": SMALL.to_dict(), "weights": codec().state_dict()})
    qat = [*command, "--out", str(tuned), "--qat", str(start), "--steps", "2"]
    qat += ["--batch", "1", "--size", "64"]
    assert main([*qat, "--valid", str(photos)]) == 0
    options, step = SavedRun.load(tuned).progress()
    assert (options.rounded, options.learning_rate, step) == (True, 2e-4, 2)
    payload = load_checkpoint(tuned)
    assert payload["weights"].keys() == load_checkpoint(start)["weights"].keys()
    assert payload["raw"].keys() > payload["weights"].keys()
    assert not any(isinstance(m, Rounding) for m in load_codec(tuned).modules())
    payload["options"]["decay_share"] = 0.0
    torch.save(payload, tuned)
    more = [*command, "--out", str(longer), "--resume", str(tuned), "--steps", "3"]
    assert main(more) == 0
    assert SavedRun.load(longer).progress()[1] == 3
    assert load_checkpoint(longer)["raw"].keys() == payload["raw"].keys()
    capsys.readouterr()
    assert main([*qat, "--resume", str(tuned)]) == 1
    assert "--qat begins a new run" in capsys.readouterr().err


def test_qat_keeps_the_objective_of_its_checkpoint(photos: Path, tmp_path: Path) -> None:
    start, tuned = tmp_path / "start.pt", tmp_path / "tuned.pt"
    state = {"config": SMALL.to_dict(), "weights": NeuralCodec(SMALL).state_dict()}
    save_checkpoint(start, {**state, "options": {"objective": "msssim"}})
    with Image.open(photos / "a.png") as photo:
        photo.resize((400, 320)).save(tmp_path / "a.png")
    command = ["train", "--images", str(tmp_path), "--device", "cpu", "--out", str(tuned)]
    assert main([*command, "--qat", str(start), "--steps", "1", "--batch", "1"]) == 0
    options = SavedRun.load(tuned).progress()[0]
    assert (options.objective, options.size, options.rounded) == ("msssim", 256, True)
