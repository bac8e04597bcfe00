"""Sample grids and curves."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
import pytest
from PIL import Image

from dpgm.evaluation.curve import HEIGHT, WIDTH, curves
from dpgm.evaluation.grid import GAP, data_uri, png, sample_grid


def test_cells_stand_in_order_and_are_enlarged_without_smoothing() -> None:
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 1), np.uint8)
    labels = np.array([1, 0, 1, 0, 1, 1])
    grid = sample_grid(images, labels, classes=(0, 1, 2), columns=3, min_cell=4)
    assert grid.shape == (GAP + 3 * (4 + GAP), GAP + 3 * (6 + GAP), 1)

    def cell(row: int, column: int) -> list[int]:
        top, left = GAP + row * (4 + GAP), GAP + column * (6 + GAP)
        return sorted(set(grid[top : top + 4, left : left + 6].ravel().tolist()))

    assert [cell(0, c) for c in range(3)] == [[1], [3], [128]]
    assert [cell(1, c) for c in range(3)] == [[0], [2], [4]]
    assert cell(2, 0) == [128]


@pytest.mark.parametrize("channels", [1, 3])
def test_png_gives_back_the_pixels_and_says_nothing_else(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 4, channels)).astype(np.uint8)
    uri = data_uri(png(image))
    opened = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
    assert np.array_equal(np.asarray(opened).reshape(image.shape), image)
    assert not opened.info


def test_grid_refuses_what_it_cannot_draw() -> None:
    with pytest.raises(ValueError, match="uint8"):
        sample_grid(np.zeros((2, 8, 8), np.uint8), np.zeros(2, np.int64), classes=(0,))
    with pytest.raises(ValueError, match="at least one"):
        sample_grid(np.zeros((2, 8, 8, 1), np.uint8), np.zeros(2, np.int64), classes=())


def test_curve_stays_in_its_box_and_skips_what_is_not_finite() -> None:
    loss = [5.0, math.nan, 3.0, *np.linspace(2, 1, 2000).tolist()]
    (curve,) = curves({"step": [10 * i for i in range(len(loss))], "loss": loss, "note": "text"})
    xy = np.array([tuple(map(float, p.split(","))) for p in curve.points.split()])
    assert len(xy) <= 301
    assert xy.min() >= 0
    assert xy[:, 0].max() == WIDTH
    assert xy[:, 1].max() <= HEIGHT
    assert (curve.skipped, curve.log, curve.last) == (1, False, "20,020")


def test_curve_of_a_wide_range_is_logarithmic_and_a_flat_one_is_no_crash() -> None:
    wide, flat = curves({"loss": [100.0, 10.0, 1.0], "accuracy": [0.5, 0.5]})
    assert wide.log
    assert [p.split(",")[1] for p in wide.points.split()] == ["0.0", "90.0", "180.0"]
    assert (flat.first, flat.last) == ("1", "2")
    assert curves({}) == curves({"loss": [1.0]}) == curves({"loss": None}) == []
