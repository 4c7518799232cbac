"""Access to elements and rows of arrays: conversion to float64, prefetching, uncounted views."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mpigd_kernels.lanes import _F32, _LINE, F64, I64, hint, rows_of


@intrinsic
def prefetch_row(typingctx, X, i):
    """Prefetch the cache lines of X[i] (X C-contiguous); nothing is changed."""

    def generate(context, builder, signature, args):
        first = context.cast(builder, args[1], signature.args[1], types.intp)
        row = rows_of(context, builder, signature.args[0], args[0], [first])
        # One hint for each cache line: a step of _LINE // row.item elements.
        with cgutils.for_range_slice(builder, I64(0), row.columns, I64(_LINE // row.item), I64) as (
            j,
            _,
        ):
            hint(builder, row.pointers[0], j, I64(0), 2)
        return context.get_dummy_value()

    return types.none(X, i), generate


@intrinsic
def number(typingctx, x):
    """Return an element (float32, float64, or float16 bits in uint16) as float64, exactly."""

    def generate(context, builder, signature, args):
        value = args[0]
        if signature.args[0] == types.uint16:
            # By way of float32, for which CPUs have an instruction.
            value = builder.fpext(builder.bitcast(value, ir.HalfType()), _F32)
        return value if value.type == F64 else builder.fpext(value, F64)

    return types.float64(x), generate


@intrinsic
def borrowed(typingctx, array):
    """Return the same array without a share in its reference count.

    A view of the result costs no atomic operation. The caller must keep the array alive. None stays
    None.
    """

    if isinstance(array, types.NoneType):
        return array(array), lambda context, builder, signature, args: args[0]

    def generate(context, builder, signature, args):
        copy = context.make_array(array)(context, builder, args[0])
        # numba counts references through meminfo; without one there is nothing to count.
        copy.meminfo = cgutils.get_null_value(copy.meminfo.type)
        return copy._getvalue()

    return array(array), generate
