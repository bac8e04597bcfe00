"""PGE's form by DP-SGD: a score network for all noise levels, trained on clipped gradients, sampled by any kernel."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dpgm.mechanisms.gradient import ModuleGradient, PoissonGradient
from dpgm.methods.base import Batch, Method, Model, Note, OnNote, Plan, Release, Resume, Talk, Tensors
from dpgm.methods.composed import part, prefixed, with_prefix
from dpgm.methods.descent import Descent, descend
from dpgm.nets.classifiers import to_bytes, to_unit
from dpgm.nets.denoiser import Denoiser, denoising_loss, sliced_loss
from dpgm.nets.procedural import procedural_images
from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Budget, PrivacyError, Relation, Source
from dpgm.privacy.mechanism import Mechanism
from dpgm.samplers import Kernel, anneal, annealed_langevin, ddim, heun, run, sigma_schedule, unadjusted_hmc
from dpgm.samplers.diffusion import tweedie_score
from dpgm.schema import Schema, SchemaError

_LEVEL, _RANGE = -0.7, 1.3
"""Mean and standard deviation of log sigma in training."""
_LOW, _HIGH = 0.03, 10.0
"""Noise levels that sampling goes through."""
_BATCH = 500


@dataclass(frozen=True, kw_only=True)
class Denoising(Method):
    """A denoiser for every noise level, and with it the score, by DP-SGD with several noise draws in each record.

    The gradient of a record is that of its loss averaged over `draws` pairs of noise and noise level, clipped once. The
    first weights come from public training: on draws of the one-shot field, which a share of the budget pays for, or
    on procedural pictures.

    **Guarantee**: Poisson-sampled Gaussian gradients (docs/proofs/poisson-gradient.md), composed with the releases of
    the field (docs/proofs/cell-moments.md) where it is used.
    **Source**: Dockhorn et al. 2022 for score networks by DP-SGD with noise multiplicity; Song et al. 2019 for the
    sliced loss.
    **Differs from the paper**: the net is small, and its first weights are those of a denoiser of released or public
    pictures; the sliced loss is a central difference.

    Attributes:
        loss: denoising score matching, or sliced score matching at the same noise levels.
        start: what the first weights were trained on.
        field_share: part of mu^2 for the field, where it is the start.
        warm_steps: steps of that training.
        steps: gradients T.
        rate: probability of a record in each of them.
        draws: noise draws K averaged inside a record before clipping.
        clip_norm: bound C on a record's gradient.
        lr: highest learning rate (Adam, cosine).
        width: channels of the net at full size, a multiple of 8.
        sampler: kernel that draws: Heun or DDIM steps of the probability flow, or Langevin or Hamiltonian moves through
            falling noise levels.
        levels: noise levels of the sampler.
    """

    loss: Literal["denoising", "sliced"] = "denoising"
    start: Literal["field", "pictures", "none"] = "field"
    field_share: float = 0.1
    warm_steps: int = 600
    steps: int = 200
    rate: float = 0.01
    draws: int = 4
    clip_norm: float = 0.5
    lr: float = 5e-4
    width: int = 16
    sampler: Literal["heun", "ddim", "langevin", "hmc"] = "heun"
    levels: int = 14

    name: ClassVar[str] = "pge-denoising"
    sources: ClassVar[tuple[Source, ...]] = (
        Source(
            key="dockhorn2022dpdm",
            title="Differentially Private Diffusion Models",
            authors="Dockhorn, Tim and Cao, Tianshi and Vahdat, Arash and Kreis, Karsten",
            year=2022,
            where="TMLR 2023, arXiv 2210.09929",
        ),
        Source(
            key="song2019sliced",
            title="Sliced Score Matching: A Scalable Approach to Density and Score Estimation",
            authors="Song, Yang and Garg, Sahaj and Shi, Jiaxin and Ermon, Stefano",
            year=2019,
            where="UAI 2019, arXiv 1905.07088",
        ),
    )
    free: ClassVar[frozenset[str]] = frozenset({"sampler", "levels"})

    PICTURES: ClassVar[int] = 4000

    def plan(self, schema: Schema, *, relation: Relation, budget: Budget, field: Method | None = None) -> Plan:
        """The field's releases at their share, and gradients with the smallest noise that then fits the budget."""
        self._check()
        if schema.size is None:
            raise SchemaError("gradients need the declared number of records; give the schema a size")
        first = self._field_plan(schema, relation, budget, field)
        items: tuple[tuple[Mechanism[Any], int], ...] = () if first is None else first.items

        def step(noise_multiplier: float) -> PoissonGradient:
            return PoissonGradient(
                rate=self.rate, noise_multiplier=noise_multiplier, size=schema.size or 0, name="pge-gradient"
            )

        noise = accountant.calibrate(
            lambda s: [*((m.cost(relation), n) for m, n in items), (step(s).cost(relation), self.steps)],
            budget,
            relation=relation,
            low=0.3,
        )
        work = math.prod(schema.shape) * self.width**2 * (2 if self.loss == "sliced" else 1)
        rows = self.steps * self.rate * schema.size * self.draws + 64 * self.warm_steps
        return Plan(
            schema=schema,
            relation=relation,
            budget=budget,
            items=(*items, (step(noise), self.steps)),
            details={"noise_multiplier": noise, "field": {} if first is None else dict(first.details)},
            seconds=30 + 1.2e-8 * work * rows,
            memory_mb=1500,
        )

    def _field_plan(self, schema: Schema, relation: Relation, budget: Budget, field: Method | None) -> Plan | None:
        if self.start != "field":
            return None
        if field is None:
            raise PrivacyError("start 'field' needs the field's method; give one, or start from 'pictures' or 'none'")
        mu = accountant.gaussian_mu(budget) * math.sqrt(self.field_share)
        part_of = Budget(epsilon=accountant.gaussian_epsilon(mu, budget.delta), delta=budget.delta)
        return field.plan(schema, relation=relation, budget=part_of)

    def talk(self, plan: Plan, *, rng: np.random.Generator, resume: Resume, field: Method | None = None) -> Talk:
        """The field's talk, public training, then gradients."""
        last = len(plan.items) - 1
        state, kept = dict(resume.state or {}), Tensors()
        coins = torch.Generator().manual_seed(int(rng.integers(2**62)))
        net = self._net(plan.schema, coins)
        begun = part(state, "gradients.")
        if self.start == "field" and not begun:
            assert field is not None
            details: Any = plan.details["field"]
            inner = dataclasses.replace(plan, items=plan.items[:last], details=details)
            kept = part(state, "field.")
            if "field.done" not in state:
                kept = yield from prefixed(
                    field.talk(inner, rng=rng, resume=Resume(used=resume.used, state=kept or None)), "field.", {}
                )
                yield Note(stage="field", step=1, total=1, state={**with_prefix(kept, "field."), "field.done": _YES})
            release = Release(
                method=field, schema=plan.schema, guarantee=plan.guarantee(), tensors=kept, details=details
            )
            shown = field.train(release, seed=0).sample(self.PICTURES, seed=int(rng.integers(2**62)))
            yield from self._warm(net, shown, coins)
        elif self.start == "pictures" and not begun:
            height, width, channels = plan.schema.shape
            images = procedural_images(self.PICTURES, height=height, width=width, channels=channels, rng=rng)
            labels = rng.integers(0, plan.schema.n_classes, len(images))  # pictures have no classes
            yield from self._warm(net, Batch(images=images, labels=labels), coins)

        step = plan.items[last][0]
        assert isinstance(step, PoissonGradient)
        task = ModuleGradient(
            module=net,
            loss=denoising_loss if self.loss == "denoising" else sliced_loss,
            clip_norm=self.clip_norm,
            draws=self.draws,
            inputs=self._inputs,
            dtype=torch.bfloat16,
        )
        descent = Descent(net, steps=self.steps, lr=self.lr, rule="adam", average=0.98)
        if not begun:  # the first weights are not made twice
            first = with_prefix(descent.tensors(), "gradients.")
            yield Note(stage="start", step=1, total=1, state=first)
        talk = descend(
            descent,
            dataclasses.replace(step, task=task),
            calls=self.steps,
            used=resume.used.get(last, 0),
            state=begun or None,
            stage="gradients",
        )
        yield from prefixed(talk, "gradients.", {})
        descent.finish()
        return {name: t.detach().numpy().copy() for name, t in net.state_dict().items()}

    def _inputs(self, x: Tensor, y: Tensor, coins: np.random.Generator) -> tuple[Tensor, ...]:
        """Clean images, noise, levels and labels (and directions), `draws` rows a record.

        A record's coins stand together in one draw, so that those of the others do not hang on how many there are.
        """
        x, y = (2 * x - 1).repeat_interleave(self.draws, 0), y.repeat_interleave(self.draws, 0)
        size, times = x[0].numel() if len(x) else 0, 2 if self.loss == "sliced" else 1
        drawn = torch.from_numpy(coins.standard_normal((len(x), size * times + 1), dtype=np.float32))
        noise = [part.reshape(x.shape) for part in drawn[:, 1:].split(size, 1)] if size else [x] * times
        return (x, noise[0], (_LEVEL + _RANGE * drawn[:, 0]).exp(), y, *noise[1:])

    def _warm(self, net: Denoiser, shown: Batch, coins: torch.Generator) -> Talk:
        """Denoise released or public pictures."""
        x, y = 2 * to_unit(shown.images) - 1, torch.from_numpy(shown.labels)
        optimiser = torch.optim.Adam(net.parameters(), 2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=max(1, self.warm_steps))
        every = max(1, self.warm_steps // 20)
        for i in range(self.warm_steps):
            index = torch.randint(0, len(x), (64,), generator=coins)
            sigma = (_LEVEL + _RANGE * torch.randn(64, generator=coins)).exp()
            noise = torch.randn(x[index].shape, generator=coins)
            with torch.autocast("cpu", torch.bfloat16):
                loss = denoising_loss(net, x[index], noise, sigma, y[index]).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if (i + 1) % every == 0:
                yield Note(stage="warm", step=i + 1, total=self.warm_steps, values={"loss": float(loss.detach())})
        return {}

    def _net(self, schema: Schema, rng: torch.Generator) -> Denoiser:
        return Denoiser(channels=schema.channels, n_classes=schema.n_classes, width=self.width, rng=rng)

    def train(self, release: Release, *, seed: int, on_note: OnNote | None = None) -> DenoiserModel:
        """Nothing is left to train."""
        return self.restore(release, {})

    def restore(self, release: Release, tensors: Tensors) -> DenoiserModel:
        """The denoiser from its released weights."""
        net = self._net(release.schema, torch.Generator().manual_seed(0))
        net.load_state_dict({name: torch.from_numpy(np.array(t)) for name, t in release.tensors.items()})
        return DenoiserModel(release, net, self)

    def _check(self) -> None:
        if not 0 < self.field_share < 1:
            raise PrivacyError(f"field_share is {self.field_share}; allowed is a part of the budget, e.g. 0.1")
        least = {"steps": 1, "draws": 1, "levels": 2, "warm_steps": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise SchemaError(f"{name} is {getattr(self, name)}; allowed is {low} or more")
        if self.width < 8 or self.width % 8:
            raise SchemaError(f"width is {self.width}; allowed is a multiple of 8, e.g. 16")


BY_GRADIENTS = Denoising()
_YES = np.ones(1)


class DenoiserModel(Model):
    """A denoiser and the kernel that samples it.

    Args:
        release: holds the trained weights.
        net: the denoiser with them.
        options: how it samples.
    """

    def __init__(self, release: Release, net: Denoiser, options: Denoising) -> None:
        super().__init__(release)
        self._net, self._options = net.eval().requires_grad_(False), options

    def tensors(self) -> Tensors:
        """Nothing beside the release."""
        return {}

    def _sample(self, labels: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        coins = torch.Generator().manual_seed(int(rng.integers(2**62)))
        parts = [self._some(torch.from_numpy(y), coins) for y in np.split(labels, range(_BATCH, len(labels), _BATCH))]
        return Batch(images=to_bytes(torch.cat(parts)), labels=labels)

    def _some(self, y: Tensor, coins: torch.Generator) -> Tensor:
        @torch.no_grad()
        def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self._net(x, sigma, y)

        kernel, n_steps = self._kernel(denoiser)
        shape = (len(y), self.schema.channels, self.schema.height, self.schema.width)
        start = _HIGH * torch.randn(shape, generator=coins)
        x = run(kernel, start, n_steps=n_steps, rng=coins).x
        if self._options.sampler in ("langevin", "hmc"):  # what is left of the noise
            x = denoiser(x, torch.full((len(y),), _LOW))
        return functional.relu(x / 2 + 0.5).clamp(max=1)

    def _kernel(self, denoiser: Any) -> tuple[Kernel, int]:
        n, score_at = self._options.levels, tweedie_score(denoiser)
        falling = sigma_schedule(n, sigma_min=_LOW, sigma_max=_HIGH)
        match self._options.sampler:
            case "heun":
                return heun(denoiser, falling), n
            case "ddim":
                return ddim(denoiser, falling), n
            case "langevin":
                return annealed_langevin(score_at, falling[:-1], n_steps=4, ratio=0.2), 4 * n
            case "hmc":

                def at_level(sigma: float) -> Kernel:
                    return unadjusted_hmc(lambda x: score_at(x, sigma), step_size=0.5 * sigma, n_leapfrog=3)

                return anneal(at_level, falling[:-1], n_steps=2), 2 * n
