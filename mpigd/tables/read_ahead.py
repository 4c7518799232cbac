"""Reading ahead: a thread makes the next item while this one is worked on."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Generator[T, None, None]) -> Iterator[T]:
    """The items in order, each made (by one thread) while the one before it is in use."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(next, items, None)
        try:
            while (item := future.result()) is not None:
                future = pool.submit(next, items, None)
                yield item
        finally:
            future.cancel()
            pool.submit(items.close).result()
