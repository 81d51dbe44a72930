"""Small square drawings, of which a page holds some forty: written as SVG at once, where matplotlib takes a blink each.

Colours and strokes come from the page's style sheet, so that they follow it by day, by night and on paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from aecnn.evaluation.report.scores import Point

WIDTH_PX, HEIGHT_PX = 168, 166
LEFT_PX, TOP_PX, SIDE_PX = 28, 6, 136  # of the square in which curves are drawn
GRID = 400  # steps a side: finer than a pixel
DOT_PX = 2.4  # radius


@dataclass(frozen=True)
class Curve:
    """One line of a square; its kind is a class of the style sheet."""

    points: Sequence[Point]
    kind: str  # main, second or chance
    is_filled: bool = False  # down to the axis
    has_dots: bool = False


def square(curves: Sequence[Curve], *, description: str, reach: float = 1.0) -> Markup:
    """Gives curves over a square from 0 to ``reach`` as an ``<svg>`` element.

    Args:
        curves: Those below first.
        description: What a person who cannot see it should hear.
        reach: Where both axes end.
    """
    head = f'<svg class="drawing square" viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" role="img"'
    body = "".join([_axes(reach), *(_drawn(curve, reach) for curve in curves)])
    return Markup(f'{head} style="max-width:{WIDTH_PX}px" aria-label="{escape(description)}">{body}</svg>')  # noqa: S704  numbers


def visible_points(points: Sequence[Point]) -> list[Point]:
    """Gives a curve's corners on a grid finer than a pixel: thousands of images, a few hundred corners."""
    on_grid = np.round(np.asarray(points, dtype=np.float64).reshape(-1, 2) * GRID)
    if len(on_grid) < 3:
        return [(float(x), float(y)) for x, y in on_grid / GRID]
    on_grid = on_grid[np.r_[True, (np.diff(on_grid, axis=0) != 0).any(axis=1)]]
    steps = np.diff(on_grid, axis=0)
    turns = steps[:-1, 0] * steps[1:, 1] != steps[:-1, 1] * steps[1:, 0]
    corners = on_grid[np.r_[True, turns, True]] if len(on_grid) > 1 else on_grid
    return [(float(x), float(y)) for x, y in corners / GRID]


def _axes(reach: float) -> str:
    bottom, right = TOP_PX + SIDE_PX, LEFT_PX + SIDE_PX
    parts = [f'<path class="axis" d="M{LEFT_PX} {TOP_PX}V{bottom}H{right}"/>']
    for step in (0.0, 0.5, 1.0):
        x, y, label = LEFT_PX + step * SIDE_PX, bottom - step * SIDE_PX, f"{step * reach:g}"
        anchor = {0.0: "start", 0.5: "middle", 1.0: "end"}[step]
        parts.append(f'<text x="{x:g}" y="{bottom + 15}" text-anchor="{anchor}">{label}</text>')
        parts.append(f'<text x="{LEFT_PX - 6}" y="{y + 4:g}" text-anchor="end">{label}</text>')
    return "".join(parts)


def _drawn(curve: Curve, reach: float) -> str:
    if not curve.points:
        return ""
    places = [_place(point, reach) for point in curve.points]
    path = "L".join(f"{x:g} {y:g}" for x, y in places)
    bottom = TOP_PX + SIDE_PX
    parts = []
    if curve.is_filled:
        parts.append(f'<path class="fill" d="M{places[0][0]:g} {bottom}L{path}L{places[-1][0]:g} {bottom}Z"/>')
    parts.append(f'<path class="{curve.kind}" d="M{path}"/>')
    if curve.has_dots:
        parts += [f'<circle class="{curve.kind}" cx="{x:g}" cy="{y:g}" r="{DOT_PX}"/>' for x, y in places]
    return "".join(parts)


def _place(point: Point, reach: float) -> tuple[float, float]:
    x, y = (min(number / reach, 1.0) for number in point)
    return round(LEFT_PX + x * SIDE_PX, 1), round(TOP_PX + (1.0 - y) * SIDE_PX, 1)
