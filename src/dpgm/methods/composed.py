"""Talks inside talks: names of an inner method's tensors beside those of others."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from dpgm.methods.base import Ask, Note, Tensors


def with_prefix(tensors: Tensors, prefix: str) -> Tensors:
    """`tensors` under longer names."""
    return {prefix + name: value for name, value in tensors.items()}


def part(tensors: Mapping[str, NDArray[np.generic]], prefix: str) -> Tensors:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


T = TypeVar("T")


def prefixed(talk: Generator[Ask, Any, T], prefix: str, kept: Tensors) -> Generator[Ask, Any, T]:
    """`talk`, with `prefix` before the names of its checkpoints and `kept` beside them."""
    answer = None
    while True:
        try:
            ask = talk.send(answer)
        except StopIteration as end:
            return cast("T", end.value)
        if isinstance(ask, Note) and ask.state is not None:
            ask = dataclasses.replace(ask, state={**kept, **with_prefix(ask.state, prefix)})
        answer = yield ask
