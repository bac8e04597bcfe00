"""Options of methods to JSON values and back: nothing is guessed, unknown things are refused."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dpgm.privacy.mechanism import Json
from dpgm.schema import ImageSchema, Schema, SchemaError

if TYPE_CHECKING:
    from dpgm.methods.base import Method

LabelMode: TypeAlias = Literal["filter", "soft", "relabel"]
"""What a labeller does with samples; see `dpgm.methods.labelled.Labelled`."""


_ABOVE_0 = "above 0"
AtLeast1: TypeAlias = Annotated[int, _ABOVE_0]
"""The type of an option that is a whole number, 1 or more."""
Above0: TypeAlias = Annotated[float, _ABOVE_0]
"""The type of an option that is a number above 0."""
_CLIP = "a bound of gradients"
ClipNorm: TypeAlias = Annotated[float, _ABOVE_0, _CLIP]
"""The type of an option that bounds the norm of a record's gradient."""
Forms: TypeAlias = tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]
"""Of a method with several forms: an option that chooses, its values, and the options that are read only then."""


def to_plain(value: Any) -> Json:
    """`value` as plain JSON values."""
    from dpgm.methods.base import Method

    if isinstance(value, Method):
        return value.to_json()
    return [to_plain(v) for v in typing.cast("tuple[Any, ...]", value)] if isinstance(value, tuple) else value


def parse(value: Json, hint: Any, where: str) -> Any:
    """`value` as a value of type `hint`, strictly.

    Args:
        value: what the file or the command line says.
        hint: type annotation of the option.
        where: name of the option, for messages.

    Raises:
        SchemaError: it is of another type.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return parse(value, args[0], where)
    if origin is typing.Literal:
        if any(value == a and type(value) is type(a) for a in args):
            return value
        raise SchemaError(f"{where} is {value!r}; allowed are {', '.join(map(repr, args))}")
    if origin in (typing.Union, types.UnionType):
        for arm in args:
            try:
                return parse(value, arm, where)
            except SchemaError:
                continue
        raise SchemaError(f"{where} is {value!r}; allowed is {hint}")
    if origin is tuple and isinstance(value, list | tuple):
        arms = [args[0]] * len(value) if len(args) == 2 and args[1] is ... else list(args)
        if len(arms) == len(value):
            return tuple(parse(v, a, where) for v, a in zip(value, arms, strict=True))
    if isinstance(hint, type):
        from dpgm.methods.base import Method

        if issubclass(hint, Method) and isinstance(value, Mapping):
            from dpgm.methods import get, names

            inner = typing.cast("Mapping[str, Any]", value)
            name = inner.get("name")
            kind = hint if name == getattr(hint, "name", None) else get(name) if name in names() else None
            if kind is None or not issubclass(kind, hint):
                raise SchemaError(f"{where} has the name {name!r}; allowed is a kind of {hint.__name__}")
            return kind.from_json(inner)
        if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if hint is type(None) and value is None:
            return None
        if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
            return value
    raise SchemaError(f"{where} is {value!r}; allowed is {getattr(hint, '__name__', hint)}")


def check_option(value: Any, hint: Any, where: str) -> None:
    """Raise unless an option is of its type and, if a number, finite, 0 or more, and above 0 where the type says so."""
    parse(value, hint, where)
    if isinstance(value, int | float) and not 0 <= value < math.inf:
        raise SchemaError(f"{where} is {value}; allowed is a finite number, 0 or more")
    arms = [hint, *typing.get_args(hint)]  # of `AtLeast1 | None`, say
    said = {word for arm in arms for word in getattr(arm, "__metadata__", ())}
    if value is not False and value == 0 and _ABOVE_0 in said:
        raise SchemaError(f"{where} is 0; allowed is a number above 0")
    if _CLIP in said:
        from dpgm.mechanisms.per_record import LEAST_CLIP

        if value < LEAST_CLIP:
            raise SchemaError(f"{where} is {value}; allowed is {LEAST_CLIP:g} or more, usually 0.01 to 10")


def check_seed(seed: int) -> int:
    """The seed as every generator takes it; numpy's whole numbers are none for some.

    Raises:
        SchemaError: it is no whole number that all of them take.
    """
    if not (isinstance(seed, int | np.integer) and 0 <= seed < 2**63):
        raise SchemaError(f"the seed is {seed!r}; allowed is a whole number from 0 to 2^63 - 1")
    return int(seed)


def check_count(n: int, name: str) -> None:
    """Raise unless so many records can be asked for."""
    if not (isinstance(n, int | np.integer) and n >= 0):
        raise SchemaError(f"{name} is {n!r}; allowed is a whole number, 0 or more")


def check_trained(tensors: Mapping[str, NDArray[Any]]) -> None:
    """Raise where training has left numbers that are not finite, as too high a rate does: such a net draws nothing."""
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise SchemaError(
                f"training diverged: '{name}' is not finite. The release is not lost, and training on it again costs "
                "no budget: dpgm train RELEASE --out NEW, with a lower learning rate"
            )


def require_images(schema: Schema, *sizes: int) -> ImageSchema:
    """The schema, if it describes square images of one of `sizes` (any size where none is given)."""
    if sizes and (schema.height != schema.width or schema.height not in sizes):
        raise SchemaError(
            f"images are {schema.height} x {schema.width}; this method takes squares of "
            f"{', '.join(map(str, sizes))} pixels; give --resize {min(sizes, key=lambda s: abs(s - schema.height))}"
        )
    return schema


def check_forms(method: Method, usual: Method | None = None) -> None:
    """Raise where an option was given that the chosen form of the method does not read.

    Stored configurations load without this: only what a person has just given is checked.

    Args:
        method: what was given, with the methods within.
        usual: what it would be if nothing was given; its class's defaults where it is None.
    """
    from dpgm.methods.base import Method

    faults: list[str] = []
    for chooser, values, names in method.forms:
        chosen = getattr(method, chooser)
        given = [text for name in names for text in _given(method, usual or type(method)(), name)]
        if given and chosen not in values:
            form = f"{chooser} {' or '.join(map(repr, values))}"
            belongs, them = ("belongs", "it") if len(given) == 1 else ("belong", "them")
            faults.append(
                f"{', '.join(given)} {belongs} to {form}, and {chooser} is {chosen!r}: leave {them} out, or take {form}"
            )
    if faults:
        raise SchemaError("; ".join(faults))
    for f in dataclasses.fields(method):
        inner, before = getattr(method, f.name), getattr(usual, f.name, None)
        if isinstance(inner, Method):
            check_forms(inner, before if type(before) is type(inner) else None)


def _given(method: Method, usual: Method, name: str) -> Iterator[str]:
    """The option as name=value where it is not the usual one; those of a method within one by one."""
    from dpgm.methods.base import Method

    value, before = getattr(method, name), getattr(usual, name)
    if isinstance(value, Method):
        for f in dataclasses.fields(value):
            yield from (f"{name}.{text}" for text in _given(value, before, f.name))
    elif value != before:
        yield f"{name}={value!r}"


def check_takes(method: Method, schema: Any) -> None:
    """Raise unless the method can plan for this kind of records, reads what it was given, and has what it needs."""
    check_forms(method)
    if absent := [name for name in method.packages if find_spec(name) is None]:
        extra = method.packages[absent[0]]
        raise SchemaError(f"method '{method.name}' needs the package {absent[0]}; pip install 'dpgm[{extra}]'")
    if method.name == "labelled" and not isinstance(schema, method.takes):
        raise SchemaError("a labeller takes images only, and these records are of a table; leave out --labeller")
    if not isinstance(schema, method.takes):
        words = {"ImageSchema": "images", "TableSchema": "tables"}
        given, taken = words.get(type(schema).__name__), [words.get(t.__name__, t.__name__) for t in method.takes]
        hint = "; use --method slicing" if given == "tables" else ""
        raise SchemaError(f"method '{method.name}' takes {' and '.join(taken)}; these records are {given}{hint}")
