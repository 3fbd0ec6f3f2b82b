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
    assert TrainingOptions.for_new_run(objective="visual").crop(0) == (4, 192)
    plain = TrainingOptions.for_new_run(objective="msssim")
    assert {plain.crop(step) for step in range(plain.steps)} == {(2, 256)}
    small = TrainingOptions.for_new_run(objective="msssim", size=192, fine_tuning=True)
    assert (small.crop(0), small.crop(small.steps - 1)) == ((4, 192), (4, 192))
    assert small.learning_rate == 2e-4
    given = TrainingOptions.for_new_run(batch=4, size=64, learning_rate=0.01, fine_tuning=True)
    assert (given.batch, given.size, given.final_size, given.learning_rate) == (4, 64, 128, 0.01)


def test_options_refuse_an_objective_that_cannot_be() -> None:
    with pytest.raises(
        ValueError, match="objective must be one of mse, msssim, visual, not 'psnr'"
    ):
        TrainingOptions(objective="psnr")  # type: ignore[arg-type]
    for sizes in ({"size": 128, "final_size": 256}, {"size": 256, "final_size": 128}):
        with pytest.raises(ValueError, match=r"size 128 is too small .* 192 pixels") as caught:
            TrainingOptions(objective="msssim", **sizes)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_rate_is_constant_between_warm_ups_and_decays_to_nothing() -> None:
    o = TrainingOptions(
        steps=1000, warmup=10, learning_rate=1.0, decay_share=0.2, rounding_share=0.3
    )
    rates = [o.rate(step) for step in range(1001)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert set(rates[10:700]) == set(rates[710:800]) == {1.0}
    assert rates[700:710] == pytest.approx(rates[:10])  # where blocks begin to round
    assert rates[850] == pytest.approx(1 - math.sqrt(0.25))
    assert rates[1000] == 0.0
    assert (o.rounding_start, o.decay_start) == (700, 800)
    assert TrainingOptions(rounded=True).rounding_start == 0


def test_length_may_change_until_the_last_part_and_the_objective_always() -> None:
    o = TrainingOptions(steps=1000)
    assert o.changed(700, steps=2000) == TrainingOptions(steps=2000)
    assert o.changed(700, steps=940) == TrainingOptions(steps=940)
    assert o.changed(900, objective="visual").objective == "visual"
    assert o.changed(900, steps=1000) == o
    for step, steps in ((800, 2000), (700, 900)):
        with pytest.raises(ValueError, match=f"at step {step} .* has begun"):
            o.changed(step, steps=steps)
    with pytest.raises(ValueError, match="has reached step 700"):
        o.changed(700, steps=600)
