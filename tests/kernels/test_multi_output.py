"""Several outputs of compressed rows at once have the bits of each alone."""

import numpy as np
import pytest
import scipy.sparse

from mpigd.reduction.base import grid
from mpigd_kernels import csr, sums
from mpigd_kernels.host import aligned
from mpigd_kernels.simd import multi_output

N, D, PANEL = 70, 40, 32
ONES = "ones"


def rows(rng, dtype, index):
    """Starts, stops, indices and data of rows of 0 to D entries; all ones: no data."""
    filled = rng.random((N, D)) < rng.random((N, 1))
    filled[:2], filled[2] = False, True
    S = scipy.sparse.csr_matrix(rng.normal(size=(N, D)) * filled)
    indptr = S.indptr.astype(np.int64)
    return (
        indptr[:-1],
        indptr[1:],
        S.indices.astype(index),
        None if dtype == ONES else S.data.astype(dtype),
    )


@pytest.mark.parametrize("k", [2, 5, 8, 9, 16, 19])
@pytest.mark.parametrize(
    "dtype, index", [(np.float32, np.int32), (np.float64, np.int64), (ONES, np.int32)]
)
def test_margins_and_sums_have_the_bits_of_each_output_alone(dtype, index, k):
    rng = np.random.default_rng(k)
    X = rows(rng, dtype, index)
    W, b, R = rng.normal(size=(k, D)), rng.normal(size=k), rng.normal(size=(k, N))
    sums.make_odd(R)
    C = grid(np.full(D, 10.0), float(PANEL))
    D2 = grid(C / (1.5 * 2.0**52), float(PANEL))
    for fine in (None, D2):
        lines = aligned((D, 2 if fine is None else 3, multi_output.width(k)))
        lines[:] = 0.0
        parts = lines[..., :k].transpose(1, 2, 0)
        A = parts[1:]
        parts[0] = W
        for number, biases in enumerate((C, fine)[: len(A)]):
            multi_output.begin(lines, 1 + number, biases)
        turned, z = np.empty((N, lines.shape[2])), np.empty((k, N))
        multi_output.margins_of(*X, lines, b, turned, z)
        T = np.zeros(
            (2 * len(A), k, D - 3)
        )  # totals of a head; the accumulators of the others do not fill up
        filled = multi_output.add(*X, R, lines, turned, A, C, fine, T, 0, PANEL)
        assert filled == N % PANEL
        rest = np.empty((len(A), k, 3))
        for number, biases in enumerate((C, fine)[: len(A)]):
            multi_output.take_rest(lines, 1 + number, biases, D - 3, rest[number])
        for q in range(k):
            alone, a, t = (
                np.empty(N),
                np.array([C] if fine is None else [C, fine]),
                np.zeros((2 * len(A), D - 3)),
            )
            csr.margins_of(*X, W[q], b[q], alone)
            if fine is None:
                csr.add_exact(*X, R[q], a[0], C, t, 0, PANEL)
            else:
                csr.add_fine(*X, R[q], *a, C, fine, t[:2], t[2:], 0, PANEL)
            assert z[q].tobytes() == alone.tobytes()
            assert T[:, q].tobytes() == t.tobytes()
            assert A[:, q, : D - 3].tobytes() == a[:, : D - 3].tobytes()
            assert rest[:, q].tobytes() == (a - np.array([C, D2][: len(A)]))[:, D - 3 :].tobytes()
