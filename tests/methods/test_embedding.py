"""Mean embeddings: one release, priced right under both relations, from features that treat each record alone."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dpgm
from dpgm.mechanisms.noise import Gaussian, KNorm
from dpgm.methods.base import Method
from dpgm.methods.embedding import GeneratorModel
from dpgm.methods.encoder import TorchEncoder, check_encoder
from dpgm.nets.classifiers import to_unit
from dpgm.nets.features import FeatureMap
from dpgm.nets.generators import LabelledGenerator
from dpgm.nets.procedural import procedural_images
from dpgm.privacy.guarantee import Budget, Evidence, PrivacyError, Relation
from dpgm.schema import ImageSchema, SchemaError

SCHEMA = ImageSchema(height=8, width=8, channels=1, classes=("a", "b"), size=200)
BUDGET = Budget(epsilon=1.0, delta=1e-5)
QUICK: list[Method] = [dpgm.DPMERF(dim=100, steps=3), dpgm.DPMEPF(steps=3), dpgm.DPMEPF(steps=3, features="rff")]


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
    "method",
    [dpgm.DPMERF(dim=200, steps=150, lr=3e-3), dpgm.DPMEPF(steps=20), dpgm.DPMEPF(steps=20, ensemble=2)],
    ids=["merf", "mepf", "ensemble"],
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
            case "draws":
                self.rng = getattr(self, "rng", torch.Generator().manual_seed(0))
                return z + torch.randn(z.shape, generator=self.rng)
            case _:
                return z


@pytest.mark.parametrize(
    ("kind", "said"),
    [("batch", "other records"), ("training", "training mode"), ("nan", "not finite"), ("size", "shape"),
     ("memory", "change their own"), ("draws", "from call to call"), ("far", "exceed their bound")],
)  # fmt: skip
def test_features_that_would_break_the_bound_are_refused(kind: str, said: str) -> None:
    module = _Broken(kind)
    if kind == "batch":
        module.norm.eval()
    with pytest.raises(PrivacyError, match=said):
        check_encoder(TorchEncoder(module=module), SCHEMA, bound=1.0 if kind == "far" else None)


def test_sound_features_pass() -> None:
    check_encoder(TorchEncoder(module=_Broken("sound")), SCHEMA, bound=8.0)


def test_public_training_data_of_features_are_assumptions_of_the_promise() -> None:
    module = _Broken("sound")
    module.provenance = "USPS"
    assert "USPS" in TorchEncoder(module=module).assumptions[0]


def test_a_warm_start_is_nearer_to_pictures_than_a_cold_one() -> None:
    cold, warm = (dpgm.DPMEPF(net="conv", features="rff", hidden=8, warm=steps) for steps in (0, 60))
    features = warm.feature_map(SCHEMA)
    shown = procedural_images(300, height=8, width=8, channels=1, rng=np.random.default_rng(5))
    mean = features(to_unit(shown)).mean(0)
    far: list[float] = []
    for method in (cold, warm):
        net = method.generator(SCHEMA, torch.Generator().manual_seed(0))
        method.start(net, features, torch.zeros(2, features.dim), torch.ones(2))
        drawn = net.eval().sample(torch.arange(200) % 2, rng=torch.Generator().manual_seed(1))
        far.append(float((features(drawn).mean(0) - mean).norm()))
    assert far[1] < 0.7 * far[0]


@pytest.mark.parametrize(
    "options", [{"shrink": True}, {"validation": 0.2}, {"loss": "adam"}, {"net": "conv"}], ids=repr
)
@pytest.mark.parametrize("classes", [1, 2])
def test_every_option_trains_with_and_without_labels(options: dict[str, Any], classes: int) -> None:
    x, y = _two_bars(300)
    method = dpgm.DPMEPF(steps=9, features="rff", hidden=8, **options)
    model = dpgm.fit(method, x, y % classes, epsilon=5.0, delta=1e-5, classes=classes)
    assert model.sample(4, seed=0).images.shape == (4, 8, 8, 1)
    again = method.restore(model.release, model.tensors())
    np.testing.assert_array_equal(again.sample(4, seed=0).images, model.sample(4, seed=0).images)


def test_validation_coordinates_are_part_of_the_one_release() -> None:
    plain, more = (dpgm.DPMEPF(features="rff", validation=v).encoder(SCHEMA) for v in (0.0, 0.2))
    x = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1)).astype(np.uint8)
    assert more.dim == plain.dim + 1000
    assert np.linalg.norm(more(x), axis=1).max() <= 1 + 1e-6
    kept = np.linalg.norm(more(x)[:, :-1000], axis=1) / np.linalg.norm(plain(x), axis=1)
    np.testing.assert_allclose(kept, 1 / math.hypot(1, 0.2), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"moments": 0.0}, "--net conv"),
        ({"moments": 0.0, "net": "conv", "weights": (0.0, 0.0)}, "above 0"),
        ({"weights": (-1.0, 1.0)}, "0 or more"),
        ({"weights": (math.nan, 1.0)}, "0 or more"),
        ({"waves": 65}, "64 cosine coefficients"),
        ({"second": 0.5}, "has layers"),
    ],
)
def test_features_that_would_make_an_empty_model_or_say_nothing_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SchemaError, match=said):
        dpgm.DPMEPF(**options).plan(SCHEMA, relation=Relation.ADD_REMOVE, budget=BUDGET)


@pytest.mark.parametrize("dim", [0, 1, 201])
def test_fourier_features_come_in_pairs(dim: int) -> None:
    with pytest.raises(SchemaError, match="even number"):
        dpgm.DPMERF(dim=dim)


def test_images_without_labels_need_none() -> None:
    x, _ = _two_bars(30)
    model = dpgm.fit(dpgm.DPMERF(dim=10, steps=1), x, classes=1, epsilon=1.0, delta=1e-5)
    assert model.sample(2).images.shape == (2, 8, 8, 1)


class _Plain(LabelledGenerator):
    """Its pictures are its latent vectors."""

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return (0.5 + 0.05 * z).view(-1, 1, 8, 8)


def test_samples_of_one_release_may_vary_more_for_free() -> None:
    images, labels = _two_bars(200)
    model = dpgm.fit(dpgm.DPMERF(dim=100, steps=3), images, labels, classes=("a", "b"), epsilon=1.0, delta=1e-5)

    def spread(temperature: float, movement: float) -> float:
        wanted = dpgm.DPMERF(dim=100, steps=3, temperature=temperature, movement=movement)
        release = dataclasses.replace(model.release, method=model.release.method.retrained(wanted))
        assert release.guarantee == model.guarantee
        drawn = GeneratorModel(release, _Plain(2, 64), temperature=temperature, movement=movement).sample(400, seed=0)
        return float(drawn.images.astype(float).std(0).mean())

    assert spread(4.0, 0.0) == pytest.approx(2 * spread(1.0, 0.0), rel=0.05)
    assert spread(1.0, 1.0) > 1.2 * spread(1.0, 0.0)


def test_an_ensemble_of_one_release_is_free_and_comes_back_as_it_was(tmp_path: Path) -> None:
    images, labels = _two_bars(200)
    model = dpgm.fit(dpgm.DPMERF(dim=100, steps=3), images, labels, classes=("a", "b"), epsilon=1.0, delta=1e-5)
    notes: list[int] = []
    several = model.release.method.retrained(dpgm.DPMERF(dim=100, steps=3, ensemble=3))
    release = dataclasses.replace(model.release, method=several)
    trained = several.train(release, seed=0, on_note=lambda note: notes.append(note.step))
    assert notes == list(range(1, 10))
    assert trained.guarantee == model.guarantee
    trained.save(tmp_path)
    again = dpgm.load(tmp_path)
    assert np.array_equal(again.sample(50, seed=1).images, trained.sample(50, seed=1).images)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"movement": -1.0}, {"movement": math.inf}])
def test_sampling_options_out_of_range_are_refused_before_anything_is_asked(options: dict[str, float]) -> None:
    with pytest.raises(SchemaError, match=r"numbers above 0 for the first two|0 or more"):
        dpgm.DPMERF(**options)  # type: ignore[arg-type]
    with pytest.raises(SchemaError, match=r"numbers above 0 for the first two|0 or more"):
        dpgm.DPMEPF(**options)  # type: ignore[arg-type]
