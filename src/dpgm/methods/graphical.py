"""Graphical models of noisy marginals: estimated by the package `mbi` (extra `marginals`), drawn clique by clique."""

from __future__ import annotations

import importlib
import itertools
import math
import os
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpgm.mechanisms.tables import Cells
from dpgm.methods.base import Release, Tensors
from dpgm.methods.tabular import TableModel, choose_cells, draw_values, one_way
from dpgm.schema import SchemaError, TableSchema
from dpgm.schema.table import Table

_FRESH = 8
_estimations = itertools.count(1)
_QUICK, _PLAINLY = "--xla_cpu_use_fusion_emitters=false", "jax_disable_most_optimizations"
"""Flags of XLA and of JAX with which programs compile three to five times as fast."""
_BOLD = 100.0
"""Times the step that the bound on curvature allows: bounds of large cliques are far off, and a line search follows."""
Block = tuple[int, ...]
Clique = tuple[Block, NDArray[np.float64]]
"""Columns by position, and the share of each of their products of cells, an axis a column."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A noisy marginal: counts [cells of each column] of a block, and the standard deviation of their noise."""

    block: Block
    counts: NDArray[np.float64]
    std: float


def first_round(schema: TableSchema, one: NDArray[np.float64], std: float, most: int) -> tuple[Any, list[Measured]]:
    """What the one-way marginals on fine intervals make known: the cells to go on with, and their counts."""
    cells = tuple(choose_cells(schema, one, std, most))
    measured: list[Measured] = []
    for j, (counts, c) in enumerate(zip(one_way(schema).split(one), cells, strict=True)):
        groups = c.groups or range(c.intervals)
        spread = float(np.sqrt(np.bincount(groups)).mean())  # joined intervals add their noise
        joined = np.bincount(groups, weights=counts, minlength=c.count).astype(np.float64)
        measured.append(Measured(block=(j,), counts=joined, std=std * spread))
    return cells, measured


def estimate(
    cells: Sequence[Cells], measured: Sequence[Measured], *, steps: int, gain: float = 0, start: Any = None
) -> Any:
    """The graphical model of greatest entropy near the measured marginals, as the package has it.

    Args:
        cells: cells of each column.
        measured: noisy marginals.
        steps: of mirror descent, at most; half as many come before where there is no start.
        gain: share of the loss that fifty steps must take away for more to follow; 0 takes all steps.
        start: a model to begin with.
    """
    mbi = load()
    if next(_estimations) % _FRESH == 0:  # each shape has its programs, and they pile up until no memory maps are left
        importlib.import_module("jax").clear_caches()
    domain = mbi.Domain([str(j) for j in range(len(cells))], [c.count for c in cells])
    middle = float(np.median([m.std for m in measured]))
    stages = [(0.0, steps)] if start is not None else [(middle, steps // 4), (0.3 * middle, steps // 4), (0.0, steps)]
    descent = mbi.estimation.MirrorDescent()
    with _quickly_compiled():
        for least, most in stages:  # very exact marginals beside noisy ones make a long valley: descend into it slowly
            given = [
                mbi.LinearMeasurement(m.counts.ravel(), tuple(map(str, m.block)), stddev=max(m.std, least))
                for m in measured
            ]
            total = mbi.estimation.minimum_variance_unbiased_total(given)
            loss = mbi.marginal_loss.from_linear_measurements(given, domain)
            bold = replace(loss, lipschitz=loss.lipschitz / _BOLD)
            start = descent.estimate(domain, bold, total, iters=most, tol=gain or None, warm_start=start)
    return start


def cliques_of(model: Any) -> list[Clique]:
    """The marginals of the model's junction tree, as shares."""
    mbi = load()
    with _quickly_compiled():
        tree = mbi.junction_tree.make_junction_tree(model.potentials.domain, model.potentials.cliques)[0]
        nodes = list(tree.nodes)
        marginals = mbi.marginal_oracles.message_passing_stable(model.potentials.expand(nodes), 1.0)
    found: list[Clique] = []
    for node in nodes:
        factor = marginals.project(node)
        values = np.maximum(np.nan_to_num(np.asarray(factor.datavector(flatten=False), float)), 0)
        found.append((tuple(int(a) for a in factor.domain.attributes), values / max(values.sum(), 1e-300)))
    return found


def components(blocks: Sequence[Block]) -> list[list[Block]]:
    """The blocks in parts that share no column."""
    parts: list[list[Block]] = []
    for b in blocks:
        joined = [p for p in parts if any(not set(b).isdisjoint(other) for other in p)]
        parts = [*(p for p in parts if p not in joined), [*(block for p in joined for block in p), b]]
    return parts


def model_cells(sizes: Sequence[int], blocks: Sequence[Block]) -> int:
    """Numbers that a model of these blocks holds: cells of the cliques that eliminating columns greedily makes."""
    near: dict[int, set[int]] = {j: {j} for b in blocks for j in b}
    for b in blocks:
        for j in b:
            near[j].update(b)
    cost, cliques = {j: math.prod(sizes[k] for k in v) for j, v in near.items()}, list[set[int]]()
    total = 0
    while near:
        first = min(cost, key=cost.__getitem__)
        clique = near.pop(first)
        if not any(clique <= c for c in cliques):
            cliques.append(clique)
            total += cost[first]
        del cost[first]
        for j in clique - {first}:
            near[j] = (near[j] | clique) - {first}
            cost[j] = math.prod(sizes[k] for k in near[j])
    return total


def draw_cells(
    cliques: Sequence[Clique], n: int, rng: np.random.Generator, given: tuple[int, NDArray[np.int64]] | None = None
) -> dict[int, NDArray[np.int64]]:
    """Cells [n] of each column, clique by clique: each given what it shares with those before.

    Args:
        cliques: marginals of a junction tree, in any order.
        n: how many records.
        rng: source of the draws.
        given: a column and its cells, to begin with.
    """
    known: dict[int, NDArray[np.int64]] = {} if given is None else {given[0]: given[1]}
    left, visited = list(cliques), [{given[0]}] if given else [set[int]()]
    while left:
        # The clique that shares most with one that was visited: the junction tree, as Prim's algorithm walks it.
        at = max(range(len(left)), key=lambda i: max(len(v & set(left[i][0])) for v in visited))
        block, table = left.pop(at)
        visited.append(set(block))
        old = [k for k, j in enumerate(block) if j in known]
        new = [k for k, j in enumerate(block) if j not in known]
        if not new:
            continue
        sizes = [table.shape[k] for k in new]
        rows = np.transpose(table, old + new).reshape(-1, int(np.prod(sizes)))
        rows = rows + 1e-12 * rows.sum(0) + 1e-300
        edges = rows.cumsum(1) / rows.sum(1, keepdims=True)
        row = np.zeros(n, np.int64)
        for k in old:
            row = row * table.shape[k] + known[block[k]]
        flat = (edges + np.arange(len(edges))[:, None]).ravel()
        place = np.searchsorted(flat, row + rng.random(n), side="right") - row * edges.shape[1]
        parts = np.unravel_index(np.clip(place, 0, edges.shape[1] - 1), sizes)
        known |= {block[k]: part.astype(np.int64) for k, part in zip(new, parts, strict=True)}
    return known


class CliqueModel(TableModel):
    """Records drawn along the junction tree of a graphical model, beginning at the label."""

    def __init__(self, release: Release, cells: Sequence[Cells], cliques: Sequence[Clique]) -> None:
        super().__init__(release)
        self.cells, self.cliques = tuple(cells), list(cliques)

    @classmethod
    def from_tensors(cls, release: Release, cells: Sequence[Cells], tensors: Tensors) -> CliqueModel:
        """The model that `tensors` were taken from."""
        blocks = [tuple(int(j) for j in row if j >= 0) for row in tensors["cliques"]]
        return cls(release, cells, [(b, tensors[f"clique{k}"]) for k, b in enumerate(blocks)])

    def tensors(self) -> Tensors:
        """The cliques and their marginals."""
        widest = max(len(b) for b, _ in self.cliques)
        blocks = np.array([[*b, *[-1] * (widest - len(b))] for b, _ in self.cliques], np.int64)
        return {"cliques": blocks, **{f"clique{k}": t for k, (_, t) in enumerate(self.cliques)}}

    def class_shares(self) -> NDArray[np.float64]:
        """Share of each class."""
        index = self.table_schema.label_index
        if index is None:
            return np.ones(1)
        block, table = next(c for c in self.cliques if index in c[0])
        return table.sum(tuple(k for k, j in enumerate(block) if j != index)) + 1e-12

    def records(self, labels: NDArray[np.int64], rng: np.random.Generator) -> Table:
        """One record for each label."""
        schema = self.table_schema
        given = None if schema.label_index is None else (schema.label_index, labels)
        chosen = draw_cells(self.cliques, len(labels), rng, given)
        counts = one_way(schema).split(self.release.tensors["one"])
        std = float(self.release.details["noise_std_one"])
        columns = [draw_values(chosen[j], c, self.cells[j], counts[j], std, rng) for j, c in enumerate(schema.columns)]
        return np.stack(columns, axis=1)


@contextmanager
def _quickly_compiled() -> Generator[None]:
    """Every model is a new program that runs for seconds, so optimising it takes longer than it saves."""
    config = importlib.import_module("jax").config
    before = config.read(_PLAINLY) if _known() else None
    if before is not None:
        config.update(_PLAINLY, True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if before is not None:
            config.update(_PLAINLY, before)


def _known() -> bool:
    """Whether jaxlib has the flags: one that a version does not know ends the process or the run, after it has paid."""
    return version("jaxlib").startswith("0.10.")


def load() -> Any:
    """The package.

    Raises:
        SchemaError: it is not installed.
    """
    try:
        if _known():
            flags = os.environ.get("XLA_FLAGS", "").split()
            os.environ["XLA_FLAGS"] = " ".join([_QUICK, *(f for f in flags if f != _QUICK)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of single precision, which is enough for noisy counts
            return importlib.import_module("mbi")
    except ImportError as error:  # PackageNotFoundError is one
        raise SchemaError("graphical models need the package mbi; pip install 'dpgm[marginals]'") from error
