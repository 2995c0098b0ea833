"""Parts of every document: frame, escaping, tables, lists, pictures and content security policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files

from cmrhash.data.cleaning import shown

# Content security policies, by which a browser runs and loads nothing but our own files: of a document in one file,
# of the page that ``cmrhash serve`` answers with, and of an SVG, which is a document of its own.
FILE_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
SVG_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"


def esc(text: object) -> str:
    """Escape a text for use in an element or a quoted attribute, and what controls a reader; see ``shown``."""
    return escape(shown(text), quote=True)


def static(name: str) -> bytes:
    """Read a file of this folder, such as the stylesheet."""
    return files("cmrhash.show.html").joinpath(name).read_bytes()


def document(title: str, head: str, body: str) -> str:
    """Frame a whole document. title: plain text; head, body: HTML."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{esc(title)}</title>
{head}
</head>
<body>
{body}
</body>
</html>
"""


def standalone(title: str, body: str, style: str = "") -> str:
    """Frame a document that needs no other file. style: CSS besides the stylesheet."""
    policy = f'<meta http-equiv="Content-Security-Policy" content="{FILE_POLICY}">'
    return document(title, f"{policy}\n<style>{static('style.css').decode()}{style}</style>", body)


def table(columns: Sequence[str], lines: Sequence[Sequence[str]], caption: str) -> str:
    """Build a table of plain text that scrolls if it is wide; columns of numbers are aligned right."""
    numeric = [bool(lines) and all(line[at][:1] in "0123456789-" for line in lines) for at in range(len(columns))]

    def row(tag: str, cells: Sequence[str]) -> str:
        ends = zip(cells, numeric, strict=True)
        opened = f'{tag} scope="col"' if tag == "th" else tag
        return "".join(f"<{opened}{' class=n' if right else ''}>{esc(cell)}</{tag}>" for cell, right in ends)

    body = "\n".join(f"<tr>{row('td', line)}</tr>" for line in lines)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{esc(caption)}"><table>'
        f"<caption>{esc(caption)}</caption><thead><tr>{row('th', columns)}</tr></thead>\n"
        f"<tbody>{body}</tbody></table></div>"
    )


def points(values: Mapping[str, str]) -> str:
    """Build a list of names and their values, both plain text."""
    return f"<dl>{''.join(f'<dt>{esc(name)}</dt><dd>{esc(value)}</dd>' for name, value in values.items())}</dl>"


def figure(content: str, caption: str) -> str:
    """Frame a picture. content: HTML; caption: plain text."""
    return f"<figure>{content}<figcaption>{esc(caption)}</figcaption></figure>"


def picture(address: str, alt: str) -> str:
    """Build an image, or a placeholder if the address is empty. alt: plain text."""
    if not address:
        return '<span class="none">no photo</span>'
    return f'<img src="{esc(address)}" alt="{esc(alt)}" loading="lazy" decoding="async">'
