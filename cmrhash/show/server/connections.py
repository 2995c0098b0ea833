"""Connections with deadlines: clients that wait, trickle or do not read cannot keep others out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

AWAITED = 10.0  # seconds until a connection has sent the headers of its first or next request
STALLED = 30.0  # seconds in which a client must read something of its answer
LINES, MINUTE = 20, 60.0  # log lines of one kind in that many seconds


class Connection(H11Protocol):
    """HTTP connection that ends if its client lets the server wait too long.

    When all places are taken, a new connection gets a place of the address that has most waiting connections, that of
    the one which has waited longest: who takes all places takes them from himself.
    """

    _timer: asyncio.TimerHandle | None = None
    _since: float | None = None  # when the client began to let the server wait; None while the server works
    _unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room for the connection and await its first request."""
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency - 1:
            self._make_room()
        super().connection_made(transport)
        self._await(AWAITED)

    def data_received(self, data: bytes) -> None:
        """Take bytes; the time of a request's headers is not prolonged by further bytes."""
        super().data_received(data)
        self._see()

    def on_response_complete(self) -> None:
        """Await the next request."""
        super().on_response_complete()
        self._see()

    def pause_writing(self) -> None:
        """Await that the client reads."""
        super().pause_writing()
        self._await(STALLED)

    def resume_writing(self) -> None:
        """Go on with the answer."""
        super().resume_writing()
        self._stop()
        self._see()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        super().connection_lost(exc)
        self._stop()

    @property
    def address(self) -> str:
        """Network address of the client, "" if unknown."""
        return self.client[0] if self.client else ""

    def _see(self) -> None:
        """Set or cancel the deadline of the next request."""
        working = self.cycle is not None and not self.cycle.response_complete
        if not working and self._since is None and not self.transport.is_closing():
            self._await(AWAITED)
        elif working and not self.flow.write_paused:
            self._stop()

    def _await(self, seconds: float) -> None:
        self._stop()
        self._since = self.loop.time()
        self._timer = self.loop.call_later(seconds, self._expire)

    def _stop(self) -> None:
        self._since = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        """End the connection, unless its client has read something since the last time."""
        unsent = self.transport.get_write_buffer_size()
        if unsent and unsent != self._unsent:
            self._unsent = unsent
            self._timer = self.loop.call_later(STALLED, self._expire)
        else:
            self.transport.abort()

    def _make_room(self) -> None:
        others = (cast("Connection", each) for each in self.connections)
        waiting = [(each.address, each._since, each) for each in others if each._since is not None]
        if waiting:
            of = Counter(address for address, _, _ in waiting)
            _, _, longest = max(waiting, key=lambda one: (of[one[0]], -one[1]))
            self.connections.discard(longest)
            longest.transport.abort()


class Sparing(logging.Filter):
    """Lets few lines of each kind pass per minute and counts the others, so that no client can fill a log."""

    def __init__(self, lines: int = LINES, seconds: float = MINUTE) -> None:
        super().__init__()
        self.lines, self.seconds = lines, seconds
        self._kinds: dict[Any, list[float]] = {}  # kind -> start of its minute, lines since, lines left out before

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a line is written; the first one of a minute says how many were left out."""
        now = time.monotonic()
        minute = self._kinds.setdefault((record.pathname, record.lineno), [now, 0, 0])
        if now - minute[0] >= self.seconds:
            minute[:] = [now, 0, minute[1] - self.lines]
        minute[1] += 1
        if minute[1] == 1 and minute[2] > 0:
            record.msg, record.args = f"{record.getMessage()} (and {minute[2]:.0f} more before)", None
        return minute[1] <= self.lines
