"""Clients that wait, trickle or do not read lose their connection; log lines and uploads are bounded."""

import asyncio
import io
import logging

import numpy as np
import pytest

pytest.importorskip("fastapi", reason='needs pip install "cmrhash[serve]"')

import uvicorn
from PIL import Image
from served_process import no_network  # noqa: F401  # replaces a fixture
from serving import form, upload
from uvicorn.server import ServerState

from cmrhash.encoders.pixels import MAX_PIXELS, BadImage, decode
from cmrhash.show.server import connections, guard
from cmrhash.show.server.connections import Connection, Sparing
from cmrhash.show.server.guard import LOOPBACK, Bounds, Guard
from cmrhash.show.server.query_photos import bounded

FAULT = pytest.mark.faults("web page: slow, idle and hostile clients")
ASK = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


async def page(scope, receive, send):
    """Answers 10 MB, which no socket buffers."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(100):
        await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def served(client, places=400):
    """What a client, a function of a port, returns while the page is served."""

    async def both():
        config, state = uvicorn.Config(page, lifespan="off", ws="none", limit_concurrency=places), ServerState()
        made = lambda: Connection(config, state, {})  # noqa: E731
        server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
        async with asyncio.timeout(120):
            found = await client(server.sockets[0].getsockname()[1])
        server.close()
        return found

    return asyncio.run(both())


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(connections, "AWAITED", 0.1)
    monkeypatch.setattr(connections, "STALLED", 0.2)


async def ended(reader, writer):
    """Bytes received until the server ended the connection."""
    received = 0
    try:
        while part := await reader.read(1 << 16):
            received += len(part)
    except ConnectionError:
        pass
    writer.transport.abort()
    return received


@FAULT
@pytest.mark.parametrize("sent", [b"", b"GET", ASK, ASK + b"X: y\r\n"], ids=["nothing", "a word", "a line", "two"])
def test_a_request_that_does_not_come_ends_the_connection(quick, sent):
    async def client(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        return await ended(reader, writer)

    assert served(client) == 0


@FAULT
@pytest.mark.parametrize("first", [b"", ASK + b"Content-Length: 999999\r\n\r\n"], ids=["headers", "body of a GET"])
def test_bytes_that_trickle_do_not_prolong_it(quick, first):
    async def client(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(first or ASK)
        if first:
            await reader.readexactly(10_000_000)  # the answer is complete, the body is not
        end = asyncio.create_task(ended(reader, writer))
        for n in range(200):
            if end.done():
                return n
            writer.write(b"X: y\r\n")
            await asyncio.sleep(0.02)
        return None

    assert served(client) in range(1, 60)


@FAULT
def test_who_does_not_read_the_answer_loses_it(quick):
    async def client(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
        writer.write(ASK + b"\r\n")
        await asyncio.sleep(0.8)
        return await ended(reader, writer)

    assert served(client) < 10_000_000


def test_who_reads_slowly_gets_the_whole_answer(quick):
    async def client(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
        writer.write(ASK + b"Connection: close\r\n\r\n")
        received = 0
        while part := await reader.read(300_000):
            received += len(part)
            await asyncio.sleep(0.01)
        writer.close()
        return received

    assert served(client) > 10_000_000


@FAULT
def test_a_full_house_makes_room_at_the_cost_of_who_fills_it():
    async def client(port):
        crowd = [await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0)) for _ in range(30)]
        alone = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.3", 0))
        crowd += [await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0)) for _ in range(30)]
        alone[1].write(ASK + b"Connection: close\r\n\r\n")
        line = await alone[0].readline()
        answered = await ended(*alone)
        gone = [reader.at_eof() or reader.exception() is not None for reader, _ in crowd]
        for _, writer in crowd:
            writer.transport.abort()
        return line, answered, gone

    line, answered, gone = served(client, places=12)
    assert (line, answered > 10_000_000) == (b"HTTP/1.1 200 OK\r\n", True)
    assert (gone[:48], gone[-9:]) == ([True] * 48, [False] * 9)


async def slow_uploads(bounds, addresses):
    """Statuses of uploads of which one more begins at a time and only the last one is complete."""
    answers = {}

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    guarded = Guard(app, LOOPBACK, None, bounds)

    async def one(n, address):
        async def receive():
            if n < len(addresses) - 1:
                await asyncio.sleep(0.5)
                return {"type": "http.request", "body": b"x", "more_body": True}
            return {"type": "http.request", "body": b"x", "more_body": False}

        async def send(message):
            answers.setdefault(n, message.get("status"))

        scope = {"type": "http", "method": "POST", "path": "/", "raw_path": b"/", "query_string": b""}
        await guarded({**scope, "headers": [(b"host", b"localhost")], "client": (address, 1)}, receive, send)

    tasks = []
    for n, address in enumerate(addresses):
        tasks.append(asyncio.create_task(one(n, address)))
        await asyncio.sleep(0.02)
    await tasks[-1]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return answers


@FAULT
@pytest.mark.parametrize(
    ("bounds", "addresses", "answers"),
    [
        (Bounds(bodies=2), "aab", {0: 408, 2: 200}),  # the oldest one goes
        (Bounds(bodies=9, of_one=2), "baaa", {1: 408, 3: 200}),  # of the same address
        (Bounds(bodies=9, of_one=2), "aab", {2: 200}),
    ],
)
def test_uploads_that_trickle_make_room_for_others(monkeypatch, bounds, addresses, answers):
    monkeypatch.setattr(guard, "SPARED", 0.0)
    assert asyncio.run(slow_uploads(bounds, addresses)) == answers


def test_uploads_that_have_just_begun_keep_their_place():
    assert asyncio.run(slow_uploads(Bounds(bodies=2), "aab")) == {2: 429}


@FAULT
def test_a_log_has_few_lines_of_a_kind_and_counts_the_others(monkeypatch):
    now, log, lines = [0.0], logging.Logger("bounded"), []
    monkeypatch.setattr(connections.time, "monotonic", lambda: now[0])
    log.addFilter(Sparing(lines=3, seconds=60))
    log.handle = lambda record: lines.append(record.getMessage()) if log.filter(record) else None
    for second in range(100):
        now[0] = second
        log.warning("refused: %d", second)
    log.warning("another")
    assert lines == [
        *("refused: 0", "refused: 1", "refused: 2", "refused: 60 (and 57 more before)", "refused: 61", "refused: 62"),
        "another",
    ]


def saved(size, kind, mode="L", **options):
    out = io.BytesIO()
    Image.new(mode, size, 90).save(out, kind, **options)
    return out.getvalue()


@FAULT
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_an_upload_of_many_pixels_is_refused_by_its_header(hasher, serve, kind):
    with serve(hasher, max_pixels=10_000) as client:
        answer = client.post("/api/search", **upload(saved((101, 100), kind, "RGB")))
        assert answer.status_code == 400
        assert "101 x 100 pixels, at most 10000 are decoded): give another file, or a smaller one" in answer.text
        assert client.post("/", **form(saved((101, 100), kind, "RGB"))).status_code == 400
        assert client.post("/api/search", **upload(saved((100, 100), kind, "RGB"))).status_code == 200


def test_a_large_jpeg_is_searched_by_at_a_smaller_size(hasher, serve):
    with serve(hasher, max_pixels=10_000) as client:
        assert client.post("/api/search", **upload(saved((300, 400), "JPEG"))).status_code == 200
        found = client.post("/", **form(saved((300, 400), "JPEG")))
        assert (found.status_code, client.get(found.headers["location"]).status_code) == (303, 200)
        kept = next(iter(client.state.photos._kept.values())).content
        assert decode(kept).size == (75, 100)


@FAULT
def test_a_progressive_jpeg_is_not_decoded_beyond_the_limit():
    with pytest.raises(BadImage, match="300 x 400 pixels, at most 10000"):
        decode(saved((300, 400), "JPEG", progressive=True), 10_000, draft=True)
    assert decode(saved((300, 400), "JPEG", progressive=True)).size == (300, 400)


@FAULT
def test_a_jpeg_of_thousands_of_scans_is_refused_and_previews_do_not_count():
    jpeg = saved((1000, 1000), "JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    with pytest.raises(BadImage, match=r"2\d\d\d scans of 1000 x 1000 pixels") as refused:
        decode(jpeg[:-2] + jpeg[last:-2] * 2000 + jpeg[-2:])
    assert refused.value.code == "too-large"
    assert decode(jpeg + jpeg[last:] * 2000).size == (1000, 1000)  # behind the end, as videos of phones are


def test_an_upload_that_is_small_enough_stays_as_it_is():
    turned = Image.Exif()
    turned[0x0112] = 6
    jpeg = saved((40, 30), "JPEG", exif=turned)
    content, image = bounded(jpeg, 1200)
    assert (content, image.size) == (jpeg, (30, 40))
    half, image = bounded(jpeg, 1199)
    assert (half != jpeg, image.size, decode(half).size) == (True, (15, 20), (15, 20))


def test_strips_of_a_transparent_photo_fit_together():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (600, 7, 4), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    image = Image.fromarray(pixels)
    whole = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    assert np.array_equal(np.asarray(decode(out.getvalue())), np.asarray(whole))
    assert MAX_PIXELS > 600 * 7
