"""Weight files that others published, read without running any code of theirs."""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NAMES = {
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy ndarray": "array type",
    "numpy dtype": "dtype",
}
_TYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1"}
_MARK = object()


class _Array:
    """An array that waits for its bytes."""

    value: NDArray[Any] | None = None


class _Type:
    """A number type that waits for its byte order."""

    def __init__(self, code: str) -> None:
        self.code = code


def read_arrays(path: Path) -> Any:
    """Dicts, lists and tuples of numbers, texts and NumPy arrays, from a file in Python's pickle format.

    The file's instructions are interpreted here, one by one, from a fixed list; none of them can name a function, so
    nothing of the file is ever executed.

    Raises:
        ValueError: the file holds anything else, or is damaged.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for code, argument, _ in pickletools.genops(path.read_bytes()):
            if code.name == "STOP":
                return _finished(stack.pop())
            _step(code.name, argument, stack, memo)
    except (IndexError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"it is damaged ({type(error).__name__})") from error
    raise ValueError("it ends too early")


def _step(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    match name:
        case "PROTO" | "FRAME":
            pass
        case "MARK":
            stack.append(_MARK)
        case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
        case "NONE" | "NEWTRUE" | "NEWFALSE":
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
        case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
            stack.append(argument)
        case "BINUNICODE" | "SHORT_BINUNICODE" | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8":
            stack.append(argument)
        case "BINPUT" | "LONG_BINPUT":
            memo[argument] = stack[-1]
        case "MEMOIZE":
            memo[len(memo)] = stack[-1]
        case "BINGET" | "LONG_BINGET":
            stack.append(memo[argument])
        case "TUPLE1" | "TUPLE2" | "TUPLE3":
            n = int(name[-1])
            stack[-n:] = [tuple(stack[-n:])]
        case "TUPLE":
            stack.append(tuple(_since_mark(stack)))
        case "APPEND":
            value = stack.pop()
            stack[-1].append(value)
        case "APPENDS":
            values = _since_mark(stack)
            stack[-1].extend(values)
        case "SETITEM" | "SETITEMS":
            values = _since_mark(stack) if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            stack[-1].update(zip(values[::2], values[1::2], strict=True))
        case "GLOBAL" | "STACK_GLOBAL":
            if name == "STACK_GLOBAL":
                argument = f"{stack.pop(-2)} {stack.pop()}"
            if argument not in _NAMES:
                raise ValueError(f"it names '{argument}'; allowed are plain NumPy arrays and nothing else")
            stack.append(_NAMES[argument])
        case "REDUCE":
            arguments, made = stack.pop(), stack.pop()
            if made == "dtype" and arguments[0] in _TYPES:
                stack.append(_Type(arguments[0]))
            elif made == "array" and arguments[0] == "array type":
                stack.append(_Array())
            else:
                raise ValueError(f"it makes a {made!r}; allowed are plain arrays of numbers")
        case "BUILD":
            state = stack.pop()
            _fill(stack[-1], state)
        case _:
            raise ValueError(f"it holds the instruction {name}; allowed are plain NumPy arrays and nothing else")


def _since_mark(stack: list[Any]) -> list[Any]:
    at = next(i for i in range(len(stack) - 1, -1, -1) if stack[i] is _MARK)
    values = stack[at + 1 :]
    del stack[at:]
    return values


def _fill(thing: Any, state: Any) -> None:
    if isinstance(thing, _Type):
        thing.code = {"<": "<", ">": ">", "|": "|", "=": "="}[state[1]] + thing.code
    elif isinstance(thing, _Array):
        _, shape, kind, fortran, data = state
        if not (isinstance(kind, _Type) and isinstance(data, bytes) and all(type(n) is int for n in shape)):
            raise ValueError("it holds an array of objects; allowed are plain arrays of numbers")
        flat = np.frombuffer(data, np.dtype(kind.code))
        thing.value = flat.reshape(shape, order="F" if fortran else "C").copy()
    else:
        raise ValueError("it sets the state of an object; allowed are plain NumPy arrays and nothing else")


def _finished(value: Any) -> Any:
    if isinstance(value, _Array):
        if value.value is None:
            raise ValueError("it holds an array without numbers")
        return value.value
    if isinstance(value, dict):
        return {k: _finished(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finished(v) for v in value]
    return value
