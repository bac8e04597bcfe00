"""Audits: attacks on a stated epsilon. An audit can refute a claim; it can never confirm one."""

from dpgm.evaluation.audit.bound import Audit, Bound, clopper_pearson, epsilon_bound, examine
from dpgm.evaluation.audit.canaries import audit_canaries
from dpgm.evaluation.audit.consistency import Check, check_folder
from dpgm.evaluation.audit.mechanisms import audit
from dpgm.evaluation.audit.membership import audit_membership
from dpgm.evaluation.audit.methods import audit_method
from dpgm.evaluation.audit.published import one_step, tie
from dpgm.evaluation.audit.suite import suite
from dpgm.evaluation.audit.trained import trained
from dpgm.evaluation.audit.twins import TWINS

__all__ = [
    "TWINS",
    "Audit",
    "Bound",
    "Check",
    "audit",
    "audit_canaries",
    "audit_membership",
    "audit_method",
    "check_folder",
    "clopper_pearson",
    "epsilon_bound",
    "examine",
    "one_step",
    "suite",
    "tie",
    "trained",
]
