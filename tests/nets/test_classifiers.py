"""The protocol's classifier learns real digits within seconds, from hard or soft labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from dpgm.nets.classifiers import predict, to_bytes, to_unit, train_classifier


def digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    x = (data.images / 16 * 255).round().astype(np.uint8)[..., None]
    order = np.random.default_rng(0).permutation(len(x))
    return x[order], data.target[order]


def test_learns_digits_and_is_seeded() -> None:
    x, y = digits()
    net = train_classifier(x[:1300], y[:1300], n_classes=10, rng=torch.Generator().manual_seed(0), epochs=8)
    p = predict(net, x[1300:])
    assert p.shape == (len(x) - 1300, 10)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    assert (p.argmax(1) == y[1300:]).mean() > 0.93
    assert not net.training


def test_soft_labels_are_followed() -> None:
    x, y = digits()
    soft = np.full((600, 10), 0.03, dtype=np.float32)
    soft[np.arange(600), y[:600]] = 0.73
    losses: list[float] = []
    net = train_classifier(
        x[:600],
        soft,
        n_classes=10,
        rng=torch.Generator().manual_seed(0),
        epochs=20,
        on_epoch=lambda epoch, loss: losses.append(loss),
    )
    p = predict(net, x[600:])
    assert (p.argmax(1) == y[600:]).mean() > 0.85
    assert 0.5 < p.max(1).mean() < 0.85
    assert len(losses) == 20
    assert losses[-1] < losses[0]


def test_bytes_and_units_are_inverse() -> None:
    x = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert np.array_equal(to_bytes(to_unit(x)), x)


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (64, 64, 3), (9, 12, 1)])
def test_every_size_runs(shape: tuple[int, int, int]) -> None:
    x = np.zeros((4, *shape), dtype=np.uint8)
    net = train_classifier(x, np.array([0, 1, 0, 1]), n_classes=2, rng=torch.Generator().manual_seed(0), epochs=1)
    assert predict(net, x).shape == (4, 2)


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="one label an image"):
        train_classifier(np.zeros((3, 8, 8, 1), np.uint8), np.zeros(2), n_classes=2, rng=torch.Generator())
