"""Train on synthetic, test on real: the numbers that say what synthetic images are good for.

One classifier is named beforehand, the protocol's CNN ("cnn", or "cnn_soft" where the samples bring class probabilities
to learn from); logistic regression ("logreg") and a multilayer
perceptron ("mlp") stand beside it, never instead of it. Nothing here chooses anything by looking at test records.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from torch import nn
from torch.nn import functional

from dpgm.nets.classifiers import SmallCNN, predict, to_unit, train_classifier
from dpgm.nets.judges import Judges
from dpgm.schema import ImageSchema, Rows, SchemaError

R = TypeVar("R")

CLASSIFIERS = ("cnn", "logreg", "mlp")
EPOCHS, _SEEN = 20, 1_200_000
_JUDGE_STEPS = 200
_FLAT_SIDE = 32


class Labelled(Protocol):
    """Images uint8 [n, height, width, channels], labels int64 [n] and perhaps class probabilities [n, k]; a
    `dpgm.methods.base.Batch` is one.
    """

    @property
    def images(self) -> NDArray[np.uint8]:
        """Images [n, height, width, channels]."""
        ...

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels [n]."""
        ...

    @property
    def odds(self) -> NDArray[np.float32] | None:
        """Class probabilities [n, k], where a private labeller gave them: soft labels."""
        ...


class Door(Protocol):
    """A way to real train records that records each look; `Curator.expose` is one, `public_door` makes another."""

    def __call__(self, fn: Callable[[Rows], R], *, reason: str, audience: str) -> R:
        """The value of `fn` on the records."""
        ...


def public_door(reader: Callable[[], Rows]) -> Door:
    """A door to *public* records, such as a benchmark's train part: they need no ledger, the metrics name the look.

    Args:
        reader: reads the records. It must never read records that somebody wants protected; for these use
            `Curator.expose`.
    """

    def through(fn: Callable[[Rows], R], *, reason: str, audience: str) -> R:
        return fn(reader())

    return through


def protocol_epochs(n: int) -> int:
    """Epochs of the protocol's CNN on n images: 20, beyond 60,000 images as many as see 1.2 million, at least one.

    So its training takes no longer where samples are many, and what they gain is not owed to longer training. The
    weights are those after the last epoch.
    """
    return min(EPOCHS, max(1, round(_SEEN / max(1, n))))


# ---------------------------------------------------------------------------------------------------------------------
# The two measurements


def evaluate_images(
    synthetic: Labelled,
    test: Rows,
    *,
    schema: ImageSchema,
    seed: int = 0,
    classifiers: Sequence[str] = CLASSIFIERS,
    real: Door | None = None,
    reference: Mapping[str, Any] | None = None,
    judges: Judges | None = None,
    epochs: int | None = None,
) -> dict[str, Any]:
    """Accuracy on real test records of classifiers trained on synthetic ones, and the variety of the synthetic ones.

    `entropy` is H = -sum_k p_k ln p_k in nats, p the mean over the synthetic images of the class probabilities that a
    judge gives them; the judge is the same CNN trained on the *test* part (200 steps). Its largest value is
    ln(classes); images of few classes, whatever their labels say, make it small.

    Args:
        synthetic: n images with labels; the protocol takes n = 10,000. Where they bring class probabilities the CNN
            learns from these, and is called "cnn_soft"; the others learn from the labels.
        test: the real test part, read once, at the very end. Every number returned is a plain, *not private*,
            statistic of it.
        schema: public facts that both must fit.
        seed: of the classifiers.
        classifiers: names among "cnn", "logreg" and "mlp".
        real: door to real train records for the reference rows `real_cnn`, ...; every look is listed in `exposures`.
        reference: what `reference_images` returned for the same settings before, instead of `real`.
        judges: nets of earlier evaluations against the same test part.
        epochs: of the CNN; None takes those of the protocol (`protocol_epochs`).

    Returns:
        `accuracy` {classifier: share correct, 0 to 1}, `entropy` in nats, `sizes` {`synthetic`, `test`, `real`},
        `epochs`, `seconds` {classifier: training and testing} and `exposures` [{`reason`, `audience`}].

    Raises:
        SchemaError: data that do not fit the schema or are empty, probabilities that are none, unknown classifiers, or
            a reference made otherwise.
    """
    _known(classifiers)
    odds = _probabilities(synthetic, schema)
    train = Rows(image=synthetic.images, label=synthetic.labels)
    for rows in (train, test):
        _fits(rows, schema)
    if reference is None and real is not None:
        reference = reference_images(
            real, test, schema=schema, seed=seed, classifiers=classifiers, n=len(train), epochs=epochs
        )
    if reference is not None:
        _same_settings(reference, seed=seed, epochs=epochs, test=len(test), n=len(train))
    accuracy, seconds = _scores(train, test, schema, seed, classifiers, epochs, odds)
    start = time.perf_counter()
    entropy = _entropy(train, entropy_judge(test, schema=schema, seed=seed, judges=judges))
    seconds["entropy"] = time.perf_counter() - start
    found = reference or {"accuracy": {}, "sizes": {}, "seconds": {}, "exposures": []}
    return {
        "accuracy": {**accuracy, **found["accuracy"]},
        "entropy": entropy,
        "sizes": {"synthetic": len(train), **found["sizes"], "test": len(test)},
        "epochs": epochs or protocol_epochs(len(train)),
        "seconds": {**seconds, **found["seconds"]},
        "exposures": list(found["exposures"]),
    }


def reference_images(
    real: Door,
    test: Rows,
    *,
    schema: ImageSchema,
    seed: int = 0,
    classifiers: Sequence[str] = CLASSIFIERS,
    n: int = 10_000,
    epochs: int | None = None,
) -> dict[str, Any]:
    """The same classifiers trained on real train records: what is lost by going synthetic. It is *not private*.

    The result is plain JSON and depends on no synthetic record, so one call serves many runs: keep it and hand it to
    `evaluate_images` as `reference`.

    Args:
        real: door to the real train records.
        test: the real test part.
        schema: public facts that both must fit.
        seed: of the classifiers and of the choice of records.
        classifiers: names among "cnn", "logreg" and "mlp".
        n: how many train records are used, drawn at random; all, where there are fewer.
        epochs: of the CNN; None takes those of the protocol for as many records as are used.

    Returns:
        `accuracy` {`real_cnn`, ...}, `sizes` {`real`, `test`}, `seconds`, `exposures`, and the settings `seed`, `n`
        and `epochs`.
    """
    _known(classifiers)
    _fits(test, schema)
    exposure = {
        "reason": f"not private: reference on real data ({', '.join(classifiers)} trained on real train records)",
        "audience": "readers of the metrics and the report",
    }

    def look(rows: Rows) -> tuple[dict[str, float], dict[str, float], int]:
        _fits(rows, schema)
        index = np.sort(np.random.default_rng(seed).permutation(len(rows))[:n])
        chosen = rows.take(index)
        return *_scores(chosen, test, schema, seed, classifiers, epochs), len(chosen)

    accuracy, seconds, used = real(look, **exposure)
    return {
        "accuracy": {f"real_{k}": v for k, v in accuracy.items()},
        "sizes": {"real": used, "test": len(test)},
        "seconds": {f"real_{k}": v for k, v in seconds.items()},
        "exposures": [exposure],
        "seed": seed,
        "n": n,
        "epochs": epochs or protocol_epochs(used),
    }


def entropy_judge(test: Rows, *, schema: ImageSchema, seed: int = 0, judges: Judges | None = None) -> nn.Module:
    """The CNN whose class probabilities `entropy` is taken of; it has learnt from the *test* part (200 steps).

    Args:
        test: the real test part.
        schema: its public facts.
        seed: of its weights and the order of the records.
        judges: nets of earlier evaluations against the same test part; the new one joins them.
    """
    rng = torch.Generator().manual_seed(seed)
    height, width, channels = schema.shape
    net = SmallCNN(height=height, width=width, channels=channels, n_classes=schema.n_classes, rng=rng)
    epochs = math.ceil(_JUDGE_STEPS / math.ceil(len(test) / 128))

    def train() -> nn.Module:
        return train_classifier(
            test["image"], test["label"], n_classes=schema.n_classes, rng=rng, epochs=epochs, net=net
        )

    return (judges or Judges()).net(f"cnn of {len(test)}, {epochs} epochs, seed {seed}", net, train)


def summarise(values: Sequence[float]) -> dict[str, Any]:
    """Several seeds in one value: mean -+ t(0.975, n - 1) s / sqrt(n) from five seeds on, no interval below.

    Args:
        values: one finite number a seed, at least one.

    Returns:
        `mean`, `low`, `high`, `n` with five or more values; `mean`, `n`, `values` with fewer.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    n = len(values)
    if n == 0 or not all(math.isfinite(v) for v in values):
        raise ValueError(f"the values are {list(values)}; give at least one, all finite: a failed seed is not left out")
    mean = math.fsum(values) / n
    if n < 5:
        return {"mean": mean, "n": n, "values": [float(v) for v in values]}
    half = float(student.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


# ---------------------------------------------------------------------------------------------------------------------
# Classifiers: (train images, train labels, test images, schema, seed, epochs) -> predicted labels

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Odds = NDArray[np.float32]


def _cnn(x: Images, y: Labels | Odds, test: Images, schema: ImageSchema, seed: int, epochs: int) -> Labels:
    rng = torch.Generator().manual_seed(seed)
    net = train_classifier(x, y, n_classes=schema.n_classes, rng=rng, epochs=epochs)
    return predict(net, test).argmax(1)


def _logreg(x: Images, y: Labels, test: Images, schema: ImageSchema, seed: int, epochs: int) -> Labels:
    return _fit(LogisticRegression(C=0.1, max_iter=100), x, y, test)


def _mlp(x: Images, y: Labels, test: Images, schema: ImageSchema, seed: int, epochs: int) -> Labels:
    net = MLPClassifier((100,), batch_size=min(200, len(x)), max_iter=20, random_state=seed % 2**32)
    return _fit(net, x, y, test)


_TRAINERS: dict[str, Callable[[Images, Labels, Images, ImageSchema, int, int], Labels]] = {
    "cnn": _cnn,
    "logreg": _logreg,
    "mlp": _mlp,
}


def _fit(model: Any, x: Images, y: Labels, test: Images) -> Labels:
    if (y == y[0]).all():  # scikit-learn refuses a single class; its classifier is the constant
        return np.full(len(test), y[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of iterations is part of the protocol
        return model.fit(_flat(x), y).predict(_flat(test))


def _flat(x: Images) -> NDArray[np.float32]:
    """Images as rows in [0, 1]; sides above 32 pixels are averaged down, so that cost and memory stay bounded."""
    if max(x.shape[1:3]) <= _FLAT_SIDE:
        return x.reshape(len(x), -1).astype(np.float32) / np.float32(255)
    size = (min(x.shape[1], _FLAT_SIDE), min(x.shape[2], _FLAT_SIDE))
    small = [functional.adaptive_avg_pool2d(to_unit(x[i : i + 500]), size) for i in range(0, len(x), 500)]
    return torch.cat(small).flatten(1).numpy()


def _scores(
    train: Rows,
    test: Rows,
    schema: ImageSchema,
    seed: int,
    classifiers: Sequence[str],
    epochs: int | None,
    odds: Odds | None = None,
) -> tuple[dict[str, float], dict[str, float]]:
    """Share of test records that each classifier gets right, and its seconds; the CNN learns from `odds`, if any."""
    accuracy: dict[str, float] = {}
    seconds: dict[str, float] = {}
    epochs = epochs or protocol_epochs(len(train))
    for name in classifiers:
        start = time.perf_counter()
        if name == "cnn" and odds is not None:
            name, guess = "cnn_soft", _cnn(train["image"], odds, test["image"], schema, seed, epochs)
        else:
            guess = _TRAINERS[name](train["image"], train["label"], test["image"], schema, seed, epochs)
        accuracy[name] = float((guess == test["label"]).mean())
        seconds[name] = time.perf_counter() - start
    return accuracy, seconds


def _entropy(synthetic: Rows, judge: nn.Module) -> float:
    p = predict(judge, synthetic["image"]).astype(np.float64).mean(0)
    p = p[p > 0] / p.sum()
    return max(0.0, float(-(p * np.log(p)).sum()))


def _known(classifiers: Sequence[str]) -> None:
    if unknown := sorted(set(classifiers) - set(_TRAINERS)):
        raise SchemaError(f"unknown classifiers {unknown}; allowed are {', '.join(CLASSIFIERS)}")


def _probabilities(synthetic: Labelled, schema: ImageSchema) -> Odds | None:
    """The soft labels, if there are any and they are probabilities."""
    odds, shape = synthetic.odds, (len(synthetic.labels), schema.n_classes)
    if odds is None:
        return None
    if odds.shape != shape or not bool((odds >= 0).all()) or not np.allclose(odds.sum(1), 1, atol=1e-3):
        raise SchemaError(
            f"the samples' class probabilities have shape {list(odds.shape)} or are none; give numbers from 0 to 1 of "
            f"shape {list(shape)} whose rows add up to 1, or leave them out"
        )
    return odds


def _fits(rows: Rows, schema: ImageSchema) -> None:
    schema.check(rows)
    if len(rows) == 0:
        raise SchemaError("a set to be evaluated holds no records; sample at least one, or give a test part")


def _same_settings(reference: Mapping[str, Any], *, seed: int, epochs: int | None, test: int, n: int) -> None:
    was = {**{k: reference[k] for k in ("seed", "epochs", "n")}, "test": reference["sizes"]["test"]}
    epochs = epochs or protocol_epochs(reference["sizes"]["real"])
    now = {"seed": seed, "epochs": epochs, "n": n, "test": test}
    if was != now:
        raise SchemaError(f"the reference was made with {was}, the evaluation asks for {now}; make it again")
