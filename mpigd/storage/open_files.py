"""A small cache of open objects: a rank may have more files than it may open at once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Thing = TypeVar("Thing")


class Recent(Generic[Thing]):
    """At most `limit` objects, each under a key. A new object replaces the least recently used one.

    `close` is called with the key and the object that is dropped.
    """

    def __init__(self, limit: int, close: Callable[[Hashable, Thing], None]) -> None:
        self._limit, self._close = limit, close
        self._things: OrderedDict[Hashable, Thing] = OrderedDict()

    def __len__(self) -> int:
        return len(self._things)

    def get(self, key: Hashable, make: Callable[[], Thing]) -> Thing:
        """Return the object of a key, made by `make` if it is not held."""
        if key not in self._things:
            while len(self._things) >= self._limit:  # closed before another one is opened
                self._close(*self._things.popitem(last=False))
            self._things[key] = make()
        self._things.move_to_end(key)
        return self._things[key]
