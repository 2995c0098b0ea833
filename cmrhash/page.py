"""The bare bones of a report: escaped HTML, one style sheet for light, dark and paper. No script, no foreign host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from cmrhash.plots import DARK

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --muted: #595959; --line: #d6d6d6; --paper: #fff; --soft: #f5f5f3;
  --good: #00623f; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e8e8e6; --muted: #a8a8a4; --line: #444;
  --paper: #14171b; --soft: #242424; --good: #6fd3a4; } }
body { margin: 2rem auto; max-width: 66rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
.sub, figcaption, small { color: var(--muted); }
.warn { border: 2px solid; padding: .5rem .8rem; font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dt { color: var(--muted); }
dd { margin: 0; min-width: 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .55rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
td.n, th.n { text-align: right; }
figure { margin: 1.2rem 0; } figure svg { width: 100%; height: auto; }
pre { background: var(--soft); padding: .7rem .9rem; white-space: pre-wrap; }
.example { border: 1px solid var(--line); border-radius: 4px; padding: .6rem .9rem; margin: .8rem 0; }
.example h4 { margin: 0 0 .4rem; } .asked { display: flex; gap: .9rem; align-items: flex-start; }
ol.found { display: flex; flex-wrap: wrap; gap: .7rem; padding: 0; margin: .6rem 0 0; list-style: none; }
ol.found li { width: 10.6rem; font-size: 13px; line-height: 1.35; border-top: 3px dotted var(--line);
  padding-top: .3rem; }
ol.found li.yes { border-top: 3px solid var(--good); } .yes b { color: var(--good); }
img { display: block; max-width: 100%; height: auto; border-radius: 2px; }
@media print { body { margin: 0; max-width: none; font-size: 11px; } .example, figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; } ol.found li { width: 18%; } .wide { overflow: visible; } }
"""
# Even a page that was tampered with loads nothing and runs nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, body: Iterable[str]) -> str:
    """A whole document. title: plain text; body: HTML."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}{DARK}\n</style></head><body>",
            *body,
            "</body></html>\n",
        ]
    )


def table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Plain text cells; columns of numbers stand right."""
    right = [bool(lines) and all(line[at][:1] in "0123456789-" for line in lines) for at in range(len(columns))]

    def row(tag: str, cells: Sequence[str]) -> str:
        ends = (f"<{tag}{' class=n' if of else ''}>{escape(c)}</{tag}>" for c, of in zip(cells, right, strict=True))
        return f"<tr>{''.join(ends)}</tr>"

    body = "".join(row("td", line) for line in lines)
    return f"<div class=wide><table><thead>{row('th', columns)}</thead><tbody>{body}</tbody></table></div>"


def points(values: Mapping[str, str]) -> str:
    """Names and what they are, a line each; plain text."""
    return f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in values.items())}</dl>"


def photo(uri: str, alt: str) -> str:
    """An image out of a data: URI; alt: plain text."""
    return f'<img src="{escape(uri)}" alt="{escape(alt)}">'
