"""Honest, slow, idle and hostile clients of a page at the same time, and how long the honest ones waited."""

from __future__ import annotations

import asyncio
import io
import itertools
import random
import time
from collections import Counter, defaultdict
from contextlib import suppress

import numpy as np
from PIL import Image

HOST = b"Host: localhost\r\n"
STRANGER = "127.0.0.2"  # address of the hostile clients
IDLE, TRICKLING, SLOW_BODIES, DEAF, RUBBISH, BOMBS = 500, 100, 40, 10, 4, 2  # clients of each kind


def form(content, field=b"photo"):
    """A request body and the header lines for it."""
    head = b'--b\r\nContent-Disposition: form-data; name="' + field + b'"; filename="a.jpg"\r\n\r\n'
    body = head + content + b"\r\n--b--\r\n"
    return body, b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n" % len(body)


def post(content, path=b"/api/search"):
    """A request that uploads a photo."""
    body, lines = form(content)
    return b"POST " + path + b" HTTP/1.1\r\n" + HOST + b"Connection: close\r\n" + lines + b"\r\n" + body


def get(path):
    """A request that asks for a path."""
    return b"GET " + path.encode() + b" HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"


def bombs():
    """Small files of many pixels: one above the limit of the page, one below it, and a JPEG of many scans."""
    for side in (8000, 4900):
        out = io.BytesIO()
        Image.new("P", (side, side)).save(out, "PNG", optimize=True, transparency=0)
        yield out.getvalue()
    out = io.BytesIO()
    Image.new("L", (4000, 4000)).save(out, "JPEG", progressive=True)
    jpeg = out.getvalue()
    last = jpeg.rindex(b"\xff\xda")
    yield jpeg[:-2] + jpeg[last:-2] * 2000 + jpeg[-2:]


class Soak:
    """A run of all clients against a port. waits: kind of request -> seconds of each; refused: kind -> its statuses."""

    def __init__(self, port, ids, photo, seconds, seed=0):
        self.port, self.ids, self.photo, self.seconds = port, ids, photo, seconds
        self.random, self.bombs = random.Random(seed), list(bombs())
        self.waits, self.refused, self.attacks = defaultdict(list), Counter(), Counter()

    def run(self, hostile=True):
        """Send requests for the time that was set."""
        asyncio.run(self._all(hostile))

    def lines(self):
        """The percentiles, as lines to print."""
        yield f"{'honest request':16}{'sent':>7}{'p50':>8}{'p90':>8}{'p99':>8}{'max':>8}  (seconds)"
        for kind, waits in sorted(self.waits.items()):
            marks = [*np.percentile(waits, (50, 90, 99)), max(waits)]
            yield f"{kind:16}{len(waits):7,}" + "".join(f"{mark:8.3f}" for mark in marks)
        yield f"refused: {dict(self.refused)}; attacks: {dict(self.attacks)}"

    async def _all(self, hostile):
        kinds = {self._idle: IDLE, self._trickle: TRICKLING, self._slow_body: SLOW_BODIES, self._deaf: DEAF}
        kinds |= {self._rubbish: RUBBISH, self._bomb: BOMBS}
        ends = time.monotonic() + self.seconds
        honest = [asyncio.create_task(self._honest(ends)) for _ in range(3)]
        others = [self._again(kind) for kind, count in kinds.items() for _ in range(count)] if hostile else []
        tasks = [asyncio.create_task(other) for other in others]
        await asyncio.gather(*honest)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _honest(self, ends):
        asked = {
            "sentence": lambda: get(f"/api/search?q=dog&lang=en&k={self.random.randint(1, 20)}"),
            "page": lambda: get("/?q=dog&lang=en"),
            "photo of an item": lambda: get(f"/thumb/{self.random.choice(self.ids)}"),
            "upload": lambda: post(self.photo),
        }
        for sent, kind in enumerate(itertools.cycle(asked)):
            if sent >= len(asked) and time.monotonic() > ends:
                break
            start = time.monotonic()
            answer = await asyncio.wait_for(self._ask(asked[kind]()), 120)
            self.waits[kind].append(time.monotonic() - start)
            if not answer.startswith(b"HTTP/1.1 200 "):
                self.refused[kind, answer[9:12].decode()] += 1
            await asyncio.sleep(0.05)

    async def _ask(self, request):
        reader, writer = await self._connect()
        try:
            writer.write(request)
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def _connect(self, own="127.0.0.1"):
        return await asyncio.open_connection("127.0.0.1", self.port, local_addr=(own, 0))

    async def _again(self, attack):
        """Attack, and again as soon as the server has ended the connection."""
        while True:
            with suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await self._connect(STRANGER)
                self.attacks[attack.__name__.strip("_")] += 1
                try:
                    await attack(reader, writer)
                finally:
                    writer.transport.abort()
            await asyncio.sleep(0.02)

    async def _idle(self, reader, writer):
        await reader.read()

    async def _trickle(self, reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n" + HOST)
        await self._drip(writer, (b"X-%d: y\r\n" % n for n in itertools.count()))

    async def _slow_body(self, reader, writer):
        writer.write(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 9000000\r\n\r\n")
        await self._drip(writer, itertools.repeat(b"x"))

    async def _drip(self, writer, parts):
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.5)

    async def _deaf(self, reader, writer):
        """Many requests and never a read."""
        writer.transport.pause_reading()
        ask = b"GET /?q=dog&lang=en HTTP/1.1\r\n" + HOST + b"\r\n"
        for _ in range(60):
            writer.write(ask)
            await writer.drain()
        await asyncio.sleep(15)

    async def _rubbish(self, reader, writer):
        kind = self.random.randrange(3)
        if kind == 0:
            writer.write(self.random.randbytes(200) + b"\r\n\r\n")
        elif kind == 1:
            writer.write(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        else:  # a body that belongs to no request
            writer.write(b"GET /healthz HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999\r\n\r\n")
            await self._drip(writer, itertools.repeat(b"x" * 1000))
        await reader.read()

    async def _bomb(self, reader, writer):
        writer.write(post(self.random.choice(self.bombs)))
        await reader.read()
