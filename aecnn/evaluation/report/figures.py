"""One drawing as inline SVG: small, the same bytes each time, and in the page's colours by day and by night."""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

POINTS_PER_INCH = 72  # one SVG unit is one CSS pixel

INK, MUTED, HAIRLINE, PAPER, ACCENT = "#17202a", "#5b6672", "#dfe4e9", "#ffffff", "#0b5fa5"
HOSPITALS = ("#e08a00", "#006b50", "#d070b0", "#56b4e9", "#a02c1c", "#4a2f7a")  # told apart by the colour-blind too
OTHER_HOSPITAL = "#b4bdc6"

VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    HAIRLINE: "hairline",
    PAPER: "paper",
    ACCENT: "accent",
    OTHER_HOSPITAL: "hospital-other",
} | {colour: f"hospital-{number}" for number, colour in enumerate(HOSPITALS, start=1)}

STYLE: dict[Any, Any] = {  # Any: matplotlib types each of its keys as a literal
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same layout on every machine
    "font.size": 11.0,
    "grid.color": HAIRLINE,
    "grid.linewidth": 0.8,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "path.simplify": True,
    "path.simplify_threshold": 0.25,
    "svg.fonttype": "none",  # text stays text: small, selectable, in the page's font
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.major.size": 0.0,
    "ytick.color": MUTED,
    "ytick.major.size": 0.0,
}


def draw(name: str, *, width_px: int, height_px: int, description: str, paint: Callable[[Axes], None]) -> Markup:
    """Gives one pair of axes as an ``<svg>`` element.

    Args:
        name: Unique in the page; keeps the ids of two drawings apart.
        width_px: Natural width; the page may scale it down.
        height_px: Natural height.
        description: What a person who cannot see it should hear.
        paint: Draws on the axes.
    """
    buffer = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        size = (width_px / POINTS_PER_INCH, height_px / POINTS_PER_INCH)
        figure = Figure(figsize=size, dpi=POINTS_PER_INCH, layout="constrained")
        paint(figure.add_subplot())
        unsaid = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=unsaid)
    return _inline(buffer.getvalue(), width_px=width_px, height_px=height_px, description=description)


def hospital_colours(names: Sequence[str]) -> dict[str, str]:
    """Gives each hospital one colour for the whole page; those past the palette share a grey."""
    colours = [*HOSPITALS, *[OTHER_HOSPITAL] * max(0, len(names) - len(HOSPITALS))]
    return dict(zip(names, colours, strict=False))


def variable(colour: str) -> str:
    """Gives the CSS expression for one of the palette's colours, so that the page can turn dark."""
    return f"var(--{VARIABLES[colour]})"


def _inline(svg: str, *, width_px: int, height_px: int, description: str) -> Markup:
    """Strips what only a stand-alone SVG file needs, and lets the page's style sheet set colours and font."""
    body = svg[svg.index("<svg") :]
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<defs>\s*</defs>", "", body)
    used = set(re.findall(r"#([\w.-]+)", body))
    body = re.sub(r' id="([^"]*)"', lambda name: name.group() if name.group(1) in used else "", body)
    body = re.sub(r' transform="rotate\(-0 [^"]*"', "", body)
    body = re.sub(r'(?<= d=")[^"]*', lambda path: " ".join(_rounded(path.group()).split()), body)
    body = re.sub(r' (?:x|y|width|height|transform)="[^"]*', lambda place: _rounded(place.group()), body)
    body = re.sub(r'(?<=style=")[^"]*', lambda style: _themed(style.group()), body)
    body = re.sub(r">\s+<", ">\n<", body).strip()
    head = f'<svg class="drawing" viewBox="0 0 {width_px} {height_px}" style="max-width:{width_px}px" role="img"'
    return Markup(f'{head} aria-label="{escape(description)}">{body}')  # noqa: S704  matplotlib escapes its text


def _rounded(text: str) -> str:
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number.group()):.2f}".rstrip("0").rstrip("."), text)


def _themed(style: str) -> str:
    style = re.sub(r"#[0-9a-f]{6}", lambda colour: _variable_or_same(colour.group()), style)
    style = re.sub(r"font: ([\d.]+px)[^;]*", r"font-size: \1", style)
    return re.sub(r" ?font-family: [^;]*;?", "", style)


def _variable_or_same(colour: str) -> str:
    return variable(colour) if colour in VARIABLES else colour
