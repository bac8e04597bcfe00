"""Sums of clipped per-record gradients, in memory that does not grow with the batch.

For records x_1..x_b and a model with trainable parameters theta,

    sum_i clip_C( grad_theta (1/K) sum_k loss(x_i, draw k) ),    clip_C(g) = g min(1, C / |g|),

with one joint norm over all parameters (or one norm and bound for each named group). Three engines give the same sum:

- `layers`: one backward pass to the layers' outputs, then per-layer formulas; dense layers, and convolutions on small
  maps, never form a record's gradient. The default where every trainable layer has a formula.
- `vmap`: one gradient a record by vectorised differentiation; the fall-back for all other modules.
- `loop`: one backward pass a record; the oracle of the tests.

A record's gradient may depend on that record alone. Layers with batch statistics are refused by name; `vmap` and
`loop` show a record to the model without the others, and `layers` checks on the first two that no other record enters.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from dpgm.mechanisms.coupling import alike, contents, refuse_coupling, refuse_fewer_digits
from dpgm.mechanisms.layers import pair_norms, rule_of, weighted_sum
from dpgm.privacy.guarantee import PrivacyError

Loss = Callable[..., Tensor]
Engine = Literal["auto", "layers", "vmap", "loop"]
Clip = float | Mapping[str, float]
_Groups = list[tuple[list[str], float]]
_Calls = dict[str, list[tuple[Tensor, Tensor]]]
"""Inputs and output gradients of each call of each layer."""
LEAST_CLIP = 1e-12
"""Least bound: squares of entries below 1e-22 vanish in float32, and all of them together stay far below this."""
_HAIR = 1e-5
"""Clipped gradients stay this share below their bound: rounding in float32 must not lift one above it."""


def clipped_gradient_sum(
    loss: Loss,
    module: nn.Module,
    records: Sequence[Tensor],
    *,
    clip_norm: Clip,
    draws: int = 1,
    engine: Engine = "auto",
    chunk: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The sum over records of the clipped gradient, `[p]`, float64, in the order of `trainable(module)`.

    A record whose gradient is not finite adds nothing. Partial sums are float32, of some records, and are added in
    float64: in float32 the sum of a million would round by more than one record adds.

    Args:
        loss: `loss(module, *records)` -> losses `[b * draws]`, each of its own row only.
        module: the model; parameters with `requires_grad` count.
        records: tensors `[b * draws, ...]`; the draws (noise, augmentations) of one record lie side by side.
        clip_norm: C > 0, or one bound for each group, given by prefixes of parameter names ("" for all the rest).
        draws: K, averaged inside a record before it is clipped.
        engine: how to get the gradients.
        chunk: records handled at once; None for 1,024 in purely dense nets and 32 otherwise.
        dtype: torch.bfloat16 runs forward and backward under autocast; what is clipped is what is summed, in float32.

    Raises:
        PrivacyError: for layers or losses that couple records, for a model that keeps something of them, and for bounds
            that are not positive.
        ValueError: for records of unequal length.
    """
    refuse_coupling(module)
    refuse_fewer_digits()
    groups = _groups(clip_norm, module)
    length = len(records[0])
    if any(len(r) != length for r in records) or length % draws:
        raise ValueError(  # how many there are is nobody's business: they may be a secret sample
            f"the tensors of records differ in length, or are no whole number of records with draws={draws}; give one "
            "row for each draw of each record"
        )
    if engine == "auto":
        engine = "layers" if _has_formulas(module) else "vmap"
    if engine == "layers" and not _has_formulas(module):
        raise ValueError("a trainable layer has no formula, or works in place; choose engine='auto' or 'vmap'")
    if chunk is None:
        dense = engine == "layers" and all(isinstance(layer, nn.Linear) for layer in _owners(module).values())
        chunk = max(1, (1024 if dense else 32) // draws)
    run = _Run(loss, module, draws, dtype)
    total, before = torch.zeros(_length(module), dtype=torch.float64), contents(module)
    for start in range(0, length, chunk * draws):
        part = [r[start : start + chunk * draws] for r in records]
        total += _clip_and_add(run, engine, part, groups, first=start == 0)
    if [(id(t), version) for t, version in contents(module)] != [(id(t), version) for t, version in before]:
        raise PrivacyError(
            "the model changes its own weights or buffers when it reads records (as an nn.Embedding with max_norm or a "
            "running average does), so they hold more than was released; use layers that leave them alone"
        )
    return total


def trainable(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained, by name, in the order of the gradient vector."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _length(module: nn.Module) -> int:
    return sum(p.numel() for p in trainable(module).values())


def sensitivity(clip_norm: Clip) -> float:
    """How far one record can move the sum: C, or sqrt(sum of C_g²) for groups clipped apart."""
    return clip_norm if isinstance(clip_norm, int | float) else math.sqrt(sum(c**2 for c in clip_norm.values()))


@dataclass(frozen=True)
class _Run:
    """What stays the same over the chunks of one sum."""

    loss: Loss
    module: nn.Module
    draws: int
    dtype: torch.dtype

    def losses(self, records: Sequence[Tensor]) -> Tensor:
        """The loss of each record, averaged over its draws, `[b]`."""
        found, rows = self.loss(self.module, *records), len(records[0])
        if found.shape != (rows,):
            raise PrivacyError(
                f"the loss has {found.ndim} axes, or not one entry for each row; give one loss for each row, not their "
                "mean or sum"
            )
        return found.float().reshape(-1, self.draws).mean(1)

    def precision(self) -> torch.autocast:
        """The arithmetic of forward and backward passes."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.dtype is torch.bfloat16)


def _clip_and_add(run: _Run, engine: str, records: Sequence[Tensor], groups: _Groups, *, first: bool = False) -> Tensor:
    if engine == "layers":
        calls = _record(run, records)
        if first:  # the other engines see one record at a time
            _check_first(run, records, calls, min(c for _, c in groups))
        parts = _by_layers(run, calls, len(records[0]) // run.draws)
    else:
        parts = (_by_vmap if engine == "vmap" else _by_loop)(run, records)
    norms = torch.stack([p.norms for p in parts]).sum(0)
    finite = torch.isfinite(norms)
    if not finite.all():  # weights of zero would not do: 0 times infinity is not 0
        rows = finite.repeat_interleave(run.draws)
        return _clip_and_add(run, engine, [r[rows] for r in records], groups) if finite.any() else torch.zeros(())
    found = {name: torch.zeros(p.numel()) for name, p in trainable(run.module).items()}
    for names, bound in groups:
        members = [p for p in parts if p.names[0] in names]
        if members:
            norm = torch.stack([p.norms for p in members]).sum(0).sqrt()
            weights = (bound * (1 - _HAIR) / norm.clamp(min=1e-30)).clamp(max=1.0)
            for part in members:
                found.update((n, g.flatten()) for n, g in zip(part.names, part.weighted(weights), strict=True))
    return torch.cat(list(found.values()))


# ---------------------------------------------------------------------------------------------------------------------
# Guards


_COUPLED = (
    "the gradient of a record changes when others join the batch, so clipping does not bound its influence; remove "
    "batch statistics and batch-level penalties, and keep the records on the first axis"
)


def _check_first(run: _Run, records: Sequence[Tensor], among_others: _Calls, clip_norm: float) -> None:
    """Raise unless the first record's gradient is its own.

    Of the first two records the loss of neither may depend on what a layer gave for the other, which is an exact 0; and
    what layers read of the first record, and the gradients of what they gave, must be among others what they are alone.
    That leaves what changes them by less than is left to rounding: a thousandth of what layers read and a twentieth of
    the gradients, in bfloat16 a tenth and three (`alike`).
    """
    count = len(records[0]) // run.draws
    if count == 1:
        return
    pair = [r[: 2 * run.draws] for r in records]
    for one in (0, 1):
        for _, d in itertools.chain(*_record(run, pair, only=one).values()):
            other = d.reshape(2, -1)[1 - one]
            if (other[torch.isfinite(other)] != 0).any():
                raise PrivacyError(_COUPLED)
    alone = _record(run, [r[: run.draws] for r in records])
    if {k: len(v) for k, v in alone.items()} != {k: len(v) for k, v in among_others.items()}:
        raise PrivacyError(_COUPLED)
    for name, calls in alone.items():
        for (a, d), (many_a, many_d) in zip(calls, among_others[name], strict=True):
            first_a, first_d = (m.reshape(count, -1)[0] for m in (many_a, many_d))
            if not alike(
                a.flatten().float(), first_a.float(), d.flatten().float(), first_d.float(), clip_norm, run.dtype
            ):
                raise PrivacyError(_COUPLED)


def _groups(clip_norm: Clip, module: nn.Module) -> _Groups:
    """Names of the parameters that are clipped together, with their bound; every parameter lies in one group."""
    bounds = {"": float(clip_norm)} if isinstance(clip_norm, int | float) else dict(clip_norm)
    if not bounds or any(not (c >= LEAST_CLIP and math.isfinite(c)) for c in bounds.values()):
        raise PrivacyError(f"clip_norm is {clip_norm}; allowed are finite numbers from {LEAST_CLIP:g} on")
    members: dict[str, list[str]] = {prefix: [] for prefix in bounds}
    for name in trainable(module):
        fitting = [prefix for prefix in bounds if name.startswith(prefix)]
        if not fitting:
            raise PrivacyError(f"parameter '{name}' has no bound in clip_norm={clip_norm}; add its prefix, or ''")
        members[max(fitting, key=len)].append(name)
    return [(names, bounds[prefix]) for prefix, names in members.items() if names]


# ---------------------------------------------------------------------------------------------------------------------
# Engines: each hands over, for some parameters, the squared norms of the records' gradients and their weighted sum


@dataclass(frozen=True)
class _Part:
    """Gradients of some parameters of one layer: squared norm for each record, and weighted sum over records."""

    names: tuple[str, ...]
    norms: Tensor
    weighted: Callable[[Tensor], Iterable[Tensor]]


def _by_layers(run: _Run, calls: _Calls, count: int) -> list[_Part]:
    parts: list[_Part] = []
    for name, layer in _owners(run.module).items():
        seen = calls.get(name, [])
        own = [n for n, p in layer.named_parameters(recurse=False) if p.requires_grad]
        whole = len(own) == len(list(layer.parameters(recurse=False)))
        norms = pair_norms(layer, *seen[0], count) if whole and len(seen) == 1 else None
        if norms is not None:
            parts.append(_Part(tuple(_join(name, n) for n in own), norms, partial(_summed, layer, *seen[0], own)))
            continue
        rule = rule_of(layer)
        assert rule is not None
        found = [rule(layer, a, d, count) for a, d in seen]
        for n in own:
            if found:
                parts.append(_formed(_join(name, n), torch.stack([f[n] for f in found]).sum(0)))
    return parts


def _summed(layer: nn.Module, a: Tensor, d: Tensor, names: Sequence[str], weights: Tensor) -> list[Tensor]:
    total = weighted_sum(layer, a, d, weights)
    return [total[name] for name in names]


def _formed(name: str, gradient: Tensor) -> _Part:
    """A part whose gradients `[records, ...]` stand in memory."""
    flat = gradient.flatten(1).float()
    return _Part((name,), flat.square().sum(1), lambda weights: [weights @ flat])


def _record(run: _Run, records: Sequence[Tensor], *, only: int | None = None) -> _Calls:
    """What each layer read and the gradient of what it gave, for every call of it, from one backward pass.

    The gradient is of the sum of all losses, or of one record's loss.
    """
    calls: list[tuple[str, Tensor, Tensor, int, int]] = []

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def keep(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:  # the weights are frozen here, so that no weight gradients are formed
                output.requires_grad_()
            calls.append((name, inputs[0].detach(), output, inputs[0]._version, output._version))

        return keep

    handles = [layer.register_forward_hook(hook(name)) for name, layer in _owners(run.module).items()]
    weights = list(trainable(run.module).values())
    try:
        for w in weights:
            w.requires_grad_(False)
        with torch.enable_grad(), run.precision():
            losses = run.losses(records)
            outputs = [c[2] for c in calls]
            value = losses.sum() if only is None else losses[only]
            gradients = torch.autograd.grad(value, outputs, allow_unused=True) if outputs else ()
    finally:
        for handle in handles:
            handle.remove()
        for w in weights:
            w.requires_grad_(True)
    out: _Calls = {}
    for (name, a, output, before, after), d in zip(calls, gradients, strict=True):
        if a._version != before or output._version != after:
            raise PrivacyError(f"layer '{name}' has its input or output changed in place; choose engine='vmap'")
        if d is not None:
            out.setdefault(name, []).append((a, d))
    return out


def _by_vmap(run: _Run, records: Sequence[Tensor]) -> list[_Part]:
    weights = {name: p.detach() for name, p in trainable(run.module).items()}
    bound = _Bound(run)
    rows = [r.unflatten(0, (-1, run.draws)) for r in records]

    def one(weights: dict[str, Tensor], *record: Tensor) -> Tensor:
        named = {f"module.{name}": w for name, w in weights.items()}
        return torch.func.functional_call(bound, named, record)

    with run.precision():
        found = torch.func.vmap(torch.func.grad(one), in_dims=(None, *(0 for _ in rows)))(weights, *rows)
    return [_formed(name, g) for name, g in found.items()]


def _by_loop(run: _Run, records: Sequence[Tensor]) -> list[_Part]:
    weights = trainable(run.module)
    found: list[tuple[Tensor, ...]] = []
    for record in zip(*(r.split(run.draws) for r in records), strict=True):
        with torch.enable_grad(), run.precision():
            value = run.losses(record).sum()
        gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
        found.append(
            tuple(torch.zeros_like(w) if g is None else g for w, g in zip(weights.values(), gradients, strict=True))
        )
    return [_formed(name, torch.stack(g)) for name, g in zip(weights, zip(*found, strict=True), strict=True)]


class _Bound(nn.Module):
    """Module and loss as one module, so that a functional call can exchange the weights."""

    def __init__(self, run: _Run) -> None:
        super().__init__()
        self.module, self.run = run.module, run

    def forward(self, *record: Tensor) -> Tensor:
        bound = dataclasses.replace(self.run, module=self.module)  # the module whose weights are exchanged
        return bound.losses(record)[0]


def _join(layer: str, name: str) -> str:
    return f"{layer}.{name}" if layer else name


def _owners(module: nn.Module) -> dict[str, nn.Module]:
    """The layers that own trainable parameters themselves, by name."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if any(p.requires_grad for p in layer.parameters(recurse=False))
    }


def _has_formulas(module: nn.Module) -> bool:
    """Whether every trainable parameter lies in one layer with a formula, and nothing works in place."""
    owners = _owners(module)
    shared = sum(p.requires_grad for layer in owners.values() for p in layer.parameters(recurse=False))
    return (
        all(rule_of(layer) is not None for layer in owners.values())
        and shared == len(trainable(module))
        and not any(getattr(layer, "inplace", False) for layer in module.modules())
    )
