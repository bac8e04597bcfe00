"""The report's numbers: panels of scores, each beside what it is to be compared with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias, TypeGuard

from dpgm.evaluation import wording

Json: TypeAlias = dict[str, Any]

NAMES: Mapping[str, str] = {
    "cnn": "CNN",
    "cnn_soft": "CNN on soft labels",
    "logreg": "Logistic regression",
    "mlp": "Multilayer perceptron",
    "boosting": "Gradient boosting",
    "labeller": "Private labeller",
    "dp_cnn": "CNN trained privately (DP-SGD)",
    "dp_logreg": "Logistic regression trained privately (DP-SGD)",
}
RIVALS = ("labeller", "dp_cnn", "dp_logreg")
"""Private classifiers trained on real records: they stand beside the samples and use none."""
BESIDE_PRIVATE = "Beside private classifiers"
"""Title of the panel that holds them."""
_NOTES: Mapping[str, str] = {
    "cnn": "the classifier named beforehand",
    "cnn_soft": "the classifier named beforehand, trained on the private labeller's class probabilities of the samples",
}
_MEASURES: Mapping[str, str] = {"auc": "ROC AUC", "f1": "F1", "accuracy": "accuracy"}
_FIDELITY: Mapping[str, str] = {
    "KSComplement": "columns of numbers: 1 less the largest gap of the distribution functions",
    "TVComplement": "columns of categories: 1 less the total variation",
    "PairSimilarity": "all pairs of columns: 1 less the total variation",
    "ContingencySimilarity": "pairs with a category: 1 less the total variation",
    "CorrelationSimilarity": "pairs of numbers: 1 less half the difference of the correlations",
    "KMarginal": "triples of columns: 1,000 times 1 less the total variation",
}
_MOST: Mapping[str, float] = {"KMarginal": 1000}
"""Best values of the scores that are not 1."""
_PICTURES: Mapping[str, tuple[str, str]] = {
    "fid": ("FID", "Fréchet distance; 0 is best"),
    "kid": ("KID", "kernel distance; 0 is best"),
    "inception_score": ("IS", "sharp and varied; the number of classes is best"),
    "precision": ("precision", "share of samples that could be real; 1 is best"),
    "recall": ("recall", "share of real records that could be samples; 1 is best"),
    "density": ("density", "how typical samples are; 1 is that of real records"),
    "coverage": ("coverage", "share of real records with a sample near by; 1 is best"),
}

_HALVES = (
    " Ranges are 95 % intervals from half-samples: how much a value hangs on which records were drawn, not on the seed;"
    " that of an FID is too wide where there are fewer than some 20 records for each feature."
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number: as text, as a share of its bar (None without one), and a note on its interval."""

    text: str
    share: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a panel.

    Attributes:
        name: what was measured.
        note: what that means.
        cells: one for each column of the panel; None where nothing is known.
        key: whether this is the line to look at.
    """

    name: str
    cells: tuple[Cell | None, ...]
    note: str = ""
    key: bool = False


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A table of numbers.

    Attributes:
        title: over it; "" for the first one.
        intro: what the numbers are.
        columns: heads of the columns of numbers.
        rows: the lines.
    """

    intro: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    title: str = ""


_BESIDE = ("Synthetic", "Real, not private")


def panels(metrics: Json, epsilon: str) -> list[Panel]:
    """Every panel for which there are numbers.

    Args:
        metrics: what `metrics.json` holds.
        epsilon: of the run, for the private classifiers; "" where it is void.
    """
    sizes = mapping(metrics.get("sizes"))
    accuracy, utility = mapping(metrics.get("accuracy")), mapping(metrics.get("utility"))
    made = f" ({show(sizes['synthetic'])})" if sizes.get("synthetic") else ""
    real = f" ({show(sizes['real'])})" if sizes.get("real") else ""
    known = any(k.startswith("real_") for k in (*accuracy, *utility))
    beside = f", beside the same classifiers trained on real records{real}, which is not private." if known else "."
    columns = _BESIDE if known else _BESIDE[:1]
    apart = {
        k: f"another run: {show(v)}; publishing both spends both" for k, v in mapping(metrics.get("beside")).items()
    }
    scaled = ", ".join(f"{k} from 0 to {show(m)}" for k, m in _MOST.items() if k in mapping(metrics.get("fidelity")))
    found = [
        Panel(
            intro="Accuracy on held-out real records of classifiers that were trained on synthetic records "
            f"only{made}{beside}",
            columns=columns,
            rows=_accuracy(accuracy, len(columns)),
        ),
        Panel(
            intro="Scores on held-out real records of classifiers that predict the label, trained on synthetic "
            f"records only{made}{beside}",
            columns=columns,
            rows=_utility({k: v for k, v in utility.items() if k not in RIVALS}, len(columns)),
        ),
        Panel(
            title=BESIDE_PRIVATE,
            intro="They were trained on the real records themselves with differential privacy"
            + (f", within the epsilon of {epsilon} above" if epsilon and not apart else "")
            + ", and make no records. Where one does better and classification is all that is wanted, publish it.",
            columns=("Right on real records",),
            rows=(
                *(
                    Row(name=NAMES[k], note=apart.get(k, ""), cells=(c,))
                    for k in RIVALS
                    if (c := percent_cell(accuracy.get(k))) is not None
                ),
                *_utility({k: v for k, v in utility.items() if k in RIVALS}, 1, apart),
            ),
        ),
        Panel(
            title="How close the samples are",
            intro="Closeness to held-out real records, from 0 to 1 (the same)"
            + (f", {scaled}" if scaled else "")
            + ("; real train records reach what the second column says." if metrics.get("real_fidelity") else "."),
            columns=_BESIDE if metrics.get("real_fidelity") else ("Synthetic",),
            rows=_fidelity(mapping(metrics.get("fidelity")), mapping(metrics.get("real_fidelity"))),
        ),
        *_featured(metrics),
    ]
    return [panel for panel in found if panel.rows]


def _accuracy(accuracy: Json, columns: int) -> tuple[Row, ...]:
    """A row for each classifier: trained on synthetic, and on real data where there is a second column."""
    names = dict.fromkeys(k.removeprefix("real_") for k in accuracy if k not in RIVALS)
    if "cnn_soft" in accuracy:
        names.pop("cnn", None)  # the same net; what it learnt from real records stands beside
    return tuple(
        Row(
            name=NAMES.get(k, k),
            note=_NOTES.get(k, ""),
            cells=(percent_cell(accuracy.get(k)), percent_cell(accuracy.get(f"real_{k.removesuffix('_soft')}")))[
                :columns
            ],
            key=i == 0,
        )
        for i, k in enumerate(names)
    )


def _utility(utility: Json, columns: int, notes: Mapping[str, str] = MappingProxyType({})) -> tuple[Row, ...]:
    """A row for each classifier of a table and each of its measures; with one column, without real records."""
    rows: list[Row] = []
    for k in dict.fromkeys(k.removeprefix("real_") for k in utility):
        mine, theirs = mapping(utility.get(k)), mapping(utility.get(f"real_{k}"))
        for measure in dict.fromkeys([*mine, *theirs]):
            cells = (_share_cell(mine.get(measure)), _share_cell(theirs.get(measure)))[:columns]
            if any(cells):
                name = f"{NAMES.get(k, k)}, {_MEASURES.get(measure, measure)}"
                rows.append(Row(name=name, note=notes.get(k, ""), cells=cells, key=measure == "auc"))
    return tuple(rows)


def _fidelity(fidelity: Json, real: Json) -> tuple[Row, ...]:
    rows: list[Row] = []
    for name, value in _flat(fidelity, ()):
        shown = [value, real.get(name)] if real else [value]
        rows.append(
            Row(name=name, note=_FIDELITY.get(name, ""), cells=tuple(_share_cell(v, _MOST.get(name, 1)) for v in shown))
        )
    return tuple(rows)


def _featured(metrics: Json) -> list[Panel]:
    """FID and its like, every metric {"value", "features", ...}: a panel for each network and reference."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for name, value in metrics.items():
        if not isinstance(value, Mapping) or "features" not in value:
            continue
        known = {"value", "features", "n", "reference", "low", "high"}
        more = ", ".join(f"{k} {show(v)}" for k, v in value.items() if k not in known and not isinstance(v, Mapping))
        interval = f"{show(value['low'])} to {show(value['high'])}" if {"low", "high"} <= set(value) else ""
        cell = Cell(text=show(value.get("value")), note=interval)
        title, best = _PICTURES.get(name, (name, ""))
        row = Row(name=f"{title}[{value['features']}]", note=", ".join(filter(None, (best, more))), cells=(cell,))
        key = (str(value["features"]), show(value.get("n", "")), str(value.get("reference", "")))
        groups.setdefault(key, []).append(row)
    return [
        Panel(
            title="How close the pictures are",
            intro=f"Seen through the features of {features}"
            + (f", {n} records each" if n else "")
            + (f", against {reference}" if reference else "")
            + ". Numbers of other features, sizes or references cannot be compared with these."
            + (_HALVES if any(cell and cell.note for row in rows for cell in row.cells) else ""),
            columns=("Value",),
            rows=tuple(rows),
        )
        for (features, n, reference), rows in groups.items()
    ]


def others(metrics: Json) -> list[tuple[str, str]]:
    """What stands in no panel, as pairs (name, value)."""
    rows: list[tuple[str, str]] = []
    if (entropy := wording.mean_of(metrics.get("entropy"))) is not None:
        n = mapping(metrics.get("sizes")).get("synthetic")
        judge = "in the eyes of a CNN that has learnt from the test part"
        rows.append((f"Label entropy of the samples{f' ({show(n)})' if n else ''}, {judge}", f"{entropy:.3f} nats"))
    if sizes := mapping(metrics.get("sizes")):
        rows.append(("Records used", show(sizes)))
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Cells


def percent_cell(value: Any) -> Cell | None:
    """A share of records, in percent, with its interval."""
    mean = wording.mean_of(value)
    if mean is None:
        return None
    note = ""
    if isinstance(value, Mapping):
        low, high, n = (value.get(k) for k in ("low", "high", "n"))
        if is_number(low) and is_number(high):
            note = f"{100 * low:.1f} to {percent(high)}, {n} seeds".replace(" %", "\N{NO-BREAK SPACE}%")
        elif n:
            note = f"mean of {n} seeds" if n != 1 else "one seed"
    return Cell(text=percent(mean), share=_inside(mean), note=note)


def _share_cell(value: Any, most: float = 1) -> Cell | None:
    """A score from 0 to `most` as it is; other numbers get no bar."""
    mean = wording.mean_of(value)
    if mean is None:
        return None if value is None else Cell(text=show(value))
    note = ""
    if isinstance(value, Mapping) and is_number(value.get("low")) and is_number(value.get("high")):
        note = f"{value['low']:.3f} to {value['high']:.3f}, {value.get('n')} seeds"
    return Cell(
        text=f"{mean:.3f}" if abs(mean) <= 1 else f"{mean:.4g}",
        share=mean / most if 0 <= mean <= most else None,
        note=note,
    )


def _inside(share: float) -> float:
    return min(1.0, max(0.0, share))


def _flat(value: Any, names: tuple[str, ...]) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping) and "mean" not in value:
        return [row for k, v in value.items() for row in _flat(v, (*names, str(k)))]
    return [(" · ".join(names), value)] if names else []


def show(value: Any) -> str:
    """Any JSON value for reading."""
    if isinstance(value, Mapping):
        mean = wording.mean_of(value) if "mean" in value else None
        if mean is not None and is_number(value.get("low")):
            return f"{mean:.4g} ({show(value['low'])} to {show(value['high'])}, {value.get('n')} seeds)"
        if mean is not None:
            return f"{mean:.4g} (mean of {value.get('n')})"
        return ", ".join(f"{k} {show(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(show, value))
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return wording.number(value)


def percent(share: float) -> str:
    """A share in percent, to a tenth."""
    return f"{100 * share:.1f} %"


def mapping(value: Any) -> Json:
    """The value, if it is a mapping; else an empty one."""
    return dict(value) if isinstance(value, Mapping) else {}


def items(value: Any) -> list[Any]:
    """The value as a list, if it is one of some kind; else an empty one."""
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str | Mapping) else []


def is_number(value: Any) -> TypeGuard[float]:
    """Whether the value is a number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def finite(value: Any) -> TypeGuard[float]:
    """Whether the value is a finite number."""
    return is_number(value) and math.isfinite(value)
