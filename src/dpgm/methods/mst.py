"""MST: a tree of two-way marginals, chosen privately, and the graphical model of them; to be compared with.

The estimation is that of the package `mbi` (extra `marginals`); choice, noise, price and sampling are this project's.
"""

from __future__ import annotations

import importlib
import itertools
import math
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dpgm.mechanisms.noise import Gaussian
from dpgm.mechanisms.selection import SelectMarginal
from dpgm.mechanisms.tables import Cells, Marginals
from dpgm.methods.base import Method, Note, OnNote, Plan, Release, Resume, Talk, Tensors, reporter
from dpgm.methods.tabular import TableModel, choose_cells, draw_values, one_way
from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Budget, Relation, Source
from dpgm.privacy.mechanism import Cost, ZeroConcentratedEvent
from dpgm.schema import SchemaError, TableSchema
from dpgm.schema.table import Table


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

    cells: int = 24
    steps: int = 1000

    name: ClassVar[str] = "mst"
    takes: ClassVar[tuple[type[Any], ...]] = (TableSchema,)
    free: ClassVar[frozenset[str]] = frozenset({"steps"})
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
        """Three thirds of the zCDP that the budget allows."""
        q = len(schema.columns)
        if q < 2:
            raise SchemaError(f"the table has {q} column; a tree of pairs needs 2 or more: use --method slicing")

        def whole(scale: float) -> list[tuple[Cost, int]]:
            return [(Cost(event=ZeroConcentratedEvent(1 / (2 * scale**2)), name="mst"), 1)]

        rho = 1 / (2 * accountant.calibrate(whole, budget, relation=relation) ** 2) / 3 * (1 - 1e-6)
        first = one_way(schema)
        # The prices do not depend on which pairs are chosen, so any tree stands for the one to come.
        pairs = _tree_query(first.cells, [(0, j) for j in range(1, q)])
        std = [query.sensitivity(relation) / math.sqrt(2 * rho) for query in (first, pairs)]
        strength = math.sqrt(8 * rho / (q - 1)) / (1 if relation is Relation.ADD_REMOVE else 2)
        choice = SelectMarginal(cells=first.cells, blocks=(), expected=(), strength=strength)
        return Plan(
            schema=schema,
            relation=relation,
            budget=budget,
            items=(
                (Gaussian(query=first, noise_std=std[0], name="one-way-marginals"), 1),
                (choice, q - 1),
                (Gaussian(query=pairs, noise_std=std[1], name="tree-marginals"), 1),
            ),
            details={"noise_std_one": std[0], "noise_std_two": std[1], "strength": strength, "rho": 3 * rho},
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
        std = float(plan.details["noise_std_one"])
        cells = tuple(choose_cells(schema, state["one"], std, self.cells))
        counts = [_by_cell(c, f) for c, f in zip(one_way(schema).split(state["one"]), cells, strict=True)]
        n = max(1.0, float(np.median([c.sum() for c in counts])))
        shares = [np.maximum(c, 0) / max(np.maximum(c, 0).sum(), 1.0) for c in counts]
        tree = [(int(i), int(j)) for i, j in state["tree"]]
        while len(tree) < len(schema.columns) - 1:
            blocks = _joining(len(schema.columns), tree)
            expected = [n * np.outer(shares[i], shares[j]) for i, j in blocks]
            strength = mechanisms[1].strength
            chosen = yield SelectMarginal(cells=cells, blocks=tuple(blocks), expected=expected, strength=strength)
            tree.append(blocks[chosen])
            state["tree"] = np.array(tree, np.int64)
            yield Note(stage="release", step=1 + len(tree), total=len(schema.columns) + 1, state=state)
        query, last = _tree_query(cells, tree), mechanisms[2]
        two = yield Gaussian(query=query, noise_std=last.noise_std, name=last.name)
        return {"one": state["one"], "tree": state["tree"], "two": two}

    def train(self, release: Release, *, seed: int, on_note: OnNote | None = None) -> TreeModel:
        """Estimate the tree's marginals so that they agree with one another and with all that was measured."""
        mbi = _mbi()
        cells, tree, one, two = _read(self, release)
        std = {k: float(release.details[f"noise_std_{k}"]) for k in ("one", "two")}
        names = [str(j) for j in range(len(cells))]
        domain = mbi.Domain(names, [c.count for c in cells])
        merged = [_by_cell(c, f) for c, f in zip(one, cells, strict=True)]
        scale = [np.sqrt(np.bincount(f.groups or range(f.intervals))).mean() for f in cells]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            measured = [
                mbi.LinearMeasurement(c, (names[j],), stddev=std["one"] * float(scale[j])) for j, c in enumerate(merged)
            ]
            measured += [
                mbi.LinearMeasurement(c.ravel(), (names[i], names[j]), stddev=std["two"])
                for (i, j), c in zip(tree, two, strict=True)
            ]
            model = mbi.estimation.MirrorDescent().estimate(domain, measured, iters=self.steps)
            found = [np.asarray(model.project((names[i], names[j])).datavector(), float) for i, j in tree]
        reporter(on_note, "train", 1)(0, 0.0)
        tables = [
            np.maximum(t, 0).reshape(cells[i].count, cells[j].count) for t, (i, j) in zip(found, tree, strict=True)
        ]
        return TreeModel(release, cells, tree, [t / max(t.sum(), 1e-300) for t in tables])

    def restore(self, release: Release, tensors: Tensors) -> TreeModel:
        """The model from its saved marginals."""
        cells, tree, _, _ = _read(self, release)
        return TreeModel(release, cells, tree, [tensors[f"pair{k}"] for k in range(len(tree))])


class TreeModel(TableModel):
    """Records drawn along a tree of two-way marginals, beginning at the label."""

    def __init__(
        self,
        release: Release,
        cells: tuple[Cells, ...],
        tree: list[tuple[int, int]],
        tables: list[NDArray[np.float64]],
    ) -> None:
        super().__init__(release)
        self.cells, self.tree, self.tables = cells, tree, tables

    def tensors(self) -> Tensors:
        """The tree's marginals."""
        return {f"pair{k}": t for k, t in enumerate(self.tables)}

    def _root(self) -> int:
        return self.table_schema.label_index or 0

    def _share(self, column: int) -> NDArray[np.float64]:
        k = next(k for k, pair in enumerate(self.tree) if column in pair)
        share = self.tables[k].sum(1 - self.tree[k].index(column))
        return share / max(share.sum(), 1e-300)

    def class_shares(self) -> NDArray[np.float64]:
        """Share of each class."""
        index = self.table_schema.label_index
        return np.ones(1) if index is None else self._share(index) + 1e-12

    def records(self, labels: NDArray[np.int64], rng: np.random.Generator) -> Table:
        """One record for each label: each column given its neighbour on the way from the label."""
        schema, root = self.table_schema, self._root()
        if schema.label_index is None:
            labels = rng.choice(len(self._share(root)), size=len(labels), p=self._share(root))
        chosen = {root: labels}
        while len(chosen) < len(schema.columns):
            for (i, j), table in zip(self.tree, self.tables, strict=True):
                for a, b, t in ((i, j, table), (j, i, table.T)):
                    if a in chosen and b not in chosen:
                        rows = t + 1e-12 * self._share(b)[None]
                        edges = (rows / rows.sum(1, keepdims=True)).cumsum(1)[chosen[a]]
                        drawn = (rng.random((len(labels), 1)) > edges).sum(1)
                        chosen[b] = np.minimum(drawn, t.shape[1] - 1)
        counts = one_way(schema).split(self.release.tensors["one"])
        std = float(self.release.details["noise_std_one"])
        columns = [draw_values(chosen[j], c, self.cells[j], counts[j], std, rng) for j, c in enumerate(schema.columns)]
        return np.stack(columns, axis=1)


def _tree_query(cells: tuple[Cells, ...], tree: list[tuple[int, int]]) -> Marginals:
    return Marginals(cells=cells, blocks=tuple(tree), weights=(1.0,) * len(tree))


def _read(method: MST, release: Release) -> tuple[tuple[Cells, ...], list[tuple[int, int]], Any, Any]:
    schema: Any = release.schema
    std = float(release.details["noise_std_one"])
    cells = tuple(choose_cells(schema, release.tensors["one"], std, method.cells))
    tree = [(int(i), int(j)) for i, j in release.tensors["tree"]]
    two = _tree_query(cells, tree).split(release.tensors["two"])
    return cells, tree, one_way(schema).split(release.tensors["one"]), two


def _by_cell(counts: NDArray[np.float64], cells: Cells) -> NDArray[np.float64]:
    groups = cells.groups or range(cells.intervals)
    return np.bincount(groups, weights=counts, minlength=cells.count).astype(np.float64)


def _joining(q: int, tree: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pairs of columns that no path of the tree connects yet."""
    part = list(range(q))
    for i, j in tree:
        part = [part[i] if p == part[j] else p for p in part]
    return [(i, j) for i, j in itertools.combinations(range(q), 2) if part[i] != part[j]]


def _mbi() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of single precision, which is enough for noisy counts
            return importlib.import_module("mbi")
    except ImportError as error:
        raise SchemaError("the method 'mst' needs the package mbi; pip install 'dpgm[marginals]'") from error
