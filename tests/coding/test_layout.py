"""How pictures are cut: tiles, views, windows, and what networks get."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecodec.coding.layout import VIEW_PIXELS, Layout, default_tile
from edgecodec.format.container import Header

LAYOUTS = st.builds(
    Layout,
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    tile=st.integers(1, 6).map(lambda n: 32 * n),
    analysis_halo=st.sampled_from([0, 32, 64]),
    synthesis_halo=st.integers(0, 4),
)


@given(LAYOUTS)
def test_tiles_cover_the_padded_picture_once_in_the_order_of_the_file(layout: Layout) -> None:
    tiles, (height, width) = layout.tiles(), layout.padded
    header = Header(layout.width, layout.height, "RGB", 1, layout.tile, "00" * 8)
    assert len(tiles) == layout.tile_count == header.tile_count
    assert [(t.top, t.left) for t in tiles] == sorted((t.top, t.left) for t in tiles)
    assert sum(t.height * t.width for t in tiles) == height * width
    for number, t in enumerate(tiles):
        assert layout.tile_at(number) == t
        assert all(v % 32 == 0 for v in (t.top, t.left, t.height, t.width))
        assert 0 < t.height <= layout.tile
        assert 0 < t.width <= layout.tile
        assert t.top < layout.height
        assert t.left < layout.width


@given(LAYOUTS, st.booleans())
def test_window_is_the_tile_and_its_halo_cut_at_the_borders(
    layout: Layout, synthesis: bool
) -> None:
    unit, halo = (16, layout.synthesis_halo) if synthesis else (1, layout.analysis_halo)
    height, width = layout.padded
    for tile in layout.tiles():
        w = layout.synthesis_window(tile) if synthesis else layout.analysis_window(tile)
        own_top, own_bottom = tile.top // unit, (tile.top + tile.height) // unit
        assert w.top == max(0, own_top - halo)
        assert w.top + w.height == min(height // unit, own_bottom + halo)
        assert w.top + w.inner_top == own_top
        own_left, own_right = tile.left // unit, (tile.left + tile.width) // unit
        assert w.left == max(0, own_left - halo)
        assert w.left + w.width == min(width // unit, own_right + halo)
        assert w.left + w.inner_left == own_left


@given(LAYOUTS)
def test_tiles_under_a_window_are_those_that_share_a_latent_with_it(layout: Layout) -> None:
    for part in layout.views:
        window = layout.synthesis_window(part)
        rows, columns = (set(range(s.start, s.stop)) for s in window.slices())
        expected = []
        for number, tile in enumerate(layout.tiles()):
            own = tile.slices(16)
            if rows & set(range(own[0].start, own[0].stop)) and columns & set(
                range(own[1].start, own[1].stop)
            ):
                expected.append(number)
        assert layout.tiles_under(window) == expected


@pytest.mark.parametrize(
    ("size", "analysis", "synthesis"),
    [
        ((3000, 4000), (1024, 1024), (768, 1024)),
        ((1000, 1500), (1000, 1500), (1000, 768)),
        ((50, 4000), (50, 4000), (50, 4000)),
        ((512, 768), (512, 768), (512, 768)),
    ],
)
def test_network_size_is_the_most_that_a_network_gets(
    size: tuple[int, int], analysis: tuple[int, int], synthesis: tuple[int, int]
) -> None:
    layout = Layout(*size, default_tile(*size), 32, 3)
    assert layout.network_size("analysis") == analysis
    assert layout.network_size("synthesis") == synthesis


@pytest.mark.parametrize(
    ("size", "tile"), [((512, 768), 1024), ((1000, 1500), 1504), ((3000, 4000), 1024)]
)
def test_small_pictures_are_one_tile(size: tuple[int, int], tile: int) -> None:
    assert default_tile(*size) == tile


SIDES = st.integers(1, 400).map(lambda n: 32 * n)


@given(SIDES, SIDES, st.integers(0, 4))
def test_views_cover_a_picture_once_in_parts_that_are_not_too_large(
    height: int, width: int, halo: int
) -> None:
    parts = Layout(height, width, 1024, 0, halo).views
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
    parts, halo = Layout(height, width, 1024, 0, 3).views, 48

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
