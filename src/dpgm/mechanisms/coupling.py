"""What is refused when per-record gradients are summed: whatever could make one record move the terms of others."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from dpgm.privacy.guarantee import PrivacyError

_EXACT = ("none", "ieee", "highest")


def refuse_coupling(module: nn.Module) -> None:
    """Raise if a layer mixes the records of a batch or draws its own coins.

    Raises:
        PrivacyError: naming the layer.
    """
    for name, layer in module.named_modules():
        where = f"layer '{name or 'the module itself'}' ({type(layer).__name__})"
        if isinstance(layer, _BatchNorm) or (
            isinstance(layer, nn.modules.instancenorm._InstanceNorm)  # pyright: ignore[reportPrivateUsage]
            and layer.track_running_stats
        ):
            raise PrivacyError(
                f"{where} keeps statistics over records, so one record moves the gradients of all others; "
                "use GroupNorm or LayerNorm"
            )
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.training and layer.p > 0:  # pyright: ignore[reportPrivateUsage]
            raise PrivacyError(f"{where} draws from the global random stream; pass the mask as one of the records")


def refuse_fewer_digits() -> None:
    """Raise where torch may multiply float32 numbers in less precision: sums would exceed the bounds of their norms.

    Raises:
        PrivacyError: naming the setting.
    """
    backends = torch.backends
    places = {"": backends, ".mkldnn": backends.mkldnn}
    places |= {f".mkldnn.{part}": getattr(backends.mkldnn, part, None) for part in ("matmul", "conv")}  # torch 2.9 on
    found = {
        f"torch.backends{k}.fp32_precision": (getattr(v, "fp32_precision", "none"), "ieee") for k, v in places.items()
    }
    if all(value in _EXACT for value, _ in found.values()):  # else the older setting cannot be asked for
        found["torch's float32_matmul_precision"] = (torch.get_float32_matmul_precision(), "highest")
    for name, (value, wanted) in found.items():
        if value not in _EXACT:
            raise PrivacyError(
                f"{name} is '{value}', which rounds float32 products to fewer digits, so that clipped gradients could "
                f"exceed their bound; set it to '{wanted}'"
            )


def contents(module: nn.Module) -> list[tuple[Tensor, int]]:
    """The model's weights and buffers, and how often each was written to; held, so that none takes another's id."""
    return [(t, t._version) for t in (*module.parameters(), *module.buffers())]


def alike(a: Tensor, b: Tensor, d: Tensor, e: Tensor, clip_norm: float, dtype: torch.dtype) -> bool:
    """Whether inputs a and b, and output gradients d and e, differ by rounding only, or by too little to count.

    A layer's gradient is at most (|a| + 1) |d|. Rounding may open a ReLU, so d has the wider room.
    """
    near, wide = (1e-3, 0.05) if dtype is torch.float32 else (0.1, 0.3)
    finite = [bool(torch.isfinite(t).all()) for t in (a, b, d, e)]
    if finite[0] != finite[1] or finite[2] != finite[3]:
        return False
    if not all(finite):
        return True  # the record counts nothing, alone and among others
    read, given, moved = a.norm() + 1, d.norm(), (b - a).norm()
    enough = read * given + clip_norm
    return bool(moved * given <= near * enough) and bool(read * (e - d).norm() <= wide * enough)
