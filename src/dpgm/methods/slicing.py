"""The slicing mechanism: privatise projections of the records once, then train any generator on them for ever."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from dpgm.mechanisms.noise import Gaussian
from dpgm.mechanisms.projection import SlicedProjection
from dpgm.mechanisms.tables import Cells
from dpgm.methods import rowwise, sliced_images
from dpgm.methods.base import Method, Model, Note, OnNote, Plan, Release, Resume, Talk, Tensors, reporter
from dpgm.methods.options import AtLeast1
from dpgm.methods.tabular import MixtureModel, Released, choose_cells, most_kept, one_way, two_way
from dpgm.nets.looks import check_sampling
from dpgm.nets.mixture import ProductMixture, fit_mixture
from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Budget, PrivacyError, Relation, Source
from dpgm.schema import ImageSchema, SchemaError, TableSchema


@dataclass(frozen=True, kw_only=True)
class Slicing(Method):
    """Privatised slices of the records, released once; tables and images.

    `aggregated` (default) releases sums over the records, whose noise is of order 1/n: for tables all two-way marginals
    (slices along pairs of one-hot axes) of cells that a first round of one-way marginals chose, for images class-wise
    moments, characteristic functions or soft histograms of public projections. `full-rank` and `paper` release one
    noisy row for each record, whole or behind random directions; their noise does not shrink with n, and the number of
    records is public.

    **Guarantee**: `aggregated`: two Gaussian releases (tables) or one (images) under either relation
    (docs/proofs/marginals.md, docs/proofs/mean-embedding.md). `full-rank`, `paper`: docs/proofs/slicing.md, under
    *replace one* only.
    **Source**: Greenewald, Yu, Wang and Xu 2024; the aggregated mode is this project's.
    **Differs from the paper**: `paper` has exact accounting, c = 2C under replace one, no subsampling amplification and
    no uncounted preprocessing; the other modes are stronger at the same epsilon.

    Attributes:
        mode: what is released.
        share: aggregated tables: share of the budget (of mu^2) for the one-way marginals.
        cells: aggregated tables: cells that a numeric column is joined to, about.
        pair: aggregated tables: weight of the pairs of features.
        label: tables: weight of each feature with the label (aggregated), of the label's axes (full-rank).
        triple: aggregated tables: weight of the pairs of features with the label.
        shuffled: full-rank: price the random order of the rows, which allows far less noise where records are many;
            needs the declared size.
        slices: number of slices m (paper); aggregated images take 160 times as many characteristic functions (80
            beside moments), or 20 times as many histograms.
        slice_dim: paper: directions in a slice, k.
        statistic: aggregated images: what is released of a slice.
        loss: row-wise modes: a mixture of products with the first and second moments ("moments"; full-rank tables), or
            a generator for characteristic functions of the noisy domain ("cf"), sliced Wasserstein, the paper's
            kernel density ratio with f = (t - 1)^2 ("chi2") or t ln t - t + 1 ("kl"), or chi^2 on fixed centres
            ("ridge"). "auto" takes "moments" where it can be had, else "cf".
        components: mixtures: products, over all classes.
        steps: training steps; 0 chooses by mode.
        batch: records a step.
        lr: highest learning rate; 0 chooses by mode.
        latent: row-wise modes: length of the latent vector of the generator.
        width: row-wise modes: width of the generator.
        temperature: aggregated images: variance of the latent vectors in sampling; above 1 samples vary more.
        movement: aggregated images: small public shifts, turns and slants of drawn pictures; 1 suits strokes.
        ensemble: aggregated images: generators that are trained on the release, each from a start of its own; each
            record comes from one of them, so samples vary more.
    """

    mode: Literal["aggregated", "full-rank", "paper"] = "aggregated"
    shuffled: bool = False
    share: float = 0.15
    cells: AtLeast1 = 24
    pair: float = 0.5
    label: float = 3.0
    triple: float = 1.0
    slices: AtLeast1 = 25
    slice_dim: AtLeast1 = 2
    statistic: Literal["moments", "characteristic", "histogram"] = "moments"
    loss: Literal["auto", "moments", "cf", "wasserstein", "chi2", "kl", "ridge"] = "auto"
    components: AtLeast1 = 256
    steps: int = 0
    batch: AtLeast1 = 500
    lr: float = 0.0
    latent: AtLeast1 = 32
    width: AtLeast1 = 16
    temperature: float = 1.0
    movement: float = 0.0
    ensemble: AtLeast1 = 1

    name: ClassVar[str] = "slicing"
    takes: ClassVar[tuple[type[Any], ...]] = (ImageSchema, TableSchema)
    sources: ClassVar[tuple[Source, ...]] = (SlicedProjection.source,)
    free: ClassVar[frozenset[str]] = frozenset(
        {"components", "steps", "batch", "lr", "latent", "width", "loss", "temperature", "movement", "ensemble"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share < 1:
            raise PrivacyError(f"share is {self.share}; allowed is a part of the budget above 0 and below 1, e.g. 0.15")
        if self.shuffled and self.mode != "full-rank":
            raise PrivacyError(f"mode '{self.mode}' has no shuffled form; it goes with --mode full-rank")
        if self.loss == "moments" and self.mode != "full-rank":
            raise PrivacyError(f"mode '{self.mode}' has no loss 'moments'; it goes with --mode full-rank")
        check_sampling(temperature=self.temperature, movement=self.movement)

    def plan(self, schema: Any, *, relation: Relation, budget: Budget) -> Plan:
        """Everything that will be asked, calibrated to the budget."""
        _check_columns(schema)
        pictures = isinstance(schema, ImageSchema) and self.mode == "aggregated"
        if (self.temperature, self.movement, self.ensemble) != (1, 0, 1) and not pictures:
            raise SchemaError(
                "temperature, movement and ensemble are of images in mode 'aggregated'; leave them out here"
            )
        if self.mode != "aggregated":
            return rowwise.plan(self, schema, relation=relation, budget=budget)
        if isinstance(schema, ImageSchema):
            return sliced_images.embedding(self).plan(schema, relation=relation, budget=budget)
        mu = accountant.gaussian_mu(budget)
        first = one_way(schema)
        # Weights alone make the price, so the second round is priced before its cells are known.
        second = self._second(schema, first.cells)
        std = [
            query.sensitivity(relation) / (mu * math.sqrt(part)) * (1 + 1e-9)
            for query, part in ((first, self.share), (second, 1 - self.share))
        ]
        return Plan(
            schema=schema,
            relation=relation,
            budget=budget,
            items=(
                (Gaussian(query=first, noise_std=std[0], name="one-way-marginals"), 1),
                (Gaussian(query=second, noise_std=std[1], name="two-way-marginals"), 1),
            ),
            details={"mode": self.mode, "noise_std_one": std[0], "noise_std_two": std[1], "blocks": len(second.blocks)},
            seconds=10 + 2e-5 * len(second.blocks) * (schema.size or 0) / 1000 + 30,
            memory_mb=self._memory_mb(schema, first.cells, std[0]),
        )

    def talk(self, plan: Plan, *, rng: np.random.Generator, resume: Resume) -> Talk:
        """Ask once, or twice for aggregated tables."""
        if self.mode != "aggregated":
            values = yield plan.items[0][0]
            return values
        schema: Any = plan.schema
        if isinstance(schema, ImageSchema):
            sums = yield plan.items[0][0]
            return {"sums": sums}
        (first, _), (second, _) = plan.items
        one = resume.state["one"] if resume.state else (yield first)
        yield Note(stage="release", step=1, total=2, state={"one": one})
        cells = choose_cells(schema, one, float(plan.details["noise_std_one"]), self.cells)
        assert isinstance(second, Gaussian)
        query = self._second(schema, cells)
        two = yield Gaussian(query=query, noise_std=second.noise_std, name=second.name)
        return {"one": one, "two": two}

    def train(self, release: Release, *, seed: int, on_note: OnNote | None = None) -> Model:
        """Train a generator on the release."""
        if self.mode != "aggregated":
            return rowwise.train(self, release, seed=seed, on_note=on_note)
        if isinstance(release.schema, ImageSchema):
            return sliced_images.embedding(self).train(release, seed=seed, on_note=on_note)
        released = self._released(release)
        counts, targets = released.targets()
        net = self._mixture(counts, released.schema, seed)
        net.start(targets.first)
        steps = self.steps or 300
        fit_mixture(net, targets, steps=steps, lr=self.lr or 0.1, on_step=reporter(on_note, "train", steps))
        return MixtureModel(release, net, released.cells, released.one, released.one_std)

    def restore(self, release: Release, tensors: Tensors) -> Model:
        """The model from its saved weights."""
        if self.mode != "aggregated":
            return rowwise.restore(self, release, tensors)
        if isinstance(release.schema, ImageSchema):
            return sliced_images.embedding(self).restore(release, tensors)
        released = self._released(release)
        net = self._mixture(released.targets()[0], released.schema, 0)
        net.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()})
        return MixtureModel(release, net, released.cells, released.one, released.one_std)

    def _mixture(self, counts: list[int], schema: TableSchema, seed: int) -> ProductMixture:
        each = max(1, self.components // schema.n_classes)
        return ProductMixture(counts, schema.n_classes, each, rng=torch.Generator().manual_seed(seed))

    def _memory_mb(self, schema: TableSchema, fine: Sequence[Cells], std: float) -> float:
        """Peak memory, about as measured: training holds numbers for each pair of cells and class, some times over."""
        columns = [(c, cells.count) for c, cells in zip(schema.columns, fine, strict=True) if c.name != schema.label]
        numeric, size = self.cells, schema.size
        joined = sum(most_kept(n, size, std) if c.values else min(n, numeric + c.missing) for c, n in columns)
        pairs = joined**2 * (56 + 30 * schema.n_classes)
        return max(800, 600 + (pairs + 50 * self.components * joined + 8 * (schema.size or 0) * len(fine)) / 1e6)

    def _second(self, schema: TableSchema, cells: Any) -> Any:
        return two_way(schema, cells, pair=self.pair, label=self.label, triple=self.triple)

    def _released(self, release: Release) -> Released:
        schema: Any = release.schema
        std = {k: float(release.details[f"noise_std_{k}"]) for k in ("one", "two")}
        one = one_way(schema)
        cells = choose_cells(schema, release.tensors["one"], std["one"], self.cells)
        query = self._second(schema, cells)
        return Released(
            schema=schema,
            cells=tuple(cells),
            one=one.split(release.tensors["one"]),
            one_std=std["one"],
            query=query,
            two=query.split(release.tensors["two"]),
            two_std=std["two"],
        )


def _check_columns(schema: Any) -> None:
    if isinstance(schema, TableSchema) and schema.names == (schema.label,):
        raise SchemaError(
            f"the table has no column but its label, '{schema.label}'; declare other columns, or no label"
        )
