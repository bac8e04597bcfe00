"""One file a method; `base` holds what they share. Methods never hold private rows: they talk to a curator."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dpgm.methods.base import Method

_BUILT_IN = {
    "aim": "dpgm.methods.aim:AIM",
    "dp-cnn": "dpgm.methods.dp_cnn:DPCNN",
    "dp-logreg": "dpgm.methods.dp_logreg:DPLogReg",
    "dp2vae": "dpgm.methods.vae:DP2VAE",
    "labelled": "dpgm.methods.labelled:Labelled",
    "labeller": "dpgm.methods.labeller:Labeller",
    "merf": "dpgm.methods.embedding:DPMERF",
    "mepf": "dpgm.methods.perceptual:DPMEPF",
    "pge": "dpgm.methods.pge:PGE",
    "mst": "dpgm.methods.mst:MST",
    "slicing": "dpgm.methods.slicing:Slicing",
}

_ADDED: dict[str, type[Method]] = {}


def add(kind: type[Method]) -> None:
    """Make a method known by its name in this process, e.g. in a notebook, so that its runs can be saved and loaded.

    A package offers its methods as entry points of the group `dpgm.methods` instead.

    Raises:
        ValueError: another method has that name.
    """
    if kind.name in names() and _ADDED.get(kind.name) is None:
        raise ValueError(f"there is a method '{kind.name}' already; choose another name than {', '.join(names())}")
    _ADDED[kind.name] = kind


def names() -> list[str]:
    """Names of all methods: ours, those of entry points of the group `dpgm.methods`, and those added here."""
    return sorted({*_BUILT_IN, *_ADDED, *(e.name for e in entry_points(group="dpgm.methods"))})


def get(name: str) -> type[Method]:
    """The method class called `name`.

    Raises:
        KeyError: there is none; the message lists those there are.
    """
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        return getattr(import_module(module), attribute)
    if name in _ADDED:
        return _ADDED[name]
    for entry in entry_points(group="dpgm.methods", name=name):
        return entry.load()
    raise KeyError(f"there is no method '{name}'; there are {', '.join(names())}")
