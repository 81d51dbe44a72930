"""The shape of one patient, drawn once and shared by all follow-ups; lengths in the canvas's body units."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from aecnn.data.phantom.canvas import Pose, Stroke

Sex = Literal["F", "M"]
View = Literal["PA", "AP"]
RIGHT, LEFT = -1, 1  # the patient's sides: the right one is on the left of the image
MAX_VESSEL_DEPTH = 4
NORMALS_FOR_VESSELS = 1_500  # 16 trunks × (2 + 15 branches × 4 + 7 forks), rounded up


@dataclass(frozen=True)
class Anatomy:
    """What makes one body differ from another; every length in body units, every angle in radians."""

    lung_half_width: float
    apex_v: float
    angle_v: float  # height of the costophrenic angles
    dome_right: float  # rise of each half of the diaphragm above the angles
    dome_left: float
    mediastinum_half_width: float
    heart_half_width: float
    heart_tilt_rad: float
    knob_radius: float
    torso_half_width: float
    shoulder_v: float
    rib_pitch: float
    rib_phase: float
    rib_drop: float
    rib_contrast: float
    clavicle_v: float
    breast: float  # thickness of breast tissue, 0 for none
    lucency: float  # how black a healthy lung is, about 1
    stomach_gas: float
    arms_gap: float
    texture_seed: int
    vessels: tuple[Stroke, ...]


def draw_anatomy(rng: np.random.Generator, *, sex: Sex, age_years: int) -> Anatomy:
    """Draws one patient's body; age widens the aorta and pales the bones, sex sets size and breasts."""
    build = float(rng.normal(0.0, 1.0))
    small = 0.03 if sex == "F" else 0.0
    half_width = 0.655 - small + 0.025 * float(rng.normal())
    angle_v = 0.56 + 0.035 * float(rng.normal())
    return Anatomy(
        lung_half_width=half_width,
        apex_v=-0.70 + 0.02 * float(rng.normal()),
        angle_v=angle_v,
        dome_right=float(np.clip(0.215 + 0.03 * rng.normal(), 0.14, 0.30)),
        dome_left=float(np.clip(0.175 + 0.03 * rng.normal(), 0.10, 0.26)),
        mediastinum_half_width=float(np.clip(0.105 + 0.010 * rng.normal(), 0.08, 0.13)),
        heart_half_width=float(np.clip(0.275 + 0.016 * rng.normal(), 0.235, 0.32)),
        heart_tilt_rad=0.55 + 0.10 * float(rng.normal()),
        knob_radius=float(np.clip(0.058 + 0.0005 * (age_years - 45) + 0.005 * rng.normal(), 0.035, 0.095)),
        torso_half_width=float(np.clip(half_width + 0.19 + 0.05 * build, half_width + 0.11, 1.15)),
        shoulder_v=-0.90 + 0.03 * float(rng.normal()),
        rib_pitch=0.122 + 0.006 * float(rng.normal()),
        rib_phase=float(rng.uniform(0.0, 1.0)),
        rib_drop=0.17 + 0.03 * float(rng.normal()),
        rib_contrast=float(np.clip(1.0 - 0.006 * (age_years - 40) + 0.12 * rng.normal(), 0.55, 1.35)),
        clavicle_v=-0.53 + 0.03 * float(rng.normal()),
        breast=float(np.clip(0.55 + 0.30 * rng.normal(), 0.15, 1.2)) if sex == "F" else 0.0,
        lucency=float(np.clip(1.0 + 0.035 * rng.normal(), 0.9, 1.1)),
        stomach_gas=float(np.clip(rng.normal(0.4, 0.5), 0.0, 1.2)),
        arms_gap=0.035 + 0.025 * abs(float(rng.normal())),
        texture_seed=int(rng.integers(2**31)),
        vessels=_vessels(rng),
    )


def posed(anatomy: Anatomy, rng: np.random.Generator, *, view: View) -> tuple[Anatomy, Pose]:
    """One exposure of the patient: position, breath, and the wider heart and higher diaphragm of an AP view."""
    breath = float(rng.normal(0.0, 0.025)) - (0.045 if view == "AP" else 0.0)
    magnified = 1.06 if view == "AP" else 1.0
    exposed = replace(
        anatomy,
        angle_v=anatomy.angle_v + breath,
        heart_half_width=anatomy.heart_half_width * magnified,
        mediastinum_half_width=anatomy.mediastinum_half_width * magnified,
    )
    pose = Pose(
        rotation_rad=float(rng.normal(0.0, 0.02 if view == "PA" else 0.035)),
        zoom=float(np.clip(rng.normal(1.06, 0.03), 0.98, 1.15)),
        shift_u=float(rng.normal(0.0, 0.025)),
        shift_v=float(rng.normal(0.06, 0.03)),
    )
    return exposed, pose


def _vessels(rng: np.random.Generator) -> tuple[Stroke, ...]:
    """The branching vessels of both lungs, from the hila outwards."""
    strokes: list[Stroke] = []
    normals = iter(rng.standard_normal(NORMALS_FOR_VESSELS).tolist())  # drawn at once: one by one is ten times slower
    for side in (RIGHT, LEFT):
        hilum_v = -0.06 if side == RIGHT else -0.10
        for angle in np.linspace(-1.25, 1.30, 8).tolist():
            width = 0.0215 + 0.003 * next(normals)
            heading = angle + 0.10 * next(normals)
            _grow(strokes, normals, (side * 0.13, hilum_v + 0.07 * angle, heading), width, depth=0, side=side)
    return tuple(strokes)


def _grow(
    strokes: list[Stroke],
    normals: Iterator[float],
    start: tuple[float, float, float],
    width: float,
    *,
    depth: int,
    side: int,
) -> None:
    """Adds one branch, which bends on its way, and the two it splits into."""
    u, v, heading = start
    for _ in range(2):
        length = max(0.055 + 0.012 * next(normals), 0.02)
        heading += 0.13 * next(normals) + 0.05  # gravity: vessels bow towards the bases
        next_u, next_v = u + side * length * math.cos(heading), v + length * math.sin(heading)
        strokes.append((u, v, next_u, next_v, width, 0.35 + 0.65 * 0.75**depth))
        u, v, width = next_u, next_v, width * 0.88
    if depth < MAX_VESSEL_DEPTH - 1:
        spread = 0.40 + 0.09 * next(normals)
        for turn in (-spread, spread):
            _grow(strokes, normals, (u, v, heading + turn), width * 0.72, depth=depth + 1, side=side)
