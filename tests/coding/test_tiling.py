"""Windows: what a tile is computed from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecodec.coding.tiling import VIEW_PIXELS, Window, read_padded, views, window_of
from edgecodec.format.container import Header

HEADERS = st.builds(
    Header,
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    mode=st.just("RGB"),
    quality=st.just(50),
    tile=st.integers(1, 6).map(lambda n: 32 * n),
    tables_id=st.just("0" * 16),
)


@given(HEADERS, st.sampled_from([(0, 1), (64, 1), (3, 16), (1, 32)]))
def test_window_is_the_tile_and_its_halo_cut_at_the_borders(
    header: Header, kind: tuple[int, int]
) -> None:
    halo, unit = kind
    height, width = header.padded
    for tile in header.tiles():
        w = window_of(tile, halo, height, width, unit)
        own_top, own_bottom = tile.top // unit, (tile.top + tile.height) // unit
        assert w.top == max(0, own_top - halo)
        assert w.top + w.height == min(height // unit, own_bottom + halo)
        assert w.top + w.inner_top == own_top
        own_left, own_right = tile.left // unit, (tile.left + tile.width) // unit
        assert w.left == max(0, own_left - halo)
        assert w.left + w.width == min(width // unit, own_right + halo)
        assert w.left + w.inner_left == own_left


@given(st.integers(1, 70), st.integers(1, 70), st.booleans())
def test_read_padded_repeats_the_last_row_and_column(height: int, width: int, whole: bool) -> None:
    rng = np.random.default_rng(height * 100 + width)
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    padded = -(-height // 32) * 32, -(-width // 32) * 32
    expected = np.pad(pixels, ((0, padded[0] - height), (0, padded[1] - width), (0, 0)), "edge")
    window = Window(0, 0, *padded, 0, 0)
    if not whole:
        window = Window(padded[0] - 32, padded[1] - 32, 32, 32, 0, 0)
    found = read_padded(pixels, window)
    assert found.dtype == np.float32
    assert found.shape == (1, window.height, window.width, 3)
    assert (found[0] == expected[window.slices()]).all()


SIDES = st.integers(1, 400).map(lambda n: 32 * n)


@given(SIDES, SIDES, st.integers(0, 4).map(lambda n: 16 * n))
def test_views_cover_a_picture_once_in_parts_that_are_not_too_large(
    height: int, width: int, halo: int
) -> None:
    parts = views(height, width, halo)
    assert sum(part.height * part.width for part in parts) == height * width
    corners = {(part.top, part.left) for part in parts}
    assert len(corners) == len(parts)
    for part in parts:
        assert part.height * part.width <= VIEW_PIXELS
        assert all(n % 32 == 0 for n in (part.top, part.left, part.height, part.width))
        for corner in ((part.top + part.height, part.left), (part.top, part.left + part.width)):
            assert corner in corners or corner[0] == height or corner[1] == width
    heights, widths = {part.height for part in parts}, {part.width for part in parts}
    assert max(heights) - min(heights) <= 32
    assert max(widths) - min(widths) <= 32


@given(SIDES, SIDES)
def test_no_grid_has_less_in_halos(height: int, width: int) -> None:
    parts, halo = views(height, width, 48), 48

    def seen(rows: int, columns: int) -> int:
        return (height + 2 * halo * (rows - 1)) * (width + 2 * halo * (columns - 1))

    rows, columns = len({part.top for part in parts}), len({part.left for part in parts})
    cells = height // 32, width // 32
    for other in range(1, min(cells[0], 40) + 1):
        for across in range(1, min(cells[1], 40) + 1):
            largest = -(-cells[0] // other) * -(-cells[1] // across) * 32 * 32
            if largest <= VIEW_PIXELS:
                assert seen(rows, columns) <= seen(other, across)
                break


@pytest.mark.parametrize("source", ["view", "read-only"])
def test_read_padded_leaves_its_input_alone(source: str) -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels.flags.writeable = source != "read-only"
    read_padded(pixels, Window(0, 0, 64, 64, 0, 0))[...] = 7
    assert not pixels.any()
