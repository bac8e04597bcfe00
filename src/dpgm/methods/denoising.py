"""PGE's form by DP-SGD: the released field's score for all noise levels, corrected by a net trained on gradients."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpgm.mechanisms.gradient import ModuleGradient, PoissonGradient
from dpgm.methods.base import Batch, Method, Model, Note, OnNote, Plan, Release, Resume, Talk, Tensors
from dpgm.methods.composed import part, prefixed, with_prefix
from dpgm.methods.descent import Descent, descend
from dpgm.methods.field import FieldModel
from dpgm.methods.options import Above0, AtLeast1, ClipNorm
from dpgm.nets.denoiser import Denoiser, Known, denoising_loss, sliced_loss
from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Budget, PrivacyError, Relation, Source
from dpgm.privacy.mechanism import Json
from dpgm.samplers import Kernel, anneal, annealed_langevin, chain, ddim, heun, run, sigma_schedule, unadjusted_hmc
from dpgm.samplers.diffusion import tweedie_score
from dpgm.schema import Schema, SchemaError

_LEVEL, _RANGE = -1.0, 1.0
"""Mean and standard deviation of log sigma in training."""
_LOW = 0.05
"""Lowest noise level that sampling goes through."""
_BATCH = 500


@dataclass(frozen=True, kw_only=True)
class Denoising(Method):
    """The one-shot field's exact denoiser, corrected by a net that is trained by DP-SGD.

    D(x, sigma, y) = D0(x, sigma, y) + c(sigma) F(x, D0, sigma, y): D0 is the closed-form denoiser of the released field
    and F begins at zero, so nothing is lost before the first gradient. The gradient of a record is that of its loss
    averaged over `draws` pairs of noise and noise level, clipped once. A draw of the field is noised up to level
    `highest` and led back by D, with D0 as hot as the field is drawn.

    **Guarantee**: Poisson-sampled Gaussian gradients (docs/proofs/poisson-gradient.md), composed with the releases of
    the field (docs/proofs/cell-moments.md).
    **Source**: Dockhorn et al. 2022 for score networks by DP-SGD with noise multiplicity; Song et al. 2019 for the
    sliced loss.
    **Differs from the paper**: the net is small and corrects a released score in place of learning a whole one;
    sampling begins at draws of the released law; the sliced loss is a central difference.

    Attributes:
        loss: denoising score matching, or sliced score matching at the same noise levels.
        field_share: part of mu^2 for the field.
        steps: gradients T.
        rate: probability of a record in each of them.
        draws: noise draws K averaged inside a record before clipping.
        clip_norm: bound C on a record's gradient.
        lr: highest learning rate (Adam, cosine).
        width: channels of the net at half size, a multiple of 8.
        sampler: kernel that draws: Heun or DDIM steps of the probability flow, or Heun's with Langevin or Hamiltonian
            moves at each noise level.
        highest: noise level that the field's draws are brought to; more lets the net change more.
        levels: noise levels of the sampler.
    """

    loss: Literal["denoising", "sliced"] = "denoising"
    field_share: float = 0.1
    steps: int = 150
    rate: float = 0.02
    draws: AtLeast1 = 2
    clip_norm: ClipNorm = 0.5
    lr: Above0 = 1e-3
    width: AtLeast1 = 24
    sampler: Literal["heun", "ddim", "langevin", "hmc"] = "heun"
    highest: float = 0.5
    levels: int = 6

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
    free: ClassVar[frozenset[str]] = frozenset({"sampler", "highest", "levels"})

    def plan(self, schema: Schema, *, relation: Relation, budget: Budget, field: Method | None = None) -> Plan:
        """The field's releases at their share, and gradients with the smallest noise that then fits the budget."""
        self._check()
        if schema.size is None:
            raise SchemaError("gradients need the declared number of records; give the schema a size")
        mu = accountant.gaussian_mu(budget) * math.sqrt(self.field_share)
        part_of = Budget(epsilon=accountant.gaussian_epsilon(mu, budget.delta), delta=budget.delta)
        first = _given(field).plan(schema, relation=relation, budget=part_of)

        def step(noise_multiplier: float) -> PoissonGradient:
            return PoissonGradient(
                rate=self.rate, noise_multiplier=noise_multiplier, size=schema.size or 0, name="pge-gradient"
            )

        noise = accountant.calibrate(
            lambda s: [*first.costs(), (step(s).cost(relation), self.steps)],
            budget,
            relation=relation,
            low=0.3,
        )
        work = math.prod(schema.shape) * self.width**2 * (2 if self.loss == "sliced" else 1)
        return Plan(
            schema=schema,
            relation=relation,
            budget=budget,
            items=(*first.items, (step(noise), self.steps)),
            details={"noise_multiplier": noise, "field": dict(first.details)},
            seconds=first.seconds + 3e-9 * work * self.steps * self.rate * schema.size * self.draws,
            memory_mb=1500,
        )

    def talk(self, plan: Plan, *, rng: np.random.Generator, resume: Resume, field: Method | None = None) -> Talk:
        """The field's talk, then gradients of the net that corrects it."""
        last, state = len(plan.items) - 1, dict(resume.state or {})
        kept, details = part(state, "field."), _details(plan.details)
        if "field.done" not in state:
            inner = dataclasses.replace(plan, items=plan.items[:last], details=details)
            begun = Resume(used=resume.used, state=kept or None)
            kept = yield from prefixed(_given(field).talk(inner, rng=rng, resume=begun), "field.", {})
            kept["done"] = np.ones(1)
            yield Note(stage="field", step=1, total=1, state=with_prefix(kept, "field."))
        law = _given(field).train(
            Release(
                method=_given(field), schema=plan.schema, guarantee=plan.guarantee(), tensors=kept, details=details
            ),
            seed=0,
        )
        assert isinstance(law, FieldModel)
        net = self._net(plan.schema, law.denoiser(hot=False), torch.Generator().manual_seed(int(rng.integers(2**62))))
        step = plan.items[last][0]
        assert isinstance(step, PoissonGradient)
        task = ModuleGradient(
            module=net,
            loss=denoising_loss if self.loss == "denoising" else sliced_loss,
            clip_norm=self.clip_norm,
            draws=self.draws,
            inputs=lambda x, y, coins: self._inputs(law.straight(x), y, coins),
            dtype=torch.bfloat16,
        )
        descent = Descent(net, steps=self.steps, lr=self.lr, rule="adam", average=0.98)
        talk = descend(
            descent,
            dataclasses.replace(step, task=task),
            calls=self.steps,
            used=resume.used.get(last, 0),
            state=part(state, "gradients.") or None,
            stage="gradients",
        )
        kept = with_prefix(kept, "field.")
        yield from prefixed(talk, "gradients.", kept)
        descent.finish()
        return kept | {f"net.{name}": t.detach().numpy().copy() for name, t in net.state_dict().items()}

    def _inputs(self, x: Tensor, y: Tensor, coins: np.random.Generator) -> tuple[Tensor, ...]:
        """Clean images, noise, levels and labels (and directions), `draws` rows a record.

        A record's coins stand together in one draw, so that those of the others do not hang on how many there are.
        """
        x, y = (2 * x - 1).repeat_interleave(self.draws, 0), y.repeat_interleave(self.draws, 0)
        size, times = x[0].numel() if len(x) else 0, 2 if self.loss == "sliced" else 1
        drawn = torch.from_numpy(coins.standard_normal((len(x), size * times + 1), dtype=np.float32))
        noise = [part.reshape(x.shape) for part in drawn[:, 1:].split(size, 1)] if size else [x] * times
        return (x, noise[0], (_LEVEL + _RANGE * drawn[:, 0]).exp(), y, *noise[1:])

    def _net(self, schema: Schema, known: Known, rng: torch.Generator) -> Denoiser:
        return Denoiser(known=known, channels=schema.channels, n_classes=schema.n_classes, width=self.width, rng=rng)

    def train(
        self, release: Release, *, seed: int, on_note: OnNote | None = None, field: Method | None = None
    ) -> DenoiserModel:
        """The field's own training; the net is final."""
        model = _given(field).train(_inner(release, _given(field)), seed=seed, on_note=on_note)
        return self.restore(release, model.tensors(), field=field)

    def restore(self, release: Release, tensors: Tensors, *, field: Method | None = None) -> DenoiserModel:
        """The denoiser from the field's laws and the released weights."""
        law = _given(field).restore(_inner(release, _given(field)), tensors)
        assert isinstance(law, FieldModel)
        net = self._net(release.schema, law.denoiser(hot=True), torch.Generator().manual_seed(0))
        weights = part(release.tensors, "net.")
        net.load_state_dict({name: torch.from_numpy(np.array(t)) for name, t in weights.items()})
        return DenoiserModel(release, net, law, self)

    def _check(self) -> None:
        if not 0 < self.field_share < 1:
            raise PrivacyError(f"field_share is {self.field_share}; allowed is a part of the budget, e.g. 0.1")
        least = {"steps": 1, "draws": 1, "levels": 2}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise SchemaError(f"{name} is {getattr(self, name)}; allowed is {low} or more")
        if not self.highest > _LOW:
            raise SchemaError(f"highest is {self.highest}; allowed is a noise level above {_LOW}, e.g. 1")
        if self.width < 8 or self.width % 8:
            raise SchemaError(f"width is {self.width}; allowed is a multiple of 8, e.g. 16")


BY_GRADIENTS = Denoising()


def _given(field: Method | None) -> Method:
    if field is None:
        raise PrivacyError("this form corrects a score field; give the field's method, or choose it through PGE")
    return field


def _details(details: Mapping[str, Json]) -> Any:
    return details["field"]


def _inner(release: Release, field: Method) -> Release:
    """What the field released."""
    kept = part(release.tensors, "field.")
    return dataclasses.replace(release, method=field, tensors=kept, details=_details(release.details))


class DenoiserModel(Model):
    """A field whose draws go through noise, and back by a corrected denoiser.

    Args:
        release: holds the trained weights.
        net: the denoiser with them.
        field: draws what is noised, and finishes the pictures.
        options: how it samples.
    """

    def __init__(self, release: Release, net: Denoiser, field: FieldModel, options: Denoising) -> None:
        super().__init__(release)
        self._net, self._field, self._options = net.eval().requires_grad_(False), field, options

    def tensors(self) -> Tensors:
        """Those of the field."""
        return self._field.tensors()

    def _sample(self, labels: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        z = self._field.draw(labels, rng)
        coins, y = torch.Generator().manual_seed(int(rng.integers(2**62))), torch.from_numpy(labels)
        parts = zip(self._field.picture(z).split(_BATCH), y.split(_BATCH), strict=True)
        x = [self._some(*both, coins) for both in parts]
        return Batch(images=self._field.finish(torch.cat(x), z, rng), labels=labels)

    def _some(self, x: Tensor, y: Tensor, coins: torch.Generator) -> Tensor:
        @torch.no_grad()
        def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self._net(x, sigma, y)

        kernel = self._kernel(denoiser)
        x = 2 * x - 1 + self._options.highest * torch.randn(x.shape, generator=coins)
        x = run(kernel, x, n_steps=self._options.levels, rng=coins).x
        return (x + 1) / 2

    def _kernel(self, denoiser: Any) -> Kernel:
        """One step a noise level. Moves alone would lag behind the falling levels: Heun's step leads from each to the
        next, and they stir at it.
        """
        score_at = tweedie_score(denoiser)
        falling = sigma_schedule(self._options.levels, sigma_min=_LOW, sigma_max=self._options.highest)

        def moves_at(sigma: float) -> Kernel:
            return unadjusted_hmc(lambda x: score_at(x, sigma), step_size=0.5 * sigma, n_leapfrog=3)

        down = heun(denoiser, falling)
        match self._options.sampler:
            case "heun":
                return down
            case "ddim":
                return ddim(denoiser, falling)
            case "langevin":
                return chain(*[annealed_langevin(score_at, falling[:-1], n_steps=1, ratio=0.2)] * 4, down)
            case "hmc":
                return chain(*[anneal(moves_at, falling[:-1], n_steps=1)] * 2, down)
