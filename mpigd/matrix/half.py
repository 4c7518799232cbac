"""Dense rows in half precision: each column in a unit of its own, a power of two that all ranks agree on.

A half has 11 significant bits and reaches from 65504 down to 6e-8. The unit of a column brings its largest value to between
32752 and 65504, so that values down to 2**-30 of the largest keep all 11 bits, and those below 2**-41 of it become zero.

A column fits if rounding moves no value by more than 1/256 of the column's range (a constant column always does), and at
most one in a thousand of its values other than zero becomes zero. The first fails for a column that is far from zero for
its range (times in seconds since 1970), the second for one whose sizes span many decades. Both are maxima and counts, the
same over any ranks. Numbers that are halves in their file already are kept as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpigd.errors import DataError
from mpigd.matrix.base import Columns, Dense, Into, Selection, Task, run, sweep_rows
from mpigd.parallel.comm import Comm
from mpigd_kernels import dense, half, sampling
from mpigd_kernels.sweep import sweep_dense

Array = np.ndarray[Any, Any]
LARGEST = 65504.0
SMALLEST_UNIT = 2.0**-900
FINEST = 1 / 256  # of a column's range: how far rounding may move a value
VANISHING = 1000  # one in so many values other than zero may become zero


class Half:
    """Values (n, d) as halves in units (d,) of their columns; bits (n, d) uint16, C-contiguous."""

    def __init__(self, bits: Array, unit: Array, inverse: Array | None = None) -> None:
        self.bits, self.unit = bits, unit
        self.inverse = 1.0 / unit if inverse is None else inverse
        self.n, self.d = bits.shape
        self.row_bytes = 2 * self.d
        self.entries, self.dtype = bits.size, np.dtype(np.float16)

    def rows(self, selection: Selection) -> Half:
        return Half(self.bits[selection], self.unit, self.inverse)

    def margins(self, w: Array, b: float, z: Array) -> None:
        dense.margins(self.bits, w * self.unit, b, z)

    def sweep(self, selection: Selection, task: Task, into: Into) -> None:
        with into.in_units(self.unit, self.inverse):
            task = task._replace(coef=task.coef * self.unit)
            # twice the bytes, for there must be room for the rows in float64
            run(
                sweep_dense,
                (self.bits,),
                sweep_rows(2 * self.row_bytes),
                self.d,
                self.n,
                selection,
                task,
                into,
            )

    def accumulate(self, r: Array, l: Array, into: Into) -> None:
        self.widened().accumulate(r, l, into)

    def columns(self) -> Columns:
        low, high = np.full(self.d, np.inf), np.full(self.d, -np.inf)
        half.column_range(self.bits, low, high)
        return Columns(low * self.unit, high * self.unit, np.full(self.d, self.n, dtype=np.int64))

    def arrange(self, count: Array) -> None:
        return None

    def squared_deviation(self, center: Array) -> Dense:
        out = np.empty(self.bits.shape)
        half.squared_deviation(self.bits, self.unit, center, out)
        return Dense(out)

    def ones(self) -> Dense:
        return Dense(np.ones(self.bits.shape))

    def widened(self) -> Dense:
        """The same values in float64."""
        out = np.empty(self.bits.shape)
        half.widen_rows(self.bits, self.unit, out)
        return Dense(out)

    def absorb(self, hashes: Array) -> None:
        units = np.zeros(1, dtype=np.uint64)
        sampling.absorb(units, self.unit.view(np.uint64).reshape(1, -1))
        hashes += units
        width = next(width for width in (8, 4, 2) if self.row_bytes % width == 0)
        sampling.absorb(hashes, self.bits.view(f"u{width}"))


class Narrowing:
    """How columns become halves: their units, and over all rows narrowed so far what rounding did to them."""

    def __init__(self, low: Array, high: Array, comm: Comm) -> None:
        """From the extremes (d,) of this rank's rows; infinite where it has none. Collective."""
        self.low, self.high = low.copy(), high.copy()
        comm.allreduce(self.low, "min")
        comm.allreduce(self.high, "max")
        self.unit = units(np.maximum(np.abs(self.low), np.abs(self.high)))
        self._inverse = 1.0 / self.unit
        self._lost = np.zeros(low.size)
        self._kept, self._gone = np.zeros((2, low.size), dtype=np.int64)

    def narrow(self, values: Array, bits: Array) -> None:
        """bits (m, d) uint16 = the halves of values (m, d), float64 or float32."""
        half.narrow(values, self._inverse, bits, self._lost, self._kept, self._gone)

    def check(self, name: str, names: Sequence[str] | None, comm: Comm) -> None:
        """Raise DataError on all ranks, naming data set and column, if a column does not fit. Collective."""
        comm.allreduce(self._lost, "max")
        counts = np.concatenate([self._kept, self._gone])
        comm.allreduce(counts)
        kept, gone = np.split(counts, 2)
        span = self.high - self.low
        coarse = (self._lost * self.unit > FINEST * span) & (span > 0)
        vanish = gone * VANISHING > kept + gone
        bad = np.flatnonzero(coarse | vanish)
        if not bad.size:
            return
        j = int(bad[0])
        column = f"column {j}" if names is None else f"column {names[j]!r}"
        largest = self.high[j] if self.high[j] > -self.low[j] else self.low[j]
        if vanish[j]:
            why = f"beside {largest:g}, {gone[j]:,} of its {kept[j] + gone[j]:,} values other than zero would become zero"
        else:
            why = f"values up to {largest:g} would be off by up to {self._lost[j] * self.unit[j]:.2g}, its range is {span[j]:.2g}"
        error = DataError(f"{name}: {column} does not fit float16: {why} (use --dtype float32)")
        error.agreed = True
        raise error


def units(largest: Array) -> Array:
    """The smallest power of two (d,) for each largest |x| (d,) so that their quotient is below 65504; 1 for zero."""
    known = np.isfinite(largest) & (largest > 0)
    unit = np.ldexp(1.0, np.frexp(np.where(known, largest, LARGEST / 2) / LARGEST)[1])
    return np.asarray(np.maximum(unit, SMALLEST_UNIT))
