"""The canary audit: a method runs on canaries that coins put in, and an attacker guesses the coins.

The attacker sees what DP-SGD protects: every noisy gradient, and with it the weights at every step. Canaries are noise
pictures with arbitrary labels: never learnt, so that each moves the sum by the whole bound at every step that draws it,
and nearly at right angles to each other, so that they can be told apart.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from dpgm.evaluation.audit.bound import Array, Audit, Bound
from dpgm.evaluation.audit.one_run import crumb, guess, guess_ceiling
from dpgm.mechanisms.gradient import ModuleGradient, PoissonGradient
from dpgm.mechanisms.latents import DecoderGradient, FixedEncoder, LocalInference
from dpgm.mechanisms.local_state import LocalState
from dpgm.mechanisms.per_record import trainable
from dpgm.methods.base import Method, Note, Plan, Resume
from dpgm.nets.classifiers import to_unit
from dpgm.nets.vae import reconstruction_loss
from dpgm.privacy.guarantee import Budget, Evidence, PrivacyError, Relation
from dpgm.privacy.mechanism import NoiseSource
from dpgm.schema import ImageSchema, Rows

SMALL = ImageSchema(height=16, width=16, channels=1, classes=tuple("0123456789"), size=500)
"""What canary audits run on: pictures large enough for many canaries at right angles."""
SHARES = (0.5, 0.25, 0.1, 0.05)
"""Shares of the noise that broken twins keep, from the weakest fault to the grossest."""

Break = Callable[[PoissonGradient], PoissonGradient]
"""What a broken twin does to the gradients that are asked; the price stays that of the sound form."""


def audit_canaries(
    method: Method,
    *,
    budget: Budget,
    canaries: int = 500,
    runs: int = 1,
    confidence: float = 0.999,
    broken: Break | None = None,
    fault: str = "",
    weakest: bool = True,
    schema: ImageSchema = SMALL,
    noise: NoiseSource | None = None,
) -> Audit:
    """Run a method that descends along noisy gradients on canaries that fair coins put in, and guess the coins.

    Several runs on coins of their own are one mechanism with more coins: the bound is the same, and fewer canaries
    stand in each other's way.

    Args:
        method: what is audited; its plan must hold noisy gradients of pictures.
        budget: what its plan may spend; the claim.
        canaries: coins that are thrown in each run.
        runs: how many runs.
        confidence: probability that a true claim is not beaten.
        broken: the fault of a twin; None audits the method itself.
        fault: the fault in words.
        weakest: look for the weakest broken twin that such runs catch.
        schema: public facts about the records.
        noise: where noise comes from.

    Raises:
        PrivacyError: the method asks no gradient whose canaries can be followed.
    """
    if canaries < 10 or runs < 1:
        raise PrivacyError(
            f"canaries is {canaries}, runs {runs}; allowed are 10 or more, usually 500, in 1 run or more"
        )
    relation, source, coins = Relation.ADD_REMOVE, NoiseSource() if noise is None else noise, canaries * runs
    plan = method.plan(schema, relation=relation, budget=budget)
    slack = crumb(budget.delta, coins, 1 - confidence)
    claimed = dataclasses.replace(plan, budget=Budget(epsilon=budget.epsilon, delta=slack)).guarantee().epsilon

    def attack(fault: Break | None) -> tuple[Bound, str]:
        seen = [watched(method, plan, canaries, broken=fault, noise=source) for _ in range(runs)]
        scores, fell = (np.concatenate(parts) for parts in zip(*seen, strict=True))
        told = guess(scores, fell, delta=slack, confidence=confidence)
        count = f"{runs} runs" if runs > 1 else "1 run"
        words = f"{count}, {coins:,} canaries in all; {told.right:,} of {told.made:,} guesses right"
        return Bound(delta=slack, claimed=claimed, found=told.found), words

    bound, words = attack(broken)
    twin = None
    if weakest:
        first = bisect_left(SHARES, True, key=lambda share: attack(less_noise(share))[0].beaten)
        twin = (
            f"{SHARES[first]:g} of the noise" if first < len(SHARES) else f"none, down to {SHARES[-1]:g} of the noise"
        )
    return Audit(
        name=f"{method.name} at {promised(budget)}, canaries" + (f", {fault}" if fault else ""),
        relation=relation,
        evidence=Evidence.REFUTED if broken else plan.guarantee().evidence,
        stated=bound,
        best=bound,
        trials=coins,
        held_out=coins,
        confidence=confidence,
        ceiling=guess_ceiling(coins, delta=slack, confidence=confidence),
        pair="noise pictures with arbitrary labels, each put in by a coin of its own",
        twin=twin,
        kind="canary",
        how=words,
    )


def promised(budget: Budget) -> str:
    """What a claim says, in words."""
    return f"epsilon {budget.epsilon:g}, delta {budget.delta:g}"


def less_noise(share: float) -> Break:
    """The twin that keeps a share of the noise."""
    return lambda g: dataclasses.replace(g, noise_multiplier=share * g.noise_multiplier)


def no_clip(gradient: PoissonGradient) -> PoissonGradient:
    """The twin that clips nothing, with the noise of the sound form."""
    task: Any = gradient.task
    free = dataclasses.replace(task, clip_norm=_FREE)
    return dataclasses.replace(gradient, task=free, noise_multiplier=gradient.noise_multiplier * task.bound / _FREE)


FAULTS: dict[str, Break] = {"a tenth of the noise": less_noise(0.1), "missing clip": no_clip}
"""Broken twins that the audit must catch."""
_FREE = 1e6
_FAULTY = 1 / 30
"""Part of the stated noise variance that the attacker counts on: less than is stated, or there is nothing to find."""


def watched(
    method: Method, plan: Plan, canaries: int, *, broken: Break | None, noise: NoiseSource
) -> tuple[Array, NDArray[np.bool_]]:
    """Scores of the canaries, [m], made of releases only, and how their coins fell.

    Args:
        method: what runs.
        plan: its plan.
        canaries: m.
        broken: the fault of a twin.
        noise: where privacy noise and the coins come from.
    """
    rows = noise_pictures(plan.schema, canaries, np.random.default_rng(0))
    coins = noise.coins(canaries, 0.5)
    chosen = rows.take(np.flatnonzero(coins))
    talk = method.talk(plan, rng=np.random.default_rng(0), resume=Resume(used={}))
    followed: dict[str, _Watch] = {}
    answer: Any = None
    while True:
        try:
            ask = talk.send(answer)
        except StopIteration:
            break
        if isinstance(ask, Note):
            answer = None
        elif isinstance(ask, PoissonGradient):
            answer = (broken(ask) if broken else ask)(chosen, noise)
            if ask.name not in followed:
                followed[ask.name] = _Watch(ask.task, rows)
            followed[ask.name].look(answer, ask)
        else:
            answer = ask(chosen, noise)
    if not followed:
        raise PrivacyError(f"'{method.name}' asks no sampled gradients; audit its mechanisms instead: --kind mechanism")
    return sum((w.scores() for w in followed.values()), start=np.zeros(canaries)), coins


def noise_pictures(schema: ImageSchema, n: int, rng: np.random.Generator) -> Rows:
    """Canaries: every pixel black or white by chance, labels in turn."""
    images = 255 * rng.integers(0, 2, (n, *schema.shape), dtype=np.uint8)
    return Rows(image=images, label=np.arange(n) % schema.n_classes)


def _slopes(losses: Tensor, net: nn.Module, direction: Array) -> Array:
    """How each loss changes along a direction [p] of the weights, [m]."""
    weights = list(trainable(net).values())
    parts = torch.from_numpy(direction).float().split([p.numel() for p in weights])
    mix = torch.ones(len(losses), requires_grad=True)  # the derivative by its entries tells the losses apart
    slope = torch.autograd.grad((mix * losses).sum(), weights, create_graph=True)
    along = sum((s.flatten() @ part for s, part in zip(slope, parts, strict=True)), start=torch.zeros(()))
    return torch.autograd.grad(along, mix)[0].double().numpy()


def _gradients(held: _Held, inputs: tuple[Tensor, ...], draws: int) -> Tensor:
    """The gradient of each record's loss, `[m, p]`."""
    weights = {name: p.detach() for name, p in trainable(held).items()}

    def loss(values: dict[str, Tensor], *record: Tensor) -> Tensor:
        return functional_call(held, values, record).mean()

    records = tuple(t.reshape(-1, draws, *t.shape[1:]) for t in inputs)
    found = vmap(grad(loss), in_dims=(None, *(0 for _ in records)), chunk_size=128)(weights, *records)
    return torch.cat([found[name].flatten(1) for name in weights], 1)


class _Held(nn.Module):
    """A net together with its loss, so that both can be called with other weights."""

    def __init__(self, net: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net, self.loss = net, loss

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.loss(self.net, *inputs)


class _Watch:
    """How the losses of canaries slope along released gradients.

    Args:
        task: whose gradients are released; only what is public about it is used.
        rows: all canaries.
    """

    def __init__(self, task: Any, rows: Rows) -> None:
        x, y = to_unit(rows["image"]), torch.from_numpy(rows["label"])
        if isinstance(task, ModuleGradient):
            self._net, self._loss, self._draws = task.module, task.loss, task.draws
            if task.encoder is not None:
                x = torch.from_numpy(task.encoder(rows["image"]))
            coins = np.random.default_rng(1)  # the attacker's own, in place of the records'
            self._visit: Callable[[], tuple[Tensor, ...]] = lambda: (
                (x, y) if task.inputs is None else task.inputs(x, y, coins)
            )
        elif isinstance(task, DecoderGradient) and isinstance(task.source, LocalInference | FixedEncoder):
            self._net, self._loss, self._draws = task.decoder, reconstruction_loss, 1
            source = task.source  # codes are inferred as a record would that is drawn as often as all are
            if isinstance(source, LocalInference):
                source = dataclasses.replace(source, state=LocalState())
            kinds = functional.one_hot(y).float()  # whole numbers do not pass through vmap
            everybody = np.arange(len(rows))
            self._visit = lambda: (source.visit(rows, everybody, task.decoder, x, y), kinds, x)
        else:
            raise PrivacyError(
                f"it is not known how canaries show in a {type(task).__name__} of this form; audit its mechanisms "
                "instead: --kind mechanism"
            )
        self._seen, self._left = np.zeros(len(rows)), 0
        self._gram = np.zeros((len(rows), len(rows)))
        self._share = np.ones(len(rows))
        self._bound, self._noise = task.bound, 0.0

    def look(self, gradient: Array, mechanism: PoissonGradient) -> None:
        """Take in one released gradient, [p]."""
        if self._left == 0:
            self._left, self._inputs = round(1 / mechanism.rate), self._visit()
            each = _gradients(_Held(self._net, self._loss), self._inputs, self._draws)
            self._share = (self._bound / each.norm(dim=1).clamp(min=1e-30)).clamp(max=1.0).double().numpy()
            each *= torch.from_numpy(self._share).float()[:, None]
            self._now = (each @ each.T).double().numpy()
        self._left -= 1
        slopes = _slopes(self._loss(self._net, *self._inputs).reshape(-1, self._draws).mean(1), self._net, gradient)
        self._seen += self._share * slopes * mechanism.size
        self._gram += self._now
        self._noise = (mechanism.noise_multiplier * self._bound / mechanism.rate) ** 2

    def scores(self) -> Array:
        """The likeliest b, how much of each canary is in: what was seen is K b + noise of covariance v K, K the sum of
        the canaries' inner products over the steps, and b is 1/2 +- 1/2. The v here is that of a faulty release.
        """
        ridge = 4 * _FAULTY * self._noise
        return scipy.linalg.solve(self._gram + ridge * np.eye(len(self._gram)), self._seen + ridge / 2, assume_a="pos")
