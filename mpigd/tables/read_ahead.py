"""Reading ahead: a thread prepares the next item while the caller processes the current one."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Generator[T, None, None]) -> Iterator[T]:
    """Yield the items in order; one thread makes each while the item before it is in use."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(next, items, None)
        try:
            while (item := future.result()) is not None:
                future = pool.submit(next, items, None)
                yield item
        finally:
            future.cancel()
            pool.submit(items.close).result()
