"""Prints what exports of the same rows come to, read by others, and fails where they differ.

    totals.py EXPORT.csv EXPORT.ndjson EXPORT.parquet
"""

import csv
import json
import sys
from decimal import Decimal, getcontext

import duckdb
import pyarrow.compute
import pyarrow.parquet

getcontext().prec = 60
COLUMNS = ["BilledCost", "ListCost", "ConsumedQuantity", "PricingQuantity"]


def sums(rows):
    totals, count = dict.fromkeys(COLUMNS, Decimal(0)), 0
    for row in rows:
        count += 1
        for name in COLUMNS:
            totals[name] += Decimal(row[name])
    return count, totals


def main():
    in_csv, in_json, in_parquet = sys.argv[1:]
    with open(in_csv, newline="") as file:
        expected = sums(csv.DictReader(file))
    with open(in_json) as file:
        assert sums(map(json.loads, file)) == expected, "JSON"
    # Batch by batch: a month is large.
    table = pyarrow.parquet.ParquetFile(in_parquet)
    totals, count = dict.fromkeys(COLUMNS, Decimal(0)), 0
    for batch in table.iter_batches(columns=COLUMNS):
        count += batch.num_rows
        for name in COLUMNS:
            totals[name] += pyarrow.compute.sum(batch.column(name)).as_py() or 0
    assert (count, totals) == expected, f"Parquet: {count} {totals}, CSV: {expected}"
    schema = table.schema_arrow
    assert str(schema.field("ChargePeriodStart").type) == "timestamp[ms, tz=UTC]", schema
    [(rows, cost)] = duckdb.sql(f"SELECT count(*), sum(BilledCost) FROM '{in_parquet}'").fetchall()
    assert (rows, cost) == (expected[0], expected[1]["BilledCost"]), f"DuckDB: {rows} {cost}"
    # All columns, where there are few rows.
    if count <= 100_000:
        with open(in_csv, newline="") as file:
            for row, other in zip(csv.DictReader(file), table.read().to_pylist(), strict=True):
                for name, text in row.items():
                    value = other[name]
                    if isinstance(value, Decimal):
                        assert value == Decimal(text), (name, text, value)
                    elif hasattr(value, "isoformat"):
                        assert value.strftime("%Y-%m-%dT%H:%M:%SZ") == text, (name, text, value)
                    else:
                        assert (value or "") == text, (name, text, value)
    print(count, *(totals[name].normalize() for name in COLUMNS))


main()
