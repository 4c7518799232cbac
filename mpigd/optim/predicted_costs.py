"""Predict the costs of the solvers of full mode from the shape of the data.

`auto` chooses by them. Costs are in nanoseconds on one core of an imaginary machine: only their
ratios matter, and they must not depend on the machine, the ranks or the threads, since the model
would then depend on these. Measured on made-up rows (float32); docs/performance.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

STEP_OVERHEAD = 1e5  # per evaluation, whatever its size
ROW, DENSE_ENTRY, SPARSE_ENTRY = 5.0, 0.17, 1.1  # of a gradient: per row, and per entry
# Costs of a Hessian of dense rows: per row, per column of a row, per product of two columns.
DENSE_ROW, DENSE_COLUMN, DENSE_PRODUCT = 50.0, 0.18, 0.0105
# Costs of a Hessian of compressed rows: per entry, per product of two dense columns, of a dense
# column and an entry, of two entries, and per element of the matrix.
SPARSE_READ, WIDE_PRODUCT, MIXED_PRODUCT, SPARSE_PRODUCT, SPARSE_ELEMENT = (
    2.4,
    0.011,
    0.17,
    1.0,
    1.0,
)
FACTOR = 0.018  # of a Cholesky factor: per p^3 / 3
# Usual numbers of steps of Newton's method, and of passes over the data with samples and of
# L-BFGS.
DIRECT_STEPS, SAMPLED_READS, LBFGS_READS = 8.0, 12.0, 45.0
SPARSE_LBFGS_READS = 20.0  # columns that seldom share a row are nearly orthogonal
SAMPLE_HESSIANS, SAMPLE_READS = 5.0, 12.0  # Hessians of the first sample, passes over the last one
# The steps of L-BFGS before Newton's method replaces it: a fraction of the latter's cost, and a
# least number. Well conditioned problems need less than 25 steps, others some hundreds. With
# several outputs Newton's method is so much more expensive that these are waited for.
PATIENCE, FEWEST_STEPS = 0.25, 25
CHEAP = 1e8  # a tenth of a second for all Hessians: fewer passes over the data are worth that
# The factor by which L-BFGS has to be cheaper on dense rows, since its number of passes over the
# data depends on the conditioning.
WORTH = 2.0


@dataclass(frozen=True)
class Shape:
    """The shape of the data, from which costs are predicted. All costs are in nanoseconds.

    Parameters
    ----------
    n : int
        Rows.
    p : int
        Parameters of each output.
    k : int
        Outputs.
    entries : float or None
        Stored entries of a row; None for dense rows.
    wide : int
        Number of columns that are common enough to be treated as dense ones in a Hessian of
        compressed rows.
    samples : tuple of int
        Sizes of the samples of rows that say enough about all rows, ascending.
    """

    n: int
    p: int
    k: int = 1
    entries: float | None = None
    wide: int = 0
    samples: tuple[int, ...] = ()

    def sweep(self, n: int) -> float:
        entry = DENSE_ENTRY * self.p if self.entries is None else SPARSE_ENTRY * self.entries
        return STEP_OVERHEAD + n * self.k * (ROW + entry)

    def hessian(self, n: int) -> float:
        pairs, p = 0.5 * self.k * (self.k + 1), float(self.p)
        dense = n * (DENSE_ROW + DENSE_COLUMN * p + DENSE_PRODUCT * p * p)
        sparse = math.inf
        if self.entries is not None:
            wide, rest = float(self.wide), max(0.0, self.entries - self.wide)
            row = (
                SPARSE_READ * self.entries
                + WIDE_PRODUCT * wide * wide
                + MIXED_PRODUCT * wide * rest
            )
            sparse = n * (row + SPARSE_PRODUCT * 0.5 * rest * (rest + 1.0)) + SPARSE_ELEMENT * p * p
        return STEP_OVERHEAD + pairs * min(dense, sparse)

    def factor(self) -> float:
        return FACTOR * float(self.k * self.p) ** 3 / 3.0

    def direct(self) -> float:
        """Return the cost of Newton's method with the Hessian of all rows."""
        return DIRECT_STEPS * (self.sweep(self.n) + self.hessian(self.n) + self.factor())

    def sampled(self) -> float:
        """Return the cost of Newton's method started from and preconditioned by row samples."""
        if not self.samples:
            return math.inf
        first, last = self.samples[0], self.samples[-1]
        on_samples = SAMPLE_HESSIANS * self.hessian(first) + SAMPLE_READS * self.sweep(last)
        return (
            on_samples
            + self.hessian(last)
            + (SAMPLE_HESSIANS + 1.0) * self.factor()
            + SAMPLED_READS * self.sweep(self.n)
        )

    def lbfgs(self) -> float:
        return (LBFGS_READS if self.entries is None else SPARSE_LBFGS_READS) * self.sweep(self.n)

    def lbfgs_budget(self) -> int:
        """Return the steps of L-BFGS before Newton's method takes over.

        They cost a fraction of what Newton's method does, but there are at least FEWEST_STEPS.
        """
        part = PATIENCE if self.k == 1 else 1.0
        return max(
            FEWEST_STEPS, math.ceil(part * min(self.direct(), self.sampled()) / self.sweep(self.n))
        )


def cheapest(shape: Shape) -> str:
    """Return newton-cholesky, newton or lbfgs-newton, as a function of the data's shape."""
    direct, sampled, lbfgs = shape.direct(), shape.sampled(), shape.lbfgs()
    worth = WORTH if shape.entries is None else 1.0
    if direct <= max(CHEAP, sampled):
        return "newton-cholesky" if direct <= max(CHEAP, worth * lbfgs) else "lbfgs-newton"
    return "newton" if sampled <= worth * lbfgs else "lbfgs-newton"
