"""Files of tables, piece by piece: header and rows as they stand there."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpgm.data.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

CHUNK = 50_000
SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")


def is_table(path: Path | str) -> bool:
    """Whether the name is that of a table file."""
    return str(path).lower().endswith(SUFFIXES)


def is_parquet(path: Path) -> bool:
    """Whether the name is that of a parquet file."""
    return path.suffix.lower() == ".parquet"


def separator(path: Path) -> str:
    """What stands between two values of a text file of this name."""
    return "\t" if path.name.lower().endswith((".tsv", ".tsv.gz")) else ","


def header(path: Path, wanted: tuple[str, ...] | None = None) -> list[str]:
    """Names of the columns; those that are wanted (all, by default) may stand there only once."""
    pd = pandas_()
    try:
        if is_parquet(path):
            names = list(pyarrow_(path).ParquetFile(path).schema_arrow.names)
        else:
            options: dict[str, Any] = {"sep": separator(path), "dtype": str, "na_filter": False, "header": None}
            names = [str(v).removeprefix("\ufeff") for v in pd.read_csv(path, nrows=1, **options).iloc[0]]
    except DataError:
        raise
    except Exception as error:  # gzip, parquet and pandas each have their own kinds
        raise DataError(
            f"{path.name} has no readable header ({type(error).__name__}); it may be empty, damaged, cut short or not "
            "UTF-8; copy it again or write it anew"
        ) from error
    if twice := sorted({n for n in names if n and names.count(n) > 1 and (wanted is None or n in wanted)}):
        raise DataError(f"{path.name} has several columns {twice}; which is meant is not clear: rename all but one")
    return names


def chunks(path: Path, names: tuple[str, ...]) -> Iterator[pd.DataFrame]:
    """The file as texts (csv) or as it is typed (parquet), piece by piece."""
    try:
        if is_parquet(path):
            for batch in pyarrow_(path).ParquetFile(path).iter_batches(batch_size=CHUNK, columns=list(names)):
                yield batch.to_pandas(ignore_metadata=True)  # a column that was an index is a column
            return
        # All columns, as a line with too many fields is found only so; never an index, which one line could bring about
        options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "na_filter": False, "index_col": False}
        with pandas_().read_csv(path, sep=separator(path), chunksize=CHUNK, **options) as reader:
            while (frame := _next(reader)) is not None:
                yield frame[list(names)]
    except (ValueError, OSError, EOFError, zlib.error, Warning):  # what they say holds bytes and line numbers
        raise DataError(
            f"{path.name} is damaged or cut short, or has a line that is no record, or a text that is not UTF-8; "
            "write the file again"
        ) from None


def _next(reader: Any) -> pd.DataFrame | None:
    """The next piece; a first line with too many fields, of which pandas only warns, is an error like any other."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", pandas_().errors.ParserWarning)
        return next(reader, None)


def pyarrow_(path: Path) -> Any:
    """The library for parquet, where it is installed."""
    try:
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError(f"{path.name} is a parquet file, which needs pyarrow; install it, or use .csv") from error
    return pyarrow.parquet


def pandas_() -> Any:
    """The library, where it is installed."""
    try:
        import pandas
    except ImportError as error:
        raise DataError("tables need pandas; install the extra: pip install 'dpgm[tables]'") from error
    return pandas
