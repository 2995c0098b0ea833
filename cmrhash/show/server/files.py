"""Routes of files: stylesheets, scripts, thumbnails, original photos, uploads and plots."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException

from cmrhash.show.html.document import SVG_POLICY, static
from cmrhash.show.html.tiles import shape_rules
from cmrhash.show.server.app import State
from cmrhash.show.server.originals import original
from cmrhash.show.server.requests import answers

SCRIPT, STYLE = "text/javascript", "text/css"
FILES = {  # file -> media type
    "style.css": STYLE,
    "page.css": STYLE,
    "search.js": SCRIPT,
    "more.js": SCRIPT,
    "lightbox.js": SCRIPT,
    "favicon.svg": "image/svg+xml",
}
NO_PHOTO = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 160 120" width="160" height="120">
<rect width="160" height="120" fill="#8884"/>
<g fill="none" stroke="#888" stroke-width="3"><rect x="50" y="34" width="60" height="44" rx="4"/>
<path d="M50 70l18-16 14 12 10-8 18 16M46 30l68 56"/></g>
<text x="80" y="104" fill="#888" font-family="sans-serif" font-size="12" text-anchor="middle">photo not found</text>
</svg>
"""
AN_HOUR = {"cache-control": "private, max-age=3600"}
ALONE = AN_HOUR | {"content-security-policy": "default-src 'none'; sandbox"}  # a photo that is opened by itself


def add_files(app: FastAPI, state: State) -> None:
    """Add all files."""
    contents = {name: static(name) for name in FILES}
    contents["page.css"] += shape_rules().encode()

    def add(path: str, name: str) -> None:
        @app.get(path, include_in_schema=False)
        async def file() -> Response:
            return Response(contents[name], media_type=FILES[name], headers={"cache-control": "no-cache"})

    for name in FILES:
        add(f"/{name}", name)
    add("/favicon.ico", "favicon.svg")
    _add_photos(app, state)
    _add_plots(app, state)


def _add_photos(app: FastAPI, state: State) -> None:
    collection = state.collection

    def image_of(ident: str) -> str | None:
        item = collection.first.hasher.item(ident)
        return item.image if item else None

    picture = {"schema": {"type": "string", "format": "binary"}}
    jpeg_alone = {"content": {"image/jpeg": picture}}
    any_photo = {"content": {"image/*": picture}}
    thumbs = answers(jpeg_alone, 404, 422, 500)
    thumbs[404]["content"] |= {"image/svg+xml": {"schema": {"type": "string"}}}  # to who asks for an image

    @app.get(
        "/thumb/{ident:path}",
        summary="A small JPEG of an item's photo",
        response_class=Response,
        responses=thumbs,
    )
    def thumb(request: Request, ident: str) -> Response:
        jpeg = collection.thumbs.of(image_of(ident))
        if jpeg is None:
            if "image/" in request.headers.get("accept", ""):  # a tile shows it instead of a broken image
                return Response(NO_PHOTO, 404, {"cache-control": "no-store"}, "image/svg+xml")
            raise HTTPException(404, "no photo of this item")
        return Response(jpeg, media_type="image/jpeg", headers=AN_HOUR)

    @app.get(
        "/photo/{ident:path}",
        summary="The original photo of an item",
        response_class=Response,
        responses=answers(any_photo, 404, 413, 422, 500),
    )
    def photo(ident: str) -> Response:
        found = original(collection.first.hasher.dataset.root, image_of(ident), state.config.max_photo)
        if found is None:
            raise HTTPException(404, "no photo of this item")
        headers = ALONE | {"content-length": str(found.size)}
        return StreamingResponse(found.chunks, media_type=found.media, headers=headers)

    @app.get("/asked/{digest}", include_in_schema=False)
    async def asked(digest: str) -> Response:
        return Response(state.photos.get(digest).thumb, media_type="image/jpeg", headers=AN_HOUR)


def _add_plots(app: FastAPI, state: State) -> None:
    svg_alone = {"content": {"image/svg+xml": {"schema": {"type": "string"}}}}

    @app.get(
        "/plot/{name}.svg",
        summary="A plot of the run",
        response_class=Response,
        responses=answers(svg_alone, 404, 422, 429, 500),
    )
    async def plot(request: Request, name: str) -> Response:
        run = request.query_params.get("run")
        served = await state.drawing.run(state.collection.of, run)
        if name not in served.plots:
            raise HTTPException(404, f"unknown plot: choose one of {', '.join(served.plots) or 'none'}")
        svg = await state.drawing.run(served.pictures.svg, name)
        headers = {"cache-control": "no-cache", "content-security-policy": SVG_POLICY}
        return Response(svg, media_type="image/svg+xml", headers=headers)
