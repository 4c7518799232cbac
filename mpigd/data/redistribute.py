"""The hash partition: ranks read ranges of rows, then send each row to the rank its key hashes to.

Each chunk is read once. Rows move in rounds, the last rows first, and each round frees the memory
of the rows it sent. A rank therefore never holds much more than one copy of its share, before or
after.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mpigd.data.shard import Shard
from mpigd.matrix.base import CSR, Dense, Matrix
from mpigd.matrix.half import Half
from mpigd.parallel.comm import Comm
from mpigd_kernels import sampling

Array = np.ndarray[Any, Any]
ROUND_BYTES = 8 << 20


def exchange(shard: Shard, comm: Comm) -> Shard:
    """Move every row to the rank that its key hashes to. Collective.

    The key of a row is its global number by default. The ranks must hold ranges of rows in rank
    order, as they do after reading.

    Parameters
    ----------
    shard : Shard
        This rank's rows. Its matrix is used up: its memory is freed on the way.
    comm : Comm

    Returns
    -------
    Shard
        The rows that this rank owns, in ascending order of their global numbers.
    """
    if comm.size == 1:
        return shard
    owners = np.empty(shard.rows.size, dtype=np.int32)
    numbers = np.asarray(shard.rows)
    sampling.owners(numbers if shard.key is None else shard.key, comm.size, owners)
    journey = Journey(owners, shard.X.row_bytes, comm)
    vectors = {name: getattr(shard, name) for name in ("y", "c", "offset", "key")}
    moved: dict[str, Any] = {
        name: None if vector is None else journey.move(vector) for name, vector in vectors.items()
    }
    return dataclasses.replace(
        shard, rows=journey.move(numbers), X=_move_matrix(shard.X, journey), **moved
    )


class Journey:
    """The plan of an exchange: which rows go to which rank, round by round."""

    def __init__(self, owners: Array, row_bytes: int, comm: Comm) -> None:
        self.comm, self._owners = comm, owners
        rows = max(1, ROUND_BYTES // max(1, row_bytes))
        rounds = np.array([-(-owners.size // rows)], dtype=np.int64)
        comm.allreduce(rounds, "max")
        self.rounds = [
            slice(max(0, start), max(0, start + rows))
            for start in self._starts(int(rounds[0]), rows)
        ]
        counts = np.bincount(owners, minlength=comm.size)
        self.incoming = self.arriving(counts)
        self.size = int(self.incoming.sum())

    def _starts(self, rounds: int, rows: int) -> list[int]:
        return [self._owners.size - (i + 1) * rows for i in range(rounds)]

    def arriving(self, counts: Array) -> Array:
        """Return how many rows arrive from each rank (size,). Collective.

        `counts` (size,) are the rows that go to each rank.
        """
        return self.comm.alltoallv(counts.reshape(-1, 1), np.ones(self.comm.size, dtype=np.int64))[
            0
        ][:, 0]

    def order(self, rows: slice) -> tuple[Array, Array]:
        """Return the local rows of a round by owner, and how many go to each (size,)."""
        owners = self._owners[rows]
        return rows.start + np.argsort(owners, kind="stable"), np.bincount(
            owners, minlength=self.comm.size
        )

    def places(self) -> Places:
        return Places(np.cumsum(self.incoming))

    def move(self, vector: Array) -> Array:
        """Return the rows of a vector that this rank will hold, in the order of their numbers.

        Collective.

        Parameters
        ----------
        vector : ndarray (m, ...)
            One element for each row held before. If it owns its memory, it is used up.

        Returns
        -------
        ndarray (size, ...)
            One element for each row held after.
        """
        out, places = np.empty((self.size, *vector.shape[1:]), vector.dtype), self.places()
        for rows in self.rounds:
            order, counts = self.order(rows)
            arrived, incoming = self.comm.alltoallv(vector[order], counts)
            at = 0
            for place, count in zip(places.take(incoming), incoming, strict=True):
                out[place : place + count] = arrived[at : at + count]
                at += count
            shrink(vector, rows.start)
        return out


class Places:
    """The places of arriving rows in the output, which holds them rank by rank.

    Each rank's part is filled from its end.
    """

    def __init__(self, ends: Array) -> None:
        self._ends = ends.copy()

    def take(self, counts: Array) -> Array:
        """Return the first position for the next `counts` rows of each rank, (size,)."""
        self._ends -= counts
        return self._ends.copy()


def shrink(array: Array, rows: int) -> None:
    """Free the memory behind the first `rows` rows, if the array owns it."""
    if array.flags.owndata:
        array.resize((rows, *array.shape[1:]), refcheck=False)


def _move_matrix(X: Matrix, journey: Journey) -> Matrix:
    if isinstance(X, Half):
        return Half(journey.move(X.bits), X.unit)
    if isinstance(X, Dense):
        return Dense(journey.move(X.values))
    assert isinstance(X, CSR)
    indptr = np.concatenate([[0], np.cumsum(journey.move(np.diff(X.indptr)))]).astype(np.int64)
    indices, data = np.empty(indptr[-1], X.indices.dtype), np.empty(indptr[-1], X.data.dtype)
    places = journey.places()
    for rows in journey.rounds:
        order, counts = journey.order(rows)
        block = X.rows(order)
        entries = np.diff(block.indptr[np.concatenate([[0], np.cumsum(counts)])])
        incoming = journey.arriving(counts)
        firsts = places.take(incoming)
        for sent, out in ((block.indices, indices), (block.data, data)):
            arrived, _ = journey.comm.alltoallv(sent, entries)
            at = 0
            for first, count in zip(firsts, incoming, strict=True):
                start, stop = indptr[first], indptr[first + count]
                out[start:stop] = arrived[at : at + stop - start]
                at += stop - start
        shrink(X.indices, int(X.indptr[rows.start]))
        shrink(X.data, int(X.indptr[rows.start]))
    return CSR(indptr, indices, data, X.d)
