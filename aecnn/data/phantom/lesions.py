"""The fourteen findings as parametric lesions, each drawn where it belongs and only on top of a normal body.

A lesion has a severity: 1 is a typical one, and a severity well below 1 is a variant of normal that a reader must not
call (a prominent vessel, a blunted angle, a heart at the upper limit). Two findings deform the body before it is drawn
(`deformed`), the others change the scene's air and add attenuation (`draw_lesion`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from aecnn.data.phantom.anatomy import LEFT, RIGHT, Anatomy
from aecnn.data.phantom.body import AIR, Scene, lung_bounds
from aecnn.data.phantom.canvas import FloatArray, Stroke


@dataclass(frozen=True)
class Lesion:
    """One lesion of one image; a patient's follow-ups share everything but the severity.

    Attributes:
        finding: Name in `FINDINGS`.
        severity: 1 is typical, see the module.
        side: The patient's `RIGHT` or `LEFT`; bilateral findings ignore it.
        place: Where in its usual territory, two numbers in [0, 1].
        size: 0 is the smallest of its kind, 1 the largest.
        seed: Of its texture.
    """

    finding: str
    severity: float
    side: int
    place: tuple[float, float]
    size: float
    seed: int


@dataclass(frozen=True)
class Conspicuity:
    """How a preset shows its lesions: ``contrast`` multiplies density, ``scale`` multiplies small lesions' size."""

    contrast: float
    scale: float


def deformed(anatomy: Anatomy, lesions: tuple[Lesion, ...], look: Conspicuity) -> Anatomy:
    """The body as cardiomegaly and emphysema shape it."""
    for lesion in lesions:
        amount = look.contrast * lesion.severity
        if lesion.finding == "Cardiomegaly":
            wider = 1.0 + amount * (0.46 + 0.14 * lesion.size)
            anatomy = replace(anatomy, heart_half_width=anatomy.heart_half_width * min(wider, 1.85))
        elif lesion.finding == "Emphysema":
            flatter = max(1.0 - 0.60 * amount, 0.12)
            anatomy = replace(
                anatomy,
                dome_right=anatomy.dome_right * flatter,
                dome_left=anatomy.dome_left * flatter,
                angle_v=anatomy.angle_v + 0.03 * min(amount, 1.5),
                lucency=anatomy.lucency * (1.0 + 0.13 * min(amount, 1.5)),
                heart_half_width=anatomy.heart_half_width * (1.0 - 0.12 * min(amount, 1.5)),
            )
    return anatomy


def draw_lesion(scene: Scene, lesion: Lesion, look: Conspicuity) -> None:
    """Changes the scene's air, markings and extra attenuation in place."""
    draw = _DRAW.get(lesion.finding)
    if draw is not None:
        draw(scene, lesion, look)


def _point(
    scene: Scene, lesion: Lesion, *, top: float, bottom: float, inner: float, outer: float
) -> tuple[float, float]:
    """A point (u, v) in the lesion's lung; heights 0 apex … 1 diaphragm, depths 0 mediastinum … 1 chest wall."""
    anatomy = scene.anatomy
    dome = anatomy.dome_right if lesion.side == RIGHT else anatomy.dome_left
    height = top + (bottom - top) * lesion.place[0]
    v = anatomy.apex_v + height * (anatomy.angle_v - 0.6 * dome - anatomy.apex_v)
    medial, lateral = lung_bounds(anatomy, np.full((1, 1), v, dtype=np.float32))
    across = inner + (outer - inner) * lesion.place[1]
    return lesion.side * float(medial[0, 0] + across * (lateral[0, 0] - medial[0, 0])), v


def _fill(scene: Scene, density: FloatArray) -> None:
    """Replaces air by fluid or cells; density 1 leaves none."""
    scene.air *= 1.0 - np.clip(density, 0.0, 1.0)


def _atelectasis(scene: Scene, lesion: Lesion, look: Conspicuity) -> None:
    """Plates across a lower zone, with a haze between them."""
    canvas, rng = scene.canvas, np.random.default_rng(lesion.seed)
    u, v = _point(scene, lesion, top=0.72, bottom=0.88, inner=0.40, outer=0.62)
    amount = look.contrast * lesion.severity
    tilt = lesion.side * float(rng.uniform(0.05, 0.45))
    width = (0.022 + 0.012 * lesion.size) * look.scale
    plates = np.zeros_like(scene.x)
    for k in range(2):
        plate = canvas.ellipse(
            u, v - 0.13 * k * (0.5 + 0.5 * look.scale), 0.24 + 0.06 * lesion.size, width, tilt_rad=tilt * (1 - 0.4 * k)
        )
        plates = np.maximum(plates, np.exp(-(plate**2)))
    haze = 0.22 * canvas.blob(u, v, 0.26, 0.13)
    _fill(scene, amount * (0.85 * plates + haze) * scene.side(lesion.side))


def _effusion(scene: Scene, lesion: Lesion, look: Conspicuity) -> None:
    """Fluid in the costophrenic angle, climbing the chest wall in a meniscus."""
    amount = look.contrast * lesion.severity
    level = scene.anatomy.angle_v + 0.05 - amount * (0.25 + 0.20 * lesion.size)
    climb = 0.24 * min(amount, 1.3) * np.exp(-np.maximum(scene.lateral - scene.x, 0.0) / 0.09)
    below = scene.canvas.step(scene.canvas.v - (level - climb), 0.03)
    _fill(scene, 0.97 * below * scene.side(lesion.side))
    scene.extra += 0.10 * below * scene.side(lesion.side) * scene.lung


def _infiltration(scene: Scene, lesion: Lesion, look: Conspicuity) -> None:
    """Ill-defined patches in the middle of a lung."""
    canvas = scene.canvas
    u, v = _point(scene, lesion, top=0.42, bottom=0.66, inner=0.40, outer=0.65)
    texture = canvas.clouds(np.random.default_rng(lesion.seed), 0.16, octaves=2)
    patches = np.clip(0.42 + 0.38 * texture, 0.0, 1.0)
    envelope = canvas.blob(u, v, 0.22 + 0.06 * lesion.size, 0.26 + 0.08 * lesion.size)
    _fill(scene, 1.25 * look.contrast * lesion.severity * patches * envelope * scene.side(lesion.side))


def _mass(scene: Scene, lesion: Lesion, look: Conspicuity) -> None:
    """One large round lump with a lobulated border."""
    canvas = scene.canvas
    u, v = _point(scene, lesion, top=0.22, bottom=0.75, inner=0.35, outer=0.70)
    radius = (0.085 + 0.045 * lesion.size) * (0.7 + 0.3 * look.scale)
    angle = np.arctan2(canvas.v - np.float32(v), canvas.u - np.float32(u))
    lobes = 1.0 + 0.10 * np.sin(3.0 * angle + np.float32(lesion.seed % 7)) + 0.05 * np.cos(5.0 * angle)
    ratio = np.sqrt(canvas.ellipse(u, v, radius, radius)) / lobes
    inside = canvas.step((1.0 - ratio) * np.float32(radius), 0.014)
    thickness = inside * (0.72 + 0.28 * np.sqrt(np.maximum(1.0 - ratio * ratio, 0.0)))
    _fill(scene, 0.95 * look.contrast * lesion.severity * thickness)


def _nodule(scene: Scene, lesion: Lesion, look: Conspicuity) -> None:
    """A few small round spots."""
    canvas, rng = scene.canvas, np.random.default_rng(lesion.seed)
    for _ in range(max(1, round((0.8 + 1.2 * lesion.size) * look.scale))):
        place = (float(rng.uniform()), float(rng.uniform()))
        side = lesion.side if rng.uniform() < 0.7 else -lesion.side
        u, v = _point(scene, replace(lesion, place=place, side=side), top=0.15, bottom=0.85, inner=0.3, outer=0.85)
        radius = float(rng.uniform(0.026, 0.038)) * look.scale
        spot = canvas.step((1.0 - np.sqrt(canvas.ellipse(u, v, radius, radius))) * np.float32(radius), 0.35 * radius)
        _fill(scene, 0.90 * look.contrast * lesion.severity * spot)


def _pneumonia(scene: Scene, lesion: Lesion, look: Conspicuity) -> None:
    """A segment by the hilum or base filled with exudate, crossed by air bronchograms."""
    canvas, rng = scene.canvas, np.random.default_rng(lesion.seed)
    u, v = _point(scene, lesion, top=0.66, bottom=0.88, inner=0.18, outer=0.42)
    reach = 0.18 + 0.06 * lesion.size
    texture = canvas.clouds(rng, 0.10, octaves=2)
    patch = canvas.blob(u, v, reach, reach * 0.95) * np.clip(1.0 + 0.22 * texture, 0.0, 1.4)
    strokes: list[Stroke] = []
    for angle in np.linspace(-0.35, 1.15, 4) + rng.normal(0.0, 0.12, size=4):
        start = (lesion.side * 0.12, v - 0.14)  # they fan out from the hilum's lower pole
        middle = (u + 0.03 * lesion.side * np.cos(angle), v + 0.06 * np.sin(angle))
        strokes.append((*start, *middle, 0.014, 1.0))
        strokes.append((*middle, u + lesion.side * 0.17 * np.cos(angle), v + 0.17 * np.sin(angle), 0.011, 0.9))
    bronchi = canvas.strokes(strokes)
    _fill(scene, 1.30 * look.contrast * lesion.severity * patch * (1.0 - 0.45 * bronchi) * scene.side(lesion.side))


def _pneumothorax(scene: Scene, lesion: Lesion, look: Conspicuity) -> None:
    """Free air along the wall and over the apex: black, without markings, behind a fine pleural line."""
    canvas, side = scene.canvas, scene.side(lesion.side)
    amount = look.contrast * lesion.severity
    height = np.clip((0.45 - canvas.v) / 1.1, 0.0, 1.0)
    there = min(8.0 * amount, 1.0)
    width = min(amount, 1.6) * (0.06 + (0.16 + 0.08 * lesion.size) * height)
    inward = np.minimum(scene.lateral - scene.x, 1.1 * (canvas.v - scene.anatomy.apex_v))
    free = (
        there * canvas.step(width - inward, 0.008) * side * scene.lung * canvas.step(np.float32(0.40) - canvas.v, 0.1)
    )
    line = np.exp(-(((inward - width) / max(0.008, canvas.pixel)) ** 2)) * side * scene.lung
    collapsed = (1.0 - free) * side
    scene.markings *= 1.0 - free
    scene.air *= 1.0 - 0.16 * min(amount, 1.5) * collapsed
    scene.air += free * 0.24 * min(amount, 1.5)
    scene.extra += 0.05 * there * line * canvas.step(np.float32(0.40) - canvas.v, 0.1)


def _consolidation(scene: Scene, lesion: Lesion, look: Conspicuity) -> None:
    """A dense upper lobe, cut off sharply below by the fissure."""
    canvas = scene.canvas
    fissure = -0.30 + 0.14 * lesion.place[0] + 0.10 * (0.5 - scene.across) * (lesion.place[1] - 0.3)
    lobe = canvas.step(fissure - canvas.v, 0.015) * np.clip(1.25 - 0.5 * (1.0 - scene.across) * lesion.size, 0.0, 1.0)
    texture = canvas.clouds(np.random.default_rng(lesion.seed), 0.2, octaves=2)
    density = 0.62 * look.contrast * lesion.severity * np.clip(1.0 + 0.12 * texture, 0.5, 1.3)
    _fill(scene, density * lobe * scene.side(lesion.side))


def _edema(scene: Scene, lesion: Lesion, look: Conspicuity) -> None:
    """Bat wings of haze around both hila, full vessels, septal lines at the bases."""
    canvas, rng = scene.canvas, np.random.default_rng(lesion.seed)
    amount = look.contrast * lesion.severity
    texture = np.clip(1.0 + 0.25 * canvas.clouds(rng, 0.14, octaves=2), 0.3, 1.6)
    wings = np.maximum(canvas.blob(-0.25, -0.04, 0.21, 0.30), canvas.blob(0.25, -0.06, 0.21, 0.30))
    lines: list[Stroke] = []
    for side in (RIGHT, LEFT):
        for v in rng.uniform(0.10, 0.42, size=8):
            wall = scene.anatomy.lung_half_width - 0.02
            lines.append((side * (wall - 0.10), float(v), side * wall, float(v) + 0.01, 0.006, 1.0))
    _fill(scene, amount * (0.72 * wings * texture + 0.10 + 0.30 * canvas.strokes(lines)))
    scene.markings *= 1.0 + 0.5 * min(amount, 1.5)


def _emphysema(scene: Scene, lesion: Lesion, look: Conspicuity) -> None:
    """Few vessels in over-inflated lungs; `deformed` flattens the diaphragm."""
    amount = min(look.contrast * lesion.severity, 1.5)
    scene.markings *= 1.0 - 0.45 * amount


def _fibrosis(scene: Scene, lesion: Lesion, look: Conspicuity) -> None:
    """A coarse net at both bases and along the walls."""
    canvas, rng = scene.canvas, np.random.default_rng(lesion.seed)
    base = canvas.step(canvas.v + np.float32(0.02), 0.30)
    edge = np.clip(0.35 + 0.9 * scene.across**2, 0.0, 1.0)
    coarse = canvas.clouds(rng, 0.052 * (0.8 + 0.2 * look.scale), octaves=2)
    net = np.exp(-((coarse / 0.45) ** 2))  # the zero lines of a noise field make a honeycomb
    amount = look.contrast * lesion.severity
    _fill(scene, amount * base * edge * (0.66 * net + 0.20))


def _pleural_thickening(scene: Scene, lesion: Lesion, look: Conspicuity) -> None:
    """A rind inside the lateral wall, from the apex down to the middle of the chest or beyond."""
    canvas = scene.canvas
    amount = look.contrast * lesion.severity
    wave = 1.0 + 0.25 * np.sin(canvas.v * np.float32(9.0 + 5.0 * lesion.place[1]) + np.float32(lesion.seed % 6))
    width = (0.045 + 0.030 * lesion.size) * (0.4 + 0.6 * look.scale) * min(amount, 1.4) * wave
    inward = np.minimum(scene.lateral - scene.x, 0.8 * (canvas.v - scene.anatomy.apex_v))
    end = np.float32(0.10 + 0.20 * lesion.place[0])
    rind = canvas.step(width - inward, 0.012) * canvas.step(end - canvas.v, 0.12) * scene.side(lesion.side)
    rind = rind * min(8.0 * amount, 1.0)
    _fill(scene, 0.85 * rind)
    scene.extra += 0.04 * rind * scene.lung


def _hernia(scene: Scene, lesion: Lesion, look: Conspicuity) -> None:
    """A pouch of stomach behind the heart: gas above a fluid level."""
    canvas, anatomy = scene.canvas, scene.anatomy
    amount = look.contrast * lesion.severity
    v = anatomy.angle_v - 0.5 * (anatomy.dome_left + anatomy.dome_right) - 0.10
    u = 0.02 + 0.10 * (lesion.place[0] - 0.4)
    radius = 0.14 + 0.05 * lesion.size
    ratio = np.sqrt(canvas.ellipse(u, v, radius, radius * 0.85))
    inside = canvas.step((1.0 - ratio) * np.float32(radius), 0.012)
    rim = np.exp(-(((ratio - 0.97) * radius / 0.014) ** 2))
    gas = canvas.step(np.float32(v + 0.02 + 0.05 * (lesion.place[1] - 0.5)) - canvas.v, 0.008)
    _fill(scene, 0.8 * amount * np.maximum(inside * (1.0 - 0.6 * gas), rim))
    scene.extra += amount * (0.04 * rim + inside * (0.03 - 0.55 * AIR * gas))


_DRAW: dict[str, Callable[[Scene, Lesion, Conspicuity], None]] = {
    "Atelectasis": _atelectasis,
    "Effusion": _effusion,
    "Infiltration": _infiltration,
    "Mass": _mass,
    "Nodule": _nodule,
    "Pneumonia": _pneumonia,
    "Pneumothorax": _pneumothorax,
    "Consolidation": _consolidation,
    "Edema": _edema,
    "Emphysema": _emphysema,
    "Fibrosis": _fibrosis,
    "Pleural_Thickening": _pleural_thickening,
    "Hernia": _hernia,
}
