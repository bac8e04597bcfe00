"""Canaries in a run of DP-SGD: the sound form stands, less noise and a missing clip fall.

H0: the plan's promise holds. Confidence 1 - 1e-6 for the sound form. The method is a linear classifier of pixels, so a
run is a matter of a second; those that ship are audited by `dpgm audit all`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from dpgm.evaluation.audit import audit_canaries
from dpgm.evaluation.audit.canaries import FAULTS, SMALL, less_noise, no_clip, watched
from dpgm.mechanisms.gradient import ModuleGradient, PoissonGradient
from dpgm.methods.base import Method, Plan, Resume, Talk
from dpgm.methods.classifier import gradient_plan
from dpgm.methods.embedding import DPMERF
from dpgm.methods.vae import DP2VAE
from dpgm.privacy.guarantee import Budget, Evidence, PrivacyError, Relation
from dpgm.privacy.mechanism import NoiseSource

ADD = Relation.ADD_REMOVE
BUDGET = Budget(epsilon=1.0, delta=1e-5)
SURE = 1 - 1e-6


@dataclass(frozen=True, kw_only=True)
class Linear(Method):
    name: ClassVar[str] = "linear"
    sources: ClassVar[tuple[Any, ...]] = ()

    steps: int = 4
    rate: float = 1.0

    def plan(self, schema: Any, *, relation: Relation, budget: Budget) -> Plan:
        return gradient_plan(
            schema, relation=relation, budget=budget, rate=self.rate, steps=self.steps, name="linear-gradient"
        )

    def talk(self, plan: Plan, *, rng: np.random.Generator, resume: Resume) -> Talk:
        net = nn.Linear(256, 10)
        nn.init.zeros_(net.weight)
        nn.init.zeros_(net.bias)
        task = ModuleGradient(
            module=net,
            loss=lambda m, x, y: functional.cross_entropy(m(x), y, reduction="none"),
            clip_norm=0.5,
            inputs=lambda x, y, coins: (x.flatten(1) - 0.5, y),
        )
        [(mechanism, calls)] = plan.items
        assert isinstance(mechanism, PoissonGradient)
        for _ in range(calls):
            gradient = torch.from_numpy((yield dataclasses.replace(mechanism, task=task))).float()
            with torch.no_grad():
                net.weight -= 0.1 * gradient[:2560].view(10, 256)
        return {}

    def train(self, release: Any, **_: Any) -> Any: ...

    def restore(self, release: Any, tensors: Any) -> Any: ...


def test_a_sound_method_stands_and_broken_twins_fall():
    """Two runs with 300 canaries; a tenth of the noise gives epsilon over 10, no clip a signal of 14 C."""
    terms: dict[str, Any] = {"budget": BUDGET, "canaries": 300, "runs": 2, "weakest": False}
    found = audit_canaries(Linear(), confidence=SURE, **terms)
    assert not found.beaten, found.text()
    assert found.evidence is Evidence.PROVED
    assert found.kind == "canary"
    assert "2 runs, 600 canaries" in found.text()
    for fault, broken in FAULTS.items():
        twin = audit_canaries(Linear(), broken=broken, fault=fault, **terms)
        assert twin.beaten, twin.text()
        assert twin.evidence is Evidence.REFUTED
        assert fault in twin.name


def test_scores_tell_canaries_apart_about_as_well_as_the_noise_allows():
    """mu of epsilon 1 is 0.27: with a hundredth of the noise the two kinds lie far apart, with all of it about mu."""
    plan = Linear().plan(SMALL, relation=ADD, budget=BUDGET)
    scores, coins = watched(Linear(), plan, 200, broken=less_noise(0.01), noise=NoiseSource())
    assert scores[coins].min() > scores[~coins].max()
    assert abs(scores.mean() - 0.5) < 0.1  # estimates of 0 and 1, drawn together by the noise that is expected
    full, coins = watched(Linear(), plan, 200, broken=None, noise=NoiseSource())
    assert abs(full[coins].mean() - full[~coins].mean()) < full.std()


def test_weakest_twin_is_named():
    found = audit_canaries(Linear(), budget=BUDGET, canaries=300)
    assert found.twin in ("0.25 of the noise", "0.1 of the noise", "0.05 of the noise")


def test_missing_clip_keeps_the_noise():
    plan = Linear().plan(SMALL, relation=ADD, budget=BUDGET)
    asked = Linear().talk(plan, rng=np.random.default_rng(0), resume=Resume(used={})).send(None)
    assert isinstance(asked, PoissonGradient)
    free = no_clip(asked)
    assert asked.task is not None
    assert free.task is not None
    assert free.task.bound > 1000 * asked.task.bound
    assert free.noise_multiplier * free.task.bound == pytest.approx(asked.noise_multiplier * asked.task.bound)


def test_what_cannot_be_followed_is_refused():
    with pytest.raises(PrivacyError, match="10 or more"):
        audit_canaries(Linear(), budget=BUDGET, canaries=2)
    with pytest.raises(PrivacyError, match="asks no sampled gradients"):
        audit_canaries(DPMERF(dim=16), budget=BUDGET, canaries=20, weakest=False)  # type: ignore[call-arg]
    published = DP2VAE(privacy="published", steps=2, rate=1.0, hidden=4)
    with pytest.raises(PrivacyError, match="of this form"):
        audit_canaries(published, budget=BUDGET, canaries=20, weakest=False)


def test_a_decoder_whose_records_infer_their_own_codes_can_be_followed():
    method = DP2VAE(steps=6, rate=1.0, hidden=32, warm_start="none")
    plan = method.plan(SMALL, relation=ADD, budget=BUDGET)
    scores, coins = watched(method, plan, 60, broken=less_noise(0.005), noise=NoiseSource())
    assert scores[coins].min() > scores[~coins].max()
