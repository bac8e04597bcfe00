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
    "dp2vae": "dpgm.methods.vae:DP2VAE",
    "labelled": "dpgm.methods.labelled:Labelled",
    "labeller": "dpgm.methods.labeller:Labeller",
    "merf": "dpgm.methods.embedding:DPMERF",
    "mepf": "dpgm.methods.embedding:DPMEPF",
    "pge": "dpgm.methods.pge:PGE",
    "mst": "dpgm.methods.mst:MST",
    "slicing": "dpgm.methods.slicing:Slicing",
}


def names() -> list[str]:
    """Names of all methods, ours and those that other packages offer as entry points of the group `dpgm.methods`."""
    return sorted({*_BUILT_IN, *(e.name for e in entry_points(group="dpgm.methods"))})


def get(name: str) -> type[Method]:
    """The method class called `name`.

    Raises:
        KeyError: there is none; the message lists those there are.
    """
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        return getattr(import_module(module), attribute)
    for entry in entry_points(group="dpgm.methods", name=name):
        return entry.load()
    raise KeyError(f"there is no method '{name}'; there are {', '.join(names())}")
