"""Mean embeddings: one release, priced right under both relations, from features that treat each record alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dpgm
from dpgm.mechanisms.noise import Gaussian, KNorm
from dpgm.methods.base import Method
from dpgm.methods.encoder import TorchEncoder, check_encoder
from dpgm.nets.features import FeatureMap
from dpgm.privacy.guarantee import Budget, Evidence, PrivacyError, Relation
from dpgm.schema import ImageSchema

SCHEMA = ImageSchema(height=8, width=8, channels=1, classes=("a", "b"), size=200)
BUDGET = Budget(epsilon=1.0, delta=1e-5)
QUICK: list[Method] = [dpgm.DPMERF(dim=100, steps=3), dpgm.DPMEPF(steps=3), dpgm.DPMEPF(steps=3, fourier=1.0)]


@pytest.mark.parametrize("method", QUICK, ids=repr)
@pytest.mark.parametrize("relation", list(Relation))
def test_one_release_spends_the_whole_budget(method: Method, relation: Relation) -> None:
    plan = method.plan(SCHEMA, relation=relation, budget=BUDGET)
    ((mechanism, times),) = plan.items
    assert times == 1
    assert isinstance(mechanism, Gaussian)
    guarantee = plan.guarantee()
    assert guarantee.evidence is Evidence.PROVED
    assert 0.999 < guarantee.epsilon <= 1
    factor = {Relation.ADD_REMOVE: 1.0, Relation.REPLACE: 2 / math.hypot(1, 0.2)}[relation]
    assert mechanism.noise_std == pytest.approx(3.7306 * math.hypot(1, 0.2) * factor, rel=1e-3)


def test_pure_privacy_takes_pure_noise() -> None:
    plan = QUICK[0].plan(SCHEMA, relation=Relation.ADD_REMOVE, budget=Budget(epsilon=2.0, delta=0.0))
    assert isinstance(plan.items[0][0], KNorm)
    assert plan.guarantee().epsilon == pytest.approx(2.0)
    assert plan.guarantee().delta == 0


def _two_bars(n: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.zeros((n, 8, 8), np.uint8)
    y = np.arange(n) % 2
    x[y == 0, 2:4], x[y == 1, :, 2:4] = 255, 255
    return x, y


@pytest.mark.parametrize(
    "method", [dpgm.DPMERF(dim=200, steps=150, lr=3e-3), dpgm.DPMEPF(steps=20)], ids=["merf", "mepf"]
)
def test_what_is_drawn_looks_like_its_class(method: Method) -> None:
    x, y = _two_bars(2000)
    drawn = dpgm.fit(method, x, y, epsilon=5.0, delta=1e-5, classes=2).sample(40, seed=0)
    rows, columns = drawn.images[:, 2:4].mean((1, 2, 3)), drawn.images[:, :, 2:4].mean((1, 2, 3))
    assert ((rows > columns) == (drawn.labels == 0)).mean() > 0.9


class _Broken(FeatureMap):
    """A feature map that each test breaks in one way."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind, 64)
        self.norm = nn.BatchNorm1d(64, affine=False)
        if kind != "training":
            self.eval()
        self.norm.train(kind in ("batch", "training"))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1)
        match self.name:
            case "batch":
                return z - z.mean(0)
            case "training":
                return self.norm(z)
            case "nan":
                return z / z.norm(dim=1, keepdim=True)  # an empty picture has no direction
            case "size":
                return z[:, :10]
            case "memory":
                self.calls += 1
                return z
            case _:
                return z


@pytest.mark.parametrize(
    ("kind", "said"),
    [("batch", "other records"), ("training", "training mode"), ("nan", "not finite"), ("size", "shape"),
     ("memory", "change their own")],
)  # fmt: skip
def test_features_that_would_break_the_bound_are_refused(kind: str, said: str) -> None:
    module = _Broken(kind)
    if kind == "batch":
        module.norm.eval()
    with pytest.raises(PrivacyError, match=said):
        check_encoder(TorchEncoder(module=module), SCHEMA)


def test_sound_features_pass() -> None:
    check_encoder(TorchEncoder(module=_Broken("sound")), SCHEMA)


def test_public_training_data_of_features_are_assumptions_of_the_promise() -> None:
    module = _Broken("sound")
    module.provenance = "USPS"
    assert "USPS" in TorchEncoder(module=module).assumptions[0]
