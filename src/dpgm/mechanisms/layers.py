"""Gradients of each record, layer by layer, from what a layer read and what its output's gradient is.

A rule takes a layer, its inputs `a` and output gradients `d` (leading dimension `records * draws`, the draws of one
record side by side) and answers the gradient of every parameter for every record, `[records, *parameter.shape]`,
summed over the draws. `Linear` has a cheaper form too: the norm without the gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Gradients = dict[str, Tensor]
Rule = Callable[[nn.Module, Tensor, Tensor, int], Gradients]
Convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def rule_of(layer: nn.Module) -> Rule | None:
    """The rule for `layer`, or None when it has no rule of its own."""
    if type(layer) in Convolution:
        assert isinstance(layer, Convolution)
        return None if layer.padding_mode != "zeros" or isinstance(layer.padding, str) else _convolution
    return _RULES.get(type(layer))


def linear_norms(layer: nn.Linear, a: Tensor, d: Tensor, records: int) -> Tensor | None:
    """Squared gradient norm of each record, `[records]`, or None where forming the gradients is cheaper.

    For one row: (|a|² + 1) |d|². For R rows: sum over pairs of rows of (a·a' + 1)(d·d'), which costs R² (D + O)
    instead of R D O multiplications.
    """
    a, d = _rows(a, records), _rows(d, records)
    count, inputs, outputs = a.shape[1], a.shape[2], d.shape[2]
    bias = 0.0 if layer.bias is None else 1.0
    if count == 1:
        return ((a.square().sum(2) + bias) * d.square().sum(2))[:, 0]
    if count * (inputs + outputs) >= inputs * outputs:
        return None
    return ((a @ a.mT + bias) * (d @ d.mT)).sum((1, 2)).clamp(min=0)


def linear_sum(layer: nn.Linear, a: Tensor, d: Tensor, weights: Tensor) -> Gradients:
    """The sum over records of `weights[i]` times the gradient of record i, without forming any of them."""
    records = len(weights)
    scaled = (_rows(d, records) * weights[:, None, None]).flatten(0, 1)
    total = {"weight": scaled.mT @ _rows(a, records).flatten(0, 1)}
    return total if layer.bias is None else total | {"bias": scaled.sum(0)}


def _rows(x: Tensor, records: int) -> Tensor:
    """All rows that a linear layer saw of one record, as float32 `[records, rows, features]`."""
    return x.reshape(records, -1, x.shape[-1]).float()


def _linear(layer: nn.Module, a: Tensor, d: Tensor, records: int) -> Gradients:
    a, d = _rows(a, records), _rows(d, records)
    found = {"weight": d.mT @ a}
    return found if layer.bias is None else found | {"bias": d.sum(1)}


def _convolution(layer: nn.Module, a: Tensor, d: Tensor, records: int) -> Gradients:
    # A weight-only backward for one record at a time: on a processor faster than unfolding or grouping.
    assert isinstance(layer, Convolution)
    transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    rest = (layer.stride, layer.padding, layer.dilation, transposed, layer.output_padding, layer.groups)
    draws = len(a) // records
    a, weight = a.to(d.dtype), layer.weight.detach().to(d.dtype)
    found = [
        torch.ops.aten.convolution_backward(x, y, weight, None, *rest, (False, True, False))[1]
        for y, x in zip(a.split(draws), d.split(draws), strict=True)
    ]
    out = {"weight": torch.stack(found).float()}
    if layer.bias is not None:
        out["bias"] = d.reshape(records, draws, d.shape[1], -1).float().sum((1, 3))
    return out


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
