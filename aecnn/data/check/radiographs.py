"""Radiographs that look wrong as pictures: inverted, turned, mirrored, blank, not frontal, or with a border.

Three checks count pixels and state a measure as their sureness: *blank* and *borders* below. Three are learned (see
`aecnn.data.check.orientation`): *inverted*, *turned* and *mirrored* state a probability, *not frontal* the doubt about
where up is. How often each is right is measured in ``docs/data-checks.md``.

Shapes: B images, S = `THUMBNAIL_SIDE_PX`; H × W is the picture within its thumbnail, without the letterbox.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from aecnn.data.check.orientation import Calibration, Reading

THUMBNAIL_SIDE_PX = 256

Kind = Literal["inverted", "turned", "mirrored", "blank", "not_frontal", "borders"]

# Blank. The 1,659 tuning radiographs have spreads of 85 and more, and at most 67 % of their pixels at one end.
_NUM_AREAS = 16
_LEAST_SPREAD = 40.0
_BLACK, _WHITE = 8, 247
_LARGEST_SATURATED_SHARE = 0.85
# Borders. Of the 763 tuning radiographs of nih_256px, 3 are suspects under these numbers, and all 3 have a border.
_TOLERANCE = 4
_UNIFORM_SHARE = 0.98
_LEAST_BAND = 0.0155  # of the side: 4 of 256 pixels
_LARGEST_BAND_AREA = 0.3

_NET_BATCH_SIZE = 32  # 1.7 times as fast on one core as 128: the maps stay in the cache

_INVERTED = (
    "the grey scale is inverted (bones dark, air bright): export it as MONOCHROME2, or replace each value by the "
    "largest minus it"
)
_MIRRORED = (
    "perhaps mirrored left to right (the heart seems to lie on the other side): look at the side marker, and mirror "
    "the image back if it is on the wrong side or reads backwards"
)
_NOT_FRONTAL = (
    "perhaps no frontal chest radiograph (no side looks like up): look at it, and leave lateral views and other body "
    "parts out"
)
_MAYBE_MIRRORED = "; look at the side marker then, since it may need mirroring too"
_TWIN_SHARE = 0.05  # from which on the mirror image of the likeliest turn is mentioned
_TURNED = {
    1: "turned by 90° anticlockwise: turn it by 90° clockwise",
    2: "turned by 180°: turn it by 180°",
    3: "turned by 90° clockwise: turn it by 90° anticlockwise",
    5: "flipped over the diagonal from top left to bottom right: swap its rows and columns",
    6: "flipped upside down: flip it top to bottom",
    7: "flipped over the diagonal from top right to bottom left: turn it by 180°, then swap its rows and columns",
}


@dataclass(frozen=True)
class Suspicion:
    """Something about one radiograph that a person should look at.

    Args:
        row: Index in the batch.
        kind: What is suspected.
        sureness: From 0 to 1. A probability for inverted, turned and mirrored, and a stated measure for the others.
        sentence: What was found and what to do, without the file's name.
    """

    row: int
    kind: Kind
    sureness: float
    sentence: str


def inspect(thumbnails: npt.NDArray[np.uint8], aspect_ratios: npt.NDArray[np.float64]) -> list[Suspicion]:
    """Gives the suspicions about a batch of radiographs, in the order of the batch.

    A blank image is asked nothing else, and one that may not be frontal is not asked which way round it lies.

    Args:
        thumbnails: [B, S, S] as `aecnn.data.images.decode_radiograph` gives them, letterboxed with black if need be.
        aspect_ratios: [B] width / height of the files, by which a letterbox is told from a border.

    Raises:
        CheckpointError: The weights file of the learned checks is missing or damaged.
    """
    suspicions: list[Suspicion] = []
    sighted: dict[int, npt.NDArray[np.uint8]] = {}
    for row, (thumbnail, ratio) in enumerate(zip(thumbnails, aspect_ratios, strict=True)):
        picture = _without_letterbox(thumbnail, float(ratio))  # [H, W]
        blank = _blank(row, picture)
        if blank is not None:
            suspicions.append(blank)
            continue
        suspicions += _borders(row, picture)
        sighted[row] = _filled(picture, side=thumbnail.shape[0])
    if sighted:
        suspicions += _learned(list(sighted), np.stack(list(sighted.values())))
    return sorted(suspicions, key=lambda suspicion: suspicion.row)


def _without_letterbox(thumbnail: npt.NDArray[np.uint8], ratio: float) -> npt.NDArray[np.uint8]:
    """Cuts away the black that made the picture square, and the pixels that hold some of it."""
    side = thumbnail.shape[0]
    height, width = side * min(1.0, 1.0 / ratio), side * min(1.0, ratio)
    rows, columns = (_middle(side, height), _middle(side, width))
    return thumbnail[rows, columns]


def _middle(side: int, length: float) -> slice:
    start = min(math.ceil((side - length) / 2 - 1e-6), (side - 1) // 2)
    return slice(start, side - start)


def _filled(picture: npt.NDArray[np.uint8], *, side: int) -> npt.NDArray[np.uint8]:
    """Gives [S, S] with the outermost pixels repeated in place of the letterbox, whose black misleads the net."""
    rows, columns = ((side - length) // 2 for length in picture.shape)
    return np.pad(picture, ((rows, rows), (columns, columns)), mode="edge")


def _blank(row: int, picture: npt.NDArray[np.uint8]) -> Suspicion | None:
    """A suspicion if most pixels are black or white, or the picture has hardly any contrast."""
    black, white = float((picture <= _BLACK).mean()), float((picture >= _WHITE).mean())
    if max(black, white) >= _LARGEST_SATURATED_SHARE:
        end, share = ("black", black) if black >= white else ("white", white)
        sentence = f"almost blank: {share:.0%} of its pixels are {end}: export it again with its full contrast"
        return Suspicion(row, "blank", share, f"{sentence}, or leave it out")
    low, high = np.quantile(_area_means(picture), [0.02, 0.98])
    if high - low >= _LEAST_SPREAD:
        return None
    sentence = f"almost blank: its areas differ by {high - low:.0f} of 255 grey values: export it again"
    return Suspicion(row, "blank", float(1.0 - (high - low) / 255.0), f"{sentence} with its full contrast")


def _area_means(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Means over about `_NUM_AREAS` × `_NUM_AREAS` areas, in which noise has averaged out."""
    height, width = (max(1, length // _NUM_AREAS) for length in picture.shape)
    rows, columns = picture.shape[0] // height, picture.shape[1] // width
    tiles = picture[: rows * height, : columns * width].reshape(rows, height, columns, width)
    return np.asarray(tiles.mean(axis=(1, 3)), dtype=np.float64)  # [rows, columns]


def _borders(row: int, picture: npt.NDArray[np.uint8]) -> list[Suspicion]:
    """A suspicion if uniform bands go all around, or if those on some sides take much of the picture."""
    widths = {"top": 0.0, "bottom": 0.0, "left": 0.0, "right": 0.0}  # shares of the side
    like = {}  # share of a band's pixels that have its grey value
    views = {"top": picture, "bottom": picture[::-1], "left": picture.T, "right": picture.T[::-1]}
    for name, lines in views.items():
        level = int(np.median(lines[min(1, len(lines) - 1)]))  # the second line: the first may be half a pixel
        close = (np.abs(lines.astype(np.int16) - level) <= _TOLERANCE).mean(axis=1)  # [lines]
        uniform = close >= _UNIFORM_SHARE
        uniform[0] |= bool(uniform[min(1, len(lines) - 1)])
        count = len(lines) if bool(uniform.all()) else int(np.argmin(uniform))
        if count / len(lines) >= _LEAST_BAND:
            widths[name], like[name] = count / len(lines), float(close[:count].mean())
    inner = max(0.0, 1 - widths["top"] - widths["bottom"]) * max(0.0, 1 - widths["left"] - widths["right"])
    if len(like) < 4 and (len(like) < 2 or 1 - inner < _LARGEST_BAND_AREA):
        return []
    sides = ", ".join(f"{name} {widths[name]:.0%}" for name in like)
    sentence = f"uniform bands cover {1 - inner:.0%} of the picture ({sides}): crop them away"
    return [Suspicion(row, "borders", min(like.values()), sentence)]


def _learned(rows: list[int], pictures: npt.NDArray[np.uint8]) -> list[Suspicion]:
    """The suspicions of the net about the pictures [B, S, S] of some rows [B]."""
    from aecnn.data.check.orientation import calibrated, load_orientation_net, raw_outputs, scale_down  # imports torch

    net, calibration = load_orientation_net()
    suspicions = []
    for start in range(0, len(rows), _NET_BATCH_SIZE):
        reading = calibrated(*raw_outputs(net, scale_down(pictures[start : start + _NET_BATCH_SIZE])), calibration)
        for index, row in enumerate(rows[start : start + _NET_BATCH_SIZE]):
            sureness = float(reading.inverted[index])
            if sureness >= calibration.inverted_threshold:
                suspicions.append(Suspicion(row, "inverted", sureness, _INVERTED))
            suspicions += _orientation(row, index, reading, calibration)
    return suspicions


def _orientation(row: int, index: int, reading: "Reading", calibration: "Calibration") -> list[Suspicion]:
    doubt, shares = float(reading.doubt[index]), reading.orientations[index]  # [O]
    if doubt >= calibration.not_frontal_threshold:
        return [Suspicion(row, "not_frontal", doubt, _NOT_FRONTAL)]
    turned = min(1.0, float(sum(shares[way] for way in _TURNED)))
    if turned >= calibration.turned_threshold:
        way = max(_TURNED, key=lambda way: float(shares[way]))
        twin = shares[(way + 4) % 8]
        unsure = twin / (shares[way] + twin) >= _TWIN_SHARE
        return [Suspicion(row, "turned", turned, _TURNED[way] + (_MAYBE_MIRRORED if unsure else ""))]
    if shares[4] >= calibration.mirrored_threshold:
        return [Suspicion(row, "mirrored", float(shares[4]), _MIRRORED)]
    return []
