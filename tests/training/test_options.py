from __future__ import annotations

import math

import pytest

from edgecodec.training.options import TrainingOptions


def test_options_refuse_what_cannot_be() -> None:
    for wrong in ({"steps": 0}, {"seed": -1}, {"learning_rate": math.nan}, {"learning_rate": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            TrainingOptions(**wrong)


def test_options_have_defaults_that_suit_the_objective() -> None:
    assert TrainingOptions.for_new_run() == TrainingOptions()
    plain = TrainingOptions.for_new_run(objective="msssim")
    assert {plain.crop(step) for step in range(plain.steps)} == {(2, 256)}
    small = TrainingOptions.for_new_run(objective="msssim", size=192, fine_tuning=True)
    assert (small.crop(0), small.crop(small.steps - 1)) == ((3, 192), (3, 192))
    assert small.learning_rate == 2e-4
    given = TrainingOptions.for_new_run(batch=4, size=64, learning_rate=0.01, fine_tuning=True)
    assert (given.batch, given.size, given.final_size, given.learning_rate) == (4, 64, 128, 0.01)


def test_options_refuse_an_objective_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="objective must be mse or msssim, not 'psnr'"):
        TrainingOptions(objective="psnr")  # type: ignore[arg-type]
    for sizes in ({"size": 128, "final_size": 256}, {"size": 256, "final_size": 128}):
        with pytest.raises(ValueError, match=r"size 128 is too small .* 192 pixels") as caught:
            TrainingOptions(objective="msssim", **sizes)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
