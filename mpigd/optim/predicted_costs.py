"""Predicted costs of the solvers of full mode, from the shape of the data alone: `auto` chooses by them.

Nanoseconds on one core of a machine that nobody runs: only their ratios matter, and they must not depend on the
machine, the ranks or the threads, or the model would. Measured on made-up rows (float32); docs/performance.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

STEP_OVERHEAD = 1e5  # of an evaluation, whatever its size
ROW, DENSE_ENTRY, SPARSE_ENTRY = 5.0, 0.17, 1.1  # of a gradient: a row, and an entry
DENSE_ROW, DENSE_COLUMN, DENSE_PRODUCT = (
    50.0,
    0.18,
    0.0105,
)  # of a Hessian: a row, its p columns, its p^2 products
# Of a Hessian of compressed rows: an entry, a product of two dense columns, of a dense column and an entry, of two entries,
# and an element of the matrix.
SPARSE_READ, WIDE_PRODUCT, MIXED_PRODUCT, SPARSE_PRODUCT, SPARSE_ELEMENT = (
    2.4,
    0.011,
    0.17,
    1.0,
    1.0,
)
FACTOR = 0.018  # of p^3 / 3, of a Cholesky factor
DIRECT_STEPS, SAMPLED_READS, LBFGS_READS = 8.0, 12.0, 45.0  # usual numbers
SPARSE_LBFGS_READS = 20.0  # columns that seldom meet are nearly orthogonal
SAMPLE_HESSIANS, SAMPLE_READS = 5.0, 12.0  # of the first sample, and of the second
# Before L-BFGS is given up: well conditioned problems need less than 25 steps, others some hundreds; with several outputs
# Newton's method is so much dearer that those are waited for.
PATIENCE, FEWEST_STEPS = 0.25, 25
CHEAP = 1e8  # a tenth of a second for all Hessians: fewer reads are worth that
WORTH = 2.0  # on dense rows, where its number of reads hangs on the conditioning, L-BFGS has to promise so much


@dataclass(frozen=True)
class Shape:
    """Rows n, parameters p of each of k outputs, stored entries of a row (None: dense).

    wide: how many of the columns are common enough to be taken as dense ones in a Hessian of compressed rows. samples: their
    sizes, where they say enough.
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
        """Newton's method with the Hessian of all rows."""
        return DIRECT_STEPS * (self.sweep(self.n) + self.hessian(self.n) + self.factor())

    def sampled(self) -> float:
        """Newton's method from and with samples of the rows."""
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
        """Steps of L-BFGS before Newton's method takes over: as many as cost a part of what that does, and a few at least."""
        part = PATIENCE if self.k == 1 else 1.0
        return max(
            FEWEST_STEPS, math.ceil(part * min(self.direct(), self.sampled()) / self.sweep(self.n))
        )


def cheapest(shape: Shape) -> str:
    """newton-cholesky, newton or lbfgs-newton: a function of the data's shape."""
    direct, sampled, lbfgs = shape.direct(), shape.sampled(), shape.lbfgs()
    worth = WORTH if shape.entries is None else 1.0
    if direct <= max(CHEAP, sampled):
        return "newton-cholesky" if direct <= max(CHEAP, worth * lbfgs) else "lbfgs-newton"
    return "newton" if sampled <= worth * lbfgs else "lbfgs-newton"
