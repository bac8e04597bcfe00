"""Tables: schema, reading, numbers and back, drafts; every fault with its message."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dpgm.data import DataError
from dpgm.data.drafts import draft_schema
from dpgm.data.frames import check_dtypes, to_frame, to_numbers
from dpgm.data.table_files import is_table
from dpgm.data.tables import TableSet, write_csv
from dpgm.schema import Column, ImageSchema, Rows, SchemaError, TableSchema, schema_from_json

pd = pytest.importorskip("pandas")

SCHEMA = TableSchema(
    columns=(
        Column(name="job", kind="category", values=("cook", "nurse"), missing=True),
        Column(name="age", kind="integer", low=0, high=120),
        Column(name="wage", kind="number", low=0, high=1e6, decimals=2, missing=True),
        Column(name="born", kind="date", low="1900-01-01", high="2030-12-31", missing=True),
        Column(name="smokes", kind="boolean", missing=True),
        Column(name="rooms", kind="integer", low=0, high=9, missing=True),
        Column(name="ill", kind="category", values=("0", "1"), dtype="int64"),
    ),
    label="ill",
    size=1000,
)
CSV = """ill,job,age,wage,born,smokes,rooms,secret
0,cook,30,1000.456,1990-02-03,yes,3,x
1,?,200,-5,,FALSE,,y
0,nurse, 41 ,,2024-02-29,,12,z
"""


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "people.csv"
    path.write_text(CSV, encoding="utf-8")
    return path


def test_a_file_becomes_allowed_numbers(csv: Path) -> None:
    rows = TableSet(path=csv, schema=SCHEMA).train()
    SCHEMA.check(rows)
    nan, days = np.nan, (np.datetime64("1990-02-03") - np.datetime64("1970-01-01")).astype(float)
    leap = (np.datetime64("2024-02-29") - np.datetime64("1970-01-01")).astype(float)
    expected = [[0, 30, 1000.46, days, 1, 3, 0], [nan, 120, 0, nan, 0, nan, 1], [1, 41, nan, leap, nan, 9, 0]]
    assert np.array_equal(rows["table"], np.array(expected), equal_nan=True)


def test_frames_have_their_types_back(csv: Path) -> None:
    table = TableSet(path=csv, schema=SCHEMA).train()["table"]
    frame = to_frame(table, SCHEMA)
    assert list(frame.columns) == list(SCHEMA.names)
    assert [str(frame[c].dtype) for c in ("age", "wage", "smokes", "rooms", "ill")] == [
        "int64",
        "float64",
        "boolean",
        "Int64",
        "int64",
    ]
    assert pd.api.types.is_datetime64_any_dtype(frame["born"])
    assert frame.isna().sum().tolist() == [1, 0, 1, 1, 1, 1, 0]
    assert np.array_equal(to_numbers(frame, SCHEMA), table, equal_nan=True)
    shuffled = frame[list(reversed(frame.columns))]
    assert np.array_equal(to_numbers(shuffled, SCHEMA), table, equal_nan=True)


def test_a_table_has_one_held_out_part(csv: Path) -> None:
    with pytest.raises(DataError, match="leave out --test-fraction"):
        TableSet(path=csv, schema=SCHEMA, test_path=csv, test_fraction=0.2)


def test_one_gap_changes_no_other_code() -> None:
    """A gap makes floats of whole numbers, and long ones then read otherwise."""
    long = str(2**53 + 1)
    schema = TableSchema(columns=(Column(name="id", kind="category", values=(long, "7"), missing=True),))
    frame = pd.DataFrame({"id": [int(long), 7]})
    for some in (frame, pd.concat([frame, pd.DataFrame({"id": [None]})], ignore_index=True).astype(float)):
        with pytest.raises(DataError, match="give the column as texts"):
            to_numbers(some, schema)
    assert to_numbers(frame.astype(str), schema)[:, 0].tolist() == [0, 1]


def test_a_number_reads_alike_whatever_dtype_the_others_give_its_column() -> None:
    few = np.array([0.1, 0.7], np.float32)
    numbers = TableSchema(columns=(Column(name="x", kind="number", low=0, high=1),))
    forms = [pd.DataFrame({"x": few}), pd.DataFrame({"x": few.astype(object)}), pd.DataFrame({"x": [*few, 0.5]})]
    for frame in forms:
        assert to_numbers(frame, numbers)[:2, 0].tolist() == few.astype(float).tolist()
    codes = TableSchema(columns=(Column(name="x", kind="category", values=("0.1", "0.7"), missing=True),))
    for frame in forms:
        assert to_numbers(frame, codes)[:2, 0].tolist() == [0, 1]


def test_a_text_in_front_changes_no_number_of_the_same_digits() -> None:
    """0.1 of float32 is "0.1" among the declared values; the first to write 0.10000000149011612 decided for all."""
    codes = TableSchema(columns=(Column(name="x", kind="category", values=("0.1", "0.2"), missing=True),))
    numbers = [np.float32(0.1), np.float32(0.2), np.float32(0.1)]
    for first in ("0.10000000149011612", "0.1", None):
        frame = pd.DataFrame({"x": pd.Series([first, *numbers], dtype=object)})
        assert to_numbers(frame, codes)[1:, 0].tolist() == [0, 1, 0]
        texts = pd.Categorical([first, float(np.float32(0.1)), "0.2"])
        assert to_numbers(pd.DataFrame({"x": texts}), codes)[1:, 0].tolist() == [0, 1]


@pytest.mark.parametrize("dtype", ["category", "object", "str"])
def test_declared_dtypes_are_restored(dtype: str) -> None:
    schema = TableSchema(columns=(Column(name="c", kind="category", values=("a", "b"), missing=True, dtype=dtype),))
    frame = to_frame(np.array([[0.0], [np.nan], [1.0]]), schema)
    assert str(frame["c"].dtype) == dtype
    assert frame["c"].isna().tolist() == [False, True, False]


@pytest.mark.parametrize(
    "column",
    [
        Column(name="x", kind="category", values=("02139", "10001"), dtype="int64"),  # 2139 is no declared value
        Column(name="x", kind="category", values=("no", "yes"), dtype="bool"),  # both would be true
        Column(name="x", kind="number", low=0, high=9, dtype="int64"),
        Column(name="x", kind="number", low=0, high=1e9, dtype="float16"),
        Column(name="x", kind="integer", low=0, high=900, dtype="int8"),
        Column(name="x", kind="integer", low=0, high=9, missing=True, dtype="int64"),
    ],
)
def test_dtypes_that_lose_values_are_refused_before_a_row_is_read(column: Column) -> None:
    with pytest.raises(DataError, match="cannot hold"):
        check_dtypes(TableSchema(columns=(column,)))


@pytest.mark.parametrize(
    "column",
    [
        Column(name="x", kind="category", values=("0.5", "1.0"), dtype="float64"),
        Column(name="x", kind="category", values=("1", "2"), missing=True, dtype="Int64"),
        Column(name="x", kind="number", low=0, high=9, decimals=0, dtype="int64"),
        Column(name="x", kind="number", low=-1e-9, high=1e9, dtype="float32"),
        Column(name="x", kind="date", low="1990-01-01", high="2020-01-01", missing=True, dtype="str"),
        Column(name="x", kind="date", low="1990-01-01", high="2020-01-01", dtype="object"),
        Column(name="x", kind="datetime", low="1990-01-01", high="2020-01-01 13:45:07", missing=True),
        Column(name="x", kind="datetime", low="1950-01-01 00:00:01", high="2020-01-01", dtype="str"),
    ],
)
def test_dtypes_that_hold_all_are_taken_and_written(column: Column, tmp_path: Path) -> None:
    schema = TableSchema(columns=(column,))
    check_dtypes(schema)
    table = np.array([[column.bounds[0]], [column.bounds[1]], *([[np.nan]] if column.missing else [])])
    write_csv(table, schema, tmp_path / "x.csv")
    found = TableSet(path=tmp_path / "x.csv", schema=schema).train()["table"]
    assert np.allclose(found, table, rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "tsv"])
def test_written_files_are_read_back(csv: Path, suffix: str) -> None:
    table = TableSet(path=csv, schema=SCHEMA).train()["table"]
    out = csv.parent / f"out.{suffix}"
    if suffix == "tsv":
        to_frame(table, SCHEMA).to_csv(out, sep="\t", index=False)
    else:
        write_csv(table, SCHEMA, out)
    assert np.array_equal(TableSet(path=out, schema=SCHEMA).train()["table"], table, equal_nan=True)


def test_parquet_is_read_like_csv(csv: Path) -> None:
    pytest.importorskip("pyarrow")
    table = TableSet(path=csv, schema=SCHEMA).train()["table"]
    out = csv.parent / "out.parquet"
    to_frame(table, SCHEMA).to_parquet(out)
    assert np.array_equal(TableSet(path=out, schema=SCHEMA).train()["table"], table, equal_nan=True)


def test_parquet_without_its_library_says_so(csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    out = csv.parent / "out.parquet"
    out.write_bytes(b"")
    with pytest.raises(DataError, match="pyarrow"):
        TableSet(path=out, schema=SCHEMA)


def test_a_split_depends_on_each_record_alone(tmp_path: Path) -> None:
    schema = TableSchema(columns=(Column(name="x", kind="integer", low=0, high=10_000),))
    path, fewer = tmp_path / "a.csv", tmp_path / "b.csv"
    path.write_text("x\n" + "\n".join(map(str, range(2000))), encoding="utf-8")
    fewer.write_text("x\n" + "\n".join(map(str, range(1, 2000))), encoding="utf-8")
    data, less = (TableSet(path=p, schema=schema, test_fraction=0.25) for p in (path, fewer))
    train, test = set(data.train()["table"][:, 0]), set(data.test()["table"][:, 0])
    assert train | test == set(range(2000))
    assert not train & test
    assert 400 < len(test) < 600
    assert set(less.test()["table"][:, 0]) == test - {0.0}
    assert data.has_test


def test_a_test_file_is_the_test_part(csv: Path) -> None:
    data = TableSet(path=csv, schema=SCHEMA, test_path=csv)
    assert np.array_equal(data.test()["table"], data.train()["table"], equal_nan=True)
    with pytest.raises(DataError, match="no test part"):
        TableSet(path=csv, schema=SCHEMA).test()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ill,job\n0,cook\n", "no column"),
        (CSV.replace("0,cook", "7,cook"), "not among its declared values"),
        (CSV.replace(",30,", ",?,"), "lacks values"),
        (CSV.replace(",30,", ",thirty,"), "no integer"),
        (CSV.replace("1990-02-03", "someday"), "no date"),
        (CSV.replace("yes", "perhaps"), "no boolean"),
    ],
)
def test_faults_are_named_without_quoting_values(csv: Path, text: str, message: str) -> None:
    csv.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as error:
        TableSet(path=csv, schema=SCHEMA).train()
    for secret in ("thirty", "someday", "perhaps", "7"):
        assert secret not in str(error.value)


@pytest.mark.parametrize("line", [b"0,cook,30,1,\xff,,,x\n", b'0,"cook,30,1,,,,x\n'])
def test_a_damaged_line_is_not_quoted(csv: Path, line: bytes) -> None:
    csv.write_bytes(CSV.encode() + line)
    with pytest.raises(DataError, match="no record") as error:
        TableSet(path=csv, schema=SCHEMA).train()
    assert error.value.__cause__ is None
    assert "xff" not in str(error.value)
    assert not any(c.isdigit() for c in str(error.value).replace("UTF-8", ""))


@pytest.mark.parametrize(
    ("fields", "values", "joins"),
    [
        ({"kind": "integer", "low": -5, "high": 9}, [-1, 3, 4], "?"),
        ({"kind": "integer", "low": -5, "high": 9}, [-1, 3, 4], None),
        ({"kind": "number", "low": -5, "high": 9}, [-1.0, 3.5], "?"),
        ({"kind": "category", "values": ("1", "2", "-1")}, [1, 2, 7], None),
        ({"kind": "category", "values": ("1.0", "2.0")}, [1, 2, -1], None),
        ({"kind": "category", "values": ("1", "1.0", "v1.0")}, ["1", "1.0", "v1"], None),
        ({"kind": "boolean"}, [1, 0, -1], None),
        ({"kind": "boolean"}, [True, False], "?"),
        (
            {"kind": "date", "low": "2000-01-01", "high": "2030-12-31"},
            ["2020-01-01", "-1"],
            "2020-01-02T23:00:00-05:00",
        ),
        (
            {"kind": "datetime", "low": "2000-01-01", "high": "2030-12-31"},
            ["2020-01-01 09:05", "-1"],
            "2020-01-02T23:00:00.25-05:00",
        ),
    ],
)
def test_a_value_means_the_same_whoever_joins(fields: dict, values: list, joins: object) -> None:
    """One record more may change the dtype of a frame, and nothing else: what the others mean is theirs."""
    schema = TableSchema(columns=(Column(name="x", missing=True, **fields),), missing_marks=("", "?", "-1"))
    alone = to_numbers(pd.DataFrame({"x": values}), schema)
    among = to_numbers(pd.DataFrame({"x": [*values, joins]}), schema)
    assert np.array_equal(alone, among[:-1], equal_nan=True)
    again = to_numbers(pd.DataFrame({"x": [*values, joins, *reversed(values), joins]}), schema)
    order = [*range(len(among)), *reversed(range(len(values))), len(values)]
    assert np.array_equal(again, among[order], equal_nan=True), "distinct values are read once"
    assert not np.isnan(alone[0]) or values[0] == -1
    if -1 in values and "-1" not in fields.get("values", ()):  # a mark counts as number and as text
        assert np.isnan(alone[values.index(-1)])


def test_schema_survives_json_and_refuses_what_it_does_not_know() -> None:
    value = json.loads(json.dumps(SCHEMA.to_json()))
    assert schema_from_json(value) == SCHEMA
    image = ImageSchema(height=2, width=2, channels=1, classes=("a",))
    assert schema_from_json(image.to_json()) == image
    with pytest.raises(SchemaError, match="unknown keys"):
        schema_from_json({**value, "rows": 3})
    with pytest.raises(SchemaError, match="unknown keys"):
        schema_from_json({"columns": [{"name": "a", "kind": "boolean", "bins": 3}]})
    with pytest.raises(SchemaError, match="kind"):
        schema_from_json({"kind": "sound"})
    with pytest.raises(SchemaError, match="columns"):
        schema_from_json({"kind": "table"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "colour"}, "allowed are"),
        ({"kind": "category"}, "lists"),
        ({"kind": "category", "values": ("a", "a")}, "once"),
        ({"kind": "integer"}, "without bounds"),
        ({"kind": "integer", "low": 3, "high": 3}, "low < high"),
        ({"kind": "number", "low": 0, "high": float("inf")}, "low < high"),
        ({"kind": "number", "low": "0", "high": 1}, "give a number"),
        ({"kind": "date", "low": "1.1.2000", "high": "2001-01-01"}, "2020-01-31"),
        ({"kind": "datetime", "low": "2000-01-01", "high": "2001-01-01 25:00"}, "2020-01-31 13:45:00"),
        ({"kind": "datetime", "low": "2000-01-01", "high": "2001-01-01 12:00+01:00"}, "without a zone"),
        ({"kind": "boolean", "low": 0}, "no bounds"),
        ({"kind": "integer", "low": 0, "high": 1, "decimals": 2}, "decimals"),
    ],
)
def test_columns_refuse_nonsense(fields: dict, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        Column(name="c", **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"columns": ()}, "at least one"),
        ({"columns": (Column(name="a", kind="boolean"),) * 2}, "once"),
        ({"columns": (Column(name="a", kind="boolean"),), "label": "b"}, "allowed are"),
        ({"columns": (Column(name="a", kind="boolean", missing=True),), "label": "a"}, "never missing"),
        ({"columns": (Column(name="a", kind="boolean", missing=True),), "missing_marks": ()}, "missing_marks"),
        ({"columns": (Column(name="a", kind="boolean"),), "size": 1}, "2 or more"),
    ],
)
def test_tables_refuse_nonsense(fields: dict, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        TableSchema(**fields)


def test_check_refuses_numbers_that_the_schema_does_not_allow() -> None:
    good = np.array([[0.0, 30, 10.5, 0, 1, 3, 1]])
    SCHEMA.check(Rows(table=good))
    for j, bad in [(0, 2), (1, 30.5), (1, np.nan), (2, -1), (4, 2), (6, np.nan)]:
        broken = good.copy()
        broken[0, j] = bad
        with pytest.raises(SchemaError, match="column"):
            SCHEMA.check(Rows(table=broken))
    with pytest.raises(SchemaError, match="float64"):
        SCHEMA.check(Rows(table=good[:, 1:]))
    assert SCHEMA.labels(good).tolist() == [1]
    assert (SCHEMA.classes, SCHEMA.n_classes) == (("0", "1"), 2)


def test_a_draft_of_a_public_file_reads_that_file(csv: Path) -> None:
    text = "id,when,flag,score,kind,y\n" + "\n".join(
        f"{i},2020-01-{1 + i % 28:02d},{i % 2 == 0},{i / 7:.3f},{'?' if i % 5 == 0 else 'abc'[i % 3]},{i % 2}"
        for i in range(1, 60)
    )
    csv.write_text(text, encoding="utf-8")
    schema = draft_schema(csv, label="y")
    assert [c.kind for c in schema.columns] == ["integer", "date", "boolean", "number", "category", "category"]
    assert schema["kind"].missing
    assert schema["score"].decimals == 3
    assert schema.label == "y"
    assert schema["y"].dtype == "int64"
    assert TableSchema.from_json(json.loads(json.dumps(schema.to_json()))) == schema
    rows = TableSet(path=csv, schema=schema).train()
    schema.check(rows)
    assert to_frame(rows["table"], schema)["y"].tolist() == [i % 2 for i in range(1, 60)]
    with pytest.raises(DataError, match="different texts"):
        draft_schema(csv, label="y", most=2)


def test_names_of_table_files() -> None:
    assert is_table("a.csv.gz")
    assert is_table(Path("B.PARQUET"))
    assert not is_table("mnist.npz")
