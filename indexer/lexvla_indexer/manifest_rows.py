"""The items of a manifest as records: lines of JSON, rows of CSV, rows of a parquet file."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lexvla.errors import InputError, OptionalDependencyError
from lexvla_indexer.document import plain_value

if TYPE_CHECKING:
    from pyarrow import Array, RecordBatch

__all__ = ["READERS", "TABLES"]

# The number of a line or row, from 1, and the record there or what is wrong with it. A record may
# have an error in place of a value.
Rows = Iterator[tuple[int, dict[str, Any] | InputError]]

_BATCH = 1024  # rows of a parquet file in memory


def _json_lines(path: Path) -> Rows:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _json_record(line, f"line {number}")


def _json_record(line: bytes, name: str) -> dict[str, Any] | InputError:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return InputError(name, f"is not JSON ({error})")
    return record if isinstance(record, dict) else InputError(name, "must be a JSON object")


def _csv(path: Path) -> Rows:
    """Read a header of names, each perhaps with a type as in ``year:int``, and rows of cells."""
    # What is not UTF-8 comes out as text that is refused where it is used, with the line's number.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        columns = _header(next(reader, []), path)
        while True:
            number = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, InputError(f"line {number}", f"is not CSV ({error})")
                continue
            if cells:
                yield number, _csv_record(cells, columns, f"line {number}")


def _header(cells: Sequence[str], path: Path) -> list[tuple[str, str]]:
    columns = []
    for cell in cells:
        name, _, kind = cell.strip().rpartition(":")
        # A colon may also be a part of a name, as in dc:title.
        columns.append((name, kind) if kind in _READ and name else (cell.strip(), "str"))
    _check_names([name for name, _ in columns if name], path)
    return columns


def _check_names(names: Sequence[str], path: Path) -> None:
    if "id" not in names:
        found = ", ".join(map(repr, names)) or "none"
        raise InputError(str(path), f"must have a column 'id'; its columns are {found}")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(str(path), f"has two columns {twice!r}")


def _csv_record(
    cells: Sequence[str], columns: Sequence[tuple[str, str]], where: str
) -> dict[str, Any] | InputError:
    if len(cells) != len(columns):
        return InputError(where, f"has {len(cells)} cells, not {len(columns)} as the first line")
    record: dict[str, Any] = {}
    for cell, (name, kind) in zip(cells, columns, strict=True):
        if not name:  # spreadsheets end lines in commas, and pandas numbers rows
            continue
        try:
            record[name] = _READ[kind](cell) if cell.strip() else None
        except (ValueError, KeyError):
            record[name] = InputError(where, f"{name} must be {_SAID[kind]}, not {cell!r}")
    return record


def _whole(cell: str) -> int:
    if "_" in cell:  # a part of a number in Python's source alone
        raise ValueError
    return int(cell)


def _finite(cell: str) -> float:
    value = float(cell)
    if "_" in cell or not math.isfinite(value):
        raise ValueError
    return value


# How a cell of each type is read.
_READ: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": _whole,
    "float": _finite,
    "bool": lambda cell: {"true": True, "false": False}[cell.strip().lower()],
    "list": lambda cell: [part.strip() for part in cell.split(";") if part.strip()],
}
_SAID = {"int": "a whole number", "float": "a finite number", "bool": "true or false"}


def _parquet(path: Path) -> Rows:
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError as error:
        raise OptionalDependencyError("pyarrow", "parquet") from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            _check_names(file.schema_arrow.names, path)
            for batch in file.iter_batches(_BATCH):
                for row in _records(batch):
                    number += 1
                    yield number, row
    except (ArrowException, OSError) as error:
        rule = f"is not a readable parquet file ({' '.join(str(error).split())})"
        if not number:
            raise InputError(str(path), rule) from error
        yield number + 1, InputError(f"{path.name} from row {number + 1} on", rule)


def _records(batch: RecordBatch) -> Iterator[dict[str, Any]]:
    names = batch.schema.names
    columns = [_column(name, batch.column(at)) for at, name in enumerate(names)]
    for row in zip(*columns, strict=True):
        yield dict(zip(names, row, strict=True))


def _column(name: str, column: Array) -> list[Any]:
    from pyarrow import timestamp, types

    kind = column.type
    if name == "id" and types.is_integer(kind):
        column = column.cast("string")
    elif types.is_timestamp(kind) and kind.unit == "ns":  # Python's times have microseconds
        column = column.cast(timestamp("us", kind.tz), safe=False)
    return [_value(name, each, types.is_map(kind)) for each in column]


def _value(name: str, scalar: Any, is_map: bool) -> Any:
    try:
        value = scalar.as_py()
        return _plain(dict(value) if is_map and value is not None else value)
    except (ValueError, OverflowError) as error:
        # Python has the years 1 to 9999.
        return InputError("", f"{name} cannot be read ({error})")


def _plain(value: Any) -> Any:
    """Return dates and times as ISO 8601, whose order is that of text, and decimals as numbers."""
    if isinstance(value, time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return plain_value(value)


# By the suffix of the manifest. The columns of tables that mean nothing else are metadata.
READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _csv,
    ".parquet": _parquet,
}
TABLES = frozenset({".csv", ".parquet"})
