"""Public feature maps as the queries want them, and the test that each must pass before it sees a private row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpgm.nets.classifiers import to_unit
from dpgm.nets.features import FeatureMap
from dpgm.privacy.guarantee import PrivacyError
from dpgm.privacy.mechanism import Array
from dpgm.schema import ImageSchema

CHUNK = 100
"""Images that a feature map sees at once."""
_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True, eq=False)
class TorchEncoder:
    """A frozen torch module as a per-record encoder of uint8 images.

    Attributes:
        module: maps [b, c, h, w] in [0, 1] to [b, dim].
        nonnegative: True promises non-negative features.
    """

    module: FeatureMap
    nonnegative: bool = False

    @property
    def name(self) -> str:
        """The feature map's name."""
        return self.module.name

    @property
    def dim(self) -> int:
        """Number of features."""
        return self.module.dim

    @property
    def assumptions(self) -> tuple[str, ...]:
        """The public data that the features were fitted on, if any."""
        seen = self.module.provenance
        return () if seen == "none" else (f"the {self.name} features saw public data only: {seen}",)

    @torch.no_grad()
    def __call__(self, images: NDArray[np.uint8], /) -> Array:
        """Features [b, dim] in float32 arithmetic, in chunks of one size; the last is filled up, so that no record's
        value depends on how many others there are.
        """
        found: list[Any] = [np.zeros((0, self.dim), np.float32)]
        for start in range(0, len(images), CHUNK):
            part = images[start : start + CHUNK]
            n = len(part)
            if n < CHUNK:
                part = np.concatenate([part, np.zeros((CHUNK - n, *part.shape[1:]), np.uint8)])
            found.append(self.module(to_unit(part))[:n].numpy())
        return np.concatenate(found[1:] or found)


def check_encoder(encoder: TorchEncoder, schema: ImageSchema, *, bound: float | None = None) -> None:
    """Test an encoder on made-up images: per record, repeatable, finite, bounded, of the stated size, in eval mode.

    Args:
        encoder: the features.
        schema: shape of the images.
        bound: largest norm that is promised; queries clip all the same, but what they clip no generator can match.

    Raises:
        PrivacyError: the encoder would break the sensitivity bound or the release.
    """
    modules = list(encoder.module.modules())
    if any(m.training for m in modules):
        raise PrivacyError(
            f"the {encoder.name} features are in training mode; call eval() before they see private rows"
        )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, *schema.shape)).astype(np.uint8)
    images[0] = 0  # an empty picture must not become NaN
    before = [p.clone() for p in (*encoder.module.parameters(), *encoder.module.buffers())]
    first = encoder(images)
    if first.shape != (8, encoder.dim):
        raise PrivacyError(f"the {encoder.name} features have shape {first.shape}; (8, {encoder.dim}) was declared")
    if not np.isfinite(first).all():
        raise PrivacyError(f"the {encoder.name} features are not finite on valid images; mend them before any release")
    if bound is not None and np.linalg.norm(first, axis=1).max() > bound * (1 + _TOLERANCE):
        raise PrivacyError(f"the {encoder.name} features exceed their bound {bound:g}; scale or normalise them")
    scale = _TOLERANCE * (1e-12 + float(np.abs(first).max()))
    if np.abs(encoder(images) - first).max() > scale:
        raise PrivacyError(f"the {encoder.name} features differ from call to call; take out dropout and other draws")
    others = images.copy()
    others[1:] = rng.integers(0, 256, (7, *schema.shape))
    if np.abs(encoder(others)[0] - first[0]).max() > scale or np.abs(encoder(images[::-1])[::-1] - first).max() > scale:
        raise PrivacyError(
            f"the {encoder.name} features of a record change with the other records of its block (batch normalisation "
            "in training mode does this); use features that treat each record alone"
        )
    after = (*encoder.module.parameters(), *encoder.module.buffers())
    if not all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
        raise PrivacyError(f"the {encoder.name} features change their own weights when they are used; freeze them")
