"""Dense rows in half precision (float16), each column scaled by a power of two.

The scale of a column is called its unit. It is the same on all ranks. A half has 11 significant
bits and its magnitudes reach from 65504 down to 6e-8. The unit brings the largest magnitude of the
column to between 32752 and 65504. Values down to 2**-30 of the largest then keep all 11 bits, and
values below 2**-41 of it become zero.

A column fits if both of these hold:

* Rounding moves no value by more than 1/256 of the column's range. This fails for a column that is
  far from zero in comparison with its range (times in seconds since 1970). A constant column always
  passes.
* At most one in a thousand of its non-zero values becomes zero. This fails for a column whose
  magnitudes span many decades.

Both criteria are computed from maxima and counts, so they are the same on any number of ranks.
Numbers that are stored as halves in their file are kept as they are.
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
FINEST = 1 / 256  # rounding may move a value by this share of its column's range
VANISHING = 1000  # one in this number of non-zero values may become zero


class Half:
    """Rows (n, d) in half precision; implements the Matrix protocol.

    bits (n, d) uint16, C-contiguous, are the bit patterns of the halves. The value of an entry is
    its half times the unit of its column. unit (d,) are powers of two, and inverse (d,) is 1 /
    unit.
    """

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
            # Blocks are chosen as for rows of twice the bytes, since a sweep widens each block to
            # float64 in its scratch memory.
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
        """Return the same values as a float64 matrix."""
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
    """Converts columns to halves and records the rounding errors of all rows converted so far."""

    def __init__(self, low: Array, high: Array, comm: Comm) -> None:
        """Choose the units of the columns. Collective.

        Parameters
        ----------
        low, high : array (d,) of float64
            The extremes of this rank's rows; inf and -inf if it has none.
        comm : Comm
            The ranks that share the data set.
        """
        self.low, self.high = low.copy(), high.copy()
        comm.allreduce(self.low, "min")
        comm.allreduce(self.high, "max")
        self.unit = units(np.maximum(np.abs(self.low), np.abs(self.high)))
        self._inverse = 1.0 / self.unit
        self._lost = np.zeros(low.size)
        self._kept, self._gone = np.zeros((2, low.size), dtype=np.int64)

    def narrow(self, values: Array, bits: Array) -> None:
        """Convert values (m, d), float64 or float32, to halves in bits (m, d), uint16."""
        half.narrow(values, self._inverse, bits, self._lost, self._kept, self._gone)

    def check(self, name: str, names: Sequence[str] | None, comm: Comm) -> None:
        """Check that every column fits, as the module's docstring defines it. Collective.

        Parameters
        ----------
        name : str
            The data set, for the message.
        names : sequence of str or None
            The names of the columns, if they have any.
        comm : Comm
            The ranks that share the data set.

        Raises
        ------
        DataError
            On all ranks, if a column does not fit.
        """
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
            why = (
                f"beside {largest:g}, {gone[j]:,} of its {kept[j] + gone[j]:,} values "
                "other than zero would become zero"
            )
        else:
            why = (
                f"values up to {largest:g} would be off by up to "
                f"{self._lost[j] * self.unit[j]:.2g}, its range is {span[j]:.2g}"
            )
        error = DataError(f"{name}: {column} does not fit float16: {why} (use --dtype float32)")
        error.agreed = True
        raise error


def units(largest: Array) -> Array:
    """Return for each largest |x| (d,) the smallest power of two u with |x| / u below 65504.

    It is 1 for a column of zeros, and at least SMALLEST_UNIT, so that 1 / u is finite.
    """
    known = np.isfinite(largest) & (largest > 0)
    unit = np.ldexp(1.0, np.frexp(np.where(known, largest, LARGEST / 2) / LARGEST)[1])
    return np.asarray(np.maximum(unit, SMALLEST_UNIT))
