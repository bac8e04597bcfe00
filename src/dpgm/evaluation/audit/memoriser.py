"""Membership inference against samples that are copies, beside those of a private model of the same records."""

from __future__ import annotations

import numpy as np

from dpgm.data import open_data
from dpgm.evaluation.audit.bound import Audit
from dpgm.evaluation.audit.membership import audit_membership
from dpgm.evaluation.utility import public_door
from dpgm.methods.fit import fit
from dpgm.methods.pge import PGE
from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Budget, Evidence, Guarantee, Relation
from dpgm.schema import Rows

_MEMBERS = 700


def memoriser(*, epsilon: float = 1.0, delta: float = 1e-5, confidence: float = 0.999) -> tuple[Audit, Audit]:
    """Two generators of handwritten digits that claim the same epsilon: one hands out copies of its records.

    Args:
        epsilon: the claim.
        delta: its slack.
        confidence: probability that a true claim is not beaten.

    Returns:
        the audit of the copies and that of the private model.
    """
    digits = open_data("digits")
    rows = digits.train()
    rows = rows.take(np.random.default_rng(0).permutation(len(rows)))  # a random split, as the audit assumes
    members, held_out = rows.take(np.arange(_MEMBERS)), rows.take(np.arange(_MEMBERS, len(rows)))
    mu = accountant.gaussian_mu(Budget(epsilon=epsilon, delta=delta))
    model = fit(PGE(), members["image"], members["label"], schema=digits.schema, epsilon=epsilon, delta=delta)
    drawn = model.sample(2_000, seed=0)

    def attack(samples: Rows, evidence: Evidence, name: str) -> Audit:
        return audit_membership(
            samples,
            held_out,
            door=public_door(lambda: members),
            schema=digits.schema,
            guarantee=Guarantee(
                relation=Relation.ADD_REMOVE,
                unit="record",
                epsilon=epsilon,
                delta=delta,
                evidence=evidence,
                mechanisms=(),
            ),
            claim=lambda slack: accountant.gaussian_epsilon(mu, slack),
            confidence=confidence,
            name=name,
        )

    copies = attack(members, Evidence.REFUTED, "membership: samples that are copies")
    sound = attack(Rows(image=drawn.images, label=drawn.labels), Evidence.PROVED, "membership: samples of pge")
    return copies, sound
