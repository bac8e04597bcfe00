"""The U-net of DP diffusion models as a score network, at four sizes; needs the extra `diffusion`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dpgm.nets.generators import initialise
from dpgm.nets.score import Label, add_code, label_planes, paint

_SIZES: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {
    28: ((1, 2, 2), (2,)),
    32: ((1, 2, 2), (1, 2)),
    64: ((1, 1, 2, 2), (2, 3)),
    256: ((1, 1, 2, 2, 2, 2), (4, 5)),
}
"""Side up to which it is used: factors on the width, level by level, and the levels with attention."""
WIDTH = 32


def diffusers() -> Any:
    """The package diffusers.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import diffusers as package
    except ImportError as error:
        raise ImportError(
            "this needs the package diffusers: pip install 'dpgm[diffusion]' (for the U-net of pge's published form, "
            "--published.net small does without)"
        ) from error
    return package


class ScoreUNet(nn.Module):
    """q(x, y, code): diffusers' UNet2DModel at DPDM's sizes, with a place for codes in its middle.

    Width 32, two residual blocks a level, attention with one head at small sides, residual blocks that halve and
    double the side; 1.7 to 2.0 million weights up to 64 pixels, 3.3 million at 256. The noise level that a diffusion
    model would be told is 0 throughout.

    **Source**: Dockhorn et al. 2022, "Differentially private diffusion models", and its configurations for 28, 32 and
    64 pixels; Liu et al. 2024 take the same net.
    **Differs from the paper**: 256 pixels have no published configuration, so two levels are added to that of 64;
    the last layer starts from He-normal weights like the rest, as PGE says, not from zero.

    Args:
        height: of the images in pixels, a multiple of 4 up to 32, of 8 up to 64, of 32 above.
        width: likewise.
        channels: colour channels.
        n_classes: number of classes.
        label: how the network is told the class, see `dpgm.nets.score.Label`.
        code: channels of the codes that are added to the middle features; 0 for none.
        rng: source of the first weights.

    Raises:
        ValueError: a side that the levels do not divide.
        ImportError: diffusers is not installed.
    """

    def __init__(
        self,
        *,
        height: int,
        width: int,
        channels: int,
        n_classes: int,
        label: Label = "painted",
        code: int = 0,
        rng: torch.Generator,
    ) -> None:
        super().__init__()
        side = max(height, width)
        factors, attentive = _SIZES[next((s for s in _SIZES if side <= s), 256)]
        step = 2 ** (len(factors) - 1)
        if height % step or width % step:
            raise ValueError(
                f"images are {height} x {width}; this network halves them {len(factors) - 1} times, so both sides must "
                f"be multiples of {step}: resize to {step * math.ceil(side / step)}"
            )
        self.n_classes, self.code = n_classes, code
        self.label: Label = label
        kinds = ["Attn" if level in attentive else "" for level in range(len(factors))]
        self.unet = diffusers().UNet2DModel(
            in_channels=channels + label_planes(label, n_classes),
            out_channels=channels,
            block_out_channels=[WIDTH * f for f in factors],
            layers_per_block=2,
            down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
            up_block_types=[f"{kind}UpBlock2D" for kind in reversed(kinds)],
            downsample_type="resnet",
            upsample_type="resnet",
            attention_head_dim=WIDTH * factors[-1],
            norm_num_groups=8,
            num_class_embeds=n_classes if label == "learned" else None,
        )
        _plain_attention(self.unet)
        self.embed = nn.Conv2d(code, WIDTH * factors[-1], 1) if code else None
        initialise(self, rng)

    def forward(self, x: Tensor, y: Tensor, code: Tensor | None = None) -> Tensor:
        """Map images [b, c, h, w], labels [b] and codes [b, code, h', w'] to the field [b, c, h, w]."""

        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (add_code(inputs[0], self.embed, code), *inputs[1:])

        hook = self.unet.mid_block.register_forward_pre_hook(add)
        try:
            labels = y if self.label == "learned" else None
            return self.unet(paint(x, y, self.label, self.n_classes), 0, class_labels=labels, return_dict=False)[0]
        finally:
            hook.remove()


def _plain_attention(net: nn.Module) -> None:
    """Write attention out as matrix products: the fused kernel has no second derivative on a CPU."""
    from diffusers.models.attention_processor import Attention, AttnProcessor

    for part in net.modules():
        if isinstance(part, Attention):
            part.set_processor(AttnProcessor())
