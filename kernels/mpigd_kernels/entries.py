"""One compressed row at a time, eight entries at once: its dot product, and its products added to accumulators.

As in lanes.py the vectors are types of the intermediate code, so that every CPU with fma gives the same bits. Coefficients w and
accumulators A are (d,), or the first and the second column of pairs (d, 2): where they do not fit into the cache, the memory
line that a margin has waited for then holds what the accumulation needs a moment later. Values are float32 or float64, or None
where all of them are one.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from mpigd_kernels.lanes import _BYTE, _F32, _F64, _I32, _I64, _VECTOR, LANES, _add_lanes, _every, _fma, _function

_NAMES = {_F32: "f32", _F64: "f64", _I32: "i32", _I64: "i64"}
_LONGS, _MASK = ir.VectorType(_I64, LANES), ir.VectorType(ir.IntType(1), LANES)
_PLACES = ir.VectorType(_F64.as_pointer(), LANES)
_ALL, _ZEROS = ir.Constant(_MASK, [1] * LANES), ir.Constant(_VECTOR, [0.0] * LANES)
_AHEAD = 64  # entries by which column numbers are fetched before values


class _Entries:
    """Column numbers and values (None: ones) of entries, and the vector (d,) or column of pairs (d, 2) that they point into."""

    def __init__(self, context, builder, signature, args, column):
        def pointer(i):
            return context.make_array(signature.args[i])(context, builder, args[i]).data

        self._builder, self.indices, self.index = builder, pointer(2), context.get_data_type(signature.args[2].dtype)
        self.values = None if isinstance(signature.args[3], types.NoneType) else pointer(3)
        self.value = None if self.values is None else context.get_data_type(signature.args[3].dtype)
        self._shift = signature.args[4].ndim - 1  # pairs are two numbers apart
        self._base = builder.gep(pointer(4), [_I64(column * self._shift)])
        self._ends = [context.cast(builder, args[i], signature.args[i], types.intp) for i in (0, 1)]

    def load(self, pointer, k, element, mask):
        """LANES elements from k on; with a mask those of its lanes, zeros in the others."""
        kind = ir.VectorType(element, LANES)
        place = self._builder.bitcast(self._builder.gep(pointer, [k]), kind.as_pointer())
        if mask is None:
            return self._builder.load(place, align=1)
        name = f"llvm.masked.load.v{LANES}{_NAMES[element]}.p0"
        load = _function(self._builder, name, kind, [kind.as_pointer(), _I32, _MASK, kind])
        return self._builder.call(load, [place, _I32(1), mask, ir.Constant(kind, [0] * LANES)])

    def x(self, k, mask):
        """Values of entries k and after as float64, exactly."""
        value = self.load(self.values, k, self.value, mask)
        return value if self.value == _F64 else self._builder.fpext(value, _VECTOR)

    def places(self, k, mask):
        """Where the columns of entries k and after stand in memory."""
        j = self.load(self.indices, k, self.index, mask)
        j = j if self.index == _I64 else self._builder.zext(j, _LONGS)
        offset = self._builder.shl(j, ir.Constant(_LONGS, [3 + self._shift] * LANES))
        return self._builder.inttoptr(
            self._builder.add(offset, _every(self._builder, self._builder.ptrtoint(self._base, _I64))), _PLACES
        )

    def place(self, k):
        j = self._builder.load(self._builder.gep(self.indices, [k]))
        j = j if self.index == _I64 else self._builder.zext(j, _I64)
        return self._builder.gep(self._base, [self._builder.shl(j, _I64(self._shift))])

    def gather(self, places, mask):
        name = f"llvm.masked.gather.v{LANES}f64.v{LANES}p0"
        gather = _function(self._builder, name, _VECTOR, [_PLACES, _I32, _MASK, _VECTOR])
        return self._builder.call(gather, [places, _I32(8), mask or _ALL, _ZEROS])

    def scatter(self, value, places, mask):
        name = f"llvm.masked.scatter.v{LANES}f64.v{LANES}p0"
        scatter = _function(self._builder, name, ir.VoidType(), [_VECTOR, _PLACES, _I32, _MASK])
        self._builder.call(scatter, [value, places, _I32(8), mask or _ALL])

    def fetch(self, k):
        """Ask for the lines of entries k and after; reads nothing, whatever is there."""
        hint = _function(self._builder, "llvm.prefetch.p0", ir.VoidType(), [_BYTE, _I32, _I32, _I32])
        for pointer, at in ((self.indices, self._builder.add(k, _I64(_AHEAD))), (self.values, k)):
            if pointer is not None:
                place = self._builder.bitcast(self._builder.gep(pointer, [at]), _BYTE)
                self._builder.call(hint, [place, _I32(0), _I32(3), _I32(1)])

    def each(self, body):
        """body(k, mask) for every LANES entries (mask None), and once for those behind the last of these, if any."""
        start, stop = self._ends
        panels = self._builder.udiv(self._builder.sub(stop, start), _I64(LANES))
        with cgutils.for_range(self._builder, panels) as loop:
            body(self._builder.add(start, self._builder.mul(loop.index, _I64(LANES))), None)
        whole = self._builder.add(start, self._builder.mul(panels, _I64(LANES)))
        with self._builder.if_then(self._builder.icmp_unsigned("<", whole, stop)):
            rest = _every(self._builder, self._builder.sub(stop, whole))
            body(whole, self._builder.icmp_unsigned("<", ir.Constant(_LONGS, list(range(LANES))), rest))


def _check(indices, values, vector):
    arrays = [indices, vector] if isinstance(values, types.NoneType) else [indices, values, vector]
    if not all(array.layout == "C" for array in arrays) or vector.dtype != types.float64 or vector.ndim > 2:
        raise TypingError(f"entries must be C-contiguous, vectors float64: not {', '.join(map(str, arrays))}")


@intrinsic
def dot_entries(typingctx, start, stop, indices, values, w):
    """sum of values_k w[indices_k] over k = start to stop - 1: LANES partial sums by fma, added pairwise."""
    _check(indices, values, w)

    def generate(context, builder, signature, args):
        entries = _Entries(context, builder, signature, args, 0)
        total = cgutils.alloca_once(builder, _VECTOR)
        builder.store(_ZEROS, total)

        def add(k, mask):
            weights, before = entries.gather(entries.places(k, mask), mask), builder.load(total)
            if entries.values is None:
                builder.store(builder.fadd(before, weights), total)
            else:
                builder.store(_fma(builder, entries.x(k, mask), weights, before), total)

        entries.each(add)
        return builder.extract_element(_add_lanes(builder, [builder.load(total)]), _I32(0))

    return types.float64(start, stop, indices, values, w), generate


@intrinsic
def add_entries(typingctx, start, stop, indices, values, A, r, ahead):
    """A_j = fma(r, values_k, A_j), j = indices_k, for k = start to stop - 1, no column twice; fetches the entries `ahead`."""
    _check(indices, values, A)

    def generate(context, builder, signature, args):
        entries = _Entries(context, builder, signature, args, 1)
        r, every = args[5], _every(builder, args[5])
        one_fma = _function(builder, "llvm.fma.f64", _F64, [_F64] * 3)

        def add_whole(k):  # stores one by one: a scatter is slower, and what it has stored can not be read at once
            x = None if entries.values is None else entries.x(k, None)
            for q in range(LANES):
                place = entries.place(builder.add(k, _I64(q)))
                a = builder.load(place)
                if x is None:
                    builder.store(builder.fadd(a, r), place)
                else:
                    builder.store(builder.call(one_fma, [r, builder.extract_element(x, _I32(q)), a]), place)

        def add(k, mask):
            entries.fetch(builder.add(k, args[6]))
            if mask is None:
                add_whole(k)
                return
            places = entries.places(k, mask)
            a = entries.gather(places, mask)
            a = builder.fadd(a, every) if entries.values is None else _fma(builder, every, entries.x(k, mask), a)
            entries.scatter(a, places, mask)

        entries.each(add)
        return context.get_dummy_value()

    return types.none(start, stop, indices, values, A, types.float64, types.intp), generate
