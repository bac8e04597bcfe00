"""PGE as its paper describes it: a score network trained on raw records, sampled by unadjusted Hamiltonian dynamics."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpgm.mechanisms.perturbed import SOURCE, PerturbedProjections
from dpgm.methods.base import Batch, Method, Model, Note, OnNote, Plan, Release, Resume, Talk, Tensors
from dpgm.methods.options import Above0, AtLeast1
from dpgm.nets.classifiers import to_bytes
from dpgm.nets.codes import Code, VQCode, make_code, short
from dpgm.nets.score import Label, ScoreNet
from dpgm.nets.unet import ScoreUNet
from dpgm.privacy.guarantee import Budget, PrivacyError, Relation, Source
from dpgm.privacy.mechanism import Json
from dpgm.samplers import pge_steps, run, stalled, unadjusted_hmc
from dpgm.samplers.hamiltonian import Metropolis, VelocityLaw
from dpgm.schema import Schema, SchemaError

PARTS = 20
"""Parts of a training; a killed run goes on at the last one that was finished."""
_PIXELS = 50_000
"""Pixels of records in memory at once in training; ten times as many in sampling."""
_SAMPLES = 10_000
"""Pictures whose drawing is part of the expected time and memory: as many as a run draws where it is not told."""


@dataclass(frozen=True, kw_only=True)
class Published(Method):
    """The paper's training and sampling, with what it leaves open as options.

    **Guarantee**: none; evidence REFUTED (docs/proofs/perturbed-projections.md).
    **Source**: Liu et al. 2024, Algorithms 1 and 2.
    **Differs from the paper**: see docs/pge-published.md, which lists every choice that the paper leaves open.

    Attributes:
        net: "unet", that of DP diffusion models (extra `diffusion`), or "small", of 95 thousand weights.
        label: how the network is told the class: a plane "painted" beside the image, "onehot" planes, or a "learned"
            vector.
        residual: codes added to the middle features in training, where sampling has Gaussian noise: "none",
            "thumbnail", or "vq:PATH", a VQ model of public images.
        mask: share of a code's places that are set to 0.
        k: candidates of the randomised response.
        loss: (8) as printed, or what (7) gives by integration by parts.
        steps: training steps.
        batch: records a step.
        lr: learning rate of Adam.
        ema: decay of the moving average of the weights.
        smooth: standard deviation of Gaussian noise added to the images in training, in units of white; 0 in the paper.
        bfloat16: compute products in 16 bits, in training and in sampling.
        rounds: M, rounds of Hamiltonian dynamics, each ended by the accept rule; 10 in the paper.
        n_leapfrog: N, leapfrog steps in a round; 100 in the paper.
        step_size: lambda0, decayed as lambda0 (N / m)^2 in round m.
        step_floor: least step; 0 leaves the printed decay as it is.
        velocity: law of the initial velocity.
        stop_below: end the rounds once three in a row accepted less than this share of the moves; 0 never does.
        metropolis: accept rule: from the line integral of the score, the printed ratio of scores, or none.
    """

    net: Literal["unet", "small"] = "unet"
    label: Label = "painted"
    residual: str = "thumbnail"
    mask: float = 0.75
    k: int = 10
    loss: Literal["printed", "derived"] = "printed"
    steps: int = 300
    batch: AtLeast1 = 64
    lr: Above0 = 1e-3
    ema: float = 0.999
    smooth: float = 0.0
    bfloat16: bool = False
    rounds: int = 6
    n_leapfrog: int = 6
    step_size: float = 1e-5
    step_floor: float = 0.02
    stop_below: float = 0.0
    velocity: VelocityLaw = "gaussian"
    metropolis: Metropolis = "line_integral"

    name: ClassVar[str] = "pge-published"
    sources: ClassVar[tuple[Source, ...]] = (SOURCE,)
    free: ClassVar[frozenset[str]] = frozenset(
        {"rounds", "n_leapfrog", "step_size", "step_floor", "stop_below", "velocity", "metropolis"}
    )

    def to_json(self) -> dict[str, Json]:
        """The configuration as plain JSON values, a file by its last name."""
        return {**super().to_json(), "residual": short(self.residual)}

    def retrained(self, other: Method) -> Self:
        """`other`, if it differs in free options only; a VQ model counts by the name of its file."""
        if isinstance(other, Published) and short(self.residual) == short(other.residual):
            return super(Published, replace(self, residual=other.residual)).retrained(other)
        return super().retrained(other)

    def public_sets(self) -> tuple[str, ...]:
        """Names of the sets that the VQ model was fitted on, as its file says."""
        if not self.residual.startswith("vq:"):
            return ()
        code = self._code()
        return tuple(code.provenance.split(", ")) if isinstance(code, VQCode) else ()

    def _code(self) -> Code | None:
        try:
            return make_code(self.residual)
        except (ValueError, ImportError) as error:
            raise SchemaError(f"pge's published form cannot be built: {error}") from error

    def plan(self, schema: Schema, *, relation: Relation, budget: Budget) -> Plan:
        """One training in parts, at the price that the paper claims for the whole.

        First and last part are single calls, which are made again after a crash; of the others a crash burns one.

        Raises:
            SchemaError: options out of range, a VQ model that is not there, diffusers not installed.
        """
        if min(self.rounds, self.n_leapfrog) < 1 or self.step_size <= 0 or self.step_floor < 0:
            raise SchemaError(
                f"rounds is {self.rounds}, n_leapfrog {self.n_leapfrog}, step_size {self.step_size}, step_floor "
                f"{self.step_floor}; allowed are 1 or more, 1 or more, above 0, and 0 or more"
            )
        if self.stop_below > 1:
            raise SchemaError(f"stop_below is {self.stop_below}; allowed is a share of moves, 0 to 1")
        code = self._code()
        try:
            shape = self._code_shape(schema, code)
            self._untrained(schema, shape)
        except (ValueError, ImportError) as error:
            raise SchemaError(f"pge's published form cannot be built: {error}") from error
        pixels = schema.height * schema.width
        first = PerturbedProjections(
            build=partial(self._untrained, schema, shape),
            epsilon=budget.epsilon,
            code=code,
            mask=self.mask,
            k=self.k,
            steps=self.steps,
            batch=self.batch,
            physical=max(1, _PIXELS // pixels),
            lr=self.lr,
            ema=self.ema,
            loss=self.loss,
            smooth=self.smooth,
            bfloat16=self.bfloat16,
            resumable=True,
            assumptions=(f"the codes saw public data only: {code.provenance}",) if isinstance(code, VQCode) else (),
        )
        parts = min(PARTS, self.steps)
        later = ((replace(first, first=False), parts - 2),) if parts > 2 else ()
        last = ((replace(first, first=False, name=f"{first.name}-last"), 1),) if parts > 1 else ()
        each = 6e-6 * pixels if self.net == "unet" else 1e-6 * pixels  # seconds for one evaluation of one image
        drawing = each * self.rounds * self.n_leapfrog * (2 if self.metropolis == "line_integral" else 1)
        return Plan(
            schema=schema,
            relation=relation,
            budget=budget,
            items=((first, 1), *later, *last),
            details={
                "claimed_epsilon": budget.epsilon,
                "code": list(shape),
                "seconds_to_sample_1000": 1000 * drawing,
            },
            seconds=7 * each * self.steps * self.batch + _SAMPLES * drawing,
            memory_mb=self._memory(schema, first.physical),
        )

    def _memory(self, schema: Schema, physical: int) -> float:
        """Megabytes of training or of drawing, whichever takes more; from measurements at 28, 64 and 256 pixels."""
        pixels = schema.height * schema.width
        slope, score = (0.042, 0.0045) if self.net == "unet" else (0.01, 0.0016)  # megabytes a pixel at work
        if self.bfloat16:
            slope *= 0.65
        batch = 3e-5 * self.batch * math.prod(schema.shape)  # its records and vectors are there at once
        return 400 + max(
            slope * pixels * min(self.batch, physical) + batch, score * pixels * min(_SAMPLES, _at_once(pixels))
        )

    def talk(self, plan: Plan, *, rng: np.random.Generator, resume: Resume) -> Talk:
        """The trained weights and the loss of every step; later parts make up for one that a crash destroyed.

        The last part makes up for all that is missing: it is a single call, so a crash in it does not burn it.
        """
        state, several = resume.state, len(plan.items) > 1
        left = plan.items[1][1] - resume.used.get(1, 0) if len(plan.items) > 2 else 0
        done = 0 if state is None else len(state["loss"])
        if done > self.steps:
            raise PrivacyError(
                f"steps is {self.steps}, but the checkpoint has taken {done} already; go on with the number "
                "of steps that the run began with, or start in another folder"
            )
        while done < self.steps:
            steps = math.ceil((self.steps - done) / ((state is None) + left + several))
            item = 0 if state is None else 1 if left else -1
            left -= item == 1
            mechanism = plan.items[item][0]
            assert isinstance(mechanism, PerturbedProjections)
            state = cast("Tensors", (yield replace(mechanism, steps=steps, state=state)))
            done += steps
            values = _values(state["loss"][-steps:], state["loss"], told=state["loss"])
            yield Note(stage="train", step=done, total=self.steps, values=values, state=state)
        assert state is not None
        return {name: t for name, t in state.items() if name == "loss" or name.startswith("ema.")}

    def train(self, release: Release, *, seed: int, on_note: OnNote | None = None) -> NetworkField:
        """Nothing is left to train; the loss curve of the release is passed on, at most 200 points of it.

        A point ends at a step that was finite: files of curves hold no NaN.
        """
        loss = release.tensors["loss"]
        ends = np.flatnonzero(np.isfinite(loss)) + 1
        ends = ends[np.linspace(0, len(ends), min(200, len(ends)) + 1).round().astype(int)[1:] - 1]
        ends = [*ends[:-1].tolist(), len(loss)]  # steps left out at the end belong to the last point
        for start, end in zip([0, *ends], ends, strict=False):
            if on_note:
                values = _values(loss[start:end], loss[:end], told=loss)
                on_note(Note(stage="train", step=end, total=self.steps, values=values))
        return self.restore(release, {})

    def restore(self, release: Release, tensors: Tensors) -> NetworkField:
        """The network from its weights."""
        shape = tuple(cast("list[int]", release.details["code"]))
        net = self._untrained(release.schema, shape)
        weights = {k.removeprefix("ema."): np.array(t) for k, t in release.tensors.items() if k.startswith("ema.")}
        net.load_state_dict({name: torch.from_numpy(t) for name, t in weights.items()})
        return NetworkField(release, net, self, shape)

    def _code_shape(self, schema: Schema, code: Code | None) -> tuple[int, ...]:
        return (
            () if code is None else tuple(code(torch.zeros(1, schema.channels, schema.height, schema.width)).shape[1:])
        )

    def _untrained(self, schema: Schema, shape: tuple[int, ...]) -> ScoreNet | ScoreUNet:
        """The network with its first weights, which are public and the same for all."""
        common: dict[str, Any] = {
            "channels": schema.channels,
            "n_classes": schema.n_classes,
            "label": self.label,
            "code": shape[0] if shape else 0,
            "rng": torch.Generator().manual_seed(0),
        }
        if self.net == "small":
            return ScoreNet(**common)
        return ScoreUNet(height=schema.height, width=schema.width, **common)


AS_PRINTED = Published()


def _at_once(pixels: int) -> int:
    """Pictures that are drawn together."""
    return max(1, 10 * _PIXELS // pixels)


def _values(part: NDArray[np.float32], so_far: NDArray[np.float32], *, told: NDArray[np.float32]) -> dict[str, float]:
    """The mean loss of a part, and how many steps so far were left out as not finite, where any in `told` was."""
    finite = part[np.isfinite(part)]
    found = {"loss": float(finite.mean(dtype=np.float64))} if len(finite) else {}
    return found | ({"skipped": float(np.isnan(so_far).sum())} if np.isnan(told).any() else {})


class NetworkField(Model):
    """A class-conditional score network and the dynamics that sample it.

    Args:
        release: holds the trained weights.
        net: the network with them.
        options: how it samples.
        shape: of one code, (d, h', w'), or () where there is none.
    """

    def __init__(self, release: Release, net: ScoreNet | ScoreUNet, options: Published, shape: tuple[int, ...]) -> None:
        super().__init__(release)
        self._net, self._options, self._shape = net.eval().requires_grad_(False), options, shape

    def tensors(self) -> Tensors:
        """Nothing beside the release."""
        return {}

    def score(self, y: Tensor, code: Tensor | None) -> Any:
        """The score of classes `y` [n] with codes [n, d, h', w'], as a function of images [n, c, h, w]."""

        def field(x: Tensor) -> Tensor:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self._options.bfloat16):
                return self._net(x, y, code).float()

        return field

    def _sample(self, labels: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        coins = torch.Generator().manual_seed(int(rng.integers(2**62)))
        size = _at_once(self.schema.height * self.schema.width)
        parts = [self._some(torch.from_numpy(part), coins) for part in np.split(labels, range(size, len(labels), size))]
        return Batch(images=to_bytes(torch.cat(parts)), labels=labels)

    def _some(self, y: Tensor, coins: torch.Generator) -> Tensor:
        o, schema = self._options, self.schema
        code = torch.randn(len(y), *self._shape, generator=coins) if self._shape else None
        kernel = unadjusted_hmc(
            self.score(y, code),
            step_size=pge_steps(o.step_size, n_leapfrog=o.n_leapfrog, floor=o.step_floor),
            n_leapfrog=o.n_leapfrog,
            velocity=o.velocity,
            metropolis=o.metropolis,
        )
        start = torch.rand(len(y), schema.channels, schema.height, schema.width, generator=coins)
        stop = stalled(below=o.stop_below) if o.stop_below else None
        return run(kernel, start, n_steps=o.rounds, rng=coins, stop=stop).x.nan_to_num(0.0)
