"""The lesion-free body as maps of attenuation: what the X-rays meet on their way to each pixel.

Attenuation is in display units: 0 is open air, about 1 the abdomen; a healthy lung takes `AIR` away from soft tissue.
Shapes: S image side in pixels; every map is [S, S].
"""

from dataclasses import dataclass

import numpy as np

from aecnn.data.phantom.anatomy import LEFT, RIGHT, Anatomy
from aecnn.data.phantom.canvas import Canvas, FloatArray

AIR = 0.58  # attenuation that a lung's full depth of air takes away
WIDEST_V = 0.32  # height where the rib cage is widest
APEX_U = 0.29  # distance of the lung apex from the midline


@dataclass
class Scene:
    """The maps of one exposure; lesions change `air` and `extra` in place.

    Attributes:
        x: Distance from the midline.
        lateral: Distance of the chest wall from the midline at each height.
        across: Position in the lung from 0 at the mediastinum to 1 at the chest wall.
        above: Distance above the diaphragm.
        lung: Where air would be in a healthy chest, in [0, 1].
        heart: How much of the depth heart and great vessels take, in [0, 1].
        air: Air along the ray, 1 for a lung of full depth.
        extra: Attenuation on top of soft tissue and air.
        markings: How strongly vessels show in the lung.
    """

    canvas: Canvas
    anatomy: Anatomy
    x: FloatArray
    lateral: FloatArray
    across: FloatArray
    above: FloatArray
    lung: FloatArray
    heart: FloatArray
    air: FloatArray
    extra: FloatArray
    markings: FloatArray

    def side(self, side: int) -> FloatArray:
        """1 on the patient's side, 0 on the other."""
        return self.canvas.step(np.float32(side) * self.canvas.u, 0.01)


def build_scene(canvas: Canvas, anatomy: Anatomy) -> Scene:
    """Draws lungs, heart and diaphragm; bones and soft tissue follow in `attenuation`."""
    u, v = canvas.u, canvas.v
    x = np.abs(u)
    is_left = (u > 0).astype(np.float32)
    medial, lateral = lung_bounds(anatomy, v)
    diaphragm = _diaphragm(anatomy, x, is_left)
    above = diaphragm - v
    lung = (
        canvas.step(x - medial, 0.012)
        * canvas.step(lateral - x, 0.012)
        * canvas.step(above, 0.012)
        * (v > anatomy.apex_v)
    )
    across = np.clip((x - medial) / np.maximum(lateral - medial, 0.02), 0.0, 1.0)
    edge = 2.0 * across - 1.0
    depth = np.sqrt(np.maximum(1.0 - edge**4, 0.0)) * (0.92 - 0.20 * _up(anatomy, v)) * anatomy.lucency
    heart = _heart(canvas, anatomy)
    air = lung * depth * (1.0 - 0.93 * heart)
    return Scene(
        canvas=canvas,
        anatomy=anatomy,
        x=x,
        lateral=lateral,
        across=across,
        above=above,
        lung=lung,
        heart=heart,
        air=air,
        extra=np.zeros_like(u),
        markings=np.full_like(u, 0.13),
    )


def lung_bounds(anatomy: Anatomy, v: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Distance of the lung's medial and lateral borders from the midline at heights ``v``."""
    up = _up(anatomy, v)
    wall = np.sqrt(1.0 - up**2.6)
    lateral = APEX_U + (anatomy.lung_half_width - APEX_U) * wall - 0.05 * np.maximum(v - WIDEST_V, 0.0)
    medial = APEX_U - (APEX_U - anatomy.mediastinum_half_width) * np.sqrt(1.0 - up**8)
    return medial, lateral


def _up(anatomy: Anatomy, v: FloatArray) -> FloatArray:
    """Height from 0 where the cage is widest to 1 at the apex."""
    height: FloatArray = np.clip((WIDEST_V - v) / np.float32(WIDEST_V - anatomy.apex_v), 0.0, 1.0)
    return height


def attenuation(scene: Scene) -> FloatArray:
    """Adds soft tissue, bones, vessels and airways to the scene's air and lesions, and gives the whole [S, S]."""
    tissue = _soft_tissue(scene)
    total = tissue - AIR * scene.air
    total += scene.markings * scene.canvas.strokes(scene.anatomy.vessels) * np.sqrt(np.clip(scene.air, 0.0, 1.0))
    total += (_spine(scene) + _ribs(scene) + _clavicles_and_scapulae(scene)) * np.minimum(4.0 * tissue, 1.0)
    total += 0.07 * scene.heart + _breasts(scene) + _hila(scene)
    texture = scene.canvas.clouds(np.random.default_rng(scene.anatomy.texture_seed), 0.5, octaves=4)
    total += np.float32(0.018) * texture * np.minimum(total, 1.0)
    total -= _airways(scene) + _stomach_gas(scene)
    total += scene.extra
    clipped: FloatArray = np.maximum(total, 0.0)
    return clipped


def _diaphragm(anatomy: Anatomy, x: FloatArray, is_left: FloatArray) -> FloatArray:
    dome = anatomy.dome_right + (anatomy.dome_left - anatomy.dome_right) * is_left
    centre = 0.46 * anatomy.lung_half_width
    outward = x - centre
    reach = np.where(outward > 0, np.float32(anatomy.lung_half_width - centre), np.float32(0.42))
    height: FloatArray = anatomy.angle_v - dome * (1.0 - (outward / reach) ** 2)
    return height


def _heart(canvas: Canvas, anatomy: Anatomy) -> FloatArray:
    """Path length through heart and great vessels."""
    half = anatomy.heart_half_width
    base_v = anatomy.angle_v - 0.5 * (anatomy.dome_right + anatomy.dome_left)
    ventricle = canvas.ball(0.42 * half, base_v - 0.10, half * 1.14, half * 0.66, tilt_rad=anatomy.heart_tilt_rad)
    outflow = canvas.ball(0.22 * half, base_v - 0.24, half * 0.62, half * 0.80, tilt_rad=-0.35)
    atrium = canvas.ball(-0.20 * half, base_v - 0.15, half * 0.50, 0.22)
    vessels = canvas.ball(0.02, base_v - 0.42, 0.125, 0.33)
    trunk = canvas.ball(0.085, base_v - 0.42, 0.09, 0.13)
    knob = canvas.ball(0.098, base_v - 0.62, anatomy.knob_radius, anatomy.knob_radius)
    whole = 1.0 - (1.0 - ventricle) * (1.0 - 0.75 * outflow) * (1.0 - 0.8 * atrium) * (1.0 - 0.8 * vessels)
    depth: FloatArray = 1.0 - (1.0 - whole) * (1.0 - 0.6 * trunk) * (1.0 - 0.85 * knob)
    return depth


def _soft_tissue(scene: Scene) -> FloatArray:
    """Trunk, neck, shoulders and arms: thickness from 0 in open air to about 1 in the middle of the body."""
    canvas, anatomy, x, v = scene.canvas, scene.anatomy, scene.x, scene.canvas.v
    armpit = canvas.step(np.float32(-0.02) - v, 0.18)
    torso = anatomy.torso_half_width + 0.55 * armpit
    outward = np.maximum(x - 0.20, 0.0)
    slope = 0.34 * outward * (0.6 + outward) - 0.17 * np.exp(-outward / np.float32(0.09))
    below = v - (anatomy.shoulder_v + 0.06 + slope)
    inside = canvas.step(torso - x, 0.03) * canvas.step(below, 0.03)
    ratio = np.clip(x / torso, 0.0, 1.0)
    trunk = inside * (0.36 + 0.54 * np.sqrt(1.0 - ratio * ratio)) * (0.58 + 0.42 * canvas.step(below - 0.14, 0.26))
    neck = np.sqrt(np.maximum(1.0 - (x / (0.17 + 0.10 * np.maximum(v + 0.85, 0.0))) ** 2, 0.0))
    trunk = np.maximum(trunk, 0.66 * neck * canvas.step(np.float32(-0.35) - v, 0.25))
    arm_middle = anatomy.torso_half_width + anatomy.arms_gap + 0.19 + 0.10 * np.maximum(v, -0.3)
    arm = 0.50 * np.sqrt(np.maximum(1.0 - ((x - arm_middle) / 0.17) ** 2, 0.0)) * canvas.step(v + 0.30, 0.15)
    abdomen = 0.09 * canvas.step(-scene.above, 0.14) * canvas.step(torso - x, 0.1)
    mediastinum = 0.06 * canvas.step(np.float32(anatomy.mediastinum_half_width + 0.02) - x, 0.03)
    thickness: FloatArray = np.maximum(trunk, arm) + abdomen + mediastinum
    return thickness


def _tube(distance: FloatArray, radius: float, canvas: Canvas) -> FloatArray:
    """A hollow bone across its axis: a bright cortex around a paler middle."""
    ratio = np.abs(distance) * np.float32(1.0 / radius)
    inside = canvas.step((1.0 - ratio) * np.float32(radius), 0.006)
    bone: FloatArray = inside * (0.55 + 0.45 * np.minimum(ratio, 1.0) ** 3)
    return bone


def _spine(scene: Scene) -> FloatArray:
    canvas, x, v = scene.canvas, scene.x, scene.canvas.v
    pitch = scene.anatomy.rib_pitch
    phase = v / np.float32(pitch) + np.float32(scene.anatomy.rib_phase)
    disc = np.abs(phase - np.floor(phase) - 0.5)
    bodies = canvas.step(np.float32(0.073) - x + 0.02 * (disc - 0.25), 0.02)
    plates = canvas.step((disc - np.float32(0.41)) * pitch, 0.012)
    pedicles = np.exp(-(((x - 0.045) / 0.016) ** 2) - ((disc - 0.12) / 0.12) ** 2)
    spine: FloatArray = bodies * (0.075 - 0.055 * plates) + 0.05 * pedicles
    return spine


def _ribs(scene: Scene) -> FloatArray:
    """Posterior ribs from the spine outwards, anterior ribs back down towards the sternum, all of a kind at once."""
    canvas, anatomy, v = scene.canvas, scene.anatomy, scene.canvas.v
    pitch = anatomy.rib_pitch
    reach = np.clip(scene.x / scene.lateral, 0.0, 1.15)
    reach2 = reach * reach
    cage = canvas.step(scene.lateral + np.float32(0.03) - scene.x, 0.015)
    cage *= canvas.step(v - np.float32(anatomy.apex_v + 0.00), 0.02) * canvas.step(np.float32(0.62) - v, 0.16)
    posterior_v = anatomy.rib_drop * (1.9 * reach2 * reach2 - 1.1 * reach * (1.0 - reach))
    anterior_v = anatomy.rib_drop * 1.9 + 0.46 * (1.0 - reach2) * (0.75 + 0.35 * v)
    total = np.zeros_like(v)
    for curve, spacing, strength, radius, fade in (
        (posterior_v, pitch, 0.085, 0.029, canvas.step(reach - np.float32(0.10), 0.05)),
        (anterior_v, 1.18 * pitch, 0.042, 0.036, canvas.step(reach - np.float32(0.52), 0.14)),
    ):
        phase = (v - curve) / np.float32(spacing) + np.float32(anatomy.rib_phase)
        distance = (phase - np.floor(phase) - 0.5) * np.float32(spacing)
        total += np.float32(strength) * fade * _tube(distance, radius, canvas)
    wall = 0.07 * np.exp(-(((scene.x - scene.lateral - 0.015) / 0.026) ** 2)) * (v > anatomy.apex_v)
    wall = wall * canvas.step(np.float32(0.6) - v, 0.1)
    return (total * cage + wall) * np.float32(anatomy.rib_contrast)


def _clavicles_and_scapulae(scene: Scene) -> FloatArray:
    canvas, anatomy, x, v = scene.canvas, scene.anatomy, scene.x, scene.canvas.v
    along = np.clip((x - 0.06) / 0.72, 0.0, 1.0)
    middle = anatomy.clavicle_v - 0.13 * along + 0.035 * np.sin(2 * np.pi * along)
    clavicle = _tube(v - middle, 0.026, canvas) * canvas.step(x - np.float32(0.06), 0.012)
    clavicle *= canvas.step(np.float32(0.80) - x, 0.02)
    du, dv = x - 0.76, v + 0.30
    slanted = (du * 0.98 + dv * 0.20) / 0.115
    plate = 1.0 - slanted**2 - ((dv * 0.98 - du * 0.20) / 0.33) ** 2
    scapula = 0.05 * canvas.step(plate, 0.06) + 0.07 * np.exp(-((plate / 0.12) ** 2))
    head = np.sqrt(np.maximum(1.0 - ((x - 0.93) / 0.11) ** 2 - ((v + 0.56) / 0.12) ** 2, 0.0))
    return np.float32(anatomy.rib_contrast) * (0.13 * clavicle + scapula + 0.16 * head)


def _breasts(scene: Scene) -> FloatArray:
    if not scene.anatomy.breast:
        return np.zeros_like(scene.x)
    canvas, amount = scene.canvas, scene.anatomy.breast
    round_part = 1.0 - ((scene.x - 0.43) / 0.30) ** 2 - ((canvas.v - 0.26) / (0.20 + 0.05 * amount)) ** 2
    lower = canvas.step(canvas.v - np.float32(0.1), 0.25)
    return np.float32(0.15 * amount) * np.sqrt(np.maximum(round_part, 0.0)) * (0.35 + 0.65 * lower)


def _hila(scene: Scene) -> FloatArray:
    """The pulmonary arteries where they enter the lungs."""
    right = scene.canvas.blob(-0.155, -0.03, 0.045, 0.12, tilt_rad=-0.25)
    left = scene.canvas.blob(0.150, -0.09, 0.045, 0.10, tilt_rad=0.25)
    arteries: FloatArray = np.float32(0.10) * (right + left) * np.minimum(scene.air * 1.5, 1.0)
    return arteries


def _airways(scene: Scene) -> FloatArray:
    canvas, v = scene.canvas, scene.canvas.v
    trachea = canvas.step(np.float32(0.034) - np.abs(canvas.u + 0.008), 0.014) * canvas.step(
        np.float32(-0.27) - v, 0.04
    )
    bronchi = canvas.strokes(
        [(-0.008, -0.29, side * 0.13, -0.29 + drop, 0.032, 1.0) for side, drop in ((RIGHT, 0.16), (LEFT, 0.20))]
    )
    return 0.15 * trachea + 0.05 * bronchi


def _stomach_gas(scene: Scene) -> FloatArray:
    anatomy = scene.anatomy
    if not anatomy.stomach_gas:
        return np.zeros_like(scene.x)
    top = anatomy.angle_v - anatomy.dome_left
    canvas, depth = scene.canvas, 0.05 + 0.06 * anatomy.stomach_gas
    gas = canvas.ball(0.30, top + 0.075, 0.05 + depth * 1.1, depth * 0.8, tilt_rad=-0.25)
    gas *= canvas.step(np.float32(top + 0.085) - canvas.v, 0.012)  # over the fluid in the stomach
    return np.float32(0.20 * min(anatomy.stomach_gas, 1.0)) * gas * canvas.step(-scene.above - 0.015, 0.02)
