"""Public changes to drawn pictures: sharper edges, small movements. They use no data, so they are free."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dpgm.schema import SchemaError


def check_sampling(*, temperature: float, movement: float, sharpness: float = 1.0) -> None:
    """Refuse what no picture can be drawn with.

    Raises:
        SchemaError: temperature or sharpness is not above 0, movement is below 0, or one of them is not finite.
    """
    if not (0 < temperature < math.inf and 0 < sharpness < math.inf and 0 <= movement < math.inf):
        raise SchemaError(
            f"temperature is {temperature}, sharpness {sharpness}, movement {movement}; allowed are numbers "
            "above 0 for the first two, 0 or more for the last; 1, 1 and 0 leave samples as they are learnt"
        )


def sharpen(x: Tensor, power: float) -> Tensor:
    """Push pixels towards 0 and 1: x^k / (x^k + (1 - x)^k), so that means of many pictures look like one.

    Args:
        x: pixels in [0, 1].
        power: k > 0; 1 changes nothing.
    """
    return x if power == 1 else torch.sigmoid(power * torch.logit(x, eps=1e-6))


def move(x: Tensor, *, amount: float, rng: np.random.Generator) -> Tensor:
    """Shift, turn, slant and scale each picture a little, by a law of its own draw.

    Shifts have standard deviation 1/28 of the side, turns and slants 0.12 radian, log-scales 0.08, all times `amount`.

    Args:
        x: images `[b, c, h, w]`.
        amount: 0 changes nothing.
        rng: source of the draws.
    """
    if amount == 0:
        return x
    shift, bend, scale = rng.normal(size=(3, 2, len(x))) * amount
    turn, slant, size = 0.12 * bend[0], 0.12 * bend[1], np.exp(0.08 * scale[0])
    across = np.stack([np.cos(turn) * size, slant - np.sin(turn) * size, shift[0] / 14], 1)
    down = np.stack([np.sin(turn) * size, np.cos(turn) * size, shift[1] / 14], 1)
    maps = torch.from_numpy(np.stack([across, down], 1)).to(x.dtype)
    grid = functional.affine_grid(maps, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, align_corners=False)
