"""Made-up pictures of strokes and patches: public images that nobody took, for fitting public feature maps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

_FINE = 4
"""Pictures are drawn this many times larger and then averaged."""


def procedural_images(n: int, *, height: int, width: int, channels: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw `n` pictures of one to four smooth or angular strokes, polygons or boxes, on black if grey.

    Three in five are strokes only; the others have filled shapes with a grain. Colours are drawn at random.

    Args:
        n: number of pictures.
        height: in pixels.
        width: in pixels.
        channels: 1 (grey) or 3 (colour).
        rng: source of every draw.

    Returns:
        uint8 [n, height, width, channels].
    """
    out = np.zeros((n, height, width, channels), np.uint8)
    for i in range(n):
        out[i] = _picture(height, width, channels, rng)
    return out


def _picture(height: int, width: int, channels: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    size = np.array([width, height]) * _FINE
    scale = min(height, width) * _FINE
    strokes = rng.random() < 0.6
    ground = 0 if channels == 1 else _colour(channels, rng, 0, 256)
    canvas = Image.new("L" if channels == 1 else "RGB", (width * _FINE, height * _FINE), ground)
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(1, 5)):
        colour = _colour(channels, rng, 120 if channels == 1 else 0, 256)
        points = np.clip(size / 2 + rng.normal(0, 0.2, (rng.integers(3, 6), 2)) * size, 0.1 * size, 0.9 * size)
        if rng.random() < 0.7:
            points = _smooth(points)
        corners = [(float(x), float(y)) for x, y in points]
        if strokes:
            draw.line(corners, fill=colour, width=round(rng.uniform(0.055, 0.16) * scale), joint="curve")
        elif rng.random() < 0.6:
            draw.polygon(corners, fill=colour)
        else:
            low, high = np.sort(rng.uniform(0.05, 0.95, (2, 2)) * size, axis=0)
            draw.rectangle((*map(float, low), *map(float, high)), fill=colour)
    soft = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.01, 0.035) * scale))
    small = np.asarray(soft.resize((width, height), Image.Resampling.BOX), np.float64).reshape(height, width, channels)
    if not strokes:
        small = small * np.clip(1 + 0.25 * rng.normal(size=(height, width, 1)), 0, 2)
    return np.clip(small, 0, 255).astype(np.uint8)


def _colour(channels: int, rng: np.random.Generator, low: int, high: int) -> int | tuple[int, int, int]:
    a, b, c = (int(v) for v in rng.integers(low, high, 3))
    return a if channels == 1 else (a, b, c)


def _smooth(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cut the corners of a path three times."""
    for _ in range(3):
        a, b = points[:-1], points[1:]
        points = np.stack([0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b], 1).reshape(-1, 2)
    return points
