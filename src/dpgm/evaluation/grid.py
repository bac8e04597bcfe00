"""Sample grids: one row a class, one column a sample, small images enlarged without smoothing."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GAP = 2
"""Pixels between cells and around the grid."""
_MIN_CELL = 40
_EMPTY = 128


def sample_grid(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    classes: Sequence[int],
    columns: int = 10,
    min_cell: int = _MIN_CELL,
) -> NDArray[np.uint8]:
    """The first `columns` images of each class, in the order they were drawn: nobody picked them.

    Args:
        images: uint8 [n, height, width, channels], synthetic ones.
        labels: class numbers [n].
        classes: the class numbers to show, from top to bottom.
        columns: samples of each class; a class with fewer leaves its last cells grey.
        min_cell: smaller images are enlarged by a whole factor until their shorter side has this many pixels.

    Returns:
        uint8 [grid height, grid width, channels].

    Raises:
        ValueError: no classes, no columns, or images that are not [n, h, w, 1 or 3].
    """
    if images.ndim != 4 or images.shape[3] not in (1, 3) or images.shape[0] != len(labels):
        raise ValueError(f"images {images.shape} and {len(labels)} labels; give uint8 [n, h, w, 1 or 3] and n labels")
    if not classes or columns < 1:
        raise ValueError(f"{len(classes)} classes and {columns} columns; give at least one of each")
    zoom = max(1, math.ceil(min_cell / min(images.shape[1:3])))
    height, width = images.shape[1] * zoom, images.shape[2] * zoom
    shape = (GAP + len(classes) * (height + GAP), GAP + columns * (width + GAP), images.shape[3])
    grid = np.full(shape, _EMPTY, np.uint8)
    for row, label in enumerate(classes):
        top = GAP + row * (height + GAP)
        for column, index in enumerate(np.flatnonzero(labels == label)[:columns]):
            left = GAP + column * (width + GAP)
            grid[top : top + height, left : left + width] = images[index].repeat(zoom, 0).repeat(zoom, 1)
    return grid


def png(image: NDArray[np.uint8]) -> bytes:
    """An image uint8 [h, w, 1 or 3] as PNG, without any metadata."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data_uri(content: bytes) -> str:
    """A PNG as base64 text that stands inside a page."""
    return "data:image/png;base64," + base64.b64encode(content).decode()
