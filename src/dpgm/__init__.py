"""Differentially private generative models whose epsilon you can defend.

>>> import dpgm
>>> dpgm.Budget(epsilon=1.0, delta=1e-5)
Budget(epsilon=1.0, delta=1e-05)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpgm.artefact import load_model as load
    from dpgm.artefact import load_release
    from dpgm.data import open_data
    from dpgm.methods.aim import AIM
    from dpgm.methods.base import Batch, Method, Model, Plan, Release, privatise
    from dpgm.methods.dp_cnn import DPCNN
    from dpgm.methods.dp_logreg import DPLogReg
    from dpgm.methods.embedding import DPMERF
    from dpgm.methods.fit import fit
    from dpgm.methods.labelled import Labelled
    from dpgm.methods.labeller import Labeller
    from dpgm.methods.mst import MST
    from dpgm.methods.perceptual import DPMEPF
    from dpgm.methods.pge import PGE
    from dpgm.methods.slicing import Slicing
    from dpgm.methods.vae import DP2VAE
    from dpgm.privacy.curator import Curator
    from dpgm.privacy.guarantee import Budget, BudgetExceeded, Evidence, Guarantee, PrivacyError, Relation
    from dpgm.privacy.ledger import Ledger
    from dpgm.schema import Column, ImageSchema, Rows, SchemaError, TableSchema

__version__ = "0.1.0"

_HOME = {
    "load": "artefact:load_model",
    "load_release": "artefact",
    "open_data": "data",
    "Batch": "methods.base",
    "Method": "methods.base",
    "Model": "methods.base",
    "Plan": "methods.base",
    "Release": "methods.base",
    "privatise": "methods.base",
    "AIM": "methods.aim",
    "DPCNN": "methods.dp_cnn",
    "DPLogReg": "methods.dp_logreg",
    "MST": "methods.mst",
    "DPMEPF": "methods.perceptual",
    "DPMERF": "methods.embedding",
    "DP2VAE": "methods.vae",
    "Labelled": "methods.labelled",
    "Labeller": "methods.labeller",
    "PGE": "methods.pge",
    "Slicing": "methods.slicing",
    "fit": "methods.fit",
    "Curator": "privacy.curator",
    "Budget": "privacy.guarantee",
    "BudgetExceeded": "privacy.guarantee",
    "Evidence": "privacy.guarantee",
    "Guarantee": "privacy.guarantee",
    "PrivacyError": "privacy.guarantee",
    "Relation": "privacy.guarantee",
    "Ledger": "privacy.ledger",
    "ImageSchema": "schema",
    "TableSchema": "schema",
    "Column": "schema",
    "Rows": "schema",
    "SchemaError": "schema",
}

__all__ = [  # noqa: RUF022 (in the order a reader meets them)
    "fit", "load", "open_data", "DPMERF", "DPMEPF", "PGE", "Slicing", "DP2VAE", "Labelled", "Labeller", "DPCNN", "MST",
    "AIM", "DPLogReg", "ImageSchema", "TableSchema", "Column", "Rows", "Budget", "Relation", "Evidence", "Guarantee",
    "Ledger", "Curator", "Method", "Model", "Plan", "Release", "Batch", "privatise", "load_release", "SchemaError",
    "PrivacyError", "BudgetExceeded",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import public names when they are first used: torch is slow to load, and many commands do not need it."""
    if name not in _HOME:
        raise AttributeError(f"module 'dpgm' has no attribute '{name}'")
    module, _, attribute = _HOME[name].partition(":")
    value = getattr(import_module(f"dpgm.{module}"), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
