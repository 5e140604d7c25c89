import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fluxscope.draw.heatmap import (
    BLUE,
    create_feature_grid,
    create_side_by_side,
    outline_heatmap,
    overlay_heatmap,
    token_map_to_blocky_heatmap,
    token_map_to_heatmap,
)
from fluxscope.errors import FluxscopeError


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    token=st.integers(2, 16),
    seed=st.integers(0, 99),
    percentile=st.sampled_from([50.0, 99.0, 100.0]),
)
def test_heat_lies_where_the_token_lies_on_any_rectangle(rows, columns, token, seed, percentile):
    values = np.random.default_rng(seed).random(rows * columns).astype(np.float32)
    size = (columns * token, rows * token)
    smooth = token_map_to_heatmap(values, *size, (rows, columns), percentile)
    blocky = token_map_to_blocky_heatmap(values, *size, (rows, columns), percentile)
    for heat in (smooth, blocky):
        assert heat.shape == (rows * token, columns * token)
        assert heat.dtype == np.float32
        assert 0 <= heat.min() <= heat.max() <= 1
    expected = np.clip(values / np.percentile(values, percentile), 0, 1).reshape(rows, columns)
    np.testing.assert_allclose(blocky[::token, ::token], expected, rtol=1e-5)
    np.testing.assert_allclose(blocky[token - 1 :: token, token - 1 :: token], expected, rtol=1e-5)
    if token % 2:  # the middle pixel of a token lies on the token's own value
        np.testing.assert_allclose(smooth[token // 2 :: token, token // 2 :: token], expected, atol=2e-3)


def test_smooth_is_between_its_neighbours():
    heat = token_map_to_heatmap(np.array([0, 1], np.float32), 32, 16, (1, 2), 100.0)
    assert (np.diff(heat[8]) >= 0).all()
    assert 0.4 < heat[8, 16] < 0.6


def test_a_single_active_token_is_drawn_at_full_strength():
    values = np.zeros(256, np.float32)
    values[[3, 9]] = 0.2, 2.0  # the 99th percentile of 256 values with two active is nothing
    heat = token_map_to_blocky_heatmap(values, 256, 256, 16)
    assert heat.max() == 1
    assert heat[0, 3 * 16] == pytest.approx(0.1)


def test_a_silent_map_is_dark():
    assert token_map_to_heatmap(np.zeros(64, np.float32), 128, 128, 8).max() == 0


@pytest.mark.parametrize("make", [token_map_to_heatmap, token_map_to_blocky_heatmap])
def test_a_wrong_token_count_names_both(make):
    with pytest.raises(FluxscopeError, match="64 tokens, the grid 8 x 12 = 96"):
        make(np.zeros(64, np.float32), 192, 128, (8, 12))
    with pytest.raises(FluxscopeError, match="NaN"):
        make(np.full(4, np.nan, np.float32), 32, 32, 2)


def test_overlay_leaves_what_is_cold_and_colours_what_is_hot():
    base = np.random.default_rng(0).integers(0, 255, (8, 12, 3), np.uint8)
    heat = np.zeros((8, 12), np.float32)
    heat[:, 6:] = 1
    over = overlay_heatmap(base, heat, 0.8)
    np.testing.assert_array_equal(over[:, :6], base[:, :6])
    np.testing.assert_allclose(over[:, 6:], 0.2 * base[:, 6:] + 0.8 * np.array(BLUE), atol=0.51)
    red = overlay_heatmap(Image.fromarray(base), heat, 1.0, (255, 0, 0))
    assert (red[:, 6:] == (255, 0, 0)).all()
    with pytest.raises(FluxscopeError, match="the picture is 12 x 8, the heatmap 8 x 12"):
        overlay_heatmap(base, heat.T)


def test_an_outline_runs_around_the_heat_and_nowhere_else():
    heat = np.zeros((12, 12), np.float32)
    heat[4:8, 4:8] = 1
    base = np.full((12, 12, 3), 90, np.uint8)
    changed = (outline_heatmap(base, heat) != base).any(2)
    assert changed[4, 4:8].all()
    assert not changed[5:7, 5:7].any()
    assert not changed[:3].any()
    assert not (outline_heatmap(base, heat * 0) != base).any()


def test_grids_place_pictures_row_by_row():
    images = [np.full((4, 6, 3), value, np.uint8) for value in (10, 20, 30)]
    grid = create_feature_grid(images, ncols=2, padding=2)
    assert grid.shape == (10, 14, 3)
    assert (grid[0, 0, 0], grid[0, 8, 0], grid[6, 0, 0], grid[9, 13, 0]) == (10, 20, 30, 255)
    assert create_side_by_side(images[0], Image.fromarray(images[1])).shape == (4, 20, 3)
    with pytest.raises(FluxscopeError, match="no pictures"):
        create_feature_grid([])
    with pytest.raises(FluxscopeError, match="no RGB picture"):
        create_feature_grid([np.zeros((4, 4), np.uint8)])


def test_scripts_find_the_names(monkeypatch):
    import importlib.util
    from pathlib import Path

    path = Path(__file__).parents[2] / "interp_scripts" / "heatmap_utils.py"
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location("heatmap_utils", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.overlay_heatmap is overlay_heatmap
    assert set(module.__all__) == {name for name in vars(module) if not name.startswith("_")}
