"""Audits: every shipped mechanism stands, every broken twin falls, and the published counterexamples hold.

H0: the stated price holds. Confidence 1 - 1e-6 for each audit of a sound mechanism, so that is the false-alarm rate;
the twins fall at that confidence too, with the numbers of runs stated here.
"""

import json
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dpgm.cli import main
from dpgm.evaluation.audit import TWINS, audit, audit_method, one_step, tie
from dpgm.evaluation.audit import published as counterexamples
from dpgm.evaluation.audit.mechanisms import weaker
from dpgm.evaluation.audit.methods import TINY, asked, worst_pair
from dpgm.mechanisms.cells import CellKNorm, CellMoments
from dpgm.mechanisms.gradient import PoissonGradient
from dpgm.mechanisms.moments import CodeMoments, SecondMoment
from dpgm.mechanisms.noise import DiscreteGaussian, Gaussian, KNorm, Laplace
from dpgm.mechanisms.per_record import clipped_gradient_sum
from dpgm.mechanisms.projection import NoisyRecords, ShuffledRecords, SlicedProjection
from dpgm.mechanisms.queries import ClippedSum, Histogram
from dpgm.mechanisms.scatter import CellScatter, MatrixLaplace
from dpgm.mechanisms.tables import Cells, Marginals
from dpgm.methods.embedding import DPMERF
from dpgm.methods.vae import DP2VAE
from dpgm.privacy.guarantee import Budget, Evidence, PrivacyError, Relation
from dpgm.privacy.mechanism import NoiseSource
from dpgm.schema import Rows

ADD, REPLACE = Relation.ADD_REMOVE, Relation.REPLACE
SURE = 1 - 1e-6
BUDGET = Budget(epsilon=1.0, delta=1e-5)


def x_of(rows: Rows) -> Any:
    return rows["x"]


def data(*x: Any) -> Rows:
    """Records with a vector, a label and a table row."""
    vectors = np.array(x, np.float64).reshape(-1, 3)
    label = (vectors[:, 0] > 0).astype(np.int64)
    return Rows(x=vectors, label=label, c=label, table=np.clip(vectors[:, :2], 0, 1))


FAR, ZERO = (9.0, 0.0, 0.0), (0.0, 0.0, 0.0)
SUM = ClippedSum(vectors=x_of, dim=3, clip_norm=1.0)
COUNTS = Histogram(column="c", bins=2)
CELLS = (Cells(edges=(0.0, 0.5, 1.0)), Cells(edges=(0.0, 1.0)))
QUERIES: dict[str, Any] = {
    "clipped sum": SUM,
    "histogram": COUNTS,
    "second moment": SecondMoment(vectors=x_of, dim=3, radius=1.0),
    "code moments": CodeMoments(codes=x_of, latent=3, n_classes=2, radius=1.0),
    "cell moments": CellMoments(look=lambda r: (r["label"], r["x"]), dim=3, n_cells=2, radius=1.0),
    "marginals": Marginals(cells=CELLS, blocks=((0,), (0, 1)), weights=(1.0, 2.0)),
}


@pytest.mark.parametrize("relation", Relation)
@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES.keys())
def test_gaussian_releases_stand_and_half_noise_falls(query: Any, relation: Relation):
    """100,000 runs a side at mu = 0.5; the query is asked how far it moves, so a wrong sensitivity would fall too."""
    release = Gaussian(query=query, noise_std=2 * query.sensitivity(relation))
    pair = (data(ZERO, FAR), data(ZERO) if relation is ADD else data(ZERO, (0.0, 9.0, 0.0)))
    found = audit(release, *pair, relation=relation, confidence=SURE, weakest=False)
    assert not found.beaten, found.text()
    assert found.reach is not None
    assert 0.7 < found.reach <= 1
    less = audit(
        weaker(release, 0.35), *pair, relation=relation, cost=release.cost(relation), confidence=SURE, weakest=False
    )
    assert less.beaten, less.text()


OTHERS: dict[str, tuple[Any, Relation, float]] = {
    "laplace": (Laplace(query=COUNTS, scale=1.0), ADD, 0.5),
    "k-norm": (KNorm(query=SUM, scale=1.0), ADD, 0.2),
    "cell k-norm": (CellKNorm(query=QUERIES["cell moments"], scale=1.0), ADD, 0.2),
    "matrix laplace": (
        MatrixLaplace(
            query=CellScatter(look=lambda r: (r["label"], r["x"]), dim=3, n_cells=2, radius=1.0, count_share=0.5),
            scale=1.0,
        ),
        ADD,
        0.2,
    ),
    "discrete gaussian": (DiscreteGaussian(query=Histogram(column="c", bins=2), sigma=1.0), ADD, 0.2),
    "slices": (SlicedProjection(vectors=x_of, dim=3, noise_std=2.0, slices=2, slice_dim=2), REPLACE, 0.2),
    "noisy records": (NoisyRecords(vectors=x_of, dim=3, noise_std=2.0), REPLACE, 0.2),
    "shuffled records": (ShuffledRecords(vectors=x_of, dim=3, noise_std=2.0, records=5), REPLACE, 0.2),
    "gradient": (PoissonGradient(rate=0.2, noise_multiplier=2.0, size=10), ADD, 0.35),
    "whole gradient": (PoissonGradient(rate=1.0, noise_multiplier=4.0, size=10), ADD, 0.5),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_mechanisms_stand_and_less_noise_falls(name: str):
    """1,000 calls a side where a mechanism is called run by run, 20,000 runs of 20 steps for gradients."""
    mechanism, relation, share = OTHERS[name]
    others = [(-9.0, 0.0, 0.0)] * (4 if name == "shuffled records" else 0)
    replaced = data(*others, FAR), data(*others, (-9.0, 0.0, 0.0))
    pair = replaced if relation is REPLACE else (data(ZERO, FAR), data(ZERO))
    terms: dict[str, Any] = {
        "relation": relation,
        "delta": 0.0 if name in ("laplace", "k-norm", "cell k-norm", "matrix laplace") else 1e-5,
        "calls": 20 if "gradient" in name else 1,
        "trials": 20_000 if name == "laplace" or "gradient" in name else 1_000,
        "confidence": SURE,
        "weakest": False,
    }
    found = audit(mechanism, *pair, **terms)
    assert not found.beaten, found.text()
    less = audit(weaker(mechanism, share), *pair, cost=mechanism.cost(relation), **terms)
    assert less.beaten, less.text()


@pytest.mark.parametrize("name", TWINS)
def test_every_twin_falls_and_its_sound_form_stands(name: str):
    """600 calls, or 100,000 vectorised runs, on each side."""
    trials = 100_000 if name in ("half-noise", "batch-norm", "missing-clip") else 600
    twin, sound = TWINS[name](BUDGET, trials=trials, confidence=SURE)
    assert twin.beaten, twin.text()
    assert twin.evidence is Evidence.REFUTED
    assert twin.verdict.startswith("BEATEN: epsilon >= ")
    assert not sound.beaten, sound.text()
    assert sound.evidence is Evidence.PROVED
    assert sound.verdict == f"not beaten (up to {sound.ceiling:.3g})"


def test_slices_themselves_are_sold_under_add_remove(monkeypatch: pytest.MonkeyPatch):
    """What `slicing --mode paper` releases: the class refuses a price, and the number of rows gives a record away."""
    seen: list[Any] = []

    def watch(mechanism: Any, *rows: Rows, **terms: Any) -> Any:
        seen.append((mechanism, terms["relation"], [len(r) for r in rows]))
        return audit(mechanism, *rows, **terms)

    monkeypatch.setattr("dpgm.evaluation.audit.twins.audit", watch)
    twin, _ = TWINS["slicing-add-remove"](Budget(epsilon=4.0, delta=1e-5), trials=1_000, confidence=SURE)
    assert [(type(m), relation, lengths) for m, relation, lengths in seen] == [
        (SlicedProjection, ADD, [2, 1]),
        (SlicedProjection, REPLACE, [1, 1]),
    ]
    with pytest.raises(PrivacyError, match="the number of rows tells"):
        seen[0][0].cost(ADD)
    assert twin.stated.found == pytest.approx(twin.ceiling) == pytest.approx(3.4, abs=0.1)
    assert not twin.stated.beaten  # at the stated delta so few calls show less than 4
    assert twin.best.beaten


def test_shuffled_records_of_a_method_are_audited_among_as_many_as_it_declares(capsys: pytest.CaptureFixture[str]):
    words = ["audit", "slicing", "--mode", "full-rank", "--shuffled", "--relation", "replace", "--trials", "50"]
    assert main([*words, "--no-weakest"]) == 0
    said = capsys.readouterr().out
    assert "shuffled-records, 1 call, replace one record" in said
    assert "99 records like the second of" in said
    assert main(["audit", "merf", "--shuffled"]) == 3
    assert "leave --shuffled out" in capsys.readouterr().err
    release = ShuffledRecords(vectors=x_of, dim=3, noise_std=2.0, records=2)
    with pytest.raises(PrivacyError, match="equal records"):
        audit(release, data(ZERO, FAR, ZERO), data(ZERO, ZERO, ZERO), relation=REPLACE)


def test_an_audit_reports_trials_power_and_the_weakest_twin():
    release = Gaussian(query=SUM, noise_std=2.0)
    found = audit(release, data(ZERO, FAR), data(ZERO), relation=ADD)
    assert (found.trials, found.held_out, found.confidence) == (100_000, 50_000, 0.999)
    assert found.twin is not None
    assert float(found.twin.split()[0]) >= 0.6  # at mu = 0.5 these runs catch 0.8 in most attempts
    assert found.evidence is Evidence.PROVED
    assert found.to_json()["verdict"] == found.verdict
    for word in ("trials", "power", "pair", "verdict", "99.9"):
        assert word in found.text()
    assert 8 < found.ceiling < 9


def test_a_mechanism_of_ones_own_needs_a_score():
    class Loud:
        def cost(self, relation: Relation) -> Any:
            return Gaussian(query=SUM, noise_std=1.0).cost(relation)

        def __call__(self, rows: Rows, noise: NoiseSource) -> int:
            return len(rows)

    pair = (data(ZERO, ZERO), data(ZERO))
    with pytest.raises(PrivacyError, match="pass score="):
        audit(Loud(), *pair, relation=ADD)
    assert audit(Loud(), *pair, relation=ADD, score=float, trials=3_000).beaten
    with pytest.raises(PrivacyError, match="same answer"):
        audit(Gaussian(query=SUM, noise_std=1.0), data(ZERO), data(), relation=ADD)


# --- methods ---


def test_method_audit_covers_what_the_method_asks():
    method = DPMERF(dim=16)  # type: ignore[call-arg]
    [found] = audit_method(method, budget=BUDGET, trials=20_000, confidence=SURE, weakest=False)
    assert not found.beaten
    assert found.stated.claimed == pytest.approx(1, rel=1e-6)
    assert found.reach is not None
    assert 0.9 < found.reach <= 1


def small_vae(privacy: Any) -> DP2VAE:
    return DP2VAE(privacy=privacy, warm_start="none", steps=6, rate=0.5, latent=2, hidden=4, local_steps=2)


def test_the_vae_that_hears_other_records_moves_further_than_its_bound():
    """The method's own encoder: one more picture moves the sum of clipped gradients by more than C."""
    reaches = {}
    for form in ("local", "published"):
        method = small_vae(form)
        gradient = asked(method, method.plan(TINY, relation=ADD, budget=BUDGET))[0][0]
        assert isinstance(gradient, PoissonGradient)
        rows, neighbour, _ = worst_pair(gradient, TINY, ADD)
        assert gradient.task is not None
        found = audit(gradient, rows, neighbour, relation=ADD, trials=100, weakest=False)
        reaches[form] = found.reach
    assert reaches["local"] <= 1 + 1e-6
    assert reaches["published"] > 1.2  # 2.1 to 3.7 in thirty trials


# --- published counterexamples ---


def test_one_step_of_pge_as_published_is_beaten_whatever_it_claims():
    found = one_step(trials=4_000, confidence=SURE)
    assert found.beaten
    assert found.stated.found > 5
    assert one_step(epsilon=0.01, trials=4_000).stated.found > 5
    with pytest.raises(PrivacyError, match="above 0"):
        one_step(epsilon=0.0)


def test_slope_of_the_printed_loss_is_its_derivative():
    rng = np.random.default_rng(0)
    x, v = rng.normal(size=(3, 5)), rng.normal(size=(2, 3, 5))
    r = counterexamples.randomised_response(v, 1.0, 3, rng)
    assert {tuple(row) for row in r.reshape(-1, 5)} <= {tuple(row) for row in v.reshape(-1, 5)}

    def loss(theta: torch.Tensor, run: int) -> torch.Tensor:
        def score(point: torch.Tensor) -> torch.Tensor:
            return -theta * point

        parts = []
        for i in range(3):
            point, ri, vi = (torch.from_numpy(a) for a in (x[i], r[run, i], v[run, i]))
            jacobian = torch.autograd.functional.jacobian(score, point, create_graph=True)
            parts.append(ri @ jacobian @ ri + (vi @ score(point)).square() / 2)
        return torch.stack(parts).mean()

    for run in range(2):
        theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(loss(theta, run), theta)
        assert float(slope) == pytest.approx(counterexamples.printed_slope(0.7, x, v, r)[run])


def test_randomised_response_keeps_with_its_probability():
    """4,000 vectors: five standard errors, false alarm 6e-7."""
    rng = np.random.default_rng()
    v = rng.normal(size=(400, 10, 4))
    kept = (counterexamples.randomised_response(v, 1.0, 10, rng) == v).all(2).mean()
    p = math.e / (math.e + 9)
    assert abs(kept - p) < 5 * math.sqrt(p * (1 - p) / 4000)


def test_tie_beats_the_published_vae_and_not_the_local_one():
    published = tie("published", trials=2_000, confidence=SURE)
    assert published.stated.found > 4  # nominal 1; 2,000 runs a side could show 4.8
    assert published.evidence is Evidence.REFUTED
    local = tie("local", trials=2_000, confidence=SURE)
    assert not local.beaten
    assert local.evidence is Evidence.PROVED


def test_closed_form_of_the_tie_is_the_engines():
    """The vectorised decoder step against `clipped_gradient_sum` on a linear decoder."""
    rng = np.random.default_rng(0)
    kinds, w, z = np.array([[0.9, 0.0], [0.0, 1.0]]), rng.normal(size=(2, 2)), rng.normal(size=(2, 2)) * 2
    counts = np.array([[3, 1], [0, 4]])
    found = counterexamples._clipped_sums(w, kinds, z, counts)
    for run in range(2):
        net = nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            net.weight.copy_(torch.from_numpy(w[run])[:, None])
        index = np.repeat([0, 1], counts[run])
        x, code = torch.from_numpy(kinds[index]).float(), torch.from_numpy(z[run][index]).float()[:, None]
        exact = clipped_gradient_sum(
            lambda m, c, x: (x - m(c)).square().sum(1) / 2, net, (code, x), clip_norm=1.0, engine="loop"
        )
        assert np.allclose(exact.numpy(), found[run], atol=1e-5)


# --- the command ---


def test_command_prints_json_and_its_exit_code_tells_a_broken_proof(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from dpgm.cli import audit as command

    assert main(["audit", "pge", "--privacy", "published", "--trials", "2000", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["audits"][0]["beaten"]
    assert value["proved_and_beaten"] == []
    assert main(["audit", "half-noise"]) == 0
    text = capsys.readouterr().out
    assert "BEATEN" in text
    assert "not beaten (up to " in text

    def proved(**_: Any) -> Any:
        import dataclasses

        return dataclasses.replace(one_step(trials=500), evidence=Evidence.PROVED)

    monkeypatch.setattr(command, "one_step", proved)
    assert main(["audit", "pge", "--privacy", "published"]) == command.BEATEN == 5
    assert "PROVED, BUT BEATEN" in capsys.readouterr().out


IDLE = {
    "pge --privacy published --mode nonsense": "--mode nonsense",
    "pge --privacy=published --delta=0.5": "--delta 0.5",
    "pge --privacy published --relation add-remove": "--relation add-remove",
    "pge --privacy published --runs 2 --no-weakest": "--runs 2, --no-weakest",
    "pge --privacy published --canaries 5": "--canaries 5",
    "pge --privacy published --kind canary --canaries 5": "--canaries 5",
    "half-noise --relation replace": "--relation replace",
    "twins --kind canary": "--kind canary",
    "merf --runs 2": "--runs 2",
    "merf --kind mechanism --canaries 9": "--canaries 9",
    "labeller --canaries 80 --trials 9": "--trials 9",
    "merf --quick": "--quick",
    "all --epsilon 2": "--epsilon 2.0",
}


@pytest.mark.parametrize("words", IDLE)
def test_command_refuses_options_that_it_would_not_hear(
    words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def none(*_: Any, **__: Any) -> Any:
        raise AssertionError("attacked something")

    for work in ("_audits", "_everything"):
        monkeypatch.setattr(f"dpgm.cli.audit.{work}", none)
    assert main(["audit", *words.split()]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert f"{IDLE[words]} would change nothing" in said
    assert re.search(r"allowed are (--\w+, )+--json\. Leave (it|them) out; ", said)


def test_command_names_what_it_knows(capsys: pytest.CaptureFixture[str]):
    assert main(["audit", "nothing"]) == 3
    assert "merf" in capsys.readouterr().err
    assert main(["audit", "merf", "--privacy", "local"]) == 3
    assert main(["audit", "merf", "--trials", "1"]) == 3
