"""Classify the types of Arrow columns, and convert arrays to the types that import supports."""

from __future__ import annotations

from typing import Any

STRINGS = ("string", "large_string", "string_view")
# Extension types whose storage has the same meaning. Others (periods, ...) are refused with their
# name in the message.
TRANSPARENT = ("arrow.fixed_shape_tensor", "arrow.bool8", "arrow.json")
SECONDS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


def kind(type: Any) -> str:
    """Return how import treats a type.

    One of "number", "string", "category", "time", "null", or the name of an unsupported type.
    """
    from pyarrow import types

    if types.is_dictionary(type) and str(type.value_type) in STRINGS:
        return "category"
    if types.is_dictionary(type) or types.is_run_end_encoded(type):
        type = type.value_type
    if (
        types.is_integer(type)
        or types.is_floating(type)
        or types.is_decimal(type)
        or types.is_boolean(type)
    ):
        return "number"
    if str(type) in STRINGS:
        return "string"
    if types.is_duration(type):
        return "number"
    if types.is_temporal(type):
        return "time"
    return str(type)


def plain(array: Any) -> Any:
    """Convert an array to a type that all parts of import support.

    Strings get one type and durations become seconds. Decimals become text, since the cast of
    pyarrow to float64 does not give the nearest number.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types

    if types.is_run_end_encoded(array.type):
        array = pc.run_end_decode(array)
    if types.is_dictionary(array.type) and array.type.value_type != pa.string():
        known = plain(array.dictionary)  # pyarrow cannot decode all types, so values go first
        array = pa.DictionaryArray.from_arrays(array.indices, known).dictionary_decode()
    if str(array.type) in STRINGS[1:]:
        return array.cast(pa.string())
    if types.is_float16(array.type):
        return array.cast(pa.float32())
    if types.is_decimal(array.type):
        return array.cast(pa.string())
    if types.is_duration(array.type):
        whole = array.cast(pa.int64())
        return pc.divide(whole.cast(pa.float64(), safe=False), SECONDS[array.type.unit])
    return array


def is_ready(field: Any) -> bool:
    """Return whether arrays of a field need no conversion."""
    from pyarrow import types

    type = field.type
    if (
        types.is_float16(type)
        or types.is_decimal(type)
        or types.is_duration(type)
        or extension_of(field)
    ):
        return False
    return bool(types.is_primitive(type) or types.is_string(type) or types.is_null(type))


def extension_of(field: Any) -> str:
    """Return the name of an extension type that pyarrow does not have, from a field's metadata."""
    return str((field.metadata or {}).get(b"ARROW:extension:name", b""), errors="replace")


def storage(type: Any, extension: str = "") -> tuple[Any, str]:
    """Return the storage type and the name of an extension type.

    Any other type is returned unchanged, with the name `extension`.
    """
    name = getattr(type, "extension_name", extension)
    return getattr(type, "storage_type", type), name


def stored(array: Any) -> Any:
    """Return the storage of an array of an extension type; any other array unchanged."""
    return getattr(array, "storage", array)
