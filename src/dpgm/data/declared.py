"""What the user declares about a source, and the schema that follows from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from dpgm.data.errors import DataError
from dpgm.schema import ImageSchema, SchemaError, class_names


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What the user said about the source."""

    schema: ImageSchema | None
    image_size: int | tuple[int, int] | None
    channels: int | None
    classes: Sequence[str] | int | None
    size: int | None
    resize: int | None
    grey: bool | None

    def __post_init__(self) -> None:
        if self.schema and any(v is not None for v in (self.image_size, self.channels, self.classes)):
            raise DataError("the schema already declares --image-size, --channels and --classes; give one or the other")
        if self.resize is not None and not 1 <= self.resize <= 1024:
            raise DataError(f"--resize is {self.resize}; allowed is 1 to 1024 pixels; leave it out to keep the size")
        if isinstance(self.classes, str):
            raise DataError(f"classes is the text {self.classes!r}; give several names, e.g. --classes cat,dog")

    @property
    def sides(self) -> tuple[int, int] | None:
        """Declared height and width of the stored images."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def names(self) -> tuple[str, ...] | None:
        """Declared names of the classes."""
        if self.schema:
            return self.schema.classes
        if isinstance(self.classes, int):
            with _as_data_error("classes"):
                return class_names(self.classes)
        return None if self.classes is None else tuple(self.classes)

    def facts(self, name: str, hint: Mapping[str, str]) -> ImageSchema:
        """The declared schema of an own source after conversion, or an error that says what to add."""
        if self.schema:
            return self.converted(self.schema)
        sides = self.sides if self.resize is None else (self.resize, self.resize)
        channels = self.channels if self.grey is None else (1 if self.grey else 3)
        names = self.names
        if sides is None or channels is None or names is None:
            values = {"image-size": sides, "channels": channels, "classes": names}
            absent = [flag for flag, value in values.items() if value is None]
            raise DataError(
                f"{name}: its public facts are not declared; add {' '.join(f'--{f} {hint[f]}' for f in absent)}, or "
                "--schema schema.json, and, if it may be known, a round --size 60000; they are published with the "
                "result and are never inferred from the private rows, because that would leak"
            )
        with _as_data_error(name):
            return ImageSchema(height=sides[0], width=sides[1], channels=channels, classes=names, size=self.size)

    def stored(self, facts: ImageSchema) -> tuple[int | None, int | None, int | None]:
        """Height, width and channels that an own source must have; None where it is converted and nothing declared."""
        height, width = self.sides or ((facts.height, facts.width) if self.resize is None else (None, None))
        return height, width, self.channels or (facts.channels if self.grey is None else None)

    def agreeing(self, name: str, known: ImageSchema) -> ImageSchema:
        """The facts of a named set after conversion; a declaration must not contradict them."""
        wanted = self.converted(known)
        given = self.schema
        if (
            (given is not None and given.shape not in (known.shape, wanted.shape))
            or (self.sides is not None and self.sides != (known.height, known.width))
            or (self.channels is not None and self.channels != known.channels)
            or (self.names is not None and self.names != known.classes and self.classes != known.n_classes)
        ):
            raise DataError(
                f"the facts of {name} are known ({known}); leave out --schema, --image-size, --channels and --classes; "
                "convert with --resize and --colour"
            )
        return dataclasses.replace(wanted, size=self.size or (given and given.size) or known.size)

    def converted(self, facts: ImageSchema) -> ImageSchema:
        """The schema after resizing and conversion, with the declared size."""
        with _as_data_error("after --resize, --colour and --size"):
            return dataclasses.replace(
                facts,
                height=facts.height if self.resize is None else self.resize,
                width=facts.width if self.resize is None else self.resize,
                channels=facts.channels if self.grey is None else (1 if self.grey else 3),
                size=facts.size if self.size is None else self.size,
            )


@contextmanager
def _as_data_error(name: str) -> Generator[None]:
    try:
        yield
    except SchemaError as error:
        raise DataError(f"{name}: {error}") from error
