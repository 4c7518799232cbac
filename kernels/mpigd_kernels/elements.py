"""Single elements and rows of arrays: numbers as float64, hints, and arrays that are borrowed."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mpigd_kernels.lanes import _F32, _LINE, F64, I64, hint, rows_of


@intrinsic
def prefetch_row(typingctx, X, i):
    """Ask for the cache lines of X[i] (X C-contiguous); changes nothing."""

    def generate(context, builder, signature, args):
        first = context.cast(builder, args[1], signature.args[1], types.intp)
        row = rows_of(context, builder, signature.args[0], args[0], [first])
        with cgutils.for_range_slice(builder, I64(0), row.columns, I64(_LINE // row.item), I64) as (
            j,
            _,
        ):
            hint(builder, row.pointers[0], j, I64(0), 2)
        return context.get_dummy_value()

    return types.none(X, i), generate


@intrinsic
def number(typingctx, x):
    """The float64 of an element: of float32, float64, or a half's bits as uint16."""

    def generate(context, builder, signature, args):
        value = args[0]
        if signature.args[0] == types.uint16:
            value = builder.fpext(builder.bitcast(value, ir.HalfType()), _F32)
        return value if value.type == F64 else builder.fpext(value, F64)

    return types.float64(x), generate


@intrinsic
def borrowed(typingctx, array):
    """The same array without a part in its lifetime, which the caller sees to: a view of it costs no atomic operation."""

    if isinstance(array, types.NoneType):
        return array(array), lambda context, builder, signature, args: args[0]

    def generate(context, builder, signature, args):
        copy = context.make_array(array)(context, builder, args[0])
        copy.meminfo = cgutils.get_null_value(copy.meminfo.type)
        return copy._getvalue()

    return array(array), generate
