"""The pointing game: does the strongest point of a heatmap lie in the box a radiologist drew (Zhang et al., IJCV 2018)?

Boxes are those of ``BBox_List_2017.csv`` (Wang et al., CVPR 2017): about a thousand, all of test images, each of one
finding, in pixels of the 1024 × 1024 originals. Each image and finding is one try; with several boxes any of them is a
hit. A heatmap that is the same everywhere points nowhere and misses. No margin around the boxes is let through.

Two rates to beat come with it. Chance is that of a blind finger: the mean share of what the model sees that the boxes
cover. The other is that of a finger always on the radiograph's centre, where nearly every heart is: of the official
boxes of Cardiomegaly it hits 97 %.

Shapes: S = ``input_size_px``, K tries.
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest  # type: ignore[attr-defined]

from aecnn.config import ImagesConfig
from aecnn.data.augmentation import centre_margin
from aecnn.data.tables import header_key, read_text, shown
from aecnn.errors import PredictionsError, UnknownFindingError
from aecnn.findings import FINDINGS, finding_index

ORIGINAL_SIZE_PX = 1024
INTERVAL_LEVEL = 0.95
_HEADER = ("imageindex", "findinglabel", "bboxx", "y", "w", "h")  # the rest of the nine headings are empty
_TIED = 1.0 - 1e-6  # of the maximum: two points of a smoothed plateau differ by rounding
_FLAT = 1e-6  # a heatmap goes up to 1


@dataclass(frozen=True)
class Box:
    """One box, as fractions of the side of the square radiograph, from its top left corner."""

    left: float
    top: float
    right: float
    bottom: float

    def holds(self, x: float, y: float) -> bool:
        """Says whether a point lies in it, its edges included."""
        return self.left <= x <= self.right and self.top <= y <= self.bottom


@dataclass(frozen=True)
class Target:
    """One try: where a finding of an image is."""

    image: str
    finding: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Try:
    """How one try ended."""

    finding: str
    is_hit: bool
    is_centre_hit: bool  # by a finger on the centre
    chance: float  # of a blind finger


@dataclass(frozen=True)
class HitRate:
    """The tries of one finding, or of all."""

    num_images: int
    num_hits: int
    hit_rate: float
    interval: tuple[float, float]  # Wilson's, at `INTERVAL_LEVEL`
    chance: float
    centre_hit_rate: float

    def to_json(self) -> dict[str, Any]:
        """Gives the figures under their own names."""
        return asdict(self)


def read_boxes(path: Path) -> tuple[Target, ...]:
    """Reads a table of boxes, in the order of each image and finding's first row.

    Raises:
        ManifestError: It is no readable text.
        PredictionsError: With every fault found, each with its row.
    """
    try:
        rows = [
            (number, [cell.strip() for cell in fields])
            for number, fields in enumerate(csv.reader(io.StringIO(read_text(path)), strict=True), start=1)
            if any(fields)
        ]
    except csv.Error as error:
        raise PredictionsError(path, [f"is not comma-separated ({error})"]) from error
    header = tuple(header_key(heading) for heading in (rows[0][1] if rows else ()))
    if header[: len(_HEADER)] != _HEADER or any(header[len(_HEADER) :]):
        found = ",".join(rows[0][1]) if rows else ""
        raise PredictionsError(
            path,
            [f"row 1 is {shown(found)}, expected 'Image Index,Finding Label,Bbox [x,y,w,h]', as in BBox_List_2017"],
        )
    boxes: dict[tuple[str, str], list[Box]] = {}
    faults: list[str] = []
    for number, fields in rows[1:]:
        try:
            image, finding, box = _box_of(fields)
        except (ValueError, UnknownFindingError) as error:
            faults.append(f"row {number}: {error}")
            continue
        boxes.setdefault((image, finding), []).append(box)
    if not boxes and not faults:
        faults.append("holds no box")
    if faults:
        raise PredictionsError(path, faults)
    return tuple(Target(image, finding, tuple(of_target)) for (image, finding), of_target in boxes.items())


def point(heatmap: NDArray[np.floating], target: Target, images_config: ImagesConfig) -> Try:
    """Points at the strongest place of a heatmap.

    Args:
        heatmap: [S, S] of the target's image and finding.
        target: Where the finding is.
        images_config: How the radiograph became the model's input.
    """
    size, seen = images_config.size_px, images_config.input_size_px
    begin = centre_margin(size, seen)
    chance = _covered_share(target.boxes, begin / size, (begin + seen) / size)
    is_flat = float(np.ptp(heatmap)) <= _FLAT
    # Of a plateau, such as a cell in the corner makes, the middle; the first of its pixels would be the very corner.
    y, x = ((begin + float(place.mean()) + 0.5) / size for place in np.nonzero(heatmap >= heatmap.max() * _TIED))
    is_hit = not is_flat and any(box.holds(x, y) for box in target.boxes)
    return Try(target.finding, is_hit, any(box.holds(0.5, 0.5) for box in target.boxes), chance)


def hit_rates(tries: Sequence[Try]) -> dict[str, HitRate]:
    """Gives the hit rate of each finding that was tried, in the order of `FINDINGS`."""
    by_finding = {name: [one for one in tries if one.finding == name] for name in FINDINGS}
    return {name: hit_rate(of_finding) for name, of_finding in by_finding.items() if of_finding}


def hit_rate(tries: Sequence[Try]) -> HitRate:
    """Gives the hit rate over tries, of which there is at least one."""
    hits = sum(one.is_hit for one in tries)
    interval = binomtest(hits, len(tries)).proportion_ci(confidence_level=INTERVAL_LEVEL, method="wilson")
    return HitRate(
        num_images=len(tries),
        num_hits=hits,
        hit_rate=hits / len(tries),
        interval=(float(interval.low), float(interval.high)),
        chance=sum(one.chance for one in tries) / len(tries),
        centre_hit_rate=sum(one.is_centre_hit for one in tries) / len(tries),
    )


def _box_of(fields: list[str]) -> tuple[str, str, Box]:
    """Image, finding and box of a row.

    Raises:
        ValueError: It is none.
        UnknownFindingError: Its finding is none of the fourteen.
    """
    cells, rest = fields[: len(_HEADER)], fields[len(_HEADER) :]
    if len(cells) < len(_HEADER) or any(rest) or not cells[0]:
        raise ValueError(f"is {shown(','.join(fields))}, expected an image, a finding and four numbers")
    try:
        x, y, width, height = (float(cell) for cell in cells[2:])
    except ValueError:
        raise ValueError(f"the box is {shown(','.join(cells[2:]))}, expected four numbers x,y,w,h") from None
    is_inside = min(x, y) >= 0.0 and max(x + width, y + height) <= ORIGINAL_SIZE_PX
    if not all(map(math.isfinite, (x, y, width, height))) or min(width, height) <= 0.0 or not is_inside:
        raise ValueError(
            f"the box {x:g},{y:g},{width:g},{height:g} (x,y,w,h) has no area or leaves the original of "
            f"{ORIGINAL_SIZE_PX} × {ORIGINAL_SIZE_PX} px: give pixels of the original"
        )
    left, top, right, bottom = (edge / ORIGINAL_SIZE_PX for edge in (x, y, x + width, y + height))
    return cells[0], FINDINGS[finding_index(cells[1])], Box(left, top, right, bottom)


def _covered_share(boxes: Iterable[Box], begin: float, end: float) -> float:
    """The share that boxes cover of the square from `begin` to `end`, where boxes overlap counted once."""
    clipped = [
        Box(*(min(max(edge, begin), end) for edge in (box.left, box.top, box.right, box.bottom))) for box in boxes
    ]
    columns = sorted({edge for box in clipped for edge in (box.left, box.right)})
    rows = sorted({edge for box in clipped for edge in (box.top, box.bottom)})
    area = sum(
        (right - left) * (bottom - top)
        for left, right in pairwise(columns)
        for top, bottom in pairwise(rows)
        if any(box.holds((left + right) / 2, (top + bottom) / 2) for box in clipped)
    )
    return area / (end - begin) ** 2
