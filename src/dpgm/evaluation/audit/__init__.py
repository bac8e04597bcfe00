"""Audits: attacks on a stated epsilon. An audit can refute a claim; it can never confirm one."""

from dpgm.evaluation.audit.bound import Audit, Bound, clopper_pearson, epsilon_bound, examine
from dpgm.evaluation.audit.mechanisms import audit
from dpgm.evaluation.audit.methods import audit_method
from dpgm.evaluation.audit.published import one_step, tie
from dpgm.evaluation.audit.twins import TWINS

__all__ = [
    "TWINS",
    "Audit",
    "Bound",
    "audit",
    "audit_method",
    "clopper_pearson",
    "epsilon_bound",
    "examine",
    "one_step",
    "tie",
]
