"""The types of Arrow columns: what import takes each for, and arrays of the types that it knows."""

from __future__ import annotations

from typing import Any

STRINGS = ("string", "large_string", "string_view")
# Extension types whose storage means the same as they do; others (periods, ...) are refused by name.
TRANSPARENT = ("arrow.fixed_shape_tensor", "arrow.bool8", "arrow.json")
SECONDS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


def kind(type: Any) -> str:
    """number, string, category, time, null, or the name of a type that is none of these."""
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
    """A column of a type that all of import knows: strings of one kind, durations as seconds, and
    decimals as text, since pyarrow's own way to float64 is not the nearest number."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types

    if types.is_run_end_encoded(array.type):
        array = pc.run_end_decode(array)
    if types.is_dictionary(array.type) and array.type.value_type != pa.string():
        known = plain(array.dictionary)  # first, since pyarrow cannot pick values of all types
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
    """Whether the arrays of a field are plain columns as they are."""
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
    """The extension type of a field that pyarrow does not know, which stands in its metadata."""
    return str((field.metadata or {}).get(b"ARROW:extension:name", b""), errors="replace")


def storage(type: Any, extension: str = "") -> tuple[Any, str]:
    """The type that an extension type is stored as, and its name; any other type as it is."""
    name = getattr(type, "extension_name", extension)
    return getattr(type, "storage_type", type), name


def stored(array: Any) -> Any:
    """The storage of an array of an extension type; any other array as it is."""
    return getattr(array, "storage", array)
