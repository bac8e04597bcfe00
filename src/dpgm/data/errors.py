"""The one kind of error of this room."""

from __future__ import annotations

from dpgm.schema import SchemaError


class DataError(SchemaError):
    """A source that is absent, damaged, undeclared or at odds with its declaration.

    Messages name the kind of fault and the place to look at; they hold neither values nor numbers of private rows.
    """
