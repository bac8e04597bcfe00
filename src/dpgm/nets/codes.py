"""Coarse codes of images, from public means only: a thumbnail, or the codebook vectors of a VQ model.

A VQ model is a folder of diffusers (`config.json` beside its weights) or one safetensors file that `save_vq` wrote.
Nothing is fetched from anywhere. VQ models need the extra `diffusion`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dpgm.nets.generators import initialise
from dpgm.nets.unet import diffusers

Code: TypeAlias = Callable[[Tensor], Tensor]
"""Images [b, c, h, w] in [0, 1] to codes [b, d, h', w'] of about unit size."""
_KIND = "vq"


def make_code(spec: str) -> Code | None:
    """The code that `spec` names: "none", "thumbnail", or "vq:PATH".

    Raises:
        ValueError: it names nothing known, or nothing that can be read.
        ImportError: a VQ model without diffusers.
    """
    kind, _, path = spec.partition(":")
    if spec == "none":
        return None
    if spec == "thumbnail":
        return thumbnail
    if kind == _KIND and path:
        return VQCode(load_vq(Path(path)))
    raise ValueError(f"the code is {spec!r}; allowed are 'none', 'thumbnail' and 'vq:PATH'")


def short(spec: str) -> str:
    """The spec with its path cut down to the last name, as an artefact may show it."""
    kind, colon, path = spec.partition(":")
    return f"{kind}{colon}{Path(path).name}"


def thumbnail(x: Tensor) -> Tensor:
    """Codes [b, 1, 4, 4] of images [b, c, h, w]: the mean grey of 16 patches in 8 levels from -1 to 1."""
    return (functional.adaptive_avg_pool2d(x.mean(1, keepdim=True), 4) * 7).round() / 3.5 - 1


class VQCode:
    """Codebook vectors of images: encoded, each place replaced by the nearest vector, divided by the codebook's size.

    Args:
        model: a diffusers VQModel.

    Attributes:
        provenance: the public data that the model says it saw.
    """

    def __init__(self, model: nn.Module) -> None:
        self.provenance = str(getattr(model, "provenance", "not stated"))
        self.model: Any = model.eval().requires_grad_(False)
        self.scale = float(self.model.quantize.embedding.weight.square().mean().sqrt()) + 1e-12

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Codes [b, d, h', w'] of images [b, c, h, w] in [0, 1]; grey is tripled for a model of colours.

        Raises:
            ValueError: colours for a model of greys.
        """
        wanted = self.model.config.in_channels
        if x.shape[1] not in (1, wanted):
            raise ValueError(f"the images have {x.shape[1]} channels, the VQ model takes {wanted}; give one of 3")
        x = x.expand(-1, wanted, -1, -1)
        latents = self.model.encode(_fitting(self.model, 2 * x - 1)).latents
        return self.model.quantize(latents)[0] / self.scale


def _fitting(model: Any, x: Tensor) -> Tensor:
    """Images enlarged to the next size that the model's levels divide."""
    step = 2 ** (len(model.config.block_out_channels) - 1)
    size = [step * math.ceil(s / step) for s in x.shape[2:]]
    return x if size == list(x.shape[2:]) else functional.interpolate(x, size=size, mode="bilinear", antialias=True)


def vq_model(*, channels: int, side: int, width: int = 32, words: int = 256, dim: int = 4, rng: torch.Generator) -> Any:
    """An untrained VQ model of images of about this side, whose code has 5 to 8 places along each axis.

    Args:
        channels: colour channels.
        side: of the images in pixels.
        width: channels at full size; twice as many from the second level on.
        words: vectors in the codebook.
        dim: entries of each.
        rng: source of the first weights.

    Raises:
        ImportError: diffusers is not installed.
    """
    levels = 1 + max(1, math.ceil(math.log2(side / 8)))
    model = diffusers().VQModel(
        in_channels=channels,
        out_channels=channels,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=[width] + [2 * width] * (levels - 1),
        layers_per_block=1,
        latent_channels=dim,
        num_vq_embeddings=words,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )
    initialise(model, rng)
    nn.init.uniform_(model.quantize.embedding.weight, -1.0, 1.0, generator=rng)
    return model


def train_vq(
    images: NDArray[np.uint8],
    *,
    steps: int = 500,
    batch: int = 32,
    lr: float = 1e-3,
    flip: bool = False,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> Any:
    """A VQ model of *public* images, by |x - decoded|^2 plus the codebook's and the commitment loss.

    **Source**: van den Oord et al. 2017, "Neural discrete representation learning"; Esser et al. 2021 for the encoder.
    **Differs from the paper**: no perceptual and no adversarial loss: only the codes are used, nothing is decoded.

    Args:
        images: uint8 [n, h, w, c], all of them public.
        steps: of Adam.
        batch: images a step.
        lr: highest learning rate, falling to 0 as a cosine.
        flip: mirror half of the pictures: right for photographs, wrong for signs.
        seed: of weights and batches.
        on_step: called with the step and its loss.
    """
    coins = torch.Generator().manual_seed(seed)
    model = vq_model(channels=images.shape[3], side=max(images.shape[1:3]), rng=coins)
    optimiser = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.99))
    model.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        index = torch.randint(len(images), (batch,), generator=coins).numpy()
        x = torch.from_numpy(images[index]).permute(0, 3, 1, 2).float() / 127.5 - 1
        if flip:
            x = torch.where(torch.rand(batch, 1, 1, 1, generator=coins) < 0.5, x.flip(3), x)
        x = _fitting(model, x)
        out = model(x)
        loss = functional.mse_loss(out.sample, x) + out.commit_loss
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if on_step:
            on_step(step, loss.item())
    return model.eval()


def save_vq(model: Any, path: Path, *, provenance: str) -> None:
    """Write a VQ model to one safetensors file, with its configuration and the public data it saw."""
    from safetensors.torch import save_file

    config = {k: v for k, v in dict(model.config).items() if not k.startswith("_")}
    metadata = {"kind": _KIND, "config": json.dumps(config), "provenance": provenance}
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, path, metadata=metadata)


def load_vq(path: Path) -> Any:
    """The VQ model in a folder of diffusers or in a file of `save_vq`.

    Raises:
        ValueError: there is none.
        ImportError: diffusers is not installed.
    """
    package = diffusers()
    if path.is_dir():
        try:
            return package.VQModel.from_pretrained(
                path, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
            )
        except (OSError, RuntimeError, ValueError, TypeError) as error:  # no file, or those of another model
            reason = str(error).strip().partition("\n")[0].replace(str(path), path.name).rstrip(".: ")
            raise ValueError(
                f"the folder {path.name} holds no VQ model ({reason}); give one that diffusers' VQModel wrote, with "
                "config.json beside weights in safetensors, or a file of dpgm features train PUBLIC --kind vq"
            ) from error
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path.name} cannot be read as a VQ model: {error}") from error
    if metadata.get("kind") != _KIND:
        raise ValueError(
            f"{path.name} is no VQ model of this library; give a file of dpgm features train ... --kind vq, or a "
            "folder of diffusers with config.json"
        )
    model = package.VQModel(**json.loads(metadata["config"]))
    model.load_state_dict(tensors)
    model.provenance = metadata.get("provenance", "not stated")
    return model
