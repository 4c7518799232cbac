"""A few open things, those used last: a rank may have more files than it may open at once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Thing = TypeVar("Thing")


class Recent(Generic[Thing]):
    """At most `limit` things, each under a key; the one that was not asked for longest is closed for a new one."""

    def __init__(self, limit: int, close: Callable[[Hashable, Thing], None]) -> None:
        self._limit, self._close = limit, close
        self._things: OrderedDict[Hashable, Thing] = OrderedDict()

    def __len__(self) -> int:
        return len(self._things)

    def get(self, key: Hashable, make: Callable[[], Thing]) -> Thing:
        """The thing of a key, made anew where it is not there."""
        if key not in self._things:
            while len(self._things) >= self._limit:  # before another one is opened
                self._close(*self._things.popitem(last=False))
            self._things[key] = make()
        self._things.move_to_end(key)
        return self._things[key]
