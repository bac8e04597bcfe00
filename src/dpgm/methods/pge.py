"""Private gradient estimation, the sound way: release what determines a score field once, then sample by Hamiltonian
dynamics.

The score of a class is that of a Gaussian (or of a mixture of them) in public coordinates of the image. Score matching
for it is a quadratic problem whose only private statistics are counts, means and second moments; they are released with
noise, shrunk by the noise that is known to be in them, and everything after that is free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from dpgm.mechanisms.cells import AboutCentres, CellKNorm, CellMoments
from dpgm.mechanisms.noise import Gaussian
from dpgm.mechanisms.perturbed import SOURCE
from dpgm.mechanisms.scatter import CellScatter, MatrixLaplace
from dpgm.methods.base import Method, Model, Note, OnNote, Plan, Release, Resume, Talk, Tensors, reporter
from dpgm.methods.composed import with_prefix
from dpgm.methods.denoising import BY_GRADIENTS, Denoising
from dpgm.methods.field import (
    COUNT_SHARE,
    COUNT_WEIGHT,
    SECOND_WEIGHT,
    Appearance,
    FieldModel,
    Fit,
    public_centre,
    radius,
)
from dpgm.methods.laws import Array
from dpgm.methods.options import AtLeast1, Forms
from dpgm.methods.published_pge import AS_PRINTED, Published
from dpgm.nets.coordinates import Coordinates
from dpgm.nets.refiner import train_refiner
from dpgm.nets.scattered import ScatteringCoordinates
from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Budget, Relation, Source
from dpgm.privacy.mechanism import Mechanism
from dpgm.schema import Schema, SchemaError

_SHARES: dict[str, dict[str, float]] = {
    "one": {"means": 0.12, "spreads": 0.88},
    "several": {"means": 0.06, "spreads": 0.34, "cells": 0.6},
    "pure": {"means": 0.2, "spreads": 0.8},
}
"""Parts of mu^2 (of epsilon where delta is 0) that the stages get."""
_LOOKS = {
    "strokes": Appearance(grey=0.13, upright=True, temperature=2.0, wobble=1.0, contrast=1.5),
    "texture": Appearance(grey=0.3, upright=False, temperature=1.0, wobble=0.0, contrast=1.0),
}


@dataclass(frozen=True, kw_only=True)
class PGE(Method):
    """Private gradient estimation by one or a few releases of class-wise moments, sampled by exact HMC.

    The score of class c is s_c(z) = grad log sum_k w_ck N(z; m_ck, temperature S_ck) in public coordinates z of the
    image (`features`). Releases: class counts and means; then counts, means and second moments about the released
    means; with several components, the same once more for public cells around the released Gaussians.

    **Guarantee**: two or three Gaussian releases, composed (docs/proofs/cell-moments.md); with delta = 0 an l2 K-norm
    release of the means and a matrix Laplace release of the rest (docs/proofs/matrix-laplace.md).
    **Source**: Liu et al. 2024 for the idea (estimate the private gradient, sample by Hamiltonian dynamics).
    **Differs from the paper**: the paper perturbs projection vectors that do not depend on the data while raw records
    enter its loss, so its theorem gives no privacy. Here the statistics that determine the score are released with
    noise; the score is closed-form instead of a network; there is an energy, so the Metropolis step is exact.

    With `privacy="published"` the paper's own training runs instead. Its evidence is REFUTED (mechanisms/perturbed.py);
    it runs only when that is allowed, with the options in `published`.

    With `privacy="dp-sgd"` a net learns from clipped gradients what the score of the one-shot field lacks; its options
    stand in `denoising`.

    Attributes:
        privacy: "one-shot" and "dp-sgd" (sound) or "published" (refuted).
        picture: "strokes" for handwriting and line drawings: each record is set upright by its own slant, and samples
            get a public random slant, turn, stretch and bend; "texture" for anything else. A public declaration.
        components: Gaussians a class; None takes 8 where mu of the whole budget is 1 or more, and 1 below;
            always 1 where delta is 0.
        features: "cosine" describes an image by low cosine frequencies, which draws smooth pictures in seconds;
            "scattering" by moduli of wavelets, too, which draws edges and textures, in about 5 CPU milliseconds each.
        directions: with "scattering", in how many directions moduli may vary; fewer where images are small.
        block: cosine frequencies along each axis of the image; None takes 14 for texture where mu of the whole budget
            is 1 or more or features is "scattering", and 10 otherwise.
        temperature: factor on the covariances in sampling; above 1 samples vary more than the records, which teaches
            classifiers their borders. None follows `picture`.
        wobble: strength of the random distortion of finished pictures, 0 or more; None follows `picture`.
        copies: samples that share one drawn point, each with a wobble of its own: with "scattering" finding the picture
            of a point is most of the work, and classifiers learn from another wobble, too. Above 1 it needs a wobble.
        rounds: rounds of Hamiltonian dynamics, each ended by a Metropolis step; chains start at draws of the law.
        n_leapfrog: leapfrog steps in a round.
        refine: steps of a small net that sharpens drawn pictures; it learns from made-up ones what the kept frequencies
            leave out. 0 for none; "one-shot" only.
        denoising: options of the form by DP-SGD.
        published: options of the published form; all others belong to the sound ones.
    """

    privacy: Literal["one-shot", "dp-sgd", "published"] = "one-shot"
    picture: Literal["strokes", "texture"] = "texture"
    features: Literal["cosine", "scattering"] = "cosine"
    directions: AtLeast1 = 200
    components: AtLeast1 | None = None
    block: int | None = None
    temperature: float | None = None
    wobble: float | None = None
    copies: AtLeast1 = 1
    rounds: int = 4
    n_leapfrog: int = 6
    refine: int = 0
    denoising: Denoising = BY_GRADIENTS
    published: Published = AS_PRINTED

    name: ClassVar[str] = "pge"
    sources: ClassVar[tuple[Source, ...]] = (SOURCE,)
    forms: ClassVar[Forms] = (
        ("privacy", ("published",), ("published",)),
        ("privacy", ("dp-sgd",), ("denoising",)),
        ("privacy", ("one-shot", "dp-sgd"), ("picture", "components", "block", "temperature", "wobble")),
        ("privacy", ("one-shot", "dp-sgd"), ("rounds", "n_leapfrog")),
        ("features", ("scattering",), ("directions",)),
    )
    free: ClassVar[frozenset[str]] = frozenset(
        {"temperature", "wobble", "copies", "rounds", "n_leapfrog", "refine", "denoising", "published"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.refine and self.privacy != "one-shot":
            raise SchemaError(f"refine is {self.refine}, but privacy is '{self.privacy}'; only 'one-shot' is refined")
        if self.copies > 1 and (self.privacy != "one-shot" or not self._appearance().wobble):
            raise SchemaError(
                f"copies is {self.copies}, with privacy '{self.privacy}' and wobble {self._appearance().wobble}; more "
                "than one needs 'one-shot' and a wobble above 0, for copies would be one picture: take wobble=0.4"
            )
        if self.features == "scattering" and (self.refine or self.privacy != "one-shot"):
            raise SchemaError(
                f"features is 'scattering', with refine {self.refine} and privacy '{self.privacy}'; its pictures have "
                "their detail, and only 'one-shot' draws them: leave refine 0 and privacy 'one-shot', or take 'cosine'"
            )

    # ------------------------------------------------------------------------------------------------ private half

    def coordinates(self, schema: Schema, block: int) -> Coordinates:
        """The public coordinates of an image."""
        kind: dict[str, Any] = {
            "height": schema.height,
            "width": schema.width,
            "channels": schema.channels,
            "block": block,
            "upright": _LOOKS[self.picture].upright,
        }
        if self.features == "cosine":
            return Coordinates(**kind)
        if min(schema.height, schema.width) < 2:
            raise SchemaError(
                f"features is 'scattering', but images are {schema.height} x {schema.width}; allowed are sides of 2 "
                "pixels or more: take features='cosine'"
            )
        return ScatteringCoordinates(**kind, directions=self.directions)

    def plan(self, schema: Schema, *, relation: Relation, budget: Budget) -> Plan:
        """The releases, each with the smallest noise that its share of the budget allows."""
        if self.privacy == "published":
            return self.published.plan(schema, relation=relation, budget=budget)
        if self.privacy == "dp-sgd":
            return self.denoising.plan(schema, relation=relation, budget=budget, field=self._one_shot())
        self._check()
        pure = budget.delta == 0
        strength = budget.epsilon if pure else accountant.gaussian_mu(budget)
        components = 1 if pure else self.components or (8 if strength >= 1 else 1)
        fine = self.picture == "texture" and not pure and (strength >= 1 or self.features == "scattering")
        block = self.block or (14 if fine else 10)
        dim, numbers = self.coordinates(schema, block).dim, math.prod(schema.shape)
        moved = 1 if relation is Relation.ADD_REMOVE else 2
        items: list[tuple[Mechanism[Array], int]] = []
        noise: dict[str, float] = {}
        for stage, share in _SHARES["pure" if pure else "one" if components == 1 else "several"].items():
            name = f"pge-{stage}"
            if pure and stage == "spreads":
                scatter = CellScatter(
                    look=None,
                    dim=dim,
                    n_cells=schema.n_classes,
                    radius=radius(stage, numbers),
                    count_share=COUNT_SHARE,
                )
                scale = moved / (share * strength) * (1 + 1e-9)
                items.append((MatrixLaplace(query=scatter, scale=scale, name=name), 1))
                noise[stage] = scale * math.sqrt(scatter.side + 1)
                continue
            query = CellMoments(
                look=None,
                dim=dim,
                n_cells=schema.n_classes * (components if stage == "cells" else 1),
                radius=radius(stage, numbers),
                second_weight=0.0 if stage == "means" else SECOND_WEIGHT,
                count_weight=COUNT_WEIGHT,
            )
            if pure:
                scale = moved * query.sensitivity(Relation.ADD_REMOVE) / (share * strength) * (1 + 1e-9)
                items.append((CellKNorm(query=query, scale=scale, name=name), 1))
                noise[stage] = scale * math.sqrt(query.shape[1] + 1)  # |Z|^2 is D (D + 1) scale^2 on average
            else:
                noise[stage] = query.sensitivity(relation) / (math.sqrt(share) * strength) * (1 + 1e-9)
                items.append((Gaussian(query=query, noise_std=noise[stage], name=name), 1))
        return Plan(
            schema=schema,
            relation=relation,
            budget=budget,
            items=tuple(items),
            details={
                "noise_std": dict(noise),
                "radius": {stage: radius(stage, numbers) for stage in noise},
                "components": components,
                "block": block,
                "coordinates": dim,
                "pure": pure,
            },
            seconds=5 + 3e-7 * (schema.size or 0) * numbers + (self.features == "scattering") * 0.06 * numbers,
            memory_mb=600 + 8e-6 * schema.n_classes * components * 6 * dim**2,
        )

    def talk(self, plan: Plan, *, rng: np.random.Generator, resume: Resume) -> Talk:
        """Means; second moments about them; then those of public cells, or of the classes in few directions."""
        if self.privacy == "published":
            return (yield from self.published.talk(plan, rng=rng, resume=resume))
        if self.privacy == "dp-sgd":
            return (yield from self.denoising.talk(plan, rng=rng, resume=resume, field=self._one_shot()))
        got: Tensors = dict(resume.state or {})
        coordinates = self.coordinates(plan.schema, int(plan.details["block"]))
        scale = coordinates.scale
        centre = public_centre(coordinates, _LOOKS[self.picture].grey)
        fit = Fit(coordinates, centre, plan.schema.n_classes, got, plan.details)

        def encoder(images: NDArray[np.uint8]) -> Array:
            return (coordinates.encode(images) - centre) / scale

        for i, (mechanism, _) in enumerate(plan.items):
            assert isinstance(mechanism, Gaussian | CellKNorm | MatrixLaplace)
            query: Any = mechanism.query
            stage = mechanism.name.removeprefix("pge-")
            if stage in got:
                continue
            look = AboutCentres(encoder=encoder)
            if stage != "means":
                look = replace(look, means=fit.first_means())
            if stage == "cells":
                got["centres"] = fit.public_centres(rng)
                look = replace(look, centres=got["centres"])
            got[stage] = yield replace(mechanism, query=replace(query, look=look))
            yield Note(stage=stage, step=i + 1, total=len(plan.items), state=dict(got))
        return got

    # --------------------------------------------------------------------------------------------------- free half

    def train(self, release: Release, *, seed: int, on_note: OnNote | None = None) -> Model:
        """Shrink the moments to laws, and tune the step sizes of the dynamics."""
        if self.privacy == "published":
            return self.published.train(release, seed=seed, on_note=on_note)
        if self.privacy == "dp-sgd":
            return self.denoising.train(release, seed=seed, on_note=on_note, field=self._one_shot())
        coordinates = self.coordinates(release.schema, int(release.details["block"]))
        centre = public_centre(coordinates, _LOOKS[self.picture].grey)
        fit = Fit(coordinates, centre, release.schema.n_classes, release.tensors, release.details)
        weights, means, covariances = fit.laws()
        tensors = {
            "weights": weights.astype(np.float32),
            "means": means.astype(np.float32),
            "factors": np.linalg.cholesky(covariances).astype(np.float32),
        }
        model = self._field(release, {**tensors, "step_size": np.array([0.3], np.float32)})
        tensors["step_size"] = model.tuned(seed)
        if self.refine:
            report = reporter(on_note, "refine", self.refine)
            net = train_refiner(coordinates, steps=self.refine, seed=seed, on_step=report)
            tensors |= with_prefix({name: t.numpy() for name, t in net.state_dict().items()}, "refiner.")
        return self._field(release, tensors)

    def restore(self, release: Release, tensors: Tensors) -> Model:
        """The field from its laws, or from the network's weights."""
        if self.privacy == "published":
            return self.published.restore(release, tensors)
        if self.privacy == "dp-sgd":
            return self.denoising.restore(release, tensors, field=self._one_shot())
        return self._field(release, tensors)

    def public_sets(self) -> tuple[str, ...]:
        """Names of the public sets behind the published form's codes."""
        return self.published.public_sets() if self.privacy == "published" else ()

    def retrained(self, other: Method) -> Self:
        """`other`, if it differs from this method in free options only; so for the published form's options."""
        if self.privacy == "published" and isinstance(other, PGE):
            self.published.retrained(other.published)
        if self.privacy == "dp-sgd" and isinstance(other, PGE):
            self.denoising.retrained(other.denoising)
        return super().retrained(other)

    def _one_shot(self) -> PGE:
        return replace(self, privacy="one-shot")

    def _field(self, release: Release, tensors: Tensors) -> FieldModel:
        coordinates = self.coordinates(release.schema, int(release.details["block"]))
        rounds = (self.rounds, self.n_leapfrog)
        return FieldModel(release, tensors, coordinates, self._appearance(), rounds, copies=self.copies)

    def _appearance(self) -> Appearance:
        """The kind of picture, with this method's own temperature and wobble."""
        look = _LOOKS[self.picture]
        return replace(
            look,
            temperature=look.temperature if self.temperature is None else self.temperature,
            wobble=look.wobble if self.wobble is None else self.wobble,
        )

    def _check(self) -> None:
        if self.components is not None and self.components < 1:
            raise SchemaError(f"components is {self.components}; allowed is 1 or more, or none for a choice by budget")
        if (self.block is not None and self.block < 1) or self.rounds < 1 or self.n_leapfrog < 1:
            raise SchemaError(
                f"block is {self.block}, rounds {self.rounds}, n_leapfrog {self.n_leapfrog}; each must be 1 or more"
            )
        if (self.temperature is not None and self.temperature <= 0) or (self.wobble is not None and self.wobble < 0):
            raise SchemaError(
                f"temperature is {self.temperature}, wobble {self.wobble}; allowed are above 0, and 0 or more"
            )
