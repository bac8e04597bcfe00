"""Gradients of each record, layer by layer, from what a layer read and what its output's gradient is.

A rule takes a layer, its inputs `a` and output gradients `d` (leading dimension `records * draws`, the draws of one
record side by side) and answers the gradient of every parameter for every record, `[records, *parameter.shape]`,
summed over the draws. `Linear` and `Conv2d` have a form too that needs no gradient of a record: the norms from inner
products of positions, then the weighted sum of all gradients in one pass (Goodfellow 2015; Rochette et al. 2019). It is
taken where it costs less.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpgm.mechanisms.queries import hooked

Gradients = dict[str, Tensor]
Rule = Callable[[nn.Module, Tensor, Tensor, int], Gradients]
_LARGE_MAP, _FEW_CHANNELS = 128, 8
_ROUNDING = 4e-6
"""Largest relative error of a sum of products in float32 that is reckoned with; its exact bound holds for 64 terms, and
errors of longer sums partly cancel."""
_VANISHED = 1e-33
"""What an inner product may lose to terms too small for float32, below 1.2e-38 each."""
Convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


_SEPARATE = (
    *(nn.Linear, nn.GroupNorm, nn.LayerNorm, nn.Embedding, *Convolution, nn.Sequential, nn.Identity),
    *(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.MaxPool2d, nn.AvgPool2d),
)
"""Layers of torch that treat each record alone, whatever their options."""


def is_separate(net: nn.Module) -> bool:
    """Whether a net is this project's, down to torch's layers, or made of such of these as treat records alone."""
    if hooked(net):
        return False
    kinds = [type(layer).__module__.partition(".")[0] for layer in net.modules()]
    if kinds[0] == "dpgm":
        return {*kinds} <= {"dpgm", "torch"}
    return all(
        type(layer) in _SEPARATE or (type(layer) is nn.Flatten and layer.start_dim == 1) for layer in net.modules()
    )


def rule_of(layer: nn.Module) -> Rule | None:
    """The rule for `layer`, or None when it has no rule of its own."""
    if type(layer) in Convolution:
        assert isinstance(layer, Convolution)
        return None if layer.padding_mode != "zeros" or isinstance(layer.padding, str) else _convolution
    return _RULES.get(type(layer))


def pair_norms(layer: nn.Module, a: Tensor, d: Tensor, records: int) -> Tensor | None:
    """Squared gradient norm of each record, `[records]`, or None where forming the gradients is cheaper."""
    if isinstance(layer, nn.Linear):
        return _linear_norms(layer, a, d, records)
    return _convolution_norms(layer, a, d, records) if type(layer) is nn.Conv2d else None


def weighted_sum(layer: nn.Module, a: Tensor, d: Tensor, weights: Tensor) -> Gradients:
    """The sum over records of `weights[i]` times the gradient of record i, without forming any of them."""
    records = len(weights)
    if isinstance(layer, nn.Linear):
        scaled = (_rows(d, records) * weights[:, None, None]).flatten(0, 1)
        total = {"weight": scaled.mT @ _rows(a, records).flatten(0, 1)}
        return total if layer.bias is None else total | {"bias": scaled.sum(0)}
    assert isinstance(layer, nn.Conv2d)
    scaled = d.float() * weights.repeat_interleave(len(d) // records)[:, None, None, None]
    total = {"weight": _weight_gradient(layer, a.float(), scaled)}
    return total if layer.bias is None else total | {"bias": scaled.sum((0, 2, 3))}


def _linear_norms(layer: nn.Linear, a: Tensor, d: Tensor, records: int) -> Tensor | None:
    """For one row: (|a|² + 1) |d|². For R rows: the sum over pairs of rows of (a·a' + 1)(d·d'), which costs R² (D + O)
    instead of R D O multiplications.
    """
    a, d = _rows(a, records), _rows(d, records)
    count, inputs, outputs = a.shape[1], a.shape[2], d.shape[2]
    bias = 0.0 if layer.bias is None else 1.0
    if count == 1:
        return ((a.square().sum(2) + (bias + _VANISHED)) * (d.square().sum(2) + _VANISHED))[:, 0]
    if count * (inputs + outputs) >= inputs * outputs:
        return None
    return _pair_sum(a @ a.mT + bias, d @ d.mT)


def _convolution_norms(layer: nn.Conv2d, a: Tensor, d: Tensor, records: int) -> Tensor | None:
    """The sum over pairs of output positions t, t' of (patch_t · patch_t' + 1)(d_t · d_t').

    Inner products of patches are sums, over the places of the kernel, of inner products of single pixels, so patches
    are never laid out.
    """
    if layer.groups != 1:
        return None
    draws, (rows, columns), kernel = len(a) // records, d.shape[2:], layer.kernel_size
    (up, left), step, gap = _pair(layer.padding), _pair(layer.stride), _pair(layer.dilation)
    height, width = a.shape[2] + 2 * up, a.shape[3] + 2 * left
    inside, outside = draws * height * width, draws * rows * columns
    places = kernel[0] * kernel[1]
    pairs = inside**2 * layer.in_channels + outside**2 * (layer.out_channels + 4 * places)
    if 3 * pairs >= outside * places * layer.in_channels * layer.out_channels:  # 3: measured, see benchmarks
        return None
    pixels = F.pad(a.float(), (left, left, up, up)).unflatten(0, (records, draws)).transpose(1, 2).flatten(2)
    inner = (pixels.mT @ pixels).view(records, draws, height, width, draws, height, width)
    patches = torch.full((), 0.0 if layer.bias is None else 1.0)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            y = slice(i * gap[0], i * gap[0] + step[0] * (rows - 1) + 1, step[0])
            x = slice(j * gap[1], j * gap[1] + step[1] * (columns - 1) + 1, step[1])
            patches = patches + inner[:, :, y, x, :, y, x]
    errors = d.float().unflatten(0, (records, draws)).transpose(1, 2).flatten(2)
    return _pair_sum(patches.reshape(records, outside, outside), errors.mT @ errors)


def _pair_sum(read: Tensor, given: Tensor) -> Tensor:
    """The sum of all products, `[records]`, plus what rounding may have taken from it.

    Large products can cancel, and squares of small errors vanish, however large the inputs are that they meet; a norm
    that comes out too small would let a record exceed its bound. No term is larger than the product of the roots of its
    diagonals, and all entries of a matrix together are at most its trace times its length.
    """
    one, other = (m.diagonal(dim1=1, dim2=2).clamp(min=0) for m in (read, given))
    most = (one * other).sqrt().sum(1).square()
    vanished = _VANISHED * read.shape[1] * (one.sum(1) + other.sum(1))
    return (read * given).sum((1, 2)).clamp(min=0) + _ROUNDING * most + vanished


def _pair(value: int | str | tuple[int, ...]) -> tuple[int, int]:
    assert isinstance(value, tuple)
    return value[0], value[1]


def _rows(x: Tensor, records: int) -> Tensor:
    """All rows that a linear layer saw of one record, as float32 `[records, rows, features]`."""
    return x.reshape(records, -1, x.shape[-1]).float()


def _linear(layer: nn.Module, a: Tensor, d: Tensor, records: int) -> Gradients:
    a, d = _rows(a, records), _rows(d, records)
    found = {"weight": d.mT @ a}
    return found if layer.bias is None else found | {"bias": d.sum(1)}


def _convolution(layer: nn.Module, a: Tensor, d: Tensor, records: int) -> Gradients:
    # On a processor, one call with a group for each record is fastest on large maps, one call for each record on small
    # ones; unfolding is slower than both.
    assert isinstance(layer, Convolution)
    draws = len(a) // records
    a = a.to(d.dtype)
    if isinstance(layer, nn.Conv2d) and d[0, 0].numel() >= _LARGE_MAP and layer.out_channels >= _FEW_CHANNELS:
        x, y = (t.unflatten(0, (records, draws)).transpose(0, 1).flatten(1, 2) for t in (a, d))
        found = _weight_gradient(layer, x, y, records).view(records, *layer.weight.shape)
    else:
        parts = zip(a.split(draws), d.split(draws), strict=True)
        found = torch.stack([_weight_gradient(layer, x, y) for x, y in parts])
    out = {"weight": found.float()}
    if layer.bias is not None:
        out["bias"] = d.reshape(records, draws, d.shape[1], -1).float().sum((1, 3))
    return out


def _weight_gradient(layer: nn.Module, a: Tensor, d: Tensor, records: int = 1) -> Tensor:
    """The gradient of a convolution's weight; with `records` > 1 their channels side by side in `a`, `d` and answer."""
    assert isinstance(layer, Convolution)
    transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    rest = (layer.stride, layer.padding, layer.dilation, transposed, layer.output_padding, layer.groups * records)
    weight = layer.weight.detach().to(d.dtype)
    weight = weight.repeat(records, *(1 for _ in weight.shape[1:]))
    return torch.ops.aten.convolution_backward(d, a, weight, None, *rest, (False, True, False))[1]


def _group_norm(layer: nn.Module, a: Tensor, d: Tensor, records: int) -> Gradients:
    assert isinstance(layer, nn.GroupNorm)
    unit = F.group_norm(a.float(), layer.num_groups, eps=layer.eps)
    parts = (records, len(a) // records, layer.num_channels, -1)
    d = d.float()
    return {"weight": (d * unit).reshape(parts).sum((1, 3)), "bias": d.reshape(parts).sum((1, 3))}


def _layer_norm(layer: nn.Module, a: Tensor, d: Tensor, records: int) -> Gradients:
    assert isinstance(layer, nn.LayerNorm)
    unit = F.layer_norm(a.float(), layer.normalized_shape, eps=layer.eps)
    parts = (records, -1, *layer.normalized_shape)
    d = d.float()
    found = {"weight": (d * unit).reshape(parts).sum(1)}
    return found if layer.bias is None else found | {"bias": d.reshape(parts).sum(1)}


def _embedding(layer: nn.Module, a: Tensor, d: Tensor, records: int) -> Gradients:
    assert isinstance(layer, nn.Embedding)
    index, d = a.reshape(records, -1), _rows(d, records)
    found = d.new_zeros(records, layer.num_embeddings, layer.embedding_dim)
    found.scatter_add_(1, index[:, :, None].expand_as(d), d)
    if layer.padding_idx is not None:
        found[:, layer.padding_idx] = 0
    return {"weight": found}


_RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
}
