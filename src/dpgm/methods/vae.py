"""DP²-VAE: a conditional variational autoencoder whose decoder is released, in six privacy forms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpgm.mechanisms.gradient import ModuleGradient, PoissonGradient, Task
from dpgm.mechanisms.latents import (
    AboutLaws,
    DecoderGradient,
    FixedEncoder,
    LatentSource,
    LocalInference,
    NoiseFreeEncoder,
    SettledCodes,
)
from dpgm.mechanisms.moments import CodeMoments, SecondMoment
from dpgm.mechanisms.noise import Gaussian
from dpgm.mechanisms.pixels import PooledPixels
from dpgm.methods.base import Ask, Method, Note, OnNote, Plan, Release, Resume, Talk, Tensors
from dpgm.methods.decoder import CodeLaws, DecoderModel, with_codes
from dpgm.methods.descent import Descent, descend
from dpgm.methods.laws import public_cells
from dpgm.methods.options import AtLeast1, ClipNorm
from dpgm.nets.classifiers import to_unit
from dpgm.nets.generators import ConvGenerator, LabelledGenerator
from dpgm.nets.looks import check_sampling
from dpgm.nets.procedural import procedural_images
from dpgm.nets.vae import Autoencoder, DenseGenerator, GaussianEncoder, evidence_loss, train_autoencoder
from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Budget, Evidence, PrivacyError, Relation, Source
from dpgm.privacy.mechanism import Mechanism
from dpgm.schema import Schema, SchemaError

_WHOLE, _AXES = 0.3, 3
"""Of the codes' share, what the first law gets where each class has several Gaussians; and the number of its widest
axes in which those are told apart."""
Privacy = Literal["local", "one-shot", "budget-split", "public", "joint", "published"]


@dataclass(frozen=True, kw_only=True)
class DP2VAE(Method):
    """A conditional VAE trained privately; the decoder and a Gaussian law of the codes of each class are released.

    Forms (`privacy`): "local", each record infers its own code against the decoder released so far, so there is no
    encoder to protect; "one-shot", codes from a noisy principal component analysis, released once; "budget-split",
    encoder and decoder by DP-SGD first, then the decoder alone; "public", an encoder trained on procedural pictures;
    "joint", encoder and decoder by DP-SGD to the end; "published", the paper's: an encoder trained on the private
    records without noise.

    **Guarantee**: Poisson-sampled Gaussian gradients (docs/proofs/poisson-gradient.md, docs/proofs/local-inference.md)
    and one or two Gaussian releases of second moments (docs/proofs/second-moment.md), composed. "published" has none:
    its evidence is REFUTED, and it runs only when that is allowed.
    **Source**: Jiang, Zhang, Karami et al. 2022; "one-shot" after Takagi et al. 2021.
    **Differs from the paper**: its full text was not at hand; "published" follows its abstract. Sampling is Poisson;
    the law of the codes is released class by class instead of N(0, I); architecture and numbers are ours.

    Attributes:
        privacy: the form.
        decoder: "mlp" (fast: per-record gradients cost nothing) or "conv" (8 to 64 pixels).
        latent: length of a code.
        hidden: units of the hidden layers.
        width: channels of the last block of the "conv" decoder.
        steps: gradients.
        rate: probability of a record in each of them, above 0 and at most 1.
        lr: highest learning rate (Adam, cosine).
        clip_norm: bound C on a record's gradient.
        draws: jittered codes averaged inside a record before clipping.
        jitter: standard deviation of that noise, also added to sampled codes.
        local_steps: code steps at a visit, for "local".
        step_size: length of a code step.
        warm_start: where the first codes of "local" come from: "pictures", an encoder trained on procedural pictures
            together with the decoder's first weights (free); "components", the noisy principal components; "none".
        encoder_share: part of mu^2 for the principal components, where they are used.
        prior_share: part of mu^2 for the law of the codes.
        mixture: Gaussians in the law of each class; several take a second release, about the first.
        first_share: part of the steps in the first stage of "budget-split".
        temperature: factor of the variance of drawn codes; above 1 suits samples that a labeller filters.
        sharpness: exponent that pushes drawn pixels towards black and white; 1 for none, 2.5 suits strokes.
        movement: small shifts, turns and slants of drawn pictures; 0 for none, 1 suits strokes.
    """

    name: ClassVar[str] = "dp2vae"
    sources: ClassVar[tuple[Source, ...]] = (
        Source(
            key="jiang2022dp2vae",
            title="DP2-VAE: Differentially Private Pre-trained Variational Autoencoders",
            authors="Jiang, Dihong and Zhang, Guojun and Karami, Mahdi and Chen, Xi and Shao, Yunfeng and Yu, Yaoliang",
            year=2022,
            where="arXiv 2208.03409",
        ),
        Source(
            key="takagi2021p3gm",
            title="P3GM: Private High-Dimensional Data Release via Privacy Preserving Phased Generative Model",
            authors="Takagi, Shun and Takahashi, Tsubasa and Cao, Yang and Yoshikawa, Masatoshi",
            year=2021,
            where="ICDE 2021, arXiv 2006.12101",
        ),
    )

    privacy: Privacy = "local"
    decoder: Literal["mlp", "conv"] = "mlp"
    latent: AtLeast1 = 16
    hidden: AtLeast1 = 300
    width: AtLeast1 = 16
    steps: int = 300
    rate: float = 0.05
    lr: float = 0.01
    clip_norm: ClipNorm = 1.0
    draws: AtLeast1 = 1
    jitter: float = 0.1
    local_steps: int = 6
    step_size: float = 0.05
    warm_start: Literal["pictures", "components", "none"] = "pictures"
    encoder_share: float = 0.2
    prior_share: float = 0.08
    mixture: int = 1
    first_share: float = 0.2
    temperature: float = 1.0
    sharpness: float = 1.0
    movement: float = 0.0

    free: ClassVar[frozenset[str]] = frozenset({"temperature", "sharpness", "movement"})

    PUBLIC_PICTURES: ClassVar[int] = 3000

    # -- plan ---------------------------------------------------------------------------------------------------------

    def plan(self, schema: Schema, *, relation: Relation, budget: Budget) -> Plan:
        """Fixed shares for the moments; the gradients get the smallest noise that the rest allows."""
        self._check_sampling()
        size = self._check(schema)
        mu = accountant.gaussian_mu(budget)
        share = self._share("prior_share")
        noise = {"vae-codes": 1 / (mu * math.sqrt(share if self.mixture == 1 else _WHOLE * share))}
        if self.mixture > 1:
            noise["vae-cells"] = 1 / (mu * math.sqrt((1 - _WHOLE) * share))
        if self._needs_components:
            noise["vae-components"] = 1 / (mu * math.sqrt(self._share("encoder_share")))

        def items(scale: float) -> tuple[tuple[Mechanism[Any], int], ...]:
            return self._items(schema, relation, {**noise, "vae-gradient": scale})

        scale = accountant.calibrate(
            lambda s: [(m.cost(relation), n) for m, n in items(s)], budget, relation=relation, low=0.3
        )
        visits = self.steps * self.rate * size
        pixels = math.prod(schema.shape)
        return Plan(
            schema=schema,
            relation=relation,
            budget=budget,
            items=items(scale),
            details={"noise_multiplier": scale, "shares": noise},
            seconds=1e-9 * visits * self.draws * pixels * (self.local_steps if self.privacy == "local" else 1) * 50,
            memory_mb=800 + 3e-6 * pixels * size,
        )

    @property
    def _needs_components(self) -> bool:
        return self.privacy == "one-shot" or (self.privacy == "local" and self.warm_start == "components")

    def _moments(self, schema: Schema) -> CodeMoments:
        """What is released about the codes; few of a unit normal law are longer than 1.2 sqrt(latent)."""
        radius = 1.2 * math.sqrt(self.latent)
        return CodeMoments(codes=None, latent=self.latent, n_classes=schema.n_classes, radius=radius)

    def _cells(self, schema: Schema) -> CodeMoments:
        """What is released about the cells of the classes, in the frame of their first law."""
        centres = np.zeros((self.mixture, self.latent))
        axes = min(_AXES, self.latent)
        centres[:, :axes] = public_cells(np.eye(axes), self.mixture, rng=np.random.default_rng(0), axes=axes)
        return dataclasses.replace(self._moments(schema), centres=tuple(map(tuple, centres.tolist())))

    def _check(self, schema: Schema) -> int:
        """The declared number of records; what would only fail after something is paid is refused."""
        if schema.size is None:
            raise SchemaError("gradients need the declared number of records; give the schema a size")
        if self.mixture < 1:
            raise SchemaError(f"mixture is {self.mixture}; allowed is a number of Gaussians, 1 or more")
        first = self._first_steps
        if self.steps - first < 1 or (self.privacy == "budget-split" and first < 1):
            raise SchemaError(
                f"steps is {self.steps}, {first} of them in the first stage; each stage needs 1 or more: raise steps, "
                "or give first_share a value above 0 and below 1, e.g. 0.2"
            )
        if self._needs_components and self.latent > (most := PooledPixels(schema=schema).dim):
            raise SchemaError(
                f"latent is {self.latent}, but the pixels of these images have {most} principal components; allowed is "
                f"1 to {most}"
            )
        return schema.size

    @property
    def _first_steps(self) -> int:
        """Steps of the first stage, where there is one."""
        return round(self.steps * self.first_share) if self.privacy == "budget-split" else 0

    def _check_sampling(self) -> None:
        check_sampling(temperature=self.temperature, movement=self.movement, sharpness=self.sharpness)

    def _share(self, name: str) -> float:
        share = getattr(self, name)
        if not 0 < share < 1:
            raise PrivacyError(f"{name} is {share}; allowed is a part of the budget above 0 and below 1, e.g. 0.1")
        return share

    def _items(
        self, schema: Schema, relation: Relation, noise: dict[str, float]
    ) -> tuple[tuple[Mechanism[Any], int], ...]:
        """All mechanisms, in the order in which they are asked; those with a later task only state their price."""
        step = PoissonGradient(
            rate=self.rate,
            noise_multiplier=noise["vae-gradient"],
            size=schema.size or 0,
            evidence=Evidence.REFUTED if self.privacy == "published" else Evidence.PROVED,
            name="vae-gradient",
        )
        first = self._first_steps
        moments = self._moments(schema)
        codes = Gaussian(query=moments, noise_std=noise["vae-codes"] * moments.sensitivity(relation), name="vae-codes")
        items: list[tuple[Mechanism[Any], int]] = [(step, self.steps - first), (codes, 1)]
        if self.mixture > 1:
            cells, std = self._cells(schema), noise["vae-cells"] * moments.sensitivity(relation)
            items.append((Gaussian(query=cells, noise_std=std, name="vae-cells"), 1))
        if first:
            items.insert(0, (dataclasses.replace(step, name="vae-first-gradient"), first))
        if self._needs_components:
            pooled = PooledPixels(schema=schema)
            query = SecondMoment(vectors=pooled, dim=pooled.dim, radius=pooled.radius)
            std = noise["vae-components"] * query.sensitivity(relation)
            items.insert(0, (Gaussian(query=query, noise_std=std, name="vae-components"), 1))
        return tuple(items)

    # -- talk ---------------------------------------------------------------------------------------------------------

    def talk(self, plan: Plan, *, rng: np.random.Generator, resume: Resume) -> Talk:
        """Components where they are used, then gradients, then the law of the codes."""
        index = {getattr(m, "name", ""): i for i, (m, _) in enumerate(plan.items)}
        schema, state, kept = plan.schema, resume.state or {}, dict[str, NDArray[Any]]()
        source_rng = torch.Generator().manual_seed(int(rng.integers(2**62)))
        decoder = self._decoder(schema, source_rng)
        encoder = GaussianEncoder(
            pixels=math.prod(schema.shape),
            n_classes=schema.n_classes,
            latent=self.latent,
            hidden=self.hidden,
            rng=source_rng,
        )
        model = Autoencoder(encoder, decoder)

        if self._needs_components:
            asked = plan.items[index["vae-components"]][0]
            kept["components"] = state["components"] if "components" in state else (yield asked)
            yield Note(stage="components", step=1, total=1, state=dict(kept))
        if self.privacy == "public" or (self.privacy == "local" and self.warm_start == "pictures"):
            self._pretrain(model, schema, rng, source_rng)
        if self.privacy == "budget-split":
            yield from self._descend(
                plan, index["vae-first-gradient"], model, self._joint(model), "first", resume, kept
            )
        if self.privacy in ("budget-split", "public"):
            encoder.requires_grad_(False)
        source = self._source(schema, encoder, model, kept)
        task = self._joint(model) if self.privacy == "joint" else self._decoding(decoder, source)
        net = model if self.privacy == "joint" else decoder
        yield from self._descend(plan, index["vae-gradient"], net, task, "last", resume, kept)

        codes = SettledCodes(decoder=decoder, source=source)
        found = {name: state[name] for name in ("moments",) if name in state}
        if not found:
            found["moments"] = yield with_codes(plan.items[index["vae-codes"]][0], codes)
        if self.mixture > 1:
            yield Note(stage="codes", step=1, total=1, state={**kept, **found})
            shares: Any = plan.details["shares"]
            laws = CodeLaws(query=self._moments(schema), relation=plan.relation, noise_multiplier=shares["vae-codes"])
            means, frames = laws.frames(found["moments"])
            inside = AboutLaws(codes=codes, means=means, frames=frames)
            found["frames"] = frames
            found["cells"] = yield with_codes(plan.items[index["vae-cells"]][0], inside)
        weights = {f"decoder.{name}": t.detach().numpy().copy() for name, t in decoder.state_dict().items()}
        return {**weights, **found}

    def _descend(
        self, plan: Plan, item: int, net: nn.Module, task: Task, stage: str, resume: Resume, kept: Tensors
    ) -> Generator[Ask, Any, None]:
        """Follow the gradients of plan item `item`; its checkpoints hold all that was kept before."""
        mechanism, calls = plan.items[item]
        assert isinstance(mechanism, PoissonGradient)
        state = resume.state or {}
        mine = {k.removeprefix(f"{stage}."): v for k, v in state.items() if k.startswith(f"{stage}.")}
        descent = Descent(net, steps=calls, lr=self.lr, rule="adam")
        talk = descend(
            descent,
            dataclasses.replace(mechanism, task=task),
            calls=calls,
            used=resume.used.get(item, 0),
            state=mine or None,
            stage=stage,
        )
        answer = None
        while True:
            try:
                ask = talk.send(answer)
            except StopIteration:
                break
            if isinstance(ask, Note) and ask.state is not None:
                ask = dataclasses.replace(ask, state={**kept, **{f"{stage}.{k}": v for k, v in ask.state.items()}})
            answer = yield ask
        kept.update({f"{stage}.{k}": v for k, v in descent.tensors().items()})
        descent.finish()

    def _pretrain(
        self, model: Autoencoder, schema: Schema, rng: np.random.Generator, source_rng: torch.Generator
    ) -> None:
        """Train on procedural pictures, which have no classes: their labels are arbitrary."""
        height, width, channels = schema.shape
        shown = procedural_images(self.PUBLIC_PICTURES, height=height, width=width, channels=channels, rng=rng)
        y = torch.from_numpy(rng.integers(0, schema.n_classes, len(shown)))
        train_autoencoder(model, to_unit(shown), y, rng=source_rng)

    def _joint(self, model: Autoencoder) -> ModuleGradient:
        def inputs(x: Tensor, y: Tensor, coins: np.random.Generator) -> tuple[Tensor, ...]:
            x, y = x.repeat_interleave(self.draws, 0), y.repeat_interleave(self.draws, 0)
            noise = coins.standard_normal((len(x), self.latent), dtype=np.float32)
            return x, y, torch.from_numpy(noise)

        return ModuleGradient(
            module=model, loss=evidence_loss, clip_norm=self.clip_norm, draws=self.draws, inputs=inputs
        )

    def _decoding(self, decoder: nn.Module, source: LatentSource) -> DecoderGradient:
        return DecoderGradient(
            decoder=decoder, source=source, clip_norm=self.clip_norm, draws=self.draws, jitter=self.jitter
        )

    def _source(self, schema: Schema, encoder: GaussianEncoder, model: Autoencoder, kept: Tensors) -> LatentSource:
        start = PooledPixels(schema=schema).codes(kept["components"], self.latent) if "components" in kept else None

        def middle(x: Tensor, y: Tensor) -> Tensor:
            return encoder(x, y)[0]

        match self.privacy:
            case "local":
                start = middle if self.warm_start == "pictures" else start
                return LocalInference(latent=self.latent, start=start, steps=self.local_steps, step_size=self.step_size)
            case "one-shot":
                assert start is not None
                return FixedEncoder(encode=start, provenance="noisy principal components")
            case "published":
                return NoiseFreeEncoder(first=model)
            case "public":
                where = "procedural pictures"
            case "joint" | "budget-split":
                where = "released gradients"
        return FixedEncoder(encode=middle, provenance=where)

    def _decoder(self, schema: Schema, rng: torch.Generator) -> LabelledGenerator:
        size = {"height": schema.height, "width": schema.width, "channels": schema.channels}
        shared: dict[str, Any] = {**size, "n_classes": schema.n_classes, "latent": self.latent, "hidden": self.hidden}
        if self.decoder == "mlp":
            return DenseGenerator(**shared, rng=rng)
        return ConvGenerator(**shared, width_base=self.width, rng=rng)

    # -- the free half ------------------------------------------------------------------------------------------------

    def train(self, release: Release, *, seed: int, on_note: OnNote | None = None) -> DecoderModel:
        """The released decoder, as it is; how its pictures are drawn and finished may change."""
        self._check_sampling()
        return self.restore(release, {})

    def restore(self, release: Release, tensors: Tensors) -> DecoderModel:
        """The model; all of it stands in the release."""
        decoder = self._decoder(release.schema, torch.Generator().manual_seed(0))
        weights = {k.removeprefix("decoder."): v for k, v in release.tensors.items() if k.startswith("decoder.")}
        decoder.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in weights.items()})
        laws = CodeLaws.of(self._moments(release.schema), release, "vae-codes")
        mixture = laws.whole(release.tensors["moments"])
        if "cells" in release.tensors:
            cells = CodeLaws.of(self._cells(release.schema), release, "vae-cells")
            mixture = cells.inside(mixture, release.tensors["frames"], release.tensors["cells"])
        return DecoderModel(release, self, decoder.eval(), mixture)
