"""AIM: marginals chosen one after the other where the model so far is worst; to be compared with.

The estimation is that of the package `mbi` (extra `marginals`); choice, noise, price and sampling are this project's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dpgm.mechanisms.noise import Gaussian
from dpgm.mechanisms.selection import SelectMarginal
from dpgm.mechanisms.tables import Cells, Marginals
from dpgm.methods.base import Method, Note, OnNote, Plan, Release, Resume, Talk, Tensors, reporter
from dpgm.methods.graphical import (
    Block,
    CliqueModel,
    Measured,
    cliques_of,
    components,
    draw_cells,
    estimate,
    first_round,
    model_cells,
)
from dpgm.methods.options import AtLeast1
from dpgm.methods.tabular import one_way
from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Budget, PrivacyError, Relation, Source
from dpgm.privacy.mechanism import BoundedRangeEvent, Cost, GaussianEvent
from dpgm.schema import SchemaError, TableSchema

_LOUD = math.sqrt(2 / math.pi)
"""Mean of |N(0, 1)|: what noise of standard deviation 1 adds to the error of a cell."""
_GAIN = 0.1
"""Share of the loss that fifty more steps must take away between rounds."""
_DRAWS = 100_000
"""Records that the model so far is looked at by."""


@dataclass(frozen=True, kw_only=True)
class AIM(Method):
    """Adaptive and iterative: choose the marginal that the model so far describes worst, measure it, fit again.

    One-way marginals first. Then rounds: an exponential choice among the pairs of columns (and the pairs with the
    label), each counted less by the error that its own noise would bring, and a measurement in units of a small price;
    after some rounds a new model, and four times as many units a measurement if it changed by no more than noise.
    Taking u units of one marginal is the same as measuring it once with noise 1/sqrt(u), so the price of everything is
    known in advance.

    **Guarantee**: Gaussian releases (docs/proofs/marginals.md) and exponential choices (docs/proofs/exponential.md).
    **Source**: McKenna, Mullins, Sheldon and Miklau 2022.
    **Differs from the paper**: choices all have the same strength; their number is limited in advance; several are made
    before the model is fitted again; a measurement takes an even share of the units that are left, or more; the
    workload is all pairs and all pairs with the label; cells are joined as in `slicing`; prices compose as Gaussians
    where that is less than by zCDP.

    Attributes:
        rounds: choices at most; 0 takes twice the number of columns, at most 40.
        together: choices between two estimations, all different.
        units: prices of the smallest measurement that the budget is divided into, for each round.
        first: share of the budget (of mu^2) for the one-way marginals.
        choice: share of the budget for the choices.
        cells: cells that a numeric column is joined to, about.
        largest: numbers that the graphical model may hold, about.
        steps: steps of the last estimation (free).
        round_steps: steps of each estimation in between, at most.
    """

    rounds: int = 0
    together: int = 4
    units: int = 4
    first: float = 0.1
    choice: float = 0.1
    cells: AtLeast1 = 24
    largest: int = 500_000
    steps: int = 1000
    round_steps: int = 1000

    name: ClassVar[str] = "aim"
    takes: ClassVar[tuple[type[Any], ...]] = (TableSchema,)
    free: ClassVar[frozenset[str]] = frozenset({"steps"})
    packages: ClassVar[Mapping[str, str]] = {"mbi": "marginals"}
    sources: ClassVar[tuple[Source, ...]] = (
        Source(
            key="mckenna2022aim",
            title="AIM: An Adaptive and Iterative Mechanism for Differentially Private Synthetic Data",
            authors="McKenna, Ryan and Mullins, Brett and Sheldon, Daniel and Miklau, Gerome",
            year=2022,
            where="PVLDB 15(11), arXiv 2201.12677",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.first > 0 and self.choice > 0 and self.first + self.choice < 1):
            raise PrivacyError(f"shares are {self.first} and {self.choice}; allowed are two above 0 with a sum below 1")
        if self.rounds < 0 or min(self.units, self.together, self.steps, self.round_steps, self.largest) < 1:
            raise PrivacyError("rounds is 0 or more; units, together, steps, round_steps and largest are 1 or more")

    def plan(self, schema: Any, *, relation: Relation, budget: Budget) -> Plan:
        """The largest mu^2 that the budget allows, divided into one-way marginals, choices and units of measurement."""
        q = len(schema.columns)
        if q < 2:
            raise SchemaError(f"the table has {q} column; pairs need 2 or more: use --method slicing")
        rounds = self.rounds or min(2 * q, 40)
        units = self.units * rounds
        last = 1 - self.first - self.choice

        def costs(scale: float) -> list[tuple[Cost, int]]:
            range_ = accountant.bounded_range_epsilon(math.sqrt(self.choice / rounds) / scale)
            return [
                (Cost(event=GaussianEvent(scale / math.sqrt(self.first)), name="aim"), 1),
                (Cost(event=BoundedRangeEvent(range_), name="aim"), rounds),
                (Cost(event=GaussianEvent(scale * math.sqrt(units / last)), name="aim"), units),
            ]

        scale = accountant.calibrate(costs, budget, relation=relation)
        first = one_way(schema)
        unit = _block_query(first.cells, (0, 1))  # every marginal has the price of this one
        noise = [
            q.sensitivity(relation) * scale * factor
            for q, factor in ((first, 1 / math.sqrt(self.first)), (unit, math.sqrt(units / last)))
        ]
        range_ = accountant.bounded_range_epsilon(math.sqrt(self.choice / rounds) / scale)
        strength = range_ / (1 if relation is Relation.ADD_REMOVE else 2)
        select = SelectMarginal(cells=first.cells, blocks=(), expected=(), strength=strength)
        return Plan(
            schema=schema,
            relation=relation,
            budget=budget,
            items=(
                (Gaussian(query=first, noise_std=noise[0], name="one-way-marginals"), 1),
                (select, rounds),
                (Gaussian(query=unit, noise_std=noise[1], name="chosen-marginal"), units),
            ),
            details={"noise_std_one": noise[0], "noise_std_unit": noise[1], "strength": strength, "rounds": rounds},
            seconds=20 + 8 * rounds,
            memory_mb=1500,
        )

    def talk(self, plan: Plan, *, rng: np.random.Generator, resume: Resume) -> Talk:
        """One-way marginals, then round after round."""
        schema: Any = plan.schema
        (first, _), (choice, rounds), (unit, units) = plan.items
        assert isinstance(choice, SelectMarginal)
        assert isinstance(unit, Gaussian)
        state = dict(resume.state or {})
        if "one" not in state:
            state |= {"one": (yield first), "blocks": np.zeros((0, 3), np.int64), "units": np.zeros(0, np.int64)}
            yield Note(stage="release", step=1, total=rounds + 1, state=state)
        rounds_left, units_left = rounds - resume.used.get(1, 0), units - resume.used.get(2, 0)
        cells, measured = _measured(self, schema, state, plan.details)
        workload = _workload(schema)
        overlap = [sum(len(set(b) & set(w)) for w in workload) for b in workload]
        weight = {b: w / max(overlap) for b, w in zip(workload, overlap, strict=True)}
        together = min(self.together, len(workload))
        n = max(1.0, float(np.median([m.counts.sum() for m in measured[: len(cells)]])))
        model, take = estimate(cells, measured, steps=self.round_steps, gain=_GAIN), 1
        while rounds_left > 0 and units_left > 0:
            drawn = draw_cells(cliques_of(model), _DRAWS, rng)
            expected = {b: n / _DRAWS * _count(drawn, cells, b) for b in workload}
            fresh: list[Measured] = []
            while rounds_left > 0 and units_left > 0 and len(fresh) < together:
                take = max(take, units_left // rounds_left)  # rounds are limited: the last one is not to take most
                take = units_left if units_left < 2 * take else take
                noise = unit.noise_std / math.sqrt(take)
                open_ = [b for b in workload if b not in {m.block for m in fresh}]
                used = 1 - (units_left - take) / units
                blocks = _affordable(cells, open_, [*measured, *fresh], self.largest * used)
                chosen = yield SelectMarginal(
                    cells=cells,
                    blocks=tuple(blocks),
                    expected=[expected[b] for b in blocks],
                    strength=choice.strength,
                    weights=tuple(weight[b] for b in blocks),
                    offsets=tuple(_LOUD * noise * expected[b].size for b in blocks),
                )
                query, total = _block_query(cells, blocks[chosen]), np.zeros(expected[blocks[chosen]].size)
                for _ in range(take):
                    total += yield Gaussian(query=query, noise_std=unit.noise_std, name=unit.name)
                rounds_left, units_left = rounds_left - 1, units_left - take
                done = len(state["units"])
                padded = np.array([[*blocks[chosen], *[-1] * (3 - len(blocks[chosen]))]], np.int64)
                state |= {
                    "blocks": np.concatenate([state["blocks"], padded]),
                    "units": np.append(state["units"], take),
                    f"answer{done}": total / take,
                }
                yield Note(stage="release", step=2 + done, total=rounds + 1, state=state)
                fresh.append(_measured(self, schema, state, plan.details)[1][-1])
            if rounds_left == 0 or units_left == 0:
                break
            measured += fresh
            model = estimate(cells, measured, steps=self.round_steps, gain=_GAIN, start=model)
            if all(_change(model, expected[m.block], m.block) <= _LOUD * m.std * m.counts.size for m in fresh):
                take *= 4  # nothing but noise was learnt: fewer, better measurements
        return state

    def train(self, release: Release, *, seed: int, on_note: OnNote | None = None) -> CliqueModel:
        """Estimate the model of all that was measured."""
        cells, measured = _measured(self, release.schema, release.tensors, release.details)
        model = estimate(cells, measured, steps=self.steps)
        reporter(on_note, "train", 1)(0, 0.0)
        return CliqueModel(release, cells, cliques_of(model))

    def restore(self, release: Release, tensors: Tensors) -> CliqueModel:
        """The model from its saved marginals."""
        cells, _ = _measured(self, release.schema, release.tensors, release.details)
        return CliqueModel.from_tensors(release, cells, tensors)


def _workload(schema: TableSchema) -> list[Block]:
    """What should be right: all pairs of columns, and all pairs with the label."""
    index = schema.label_index
    pairs = list(itertools.combinations(range(len(schema.columns)), 2))
    triples = {tuple(sorted((*p, index))) for p in pairs if index is not None and index not in p}
    return [*pairs, *sorted(triples)]


def _change(model: Any, before: NDArray[np.float64], block: Block) -> float:
    found = np.asarray(model.project(tuple(map(str, block))).datavector(), float)
    return float(np.abs(found - before.ravel()).sum())


def _affordable(
    cells: Sequence[Cells], workload: Sequence[Block], measured: Sequence[Measured], largest: float
) -> list[Block]:
    """Blocks of the workload with which the model stays small; the smallest one at least."""
    sizes, parts = [c.count for c in cells], components([m.block for m in measured])
    alone = [model_cells(sizes, part) for part in parts]
    columns = [{j for block in part for j in block} for part in parts]
    found: dict[Block, int] = {}
    for b in workload:  # only the parts that it would join change
        joined = [not mine.isdisjoint(b) for mine in columns]
        together = [block for part, is_in in zip(parts, joined, strict=True) if is_in for block in part]
        rest = sum(size for size, is_in in zip(alone, joined, strict=True) if not is_in)
        found[b] = rest + model_cells(sizes, [*together, b])
    return [b for b, size in found.items() if size <= largest] or [min(found, key=lambda b: found[b])]


def _measured(method: AIM, schema: Any, state: Tensors, details: Any) -> tuple[Any, list[Measured]]:
    cells, measured = first_round(schema, state["one"], float(details["noise_std_one"]), method.cells)
    for k, (row, units) in enumerate(zip(state["blocks"], state["units"], strict=True)):
        block = tuple(int(j) for j in row if j >= 0)
        shape = [cells[j].count for j in block]
        std = float(details["noise_std_unit"]) / math.sqrt(int(units))
        measured.append(Measured(block=block, counts=state[f"answer{k}"].reshape(shape), std=std))
    return cells, measured


def _block_query(cells: Sequence[Cells], block: Block) -> Marginals:
    return Marginals(cells=tuple(cells), blocks=(block,), weights=(1.0,))


def _count(drawn: dict[int, NDArray[np.int64]], cells: Sequence[Cells], block: Block) -> NDArray[np.float64]:
    code = np.zeros(len(drawn[block[0]]), np.int64)
    for j in block:
        code = code * cells[j].count + drawn[j]
    shape = [cells[j].count for j in block]
    return np.bincount(code, minlength=math.prod(shape)).astype(np.float64).reshape(shape)
