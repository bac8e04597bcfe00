"""MST: a tree of two-way marginals, chosen privately, and the graphical model of them; to be compared with.

The estimation is that of the package `mbi` (extra `marginals`); choice, noise, price and sampling are this project's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dpgm.mechanisms.noise import Gaussian
from dpgm.mechanisms.selection import SelectMarginal
from dpgm.mechanisms.tables import Cells, Marginals
from dpgm.methods.base import Method, Note, OnNote, Plan, Release, Resume, Talk, Tensors, reporter
from dpgm.methods.graphical import CliqueModel, Measured, cliques_of, estimate, first_round
from dpgm.methods.options import AtLeast1
from dpgm.methods.tabular import one_way
from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Budget, Relation, Source
from dpgm.privacy.mechanism import BoundedRangeEvent, Cost, GaussianEvent
from dpgm.schema import SchemaError, TableSchema


@dataclass(frozen=True, kw_only=True)
class MST(Method):
    """Maximum spanning tree of noisy two-way marginals, for tables.

    A third of the budget each: all one-way marginals; q - 1 choices of the pair that independence describes worst, as
    Kruskal's algorithm builds a tree; the two-way marginals of the tree.

    **Guarantee**: Gaussian releases (docs/proofs/marginals.md) and exponential choices (docs/proofs/exponential.md).
    **Source**: McKenna, Miklau and Sheldon 2021.
    **Differs from the paper**: cells are joined by the one-way marginals as in `slicing`, not only below three
    standard deviations; relation and number of records as the ledger says.

    Attributes:
        cells: cells that a numeric column is joined to, about.
        steps: steps of the estimation (free).
    """

    cells: AtLeast1 = 24
    steps: int = 1000

    name: ClassVar[str] = "mst"
    takes: ClassVar[tuple[type[Any], ...]] = (TableSchema,)
    free: ClassVar[frozenset[str]] = frozenset({"steps"})
    packages: ClassVar[Mapping[str, str]] = {"mbi": "marginals"}
    sources: ClassVar[tuple[Source, ...]] = (
        Source(
            key="mckenna2021winning",
            title="Winning the NIST Contest: A Scalable and General Approach to Differentially Private Synthetic Data",
            authors="McKenna, Ryan and Miklau, Gerome and Sheldon, Daniel",
            year=2021,
            where="Journal of Privacy and Confidentiality 11(3), arXiv 2108.04978",
        ),
    )

    def plan(self, schema: Any, *, relation: Relation, budget: Budget) -> Plan:
        """Three thirds of mu^2: the largest that the budget allows."""
        q = len(schema.columns)
        if q < 2:
            raise SchemaError(f"the table has {q} column; a tree of pairs needs 2 or more: use --method slicing")

        def costs(scale: float) -> list[tuple[Cost, int]]:
            release, choice = GaussianEvent(scale * math.sqrt(3)), 1 / (scale * math.sqrt(3 * (q - 1)))
            range_ = BoundedRangeEvent(accountant.bounded_range_epsilon(choice))
            return [(Cost(event=release, name="mst"), 2), (Cost(event=range_, name="mst"), q - 1)]

        scale = accountant.calibrate(costs, budget, relation=relation)
        (release, _), (choice, _) = costs(scale)
        assert isinstance(release.event, GaussianEvent)
        assert isinstance(choice.event, BoundedRangeEvent)
        first = one_way(schema)
        # The prices do not depend on which pairs are chosen, so any tree stands for the one to come.
        pairs = _tree_query(first.cells, [(0, j) for j in range(1, q)])
        std = [query.sensitivity(relation) * release.event.noise_multiplier for query in (first, pairs)]
        strength = choice.event.epsilon / (1 if relation is Relation.ADD_REMOVE else 2)
        select = SelectMarginal(cells=first.cells, blocks=(), expected=(), strength=strength)
        return Plan(
            schema=schema,
            relation=relation,
            budget=budget,
            items=(
                (Gaussian(query=first, noise_std=std[0], name="one-way-marginals"), 1),
                (select, q - 1),
                (Gaussian(query=pairs, noise_std=std[1], name="tree-marginals"), 1),
            ),
            details={"noise_std_one": std[0], "noise_std_two": std[1], "strength": strength},
            seconds=60,
            memory_mb=1200,
        )

    def talk(self, plan: Plan, *, rng: np.random.Generator, resume: Resume) -> Talk:
        """One-way marginals, the tree edge by edge, its marginals."""
        schema: Any = plan.schema
        mechanisms: list[Any] = [m for m, _ in plan.items]
        state = dict(resume.state or {})
        if "one" not in state:
            state["one"] = yield mechanisms[0]
            state["tree"] = np.zeros((0, 2), np.int64)
            yield Note(stage="release", step=1, total=len(schema.columns) + 1, state=state)
        cells, ones = first_round(schema, state["one"], float(plan.details["noise_std_one"]), self.cells)
        n = max(1.0, float(np.median([m.counts.sum() for m in ones])))
        shares = [np.maximum(m.counts, 0) / max(np.maximum(m.counts, 0).sum(), 1.0) for m in ones]
        tree = [(int(i), int(j)) for i, j in state["tree"]]
        left = len(schema.columns) - 1 - resume.used.get(1, 0)  # a crash burns the choice that it interrupted
        while len(tree) < len(schema.columns) - 1:
            blocks = _joining(len(schema.columns), tree)
            if left <= 0:  # no choice is left: any tree will do, at the price of the one to come
                tree.append(blocks[0])
                continue
            left -= 1
            expected = [n * np.outer(shares[i], shares[j]) for i, j in blocks]
            strength = mechanisms[1].strength
            chosen = yield SelectMarginal(cells=cells, blocks=tuple(blocks), expected=expected, strength=strength)
            tree.append(blocks[chosen])
            state["tree"] = np.array(tree, np.int64)
            yield Note(stage="release", step=1 + len(tree), total=len(schema.columns) + 1, state=state)
        state["tree"] = np.array(tree, np.int64)
        query, last = _tree_query(cells, tree), mechanisms[2]
        two = yield Gaussian(query=query, noise_std=last.noise_std, name=last.name)
        return {"one": state["one"], "tree": state["tree"], "two": two}

    def train(self, release: Release, *, seed: int, on_note: OnNote | None = None) -> CliqueModel:
        """Estimate the tree's marginals so that they agree with one another and with all that was measured."""
        schema: Any = release.schema
        cells, measured = first_round(
            schema, release.tensors["one"], float(release.details["noise_std_one"]), self.cells
        )
        tree, std = [(int(i), int(j)) for i, j in release.tensors["tree"]], float(release.details["noise_std_two"])
        two = _tree_query(cells, tree).split(release.tensors["two"])
        measured += [Measured(block=pair, counts=c, std=std) for pair, c in zip(tree, two, strict=True)]
        model = estimate(cells, measured, steps=self.steps)
        reporter(on_note, "train", 1)(0, 0.0)
        return CliqueModel(release, cells, cliques_of(model))

    def restore(self, release: Release, tensors: Tensors) -> CliqueModel:
        """The model from its saved marginals."""
        schema: Any = release.schema
        std = float(release.details["noise_std_one"])
        return CliqueModel.from_tensors(
            release, first_round(schema, release.tensors["one"], std, self.cells)[0], tensors
        )


def _tree_query(cells: tuple[Cells, ...], tree: list[tuple[int, int]]) -> Marginals:
    return Marginals(cells=cells, blocks=tuple(tree), weights=(1.0,) * len(tree))


def _joining(q: int, tree: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pairs of columns that no path of the tree connects yet."""
    part = list(range(q))
    for i, j in tree:
        part = [part[i] if p == part[j] else p for p in part]
    return [(i, j) for i, j in itertools.combinations(range(q), 2) if part[i] != part[j]]
