"""The command `schema`: public facts of a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from dpgm.artefact import write_json
from dpgm.cli.console import Screen
from dpgm.cli.options import parse
from dpgm.schema import SchemaError


@dataclass(frozen=True, kw_only=True)
class _Schema:
    """What the command takes.

    Attributes:
        action: draft: write a schema for a person to correct.
        file: a table: .csv, .csv.gz, .tsv or .parquet.
        from_public: confirms that the file is public; every bound and category of the draft comes from it.
        label: the column that a classifier would predict.
        missing: texts that stand for missing values, beside "", NA, N/A, NaN, null and ?, e.g. N,-9.
        size: declared number of records, a public round figure.
        most: largest number of different texts in a column.
        out: the file to write; by default FILE's name with .json.
        json: print one JSON object.
    """

    action: tyro.conf.Positional[Literal["draft"]]
    file: tyro.conf.Positional[Path]
    from_public: bool = False
    label: str | None = None
    missing: str = ""
    size: int | None = None
    most: int = 100
    out: Path | None = None
    json: bool = False


def schema_command(words: list[str]) -> int:
    """Draft a schema from a public file."""
    import dataclasses

    from dpgm.data.drafts import doubts, draft_schema

    options = parse("schema", _Schema, words, about="Draft the public facts of a table from a public file.")
    if not options.from_public:
        raise SchemaError(
            "a schema is published, so nothing in it may come from private rows. If this file is public (another year, "
            "a benchmark, made-up records), say so with --from-public; else write the schema by hand from what is "
            "known of the columns"
        )
    if not options.file.is_file():
        raise SchemaError(f"{options.file} does not exist; give a table file")
    marks = tuple(v for v in options.missing.split(",") if v)
    schema = draft_schema(options.file, label=options.label, missing_marks=marks, most=options.most)
    schema = dataclasses.replace(schema, size=options.size)
    out = options.out or options.file.with_name(options.file.name.partition(".")[0] + ".json")
    write_json(out, schema.to_json())
    kinds = {c.name: c.kind for c in schema.columns}
    asked = doubts(options.file, schema)
    lines = [*(f"{name}: {kind}" for name, kind in kinds.items()), *(f"look at {doubt}" for doubt in asked)]
    lines += [f"written to {out}; read it before you use it"]
    value = {"file": str(out), "schema": schema.to_json(), "doubts": asked}
    Screen(as_json=options.json).result(value, "\n".join(lines))
    return 0
