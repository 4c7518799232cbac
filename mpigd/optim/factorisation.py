"""Cholesky factors of Hessians whose columns may depend on each other, exactly or nearly.

Elements of a Hessian are known to about 1e-13 of the columns' reach squared, so a pivot far below its diagonal element
says nothing: the column may depend on those before it, or what they leave of it may be short and yet decide. The
remainder is then made row by row, as a linear predictor, which is accurate. Columns without one are marked, and stay
where they are. The others are replaced by their remainder, a change of basis in which the Hessian has no such pivot.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from mpigd.model.penalties import Penalty
from mpigd.optim.base import Array
from mpigd.optim.basis import Basis
from mpigd.optim.preconditioner import Preconditioner, factors, ridge
from mpigd_kernels import linalg, vector

ROUNDS = 4  # remainders may depend on remainders
AT_ONCE = 16  # directions whose linear predictors are held for all rows
DEPENDENT = 1e-8  # a pivot below that share of its diagonal element is looked at
NOISE = 100.0  # times the rounding of a remainder's square: less is none


class Curved(Protocol):
    def look_at(self, w: Array) -> None: ...

    def hessian_vector(self, v: Array) -> Array: ...

    def curvatures_along(self, D: Array) -> tuple[Array, Array]: ...


def factorise(H: Array, w: Array, oracle: Curved, penalty: Penalty, basis: Basis) -> Preconditioner:
    """The factors of a Hessian (1, p, p) at w, the penalty's included; blocks (k, p, p) are factorised as they are.

    basis: what an earlier Hessian of the same rows has told of dependent columns. A read for AT_ONCE columns
    that are looked at, and one for each that has a remainder. Collective.
    """
    if H.shape[0] > 1:
        return Preconditioner(factors(H))
    basis = Basis(np.zeros(0, np.int64), np.zeros((0, w.size)), basis.dependent)
    bent, looks = H, False
    for _ in range(ROUNDS):
        U = factors(bent)
        short = _short(U[0], bent[0]) & (basis.dependent == 0.0)
        if not short.any():
            break
        if not looks:
            oracle.look_at(w)
            looks = True
        basis = _extended(basis, np.flatnonzero(short), U[0], oracle, penalty)
        bent = _changed(H, basis, oracle, penalty)
    return Preconditioner(U, basis=basis)


def _short(U: Array, H: Array) -> Array:
    """Whether the columns before it leave next to nothing of a column (p,): its pivot was replaced, or nearly so."""
    diagonal = H.diagonal()
    above = np.array([vector.dot(column, column) for column in np.ascontiguousarray(np.triu(U, 1).T)])
    return np.asarray((diagonal > 0.0) & (diagonal - above < DEPENDENT * diagonal))


def _extended(basis: Basis, found: Array, U: Array, oracle: Curved, penalty: Penalty) -> Basis:
    """The basis with the remainders of the columns `found`, or with these marked as dependent."""
    kept = basis.dependent == 0.0
    kept[found] = False
    D = np.array([basis.outwards(_direction(U, kept, j)) for j in found])
    bend = ridge(penalty, D.shape[1])
    index, vectors, dependent = list(basis.index), list(basis.vectors), basis.dependent.copy()
    for start in range(0, len(D), AT_ONCE):
        some = D[start : start + AT_ONCE]
        squares, rounding = oracle.curvatures_along(some)
        for j, d, square, noise in zip(found[start : start + AT_ONCE], some, squares, rounding, strict=True):
            whole = float(square) + vector.dot(d * bend, d)
            if not whole > NOISE * float(noise):
                dependent[j] = 1.0
                continue
            if j in index:
                vectors[index.index(j)] = d / np.sqrt(whole)
            else:
                index.append(j)
                vectors.append(d / np.sqrt(whole))
    return Basis(np.array(index, dtype=np.int64), np.array(vectors).reshape(-1, D.shape[1]), dependent)


def _direction(U: Array, kept: Array, j: int) -> Array:
    """Column j less what the kept ones before it explain of it (p,), by the factor U."""
    before = np.flatnonzero(kept[:j])
    d = np.zeros(U.shape[0])
    d[j] = 1.0
    own = np.ascontiguousarray(U[np.ix_(before, before)])
    b = np.array([vector.dot(row, U[before, j]) for row in np.ascontiguousarray(own.T)])
    linalg.solve(own, b, b)
    d[before] = -b
    return d


def _changed(H: Array, basis: Basis, oracle: Curved, penalty: Penalty) -> Array:
    """The Hessian in the basis, from exact products with its vectors."""
    bent = H.copy()
    products = []
    for v in basis.vectors:
        product = oracle.hessian_vector(v)
        penalty.add_curvature(v, product)
        products.append(product)
    for j, product in zip(basis.index, products, strict=True):
        row = basis.inwards(product)
        bent[0, j, :] = bent[0, :, j] = row
    for j in basis.index:
        bent[0, j, j] = max(float(bent[0, j, j]), 0.5)
    return bent
