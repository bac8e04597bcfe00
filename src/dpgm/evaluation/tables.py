"""What synthetic tables are good for: closeness of their marginals, and classifiers trained on them.

The four fidelity scores are those of SDMetrics, whose release needs an older pandas than this project, so they are
written out here (each is a line or two) and pinned in the tests by values that SDMetrics gave.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from dpgm.evaluation.table_figures import describe
from dpgm.evaluation.utility import Door
from dpgm.schema import Rows, SchemaError, TableSchema
from dpgm.schema.table import Table

BINS = 10
"""Equal bins of the real values' range, for numbers beside categories, as SDMetrics has it."""
TRIPLES = 100
"""Triples of columns that the k-marginal score looks at, the same ones for every table of as many columns."""


# ---------------------------------------------------------------------------------------------------------------------
# Fidelity


def fidelity(real: Table, synthetic: Table, schema: TableSchema) -> dict[str, float]:
    """Closeness of one-, two- and three-way marginals, each score from 0 to 1 (equal) but for the last.

    `KSComplement`: 1 - sup |F - G|, mean over columns of numbers. `TVComplement`: 1 - TV, mean over categories.
    `ContingencySimilarity`: 1 - TV of a pair, mean over pairs with a category (numbers in 10 bins; missing is a value).
    `CorrelationSimilarity`: 1 - |r - r'|/2, mean over pairs of numbers. `PairSimilarity`: 1 - TV, mean over all pairs.
    `KMarginal`: 1,000 (1 - TV), mean over `TRIPLES` triples of columns, or all where there are no more; the score of
    NIST's contests and of its excerpts of the American Community Survey, with the bins of the others.

    Args:
        real: records [n, columns], e.g. the test part; the scores are plain, *not private*, statistics of it.
        synthetic: records [m, columns].
        schema: public facts of both.
    """
    discrete = [c.kind in ("category", "boolean") for c in schema.columns]
    codes = [_codes(real[:, j], synthetic[:, j], is_discrete=d) for j, d in enumerate(discrete)]
    found: dict[str, list[float]] = {}
    for j, is_discrete in enumerate(discrete):
        if is_discrete:
            found.setdefault("TVComplement", []).append(_overlap(*codes[j]))
        else:
            x, y = (t[:, j][~np.isnan(t[:, j])] for t in (real, synthetic))
            score = 1 - ks_2samp(x, y).statistic if len(x) and len(y) else 0.0
            found.setdefault("KSComplement", []).append(float(score))
    for i, j in itertools.combinations(range(len(discrete)), 2):
        size = 1 + max(int(c.max(initial=0)) for c in codes[j])
        pair = _overlap(codes[i][0] * size + codes[j][0], codes[i][1] * size + codes[j][1])
        found.setdefault("PairSimilarity", []).append(pair)
        if discrete[i] or discrete[j]:
            found.setdefault("ContingencySimilarity", []).append(pair)
        elif (r := _correlation(real[:, [i, j]])) is not None:
            s = _correlation(synthetic[:, [i, j]])
            found.setdefault("CorrelationSimilarity", []).append(1 - abs(r - s) / 2 if s is not None else 0.5)
    for triple in _triples(len(codes)):
        both = [np.concatenate(codes[j]) for j in triple]
        _, code = np.unique(np.ravel_multi_index(both, [1 + int(c.max(initial=0)) for c in both]), return_inverse=True)
        found.setdefault("KMarginal", []).append(1000 * _overlap(code[: len(real)], code[len(real) :]))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _triples(q: int) -> list[tuple[int, ...]]:
    """Sets of three of q columns: all, or a public choice of `TRIPLES`."""
    every = list(itertools.combinations(range(q), 3))
    if len(every) <= TRIPLES:
        return every
    return [every[i] for i in np.sort(np.random.default_rng(0).permutation(len(every))[:TRIPLES])]


def _codes(x: NDArray[np.float64], y: NDArray[np.float64], *, is_discrete: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """Values as whole numbers from 0; missing is one of them."""
    if is_discrete:
        return np.where(np.isnan(x), 0, x + 1).astype(np.int64), np.where(np.isnan(y), 0, y + 1).astype(np.int64)
    known = x[~np.isnan(x)]
    edges = np.histogram_bin_edges(known if len(known) else np.zeros(1), bins=BINS)
    edges[0], edges[-1] = -np.inf, np.inf
    return np.digitize(x, edges), np.digitize(y, edges)


def _overlap(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """1 - TV distance of two samples of whole numbers."""
    size = 1 + int(max(a.max(initial=0), b.max(initial=0)))
    p, q = (np.bincount(v, minlength=size) / max(len(v), 1) for v in (a, b))
    return float(1 - np.abs(p - q).sum() / 2)


def _correlation(pair: Table) -> float | None:
    """Pearson's r of the complete records; None where a column is constant."""
    pair = pair[~np.isnan(pair).any(axis=1)]
    if len(pair) < 2 or (pair == pair[0]).all(axis=0).any():
        return None
    table: Any = np.corrcoef(pair.T)
    return float(table[0, 1])


# ---------------------------------------------------------------------------------------------------------------------
# Utility

Scores = dict[str, float]


def utility(train: Table, test: Table, schema: TableSchema, *, seed: int = 0) -> dict[str, Scores]:
    """Logistic regression and gradient boosting trained on one table and tested on another.

    Args:
        train: records to train on.
        test: real held-out records.
        schema: public facts, with a label.
        seed: of the boosting.

    Returns:
        {`logreg`, `boosting`} -> {`auc` (one against rest, mean over classes), `f1` (of the second of two classes;
        mean over more), `accuracy`}.
    """
    index = schema.label_index
    if index is None:
        raise SchemaError("the schema names no label, so no classifier can be tested; give label in the schema")
    y, truth = schema.labels(train), schema.labels(test)
    x, z = (np.delete(t, index, axis=1) for t in (train, test))
    columns = [c for i, c in enumerate(schema.columns) if i != index]
    discrete = [c.kind in ("category", "boolean") for c in columns]
    if len(np.unique(y)) < 2:  # nothing can be learnt
        constant = {"auc": 0.5, "f1": 0.0, "accuracy": float((truth == (y[0] if len(y) else 0)).mean())}
        return {"logreg": constant, "boosting": dict(constant)}
    flat, flat_test = _one_hot(x, z, [len(c.values) or 2 if d else 0 for c, d in zip(columns, discrete, strict=True)])
    empty = np.isnan(x).all(axis=0)  # boosting cannot take a column without a value
    x, z = np.where(empty, 0.0, x), np.where(empty, 0.0, z)
    wide = [d and len(c.values) > 200 for c, d in zip(columns, discrete, strict=True)]  # more than boosting takes
    boosting = HistGradientBoostingClassifier(
        random_state=seed % 2**32,
        early_stopping=False,
        categorical_features=[d and not w for d, w in zip(discrete, wide, strict=True)],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of iterations is part of the protocol
        return {
            "logreg": _score(LogisticRegression(max_iter=200), flat, y, flat_test, truth, schema),
            "boosting": _score(boosting, x, y, z, truth, schema),
        }


def _one_hot(x: Table, z: Table, sizes: Sequence[int]) -> tuple[Table, Table]:
    """Categories one-hot, numbers standardised by the train part with an indicator of missing ones."""
    parts: tuple[list[Table], list[Table]] = ([], [])
    for j, size in enumerate(sizes):
        known = x[:, j][~np.isnan(x[:, j])]
        mean, std = (known.mean(), known.std() or 1.0) if len(known) else (0.0, 1.0)
        for out, v in zip(parts, (x[:, j], z[:, j]), strict=True):
            missing = np.isnan(v)
            if size:
                out.append(np.eye(size + 1)[np.where(missing, size, v).astype(int)])
            else:
                out.append(np.stack([np.where(missing, 0, (v - mean) / std), missing], axis=1))
    return np.concatenate(parts[0], axis=1), np.concatenate(parts[1], axis=1)


def _score(model: Any, x: Table, y: Any, z: Table, truth: Any, schema: TableSchema) -> Scores:
    p = np.zeros((len(z), schema.n_classes))
    model.fit(x, y)
    p[:, model.classes_] = model.predict_proba(z)
    return scores_of(p, truth, schema)


def scores_of(p: NDArray[Any], truth: NDArray[np.int64], schema: TableSchema) -> Scores:
    """{`auc`, `f1`, `accuracy`} as in `utility`, of class probabilities [n, k] for records of the classes [n]."""
    guess, present = p.argmax(1), np.unique(truth)
    aucs = [roc_auc_score(truth == c, p[:, c]) for c in present if len(present) > 1]
    if schema.n_classes == 2:
        f1 = f1_score(truth, guess, pos_label=1, zero_division=0.0)
    else:
        f1 = f1_score(truth, guess, average="macro", zero_division=0.0)
    auc = float(np.mean(aucs)) if aucs else 0.5
    return {"auc": auc, "f1": float(f1), "accuracy": float(accuracy_score(truth, guess))}


def evaluate_table(
    synthetic: Table,
    test: Rows,
    *,
    schema: TableSchema,
    seed: int = 0,
    real: Door | None = None,
    reference: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Fidelity of a synthetic table against real held-out records, and utility for predicting the label.

    Args:
        synthetic: records [m, columns].
        test: the real test part, read once, at the very end; every number returned is a plain statistic of it.
        schema: public facts that both must fit.
        seed: of the classifiers.
        real: door to real train records for the reference rows `real_logreg`, ...; every look is listed in
            `exposures`.
        reference: what `reference_table` returned for the same test part and seed before, instead of `real`.

    Returns:
        `fidelity` {score: value}, `figures` (see `table_figures.describe`), `utility` {`logreg`, `boosting`,
        `real_logreg`, `real_boosting`} and `real_fidelity` where there is a label, `sizes`, `seconds` and `exposures`.

    Raises:
        SchemaError: data that do not fit the schema or are empty, or a reference made otherwise.
    """
    schema.check(test)
    schema.check_table(synthetic)
    if not len(synthetic) or not len(test):
        raise SchemaError("a set to be evaluated holds no records; sample at least one, or give a test part")
    table, seconds = test["table"], {}

    def timed(name: str, fn: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        value = fn()
        seconds[name] = time.perf_counter() - start
        return value

    found: dict[str, Any] = {"fidelity": timed("fidelity", lambda: fidelity(table, synthetic, schema))}
    found["figures"] = describe(synthetic, table, schema)
    sizes = {"synthetic": len(synthetic), "test": len(table)}
    kept: Mapping[str, Any] = {"utility": {}, "sizes": {}, "seconds": {}, "exposures": []}
    if schema.label is not None:
        found["utility"] = timed("utility", lambda: utility(synthetic, table, schema, seed=seed))
        if reference is not None:
            _same_settings(reference, seed=seed, test=len(test))
            kept = reference
        elif real is not None:
            kept = reference_table(real, test, schema=schema, seed=seed)
        found["utility"] |= kept["utility"]
        if "real_fidelity" in kept:
            found["real_fidelity"] = kept["real_fidelity"]
    return {
        **found,
        "sizes": {**kept["sizes"], **sizes},
        "seconds": {**seconds, **kept["seconds"]},
        "exposures": list(kept["exposures"]),
    }


def reference_table(real: Door, test: Rows, *, schema: TableSchema, seed: int = 0) -> dict[str, Any]:
    """The same classifiers trained on all real train records: what is lost by going synthetic. It is *not private*.

    The result is plain JSON and depends on no synthetic record, so one call serves many runs.

    Args:
        real: door to the real train records.
        test: the real test part.
        schema: public facts that both must fit, with a label.
        seed: of the classifiers.

    Returns:
        `utility` {`real_logreg`, `real_boosting`}, `real_fidelity` of train against test records (what a sample of
        the same law would score), `sizes`, `seconds`, `exposures` and `seed`.
    """
    schema.check(test)
    exposure = {
        "reason": "not private: reference on real data (classifiers trained on real train records)",
        "audience": "readers of the metrics and the report",
    }
    table, start = test["table"], time.perf_counter()

    def look(rows: Rows) -> tuple[dict[str, Scores], dict[str, float], int]:
        train = rows["table"]
        return utility(train, table, schema, seed=seed), fidelity(table, train, schema), len(train)

    scores, close, n = real(look, **exposure)
    return {
        "utility": {f"real_{k}": v for k, v in scores.items()},
        "real_fidelity": close,
        "sizes": {"real": n, "test": len(table)},
        "seconds": {"real": time.perf_counter() - start},
        "exposures": [exposure],
        "seed": seed,
    }


def _same_settings(reference: Mapping[str, Any], *, seed: int, test: int) -> None:
    was, now = {"seed": reference["seed"], "test": reference["sizes"]["test"]}, {"seed": seed, "test": test}
    if was != now:
        raise SchemaError(f"the reference was made with {was}, the evaluation asks for {now}; make it again")
