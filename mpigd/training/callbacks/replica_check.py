"""Check that the parameters are still the same on every rank.

A hash of the parameters travels in the step's buffer. Every rank must take the same branch, so the
test uses sums alone: sixteen-bit words v of the hash and their squares are summed exactly. All
ranks hold the same word if and only if size * sum(v**2) == sum(v)**2 (Cauchy-Schwarz).
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from mpigd.errors import ReplicaError
from mpigd.parallel.comm import Comm
from mpigd.training.callbacks.base import Callback, Step

Array = np.ndarray[Any, Any]
WORDS = 4  # words of 16 bits in a hash


def words_of(*arrays: Array) -> Array:
    """Return the hash of the arrays' bits as WORDS numbers below 2**16."""
    total = hashlib.blake2b(digest_size=2 * WORDS)
    for array in arrays:
        total.update(np.ascontiguousarray(array).data)  # `tobytes` would be a copy
    return np.frombuffer(total.digest(), dtype=np.uint16)


class Replicas(Callback):
    """Compare the parameters of all ranks every `every` steps.

    `check` compares at once, before something is saved.

    Parameters
    ----------
    comm : Comm
        Communicator of all ranks of the run.
    every : int
        Steps between two comparisons.
    """

    words = 2 * WORDS

    def __init__(self, comm: Comm, every: int) -> None:
        self._comm, self._every = comm, every
        self._steps, self._next, self._equal_at = 0, 0, 0
        self._due = False

    def watch(self, w: Array, first: int) -> None:
        """Begin with these parameters: all ranks have them from the same file, or from sums.

        Parameters
        ----------
        w : array (k * p,) of float64
            Parameters.
        first : int
            Number of the next step.
        """
        self._w, self._next, self._equal_at = w, first, first

    def before(self, words: Array) -> None:
        self._due = self._steps % self._every == 0
        if self._due:
            mine = words_of(self._w).astype(np.float64)
            words[:WORDS], words[WORDS:] = mine, mine * mine

    def after(self, step: Step, words: Array) -> str | None:
        if self._due:
            if np.any(self._comm.size * words[WORDS:] != words[:WORDS] ** 2):
                self.check(self._w)
            self._equal_at = step.batch.step
        self._w, self._steps, self._next = step.w, self._steps + 1, step.batch.step + 1
        return None

    def check(self, *arrays: Array) -> None:
        """Raise ReplicaError on all ranks unless all ranks hold the same bits. Collective.

        The message names the ranks that differ from the majority.
        """
        hashes = self._comm.allgather(words_of(*arrays))
        kinds, counts = np.unique(hashes, axis=0, return_counts=True)
        if len(kinds) == 1:
            self._equal_at = self._next
            return
        usual = kinds[int(np.argmax(counts))]
        ranks = ", ".join(str(rank) for rank in np.flatnonzero(np.any(hashes != usual, axis=1)))
        error = ReplicaError(
            f"the parameters of rank(s) {ranks} differ from the others'; they were the same "
            f"before step {self._equal_at + 1}: suspect that host's memory or software, "
            "and continue from the last checkpoint"
        )
        error.agreed = True
        raise error
