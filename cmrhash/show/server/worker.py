"""One worker thread with a short queue; requests are refused while the queue is full."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, TypeVar

Result = TypeVar("Result")


class Busy(Exception):
    """The queue is full."""


class Worker:
    """A worker thread. queue: number of tasks that may wait while one runs."""

    def __init__(self, queue: int) -> None:
        self._limit = 1 + queue
        self._pool = ThreadPoolExecutor(1, "cmrhash-encode")
        self._lock, self._taken = Lock(), 0

    async def run(self, work: Callable[..., Result], *args: Any) -> Result:
        """Await the result of ``work(*args)``; raises Busy at once if the queue is full."""
        return await asyncio.wrap_future(self.submit(work, *args))

    def submit(self, work: Callable[..., Result], *args: Any) -> Future[Result]:
        """Queue ``work(*args)`` from outside an event loop."""
        with self._lock:
            if self._taken >= self._limit:
                raise Busy
            self._taken += 1
        future = self._pool.submit(work, *args)
        future.add_done_callback(self._free)
        return future

    def _free(self, _: Future[Any]) -> None:
        with self._lock:
            self._taken -= 1

    def close(self) -> None:
        """Finish the running task and drop those that wait."""
        self._pool.shutdown(cancel_futures=True)
