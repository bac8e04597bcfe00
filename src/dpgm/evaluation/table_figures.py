"""Figures of a table for the report: marginals overlaid, and the strength of dependence side by side."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from dpgm.schema import Column, TableSchema
from dpgm.schema.table import Table

MOST = 12
"""Bars of a column, at most; rarer categories are joined."""


def describe(synthetic: Table, real: Table | None, schema: TableSchema) -> dict[str, Any]:
    """What the figures show, as plain JSON: shares of the values of each column, and Cramér's V of each pair.

    Bars of numbers are tenths of the *synthetic* values, so that no bar's edge tells of real records; a value of more
    than a fifth of them has its own bar.

    Args:
        synthetic: records [n, columns].
        real: held-out real records [m, columns], whose plain statistics are shown beside; None shows none.
        schema: public facts.

    Returns:
        `columns` [{`name`, `bars` [names], `synthetic` [shares], `real` [shares]}], `dependence` {`names`, `synthetic`
        [[V]], `real` [[V]]}.
    """
    tables = {"synthetic": synthetic} | ({} if real is None else {"real": real})
    columns: list[dict[str, Any]] = []
    codes: dict[str, list[NDArray[np.int64]]] = {k: [] for k in tables}
    for j, column in enumerate(schema.columns):
        names, code = _bars(synthetic[:, j], column)
        found: dict[str, Any] = {"name": column.name, "bars": names}
        for k, t in tables.items():
            codes[k].append(code(t[:, j]))
            counts = np.bincount(codes[k][-1], minlength=len(names))
            found[k] = [round(float(c), 5) for c in counts / max(len(t), 1)]
        columns.append(found)
    dependence: dict[str, Any] = {"names": list(schema.names)}
    for k, values in codes.items():
        sizes = [len(c["bars"]) for c in columns]
        dependence[k] = [
            [round(_cramer(a, b, m, n), 3) for b, n in zip(values, sizes, strict=True)]
            for a, m in zip(values, sizes, strict=True)
        ]
    return {"columns": columns, "dependence": dependence}


def _bars(x: NDArray[np.float64], column: Column) -> tuple[list[str], Any]:
    """Names of the bars, and the map from values to their numbers."""
    if column.kind in ("category", "boolean"):
        values = column.values or ("false", "true")
        counts = np.bincount(x[~np.isnan(x)].astype(int), minlength=len(values))
        kept = np.sort(np.argsort(-counts, kind="stable")[: MOST if len(values) <= MOST else MOST - 1])
        names = [values[i] for i in kept] + (["others"] if len(kept) < len(values) else [])
        place = np.full(len(values), len(kept))
        place[kept] = np.arange(len(kept))

        def code(v: NDArray[np.float64]) -> NDArray[np.int64]:
            return place[np.nan_to_num(v).astype(int)]
    else:
        edges = _edges(x[~np.isnan(x)], column)
        inner = edges[1:-1]
        step = _step(x[~np.isnan(x)], column)
        names = [_range(a, b, column, step) for a, b in itertools.pairwise(edges)]

        def code(v: NDArray[np.float64]) -> NDArray[np.int64]:
            return np.searchsorted(inner, np.nan_to_num(v), side="right")

    if not column.missing:
        return names, lambda v: code(v).astype(np.int64)
    gone = len(names)
    return [*names, "missing"], lambda v: np.where(np.isnan(v), gone, code(v)).astype(np.int64)


def _edges(known: NDArray[np.float64], column: Column) -> NDArray[np.float64]:
    """Where bars of numbers begin, and the end of the last: tenths, and crowded values by themselves."""
    if not len(known):
        return np.array(column.bounds)
    values, counts = np.unique(known, return_counts=True)
    crowded = values[counts > len(known) / 5]
    step = _step(known, column)
    rest = known[~np.isin(known, crowded)]
    tenths = np.quantile(rest, np.linspace(0, 1, 11 - 2 * len(crowded))) if len(rest) else rest
    tenths = np.floor(tenths) if column.whole else tenths
    edges = np.unique(np.concatenate([[known.min()], tenths[1:-1], crowded, crowded + step]))
    edges = edges[edges <= known.max()]
    return np.append(edges, float(known.max()) + step)


def _step(known: NDArray[np.float64], column: Column) -> float:
    """What lies between a crowded value and the next bar."""
    return 1.0 if column.whole else 1e-9 * max(1.0, float(np.abs(known).max(initial=0.0)))


def _range(low: float, high: float, column: Column, step: float) -> str:
    """A bar's values in words: the first, and the last where it differs."""
    first, last = _number(low, column), _number(high - 1 if column.whole else high, column)
    return first if first == last or high - low < 1.5 * step else f"{first} to {last}"


def _number(value: float, column: Column) -> str:
    if column.unit:
        return column.moment(value)
    low, high = column.bounds
    value = round(value, max(0, 3 - math.floor(math.log10(high - low))))  # what its range lets one read
    return f"{value:,.0f}" if column.whole or abs(value) >= 1000 else f"{value:.3g}"


def _cramer(a: NDArray[np.int64], b: NDArray[np.int64], m: int, n: int) -> float:
    """Cramér's V = sqrt(chi^2 / (N (min(m, n) - 1))) of two codes with m and n values."""
    table = np.bincount(a * n + b, minlength=m * n).reshape(m, n).astype(float)
    total = table.sum()
    expected = np.outer(table.sum(1), table.sum(0)) / max(total, 1.0)
    chi = ((table - expected) ** 2 / np.where(expected > 0, expected, 1.0)).sum()
    least = min((table.sum(1) > 0).sum(), (table.sum(0) > 0).sum()) - 1
    return float(math.sqrt(min(1.0, chi / (total * least)))) if total and least > 0 else 0.0


# ---------------------------------------------------------------------------------------------------------------------
# HTML


def figures(described: Any) -> Markup:
    """The report's section, from what `describe` gave; empty for anything else."""
    if not isinstance(described, Mapping) or not described.get("columns"):
        return Markup("")
    columns, dependence = described["columns"], described["dependence"]
    key = '<span style="color:var(--curve)">&#9632;</span> synthetic'
    if "real" in columns[0]:
        key += ' &nbsp; <span style="color:var(--soft);opacity:.45">&#9632;</span> real, held out (not private)'
    charts = "".join(_chart(c) for c in columns)
    maps = "".join(_map(dependence["names"], dependence[k], k) for k in ("synthetic", "real") if k in dependence)
    return Markup(
        "<section><h2>Column by column</h2>"
        f'<p class="soft small">{key}. Shares of the records; numbers in tenths of the synthetic values, '
        "crowded values by themselves.</p>"
        '<div style="display:grid;grid-template-columns:repeat(auto-fill,minmax(min(15rem,100%),1fr));gap:1rem 1.4rem">'
        f"{charts}</div>{_numbers(columns)}</section>"
        "<section><h2>How columns hang together</h2>"
        '<p class="soft small">Cramér&rsquo;s V of each pair of columns: 0 independent, 1 (full colour) determined. '
        "Columns stand from left to right as they do from top to bottom; pointing at a cell names its pair.</p>"
        f'<div style="display:flex;flex-wrap:wrap;gap:1.4rem">{maps}</div>{_apart(dependence)}</section>'
    )


def _chart(column: Mapping[str, Any]) -> str:
    names: Sequence[str] = column["bars"]
    top = max([*column["synthetic"], *column.get("real", [0.0]), 1e-9])
    width, height = 100 / max(len(names), 1), 60.0
    parts: list[str] = []
    for k, colour, at, share in (("real", "var(--soft)", 0.1, 0.8), ("synthetic", "var(--curve)", 0.28, 0.44)):
        for i, value in enumerate(column.get(k, ())):
            tall = height * value / top
            parts.append(
                f'<rect x="{width * (i + at):.2f}" y="{height - tall:.2f}" width="{width * share:.2f}" '
                f'height="{tall:.2f}" fill="{colour}"{" opacity=.45" if k == "real" else ""}>'
                f"<title>{escape(names[i])}: {k} {100 * value:.1f} %</title></rect>"
            )
    svg = "".join(parts).replace("opacity=.45", 'opacity=".45"')
    ends = f"<span>{escape(names[0])}</span><span>{escape(names[-1])}</span>"
    return (
        f'<figure style="margin:0"><h3 style="margin:0 0 .2rem">{escape(column["name"])}</h3>'
        f'<svg viewBox="0 0 100 {height:.0f}" preserveAspectRatio="none" role="img" style="width:100%;height:4.2rem" '
        f'aria-label="shares of the values of {escape(column["name"])}">{svg}</svg>'
        f'<div class="soft small" style="display:flex;justify-content:space-between;gap:.5rem">{ends}</div></figure>'
    )


def _numbers(columns: Sequence[Mapping[str, Any]]) -> str:
    """Every bar as a line of a table, folded away."""
    kinds = [k for k in ("synthetic", "real") if k in columns[0]]
    head = "".join(f'<th class="n">{k}</th>' for k in kinds)
    rows = "".join(
        f"<tr><td>{escape(c['name']) if i == 0 else ''}</td><td>{escape(bar)}</td>"
        + "".join(f'<td class="n">{100 * c[k][i]:.1f} %</td>' for k in kinds)
        + "</tr>"
        for c in columns
        for i, bar in enumerate(c["bars"])
    )
    return (
        '<details><summary>The same in numbers</summary><div class="wide"><table>'
        f"<thead><tr><th>Column</th><th>Values</th>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _apart(dependence: Mapping[str, Any]) -> str:
    """The pairs of columns whose dependence differs most from that of real records; nothing without these."""
    if "real" not in dependence:
        return ""
    names, s, r = (dependence[k] for k in ("names", "synthetic", "real"))
    pairs = sorted(itertools.combinations(range(len(names)), 2), key=lambda p: -abs(s[p[0]][p[1]] - r[p[0]][p[1]]))
    lines = "".join(
        f"<li>{escape(names[i])} and {escape(names[j])}: {s[i][j]:.2f}, real {r[i][j]:.2f}</li>" for i, j in pairs[:5]
    )
    return f'<h3>Furthest from real</h3><ul class="small">{lines}</ul>' if lines else ""


def _map(names: Sequence[str], values: Sequence[Sequence[float]], title: str) -> str:
    q = len(names)
    cells = "".join(
        f'<rect x="{j}" y="{i}" width="1" height="1" fill="var(--curve)" opacity="{v:.3f}">'
        f"<title>{escape(names[i])}, {escape(names[j])}: {v:.2f}</title></rect>"
        for i, row in enumerate(values)
        for j, v in enumerate(row)
    )
    beside = "".join(f"<li><span>{escape(name)}</span></li>" for name in names)
    return (
        f'<figure style="flex:1 1 18rem;margin:0"><h3 style="margin:0 0 .3rem">{title}</h3>'
        f'<div class="grid map"><ol>{beside}</ol><svg viewBox="0 0 {q} {q}" role="img" '
        f'aria-label="dependence of {title} columns">{cells}</svg></div></figure>'
    )
