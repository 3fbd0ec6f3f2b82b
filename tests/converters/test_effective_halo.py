"""The halo is as small as symbols allow, and the receptive field where nothing tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from edgecodec.converters.effective_halo import LIMIT, effective_halo
from edgecodec.tables import Tables
from tests.streams import likely_tables

Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]
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


def photos(side: int = 448) -> list[UInt8Array]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (side, side + 64, 3), dtype=np.uint8) for _ in range(2)]


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
        analyse = looking(steps, reach, y_weight, z_weight)
        assert effective_halo(analyse, photos(), steps, FIELD) == halo


def test_what_moves_symbols_too_little_is_not_seen(steps: Tables) -> None:
    for y_weight, z_weight in ((0.9 * LIMIT, 0.0), (0.0, 0.9 * LIMIT)):
        analyse = looking(steps, 90, y_weight, z_weight)
        assert effective_halo(analyse, photos(), steps, FIELD) == 0
    # As coarse as the steps of other qualities it would not matter.
    assert effective_halo(looking(steps, 90, 1.5 * LIMIT, 0.0), photos(), steps, FIELD) == 96
    assert effective_halo(looking(steps, 90, 0.0, 1.5 * LIMIT), photos(), steps, FIELD) == 96


def test_one_photo_that_needs_more_decides(steps: Tables) -> None:
    flat = np.zeros_like(photos()[0])
    assert effective_halo(looking(steps, 90, 1.0, 0.0), [flat], steps, FIELD) == 0
    assert effective_halo(looking(steps, 90, 1.0, 0.0), [flat, *photos()], steps, FIELD) == 96


@pytest.mark.parametrize("given", [[], photos(128 + 2 * FIELD - 32)])
def test_without_a_photo_that_can_tell_it_is_the_field(
    steps: Tables, given: list[UInt8Array]
) -> None:
    assert effective_halo(looking(steps, 0, 1.0, 1.0), given, steps, FIELD) == FIELD
    assert effective_halo(looking(steps, 0, 1.0, 1.0), photos(128 + 2 * FIELD), steps, FIELD) == 0
