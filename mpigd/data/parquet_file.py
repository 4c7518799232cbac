"""Parquet files as streams of record batches, through pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mpigd.data.compressed import reading

BLOCK_BYTES = 1 << 22  # of decoded columns held at once


def kinds(path: str) -> dict[str, str]:
    import pyarrow.parquet as pq

    with reading(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
    names = [name for name in schema.names if not name.startswith("__index_level_")]  # pandas' row labels
    return {name: _kind(schema.field(name).type) for name in names}


def _kind(type: Any) -> str:
    from pyarrow import types

    if types.is_dictionary(type):
        kind = _kind(type.value_type)
        return "category" if kind == "string" else kind
    if types.is_integer(type) or types.is_floating(type) or types.is_decimal(type) or types.is_boolean(type):
        return "number"
    if str(type) in ("string", "large_string", "string_view"):
        return "string"
    if types.is_temporal(type):
        return "time"
    return str(type)


def batches(path: str, wanted: Sequence[str]) -> Iterator[Any]:
    import pyarrow.parquet as pq

    after = [0]
    rows = max(1, BLOCK_BYTES // (8 * max(1, len(wanted))))
    # pre_buffer would fetch a whole row group ahead, and Spark's are 128 MB packed.
    with reading(path, after), pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=rows, columns=list(wanted), use_threads=False):
            yield batch
            after[0] += batch.num_rows
