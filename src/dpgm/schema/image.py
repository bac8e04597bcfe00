"""Public facts about labelled images."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpgm.schema.plain import Kinds, entries, texts
from dpgm.schema.rows import Rows, SchemaError, check_size, plain_number

_KINDS: Kinds = {
    "kind": (str,),
    "height": (int,),
    "width": (int,),
    "channels": (int,),
    "classes": (list,),
    "size": (int, type(None)),
}
MOST_CLASSES = 10_000
"""More classes than this are a slip of the pen, and their names alone would fill the memory."""


def class_names(number: int) -> tuple[str, ...]:
    """Names "0", "1", ... of classes that are only counted.

    Raises:
        SchemaError: none, or more than `MOST_CLASSES`.
    """
    if not 1 <= number <= MOST_CLASSES:
        raise SchemaError(f"the number of classes is {number}; allowed is 1 to {MOST_CLASSES:,}, or give their names")
    return tuple(map(str, range(number)))


@dataclass(frozen=True, kw_only=True)
class ImageSchema:
    """Public facts about a set of labelled images.

    Attributes:
        height: image height in pixels, 1 to 1024.
        width: image width in pixels, 1 to 1024.
        channels: 1 (grey) or 3 (colour).
        classes: names of the classes, in the order of the label numbers 0, 1, ...
        size: the *declared* number of records, a public round figure; None when nobody declared one. It is never
            counted from the rows. Rates and default deltas are derived from it.
    """

    height: int
    width: int
    channels: int
    classes: tuple[str, ...]
    size: int | None = None

    def __post_init__(self) -> None:
        for name in ("height", "width", "channels", "size"):
            object.__setattr__(self, name, plain_number(getattr(self, name)))
        for name in ("height", "width"):
            value = getattr(self, name)
            if not 1 <= value <= 1024:
                raise SchemaError(f"{name} is {value}; allowed is 1 to 1024 pixels; give --resize for larger images")
        if self.channels not in (1, 3):
            raise SchemaError(f"channels is {self.channels}; allowed is 1 (grey) or 3 (colour)")
        if not self.classes or "" in self.classes or len(set(self.classes)) != len(self.classes):
            raise SchemaError(f"classes is {self.classes!r}; give at least one name, none empty, each of them once")
        check_size(self.size)

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image, (height, width, channels)."""
        return (self.height, self.width, self.channels)

    def to_json(self) -> dict[str, Any]:
        """The schema as plain JSON values."""
        return {"kind": "image", **dataclasses.asdict(self), "classes": list(self.classes)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> ImageSchema:
        """Read back what `to_json` wrote; unknown keys are refused."""
        found = entries(value, _KINDS, "the schema")
        if missing := sorted(set(_KINDS) - set(found) - {"kind", "size"}):
            raise SchemaError(f"the schema lacks {missing}; write them, e.g. {json.dumps({k: '...' for k in missing})}")
        fields = {k: v for k, v in found.items() if k != "kind"}
        return ImageSchema(**{**fields, "classes": texts(fields["classes"], "'classes'")})

    def check(self, rows: Rows) -> None:
        """Raise `SchemaError` unless `rows` fit: `image` uint8 [n, h, w, c], `label` int64 [n] within the classes."""
        image, label = rows["image"], rows["label"]
        if image.dtype != np.uint8 or image.shape[1:] != self.shape:
            raise SchemaError(
                f"images are {image.dtype} of shape {image.shape[1:]}; the schema allows uint8 of shape {self.shape}; "
                "resize or convert them, or declare another shape"
            )
        if label.dtype != np.int64 or label.shape != (len(image),):
            raise SchemaError(
                f"labels are {label.dtype} with {label.ndim} axes; allowed is int64, one for each image and no more"
            )
        if label.size and not bool(((label >= 0) & (label < self.n_classes)).all()):
            raise SchemaError(
                f"a label lies outside the declared classes 0 to {self.n_classes - 1}; "
                "declare all classes in the schema or correct the labels"
            )
