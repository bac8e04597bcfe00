"""Public facts about the records, and the container that holds the records themselves.

A schema is written by a person, read from a file or known for a named data set; it is never inferred from private
rows. Everything in it may be published.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from dpgm.schema.image import ImageSchema, class_names
from dpgm.schema.rows import Rows, SchemaError, default_delta
from dpgm.schema.table import Column, TableSchema

__all__ = [
    "AnySchema",
    "Column",
    "ImageSchema",
    "Rows",
    "Schema",
    "SchemaError",
    "TableSchema",
    "class_names",
    "default_delta",
    "schema_from_json",
]

Schema: TypeAlias = ImageSchema
"""What most methods take; one that takes tables too says so in `Method.takes`."""
AnySchema: TypeAlias = ImageSchema | TableSchema


def schema_from_json(value: Any) -> AnySchema:
    """Read back what either schema's `to_json` wrote; without a "kind", columns tell a table."""
    if not isinstance(value, Mapping):
        raise SchemaError(
            f"the schema is a {type(value).__name__}; write a JSON object that describes images or a table"
        )
    kinds = {"image": ImageSchema, "table": TableSchema}
    kind = value.get("kind", "table" if "columns" in value else "image")
    if kind not in kinds:
        raise SchemaError(f"the schema's kind is {kind!r}; allowed are {', '.join(kinds)}")
    return kinds[kind].from_json(value)
