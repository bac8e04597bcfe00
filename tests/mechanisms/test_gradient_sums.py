"""The clipped gradient sum: three engines agree, nothing exceeds its bound, and what couples records is refused."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dpgm.mechanisms.per_record import clipped_gradient_sum, sensitivity, trainable
from dpgm.privacy.guarantee import PrivacyError


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def fresh(module, seed=0):
    """The module with weights from a generator of its own."""
    source = rng(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=source))
    return module


class Twice(nn.Module):
    """One layer called twice, a frozen layer, and a layer that is never called."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer, self.unused = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(2, 2)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x):
        return self.outer(self.frozen(torch.tanh(self.inner(torch.tanh(self.inner(x))))))


class OwnParameter(nn.Module):
    """A parameter outside any known layer."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(torch.tanh(x) * self.scale)


def squared(net, x, y):
    return (net(x).flatten(1) - y.flatten(1)).square().sum(1)


def mlp():
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6, bias=False), nn.Tanh(), nn.Linear(6, 3))


def decoder():
    return nn.Sequential(
        nn.Linear(3, 2 * 16),
        nn.Unflatten(1, (2, 4, 4)),
        nn.GroupNorm(2, 2),
        nn.Tanh(),
        nn.ConvTranspose2d(2, 4, 4, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 2, 3, padding=1, groups=2),
    )


def sequence():
    return nn.Sequential(nn.Embedding(6, 4), nn.LayerNorm(4), nn.Linear(4, 3), nn.Flatten(), nn.Linear(15, 2))


def long_sequence():
    """More positions than the pairwise formula is worth, so the gradients are formed."""
    return nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(40, 2))


CASES = {
    "mlp": (mlp, lambda n: (torch.randn(n, 5, generator=rng(1)), torch.randn(n, 3, generator=rng(2)))),
    "decoder": (decoder, lambda n: (torch.randn(n, 3, generator=rng(1)), torch.rand(n, 2, 8, 8, generator=rng(2)))),
    "sequence": (
        sequence,
        lambda n: (torch.randint(6, (n, 5), generator=rng(1)), torch.randn(n, 2, generator=rng(2))),
    ),
    "long": (long_sequence, lambda n: (torch.randn(n, 20, 2, generator=rng(1)), torch.randn(n, 2, generator=rng(2)))),
    "twice": (Twice, lambda n: (torch.randn(n, 4, generator=rng(1)), torch.randn(n, 3, generator=rng(2)))),
    "own": (OwnParameter, lambda n: (torch.randn(n, 4, generator=rng(1)), torch.randn(n, 3, generator=rng(2)))),
}


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_every_engine_gives_the_sum_of_the_oracle(case, draws):
    build, data = CASES[case]
    net, records = fresh(build()), data(7 * draws)
    oracle = clipped_gradient_sum(squared, net, records, clip_norm=2.0, draws=draws, engine="loop")
    for engine in ("auto", "vmap"):
        found = clipped_gradient_sum(squared, net, records, clip_norm=2.0, draws=draws, engine=engine, chunk=3)
        torch.testing.assert_close(found, oracle, rtol=1e-4, atol=1e-5)
    assert all(p.requires_grad for p in trainable(net).values())


def test_without_clipping_it_is_the_plain_gradient():
    net, (x, y) = fresh(decoder()), CASES["decoder"][1](5)
    found = clipped_gradient_sum(squared, net, (x, y), clip_norm=1e9)
    plain = torch.autograd.grad(squared(net, x, y).sum(), list(net.parameters()))
    torch.testing.assert_close(found.float(), torch.cat([g.flatten() for g in plain]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_one_record_moves_the_sum_by_at_most_the_bound(case):
    build, data = CASES[case]
    net, records = fresh(build()), data(6)
    with_all = clipped_gradient_sum(squared, net, records, clip_norm=0.5)
    without = clipped_gradient_sum(squared, net, [r[:-1] for r in records], clip_norm=0.5)
    assert (with_all - without).norm() <= 0.5 * (1 + 1e-4)


def test_groups_are_clipped_apart_and_cost_their_root_sum_of_squares():
    net, (x, y) = fresh(mlp()), CASES["mlp"][1](1)
    records = (x, 1000 * y)  # a gradient that fills both bounds
    bounds = {"0.": 3.0, "": 4.0}
    found = clipped_gradient_sum(squared, net, records, clip_norm=bounds)
    first = found[: 5 * 7 + 7]
    assert first.norm() == pytest.approx(3, rel=1e-4)
    assert found.norm() == pytest.approx(sensitivity(bounds), rel=1e-4)
    assert sensitivity(bounds) == 5
    equal = clipped_gradient_sum(squared, net, records, clip_norm={"0.": 1.0, "": 1.0})
    assert equal.norm() == pytest.approx(2**0.5, rel=1e-4)  # what two bounds of C cost instead of one


def test_a_record_without_a_finite_gradient_adds_nothing():
    net, (x, y) = fresh(mlp()), CASES["mlp"][1](5)
    clean = clipped_gradient_sum(squared, net, (x[[0, 2, 4]], y[[0, 2, 4]]), clip_norm=1.0)
    x[1], y[3] = float("nan"), float("inf")
    torch.testing.assert_close(clipped_gradient_sum(squared, net, (x, y), clip_norm=1.0), clean)
    assert clipped_gradient_sum(squared, net, (x[1:2], y[1:2]), clip_norm=1.0).abs().sum() == 0


def test_an_empty_batch_gives_zero():
    net, (x, y) = fresh(mlp()), CASES["mlp"][1](2)
    found = clipped_gradient_sum(squared, net, (x[:0], y[:0]), clip_norm=1.0)
    assert found.shape == (sum(p.numel() for p in net.parameters()),)
    assert found.abs().sum() == 0


@pytest.mark.parametrize("case", ["mlp", "decoder"])
def test_bfloat16_keeps_the_bound_and_is_close(case):
    build, data = CASES[case]
    net, records = fresh(build()), data(8)
    full = clipped_gradient_sum(squared, net, records, clip_norm=1.0)
    half = clipped_gradient_sum(squared, net, records, clip_norm=1.0, dtype=torch.bfloat16)
    assert (half - full).norm() < 0.05 * full.norm()
    for record in range(8):
        one = clipped_gradient_sum(
            squared, net, [r[record : record + 1] for r in records], clip_norm=1.0, dtype=torch.bfloat16
        )
        assert one.norm() <= 1 + 1e-5


# --- guards and their broken twins


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_is_refused_by_name(training):
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).train(training)
    with pytest.raises(PrivacyError, match="layer '1' \\(BatchNorm1d\\)"):
        clipped_gradient_sum(squared, net, CASES["mlp"][1](4), clip_norm=1.0)


def test_dropout_is_refused_in_training_only():
    net = fresh(nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5)))
    with pytest.raises(PrivacyError, match="Dropout"):
        clipped_gradient_sum(squared, net.train(), CASES["mlp"][1](4), clip_norm=1.0)
    clipped_gradient_sum(squared, net.eval(), CASES["mlp"][1](4), clip_norm=1.0)


class Centred(nn.Module):
    """Subtracts the batch mean: the coupling that no layer's name gives away."""

    def forward(self, x):
        return x - x.mean(0)


class Sideways(nn.Module):
    """Works with the records on the second axis, so that the first axis is not theirs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x):
        return self.linear(x.reshape(4, -1, 5).transpose(0, 1)).transpose(0, 1).reshape(-1, 3)


def mean_penalty(net, x, y):
    return squared(net, x, y) + net(x).mean(0).square().sum()


def reduced(net, x, y):
    return squared(net, x, y).mean()


def test_coupling_that_no_name_gives_away_is_refused():
    data = CASES["mlp"][1](8)
    with pytest.raises(PrivacyError, match="changes when others join"):
        clipped_gradient_sum(squared, fresh(nn.Sequential(nn.Linear(5, 3), Centred())), data, clip_norm=1.0)
    with pytest.raises(PrivacyError, match="changes when others join"):
        clipped_gradient_sum(mean_penalty, fresh(nn.Sequential(nn.Linear(5, 3))), data, clip_norm=1.0)
    with pytest.raises(PrivacyError, match="one loss for each row"):
        clipped_gradient_sum(reduced, fresh(mlp()), data, clip_norm=1.0)


@pytest.mark.parametrize("engine", ["layers", "vmap", "loop"])
def test_rounding_lifts_no_record_above_its_bound(engine):
    """Not by one part in ten million, alone or as what a sum of many lacks; the twin clips to the bound itself."""
    rng = torch.Generator().manual_seed(0)
    net = fresh(nn.Sequential(nn.Linear(200, 90), nn.Tanh(), nn.Linear(90, 30)))
    x, y = 100 * torch.randn(60, 200, generator=rng), 100 * torch.randn(60, 30, generator=rng)

    def norms():
        def of(a, b):
            return clipped_gradient_sum(squared, net, (x[a:b], y[a:b]), clip_norm=0.1, engine=engine).double()

        moves = [*(of(i, i + 1) for i in range(60)), of(0, 60) - of(1, 60)]
        return torch.stack([v.norm() for v in moves]) / 0.1

    assert norms().max() <= 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpgm.mechanisms.per_record._HAIR", 0.0)
        assert norms().max() > 1


@pytest.mark.parametrize("engine", ["layers", "vmap"])
@pytest.mark.parametrize("bias", [True, False])
def test_small_errors_that_meet_large_inputs_are_clipped(engine, bias):
    """The square of 2e-23 is no float32: a norm of inputs times a norm of errors would be 0, and nothing clipped."""
    for net, x in (
        (nn.Linear(3, 2, bias=bias), torch.full((2, 3), 1e18)),
        (nn.Sequential(nn.Linear(20, 30, bias=bias), nn.Flatten()), torch.full((2, 2, 20), 1e18)),
        (nn.Sequential(nn.Conv2d(8, 40, 3, bias=bias), nn.Flatten()), torch.full((2, 8, 5, 5), 1e18)),
    ):
        total = clipped_gradient_sum(
            lambda net, x: 2e-23 * net(x).flatten(1).sum(1), net, (x,), clip_norm=1e-6, engine=engine
        )
        assert 0 < total.double().norm() <= 2e-6
    net, x = nn.Linear(20, 30, bias=False), torch.tensor([1e-25, 1.0])[None, :, None].expand(2, 2, 20)
    given = torch.tensor([1e18, 1e-30])  # large errors where inputs are small, and the other way round
    total = clipped_gradient_sum(
        lambda net, x: (net(x).sum(2) * given).sum(1), net, (x,), clip_norm=1e-9, engine=engine
    )
    assert 0 < total.double().norm() <= 2e-9


class Trailing(nn.Module):
    """Adds a ten-thousandth of the record before to each: the first one hears of nobody."""

    def forward(self, x):
        return x + 1e-4 * torch.cat([torch.zeros_like(x[:1]), x[:-1]])


def small_penalty(net, x, y):
    return squared(net, x, y) + 1e-3 * net(x).mean(0).square().sum()


def test_faint_coupling_is_refused_too():
    """It moves each record's gradient by less than a hundredth, and the sum of a thousand of them by several bounds."""
    data = CASES["mlp"][1](8)
    for loss, net in (
        (small_penalty, nn.Sequential(nn.Linear(5, 3))),
        (squared, nn.Sequential(nn.Linear(5, 3), Trailing())),
    ):
        with pytest.raises(PrivacyError, match="changes when others join"):
            clipped_gradient_sum(loss, fresh(net), data, clip_norm=1.0)


class Before(nn.Module):
    """Couples records before its only layer, where no gradient tells."""

    def __init__(self, kind):
        super().__init__()
        self.linear, self.kind = nn.Linear(5, 3), kind

    def forward(self, x):
        if self.kind == "centred":
            return self.linear((x - x.mean(0)) / (x.std(0) + 1e-3))
        sign = torch.sign(x[:, 0].max() - 50) if self.kind == "sign" else 1.0
        return self.linear(x * sign) if self.kind != "detached" else self.linear(x) * x.detach().mean().abs()


@pytest.mark.filterwarnings("ignore:std")  # of one record
@pytest.mark.parametrize("kind", ["centred", "sign", "detached"])
def test_coupling_before_the_first_layer_is_refused(kind):
    """The sign changes no norm of any gradient; statistics of one record alone are not even finite."""
    x, y = CASES["mlp"][1](8)
    x[5, 0] = 100.0  # none of the first two
    with pytest.raises(PrivacyError, match="changes when others join"):
        clipped_gradient_sum(squared, fresh(Before(kind)), (x, y), clip_norm=1.0)
    clipped_gradient_sum(squared, fresh(Before("none")), (x, y), clip_norm=1.0)


def test_a_million_aligned_gradients_are_summed_to_within_one_record():
    """In float32 the sum itself rounds by a tenth of a record; here to a thousandth."""
    net, n = nn.Linear(1, 1, bias=False), 300_000
    net.weight.data.fill_(0.0)

    def total(n):
        x = torch.full((n, 1), 0.3)
        return float(clipped_gradient_sum(lambda net, x: net(x)[:, 0], net, (x,), clip_norm=0.1))

    assert abs(total(n) - total(n - 1)) <= 0.1 * (1 + 1e-3)


@pytest.mark.parametrize("where", ["", "mkldnn", "mkldnn.matmul", "mkldnn.conv", "old"])
def test_fewer_digits_are_refused(where):
    """In a process of its own: torch does not give back the older setting once the newer ones were used."""
    place = f"torch.backends.{where}".rstrip(".")
    setting = "torch.set_float32_matmul_precision('medium')" if where == "old" else f"{place}.fp32_precision = 'bf16'"
    code = f"""
import torch
from dpgm.mechanisms.coupling import refuse_fewer_digits
from dpgm.privacy.guarantee import PrivacyError
refuse_fewer_digits()
{setting}
try:
    refuse_fewer_digits()
except PrivacyError as error:
    assert "fewer digits" in str(error)
else:
    raise SystemExit("not refused")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_records_without_a_finite_gradient_are_no_coupling():
    net, (x, y) = fresh(mlp()), CASES["mlp"][1](4)
    for row in (0, 1):
        broken = x.clone()
        broken[row] = torch.inf
        rest = [i for i in range(4) if i != row]
        kept = clipped_gradient_sum(squared, net, (x[rest], y[rest]), clip_norm=1.0)
        torch.testing.assert_close(clipped_gradient_sum(squared, net, (broken, y), clip_norm=1.0), kept)


class Remembering(nn.Linear):
    """Keeps the mean of what it has read, as a buffer of its own."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("seen", torch.zeros(sizes[0]))

    def forward(self, input):
        self.seen = input.detach().mean(0)
        return super().forward(input)


@pytest.mark.parametrize("engine", ["auto", "loop"])
def test_a_model_that_keeps_something_of_records_is_refused(engine):
    """Its buffers and weights are released with the rest, and no noise is on what they keep."""
    x, y, shrinking = torch.ones(6, 5), torch.zeros(6, 3), nn.Embedding(4, 3, max_norm=0.1)
    with pytest.raises(PrivacyError, match="changes its own weights or buffers"):
        clipped_gradient_sum(squared, Remembering(5, 3), (x, y), clip_norm=1.0, engine="loop")
    with pytest.raises(PrivacyError, match="changes its own weights or buffers"):
        clipped_gradient_sum(squared, shrinking, (torch.arange(6) % 4, y), clip_norm=1.0, engine=engine)


def test_the_engines_that_see_one_record_at_a_time_cannot_be_coupled():
    net, (x, y) = fresh(nn.Sequential(nn.Linear(5, 3), Centred())), CASES["mlp"][1](4)
    for engine in ("vmap", "loop"):
        both = clipped_gradient_sum(squared, net, (x, y), clip_norm=1.0, engine=engine)
        less = clipped_gradient_sum(squared, net, (x[:-1], y[:-1]), clip_norm=1.0, engine=engine)
        assert (both - less).norm() <= 1 + 1e-5


def test_layers_that_are_changed_in_place_are_left_to_vmap():
    net, records = fresh(nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3))), CASES["mlp"][1](4)
    oracle = clipped_gradient_sum(squared, net, records, clip_norm=1.0, engine="loop")
    torch.testing.assert_close(clipped_gradient_sum(squared, net, records, clip_norm=1.0), oracle)
    with pytest.raises(ValueError, match="works in place"):
        clipped_gradient_sum(squared, net, records, clip_norm=1.0, engine="layers")


@pytest.mark.parametrize("bound", [0.0, 1e-25, -1.0, float("inf"), float("nan"), {}, {"0.": 1.0}])
def test_bounds_that_bound_nothing_are_refused(bound):
    with pytest.raises(PrivacyError, match="clip_norm"):
        clipped_gradient_sum(squared, fresh(mlp()), CASES["mlp"][1](2), clip_norm=bound)


def test_records_of_unequal_length_are_refused():
    x, y = CASES["mlp"][1](4)
    with pytest.raises(ValueError, match="differ in length"):
        clipped_gradient_sum(squared, fresh(mlp()), (x, y[:3]), clip_norm=1.0)
    with pytest.raises(ValueError, match="draws=3"):
        clipped_gradient_sum(squared, fresh(mlp()), (x, y), clip_norm=1.0, draws=3)


def test_the_classifier_and_generator_of_the_library_have_formulas():
    from dpgm.nets.classifiers import SmallCNN

    net = SmallCNN(height=8, width=8, channels=1, n_classes=3, rng=rng())
    x, y = torch.rand(5, 1, 8, 8, generator=rng(1)), torch.tensor([0, 1, 2, 0, 1])

    def loss(net, x, y):
        return F.cross_entropy(net(x), y, reduction="none")

    found = clipped_gradient_sum(loss, net, (x, y), clip_norm=0.1, engine="layers")
    oracle = clipped_gradient_sum(loss, net, (x, y), clip_norm=0.1, engine="loop")
    torch.testing.assert_close(found, oracle, rtol=1e-4, atol=1e-6)
