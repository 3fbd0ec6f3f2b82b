"""The halo is as small as symbols allow, and the receptive field where nothing tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from edgecodec.arrays import Float32Array, UInt8Array
from edgecodec.converters.checks.halo import LIMIT, PER_PHOTO, effective_halo, telling_windows
from edgecodec.converters.sources.photos import ENOUGH_PHOTOS
from edgecodec.format.tables import Tables
from tests.support.streams import likely_tables

Analyse = Callable[[UInt8Array], tuple[Float32Array, Float32Array]]

FIELD = 96


@pytest.fixture(scope="module")
def steps() -> Tables:
    """Tables whose finest steps are 1 for y and for z."""
    tables = likely_tables()
    gain_z = np.minimum(tables.gain_z, 0.5)
    gain_z[40] = 1.0
    step_y = np.maximum(tables.step_y, 2048)
    step_y[99] = 1024
    return replace(tables, step_y=step_y, gain_z=gain_z)


def photos(side: int = 448, count: int = ENOUGH_PHOTOS) -> list[UInt8Array]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (side, side + 64, 3), dtype=np.uint8) for _ in range(count)]


def halo_of(analyse: Analyse, given: list[UInt8Array], tables: Tables) -> tuple[int, str]:
    """Return the halo and the line that was told about it."""
    told: list[str] = []
    halo = effective_halo(analyse, given, tables, FIELD, told.append)
    (line,) = told
    start, _, reason = line.partition(": ")
    assert start == f"analysis halo {halo} pixels of {FIELD} that it could see"
    return halo, reason


def looking(tables: Tables, reach: int, y_weight: float, z_weight: float) -> Analyse:
    """Return an analysis that adds the level `reach` pixels to the right, 0 beyond the picture."""

    def analyse(photo: UInt8Array) -> tuple[Float32Array, Float32Array]:
        far = np.pad(photo[..., 0], ((0, 0), (0, reach)))[:, reach:].astype(np.float32) / 255
        y = far[::16, 15::16, None] * np.full(tables.latent_channels, y_weight, np.float32)
        z = far[::32, 31::32, None] * np.full(tables.hyper_channels, z_weight, np.float32)
        return y.astype(np.float32), z.astype(np.float32)

    return analyse


@pytest.mark.parametrize(("reach", "halo"), [(0, 0), (1, 32), (32, 32), (33, 64), (96, 96)])
def test_what_is_heeded_is_seen(steps: Tables, reach: int, halo: int) -> None:
    for y_weight, z_weight in ((1.0, 0.0), (0.0, 1.0)):
        found, reason = halo_of(looking(steps, reach, y_weight, z_weight), photos(), steps)
        assert found == halo
        windows = f"a latent in {PER_PHOTO * ENOUGH_PHOTOS} windows of {ENOUGH_PHOTOS} photos"
        differs = "differs by more than 0.0625 of a step"
        expected = f"with less, {windows} {differs}" if halo == FIELD else f"no {windows[2:]} "
        assert reason.startswith(expected)


def test_what_moves_symbols_too_little_is_not_seen(steps: Tables) -> None:
    for y_weight, z_weight in ((0.9 * LIMIT, 0.0), (0.0, 0.9 * LIMIT)):
        analyse = looking(steps, 90, y_weight, z_weight)
        assert halo_of(analyse, photos(), steps)[0] == 0
    # As coarse as the steps of other qualities it would not matter.
    assert halo_of(looking(steps, 90, 1.5 * LIMIT, 0.0), photos(), steps)[0] == 96
    assert halo_of(looking(steps, 90, 0.0, 1.5 * LIMIT), photos(), steps)[0] == 96


def test_one_photo_that_needs_more_decides(steps: Tables) -> None:
    # Dark, as what is not there looks to a network.
    dark = [photo // 64 for photo in photos(count=2 * ENOUGH_PHOTOS)]
    for photo in dark:
        photo[0] = 255  # varied enough all the same, and nowhere that is looked at
    analyse = looking(steps, 90, 4 * LIMIT, 0.0)
    assert halo_of(analyse, dark, steps)[0] == 0
    assert halo_of(analyse, [*dark, photos()[0]], steps)[0] == 96


def test_windows_with_something_in_them_are_looked_at(steps: Tables) -> None:
    """The middle is dark, and says that nothing beyond a tile matters."""
    wide = [np.zeros((128 + 2 * FIELD, 1600, 3), np.uint8) for _ in range(ENOUGH_PHOTOS)]
    for photo in wide:
        photo[:, -512:] = photos(448)[0][: 128 + 2 * FIELD]
    assert halo_of(looking(steps, 90, 1.0, 0.0), wide, steps)[0] == 96
    for window in telling_windows(wide[0], FIELD):
        assert window.shape == (128 + 2 * FIELD, 128 + 2 * FIELD, 3)
        assert np.shares_memory(window, wide[0][:, -512:])


def test_windows_lie_apart_as_far_as_they_fit() -> None:
    side = 128 + 2 * FIELD
    large = np.empty((2 * side, 2 * side, 3), np.uint8)
    quarters = [
        np.s_[top : top + side, left : left + side] for top in (0, side) for left in (0, side)
    ]
    for n, quarter in enumerate(quarters):
        noise = np.random.default_rng(n).integers(0, 256, (side, side, 3), dtype=np.uint8)
        large[...] = 128
        large[quarter] = noise
        assert np.array_equal(telling_windows(large, FIELD)[0], noise)
    assert len(telling_windows(photos(side)[0], FIELD)) == PER_PHOTO
    assert len(telling_windows(photos(side)[0][:, :side], FIELD)) == 1
    assert telling_windows(photos(side)[0][:, : side - 1], FIELD) == []


def test_flat_photos_say_nothing(steps: Tables) -> None:
    few = photos(count=ENOUGH_PHOTOS - 1)
    flat = [np.full_like(few[0], level) for level in (0, 128, 255)]
    assert all(telling_windows(photo, FIELD) == [] for photo in flat)
    analyse = looking(steps, 0, 1.0, 1.0)
    halo, reason = halo_of(analyse, [*flat, *few], steps)
    assert halo == FIELD
    assert reason == "19 of 22 photos are large and varied enough to tell, less needs 20"
    assert halo_of(analyse, [*flat, *few, few[0]], steps)[0] == 0


@pytest.mark.parametrize(
    "given", [[], photos(128 + 2 * FIELD - 32), photos(count=1), photos(count=ENOUGH_PHOTOS - 1)]
)
def test_without_photos_that_can_tell_it_is_the_field(
    steps: Tables, given: list[UInt8Array]
) -> None:
    assert halo_of(looking(steps, 0, 1.0, 1.0), given, steps)[0] == FIELD
    small = photos(128 + 2 * FIELD)
    assert halo_of(looking(steps, 0, 1.0, 1.0), small, steps)[0] == 0
