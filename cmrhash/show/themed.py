"""Figures for HTML and for browsers: SVG that follows the dark mode."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cmrhash.show import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THEME = {  # colour of a figure -> its name in a style sheet, and what it is in the dark
    "#ffffff": ("--plot-ground", "#14171b"),
    plots.INK: ("--plot-ink", "#e8eaed"),
    plots.MUTED: ("--plot-muted", "#a5adb8"),
    plots.PALE.lower(): ("--plot-pale", "#4a525c"),
    "#e4e4e4": ("--plot-grid", "#2b3138"),
    "#0072b2": ("--plot-blue", "#4aa3df"),
}
_IN_THE_DARK = " ".join(f"{name}: {dark};" for name, dark in THEME.values())
DARK = f"@media screen and (prefers-color-scheme: dark) {{ svg {{ {_IN_THE_DARK} }} }}"


def inline(figure: Figure, name: str) -> str:
    """Render a figure as an SVG element for HTML, with ids that start with ``name``.

    It follows the dark mode if the document has the stylesheet ``DARK``.
    """
    svg = _named_colours(plots.render(figure, "svg", live_text=True).decode())
    svg = svg.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")  # Verdana is as wide
    svg = re.sub(r"\s+xmlns(:\w+)?=\"[^\"]*\"", "", svg[svg.index("<svg") :])
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)


def themed(figure: Figure) -> bytes:
    """Render a figure as an SVG file that follows the dark mode."""
    svg = _named_colours(plots.render(figure, "svg").decode())
    return re.sub(r"(<svg[^>]*>)", rf"\1<style>{DARK}</style>", svg, count=1).encode()


def _named_colours(svg: str) -> str:
    """Replace colours by CSS variables with the same default."""
    return re.sub(r"#[0-9a-f]{6}\b", lambda of: f"var({THEME[of[0]][0]}, {of[0]})" if of[0] in THEME else of[0], svg)
