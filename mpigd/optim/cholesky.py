"""Cholesky factors of Hessians whose columns may depend on each other, exactly or nearly.

Elements of a Hessian are accurate to about 1e-13 of the columns' range squared. So a pivot far
below its diagonal element says nothing: the column may depend on those before it, or its remainder
(what they do not explain of it) may be short and yet decisive. The remainder is then computed row
by row, as a linear predictor, which is accurate. Columns without a remainder are marked, and their
parameters do not move. The others are replaced by their remainder, a change of basis in which the
Hessian has no such pivot.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from mpigd.model.penalties import Penalty
from mpigd.optim.base import Array
from mpigd.optim.change_of_basis import Basis
from mpigd.optim.preconditioner import Preconditioner, factors, ridge
from mpigd_kernels import linalg, vector

ROUNDS = 4  # more than one, since remainders may depend on remainders
AT_ONCE = 16  # directions whose linear predictors are held for all rows at a time
DEPENDENT = 1e-8  # a pivot below this share of its diagonal element is examined
NOISE = 100.0  # times the rounding of a remainder's square: less counts as none
SHORTEST = 1e-24  # relative to the column's square: less counts as none
# Refinements of a direction, which the Hessian gives to about the square root of its own error.
REFINEMENTS = 3
MAX_VECTORS = 16  # vectors of nearly dependent columns: each costs a product with the Hessian


class Curved(Protocol):
    @property
    def outputs(self) -> int: ...

    def look_at(self, w: Array) -> None: ...

    def curvatures_along(self, D: Array) -> tuple[Array, Array]: ...

    def product_along(self, d: Array) -> Array: ...


def factorise(H: Array, w: Array, oracle: Curved, penalty: Penalty, basis: Basis) -> Preconditioner:
    """Return the Cholesky factors of a Hessian at w as a preconditioner. Collective.

    Nearly dependent columns are replaced by a change of basis. That costs one pass over the data
    for each AT_ONCE columns that are examined, and one for each that has a remainder. Diagonal
    blocks are factorised as they are.

    Parameters
    ----------
    H : array (1, p, p) or (k, p / k, p / k) of float64
        Hessian, or its diagonal blocks, the penalty's included.
    w : array (p,) of float64
        Parameters.
    oracle : Curved
        Objective of which H is the Hessian.
    penalty : Penalty
        Penalty on the parameters.
    basis : Basis
        Basis of an earlier Hessian of the same rows, to start from.

    Returns
    -------
    Preconditioner
        It is not `trusted` if more than MAX_VECTORS columns have a remainder, or the factor is not
        finite.
    """
    if H.shape[0] > 1:
        return Preconditioner(factors(H))
    basis = _with_invariance(basis, oracle.outputs, penalty)
    bent, looks = H, bool(basis.index.size)
    if looks:
        oracle.look_at(w)
        basis = _renewed(basis, oracle, penalty)
        bent = _changed(H, basis, oracle, penalty)
    for _ in range(ROUNDS):
        U = factors(bent)
        short = _short(U[0], bent[0]) & (basis.dependent == 0.0)
        if not short.any():
            break
        if not looks:
            oracle.look_at(w)
            looks = True
        basis = _extended(basis, np.flatnonzero(short), U[0], H[0].diagonal(), oracle, penalty)
        if basis.index.size > MAX_VECTORS:
            return Preconditioner(factors(H), trusted=False)
        bent = _changed(H, basis, oracle, penalty)
    else:
        U = factors(bent)
    return (
        Preconditioner(U, basis=basis)
        if np.isfinite(U).all()
        else Preconditioner(factors(H), trusted=False)
    )


def _short(U: Array, H: Array) -> Array:
    """Return for each column (p,) whether the columns before it leave next to nothing of it.

    Its pivot was replaced then, or nearly so.
    """
    diagonal = H.diagonal()
    above = np.array(
        [vector.dot(column, column) for column in np.ascontiguousarray(np.triu(U, 1).T)]
    )
    return np.asarray((diagonal > 0.0) & (diagonal - above < DEPENDENT * diagonal))


def _with_invariance(basis: Basis, outputs: int, penalty: Penalty) -> Basis:
    """Return the basis with the last of several outputs marked as dependent if no ridge acts on it.

    A number that is added to the parameters of all outputs changes nothing.
    """
    if outputs == 1:
        return basis
    size = basis.dependent.size
    last = np.arange(size) >= size - size // outputs
    return Basis(
        basis.index,
        basis.vectors,
        np.where(last & (ridge(penalty, size) == 0.0), 1.0, basis.dependent),
    )


def _renewed(basis: Basis, oracle: Curved, penalty: Penalty) -> Basis:
    """Return the basis with vectors scaled to length one at another point.

    Vectors without a length there are dropped.
    """
    squares, rounding = _squares(basis.vectors, oracle, penalty)
    there = squares > NOISE * rounding
    vectors = basis.vectors[there] / np.sqrt(squares[there])[:, np.newaxis]
    return Basis(basis.index[there], vectors, basis.dependent)


def _extended(
    basis: Basis, found: Array, U: Array, diagonal: Array, oracle: Curved, penalty: Penalty
) -> Basis:
    """Return the basis with the remainders of the columns `found`, or these marked as dependent."""
    kept = basis.dependent == 0.0
    kept[found] = False
    index, vectors, dependent = list(basis.index), list(basis.vectors), basis.dependent.copy()
    D = np.array([basis.outwards(_direction(U, kept, j)) for j in found])
    for j, d, square, noise in zip(found, D, *_squares(D, oracle, penalty), strict=True):
        least = SHORTEST * diagonal[j]
        for _ in range(REFINEMENTS if square > max(NOISE * noise, least) else 0):
            before = square
            d = _refined(d, U, kept & (np.arange(kept.size) < j), basis, oracle, penalty)
            (square,), (noise,) = _squares(d[np.newaxis], oracle, penalty)
            if not (max(NOISE * noise, least) < square < 0.5 * before):
                break
        if not square > max(NOISE * noise, least):
            dependent[j] = 1.0
        elif j in index:
            vectors[index.index(j)] = d / np.sqrt(square)
        else:
            index.append(j)
            vectors.append(d / np.sqrt(square))
    return Basis(
        np.array(index, dtype=np.int64), np.array(vectors).reshape(-1, kept.size), dependent
    )


def _refined(
    d: Array, U: Array, kept: Array, basis: Basis, oracle: Curved, penalty: Penalty
) -> Array:
    """Return the direction d (p,) without what the kept columns still explain of it."""
    product = oracle.product_along(d)
    penalty.add_curvature(d, product)
    before = np.flatnonzero(kept)
    own, b = np.ascontiguousarray(U[np.ix_(before, before)]), basis.inwards(product)[before]
    linalg.solve(own, b, b)
    change = np.zeros_like(d)
    change[before] = -b
    return np.asarray(d + basis.outwards(change))


def _direction(U: Array, kept: Array, j: int) -> Array:
    """Return column j without what the kept columns before it explain of it, by the factor U."""
    before = np.flatnonzero(kept[:j])
    d = np.zeros(U.shape[0])
    d[j] = 1.0
    own = np.ascontiguousarray(U[np.ix_(before, before)])
    b = np.array([vector.dot(row, U[before, j]) for row in np.ascontiguousarray(own.T)])
    linalg.solve(own, b, b)
    d[before] = -b
    return d


def _changed(H: Array, basis: Basis, oracle: Curved, penalty: Penalty) -> Array:
    """Return the Hessian in the basis, whose vectors have length one in it.

    A product with a vector is off by 1e-13 of its largest element. Between two of the vectors,
    whose elements are large, it says little. Their element is computed from the squared length of
    their sum instead: half of it, less one.
    """
    bent, m = H.copy(), basis.index.size
    for j, v in zip(basis.index, basis.vectors, strict=True):
        product = oracle.product_along(v)
        penalty.add_curvature(v, product)
        bent[0, j, :] = bent[0, :, j] = product
    pairs = [(a, b) for a in range(m) for b in range(a)]
    sums = np.array([basis.vectors[a] + basis.vectors[b] for a, b in pairs]).reshape(
        len(pairs), H.shape[1]
    )
    for (a, b), square in zip(pairs, _squares(sums, oracle, penalty)[0], strict=True):
        i, j = basis.index[a], basis.index[b]
        bent[0, i, j] = bent[0, j, i] = 0.5 * square - 1.0
    bent[0, basis.index, basis.index] = 1.0
    return bent


def _squares(D: Array, oracle: Curved, penalty: Penalty) -> tuple[Array, Array]:
    """Return d'Hd (m,) with the penalty's, and its rounding (m,), for directions D (m, p)."""
    bend, squares, rounding = ridge(penalty, D.shape[1]), np.empty(len(D)), np.empty(len(D))
    for start in range(0, len(D), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        squares[some], rounding[some] = oracle.curvatures_along(D[some])
        squares[some] += [vector.dot(d * bend, d) for d in D[some]]
    return squares, rounding
