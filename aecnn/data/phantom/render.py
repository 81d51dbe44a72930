"""From a patient to pictures: body, lesions, scanner, in that order."""

import numpy as np
from numpy.typing import NDArray

from aecnn.config import PhantomConfig
from aecnn.data.phantom.anatomy import posed
from aecnn.data.phantom.body import attenuation, build_scene
from aecnn.data.phantom.canvas import Canvas, FloatArray
from aecnn.data.phantom.lesions import Conspicuity, Lesion, deformed, draw_lesion
from aecnn.data.phantom.population import PRESETS, Exposure, Patient, generator
from aecnn.data.phantom.style import expose, scanner_style


def render_patient(
    patient: Patient, config: PhantomConfig, *, size_px: int | None = None, lesions: bool = True
) -> NDArray[np.uint8]:
    """Takes all of a patient's radiographs.

    Args:
        patient: From `draw_population` or `draw_patient` with the same configuration.
        config: The dataset; its ``image_size_px`` is used unless ``size_px`` is given.
        size_px: Image side S; the same patient looks the same at any size.
        lesions: False draws the same bodies, poses and noise without any lesion.

    Returns:
        8-bit radiographs [number of images, S, S].
    """
    side = size_px or config.image_size_px
    return np.stack([render_exposure(patient, e, config, size_px=side, lesions=lesions) for e in patient.exposures])


def render_exposure(
    patient: Patient, exposure: Exposure, config: PhantomConfig, *, size_px: int, lesions: bool = True
) -> NDArray[np.uint8]:
    """Takes one radiograph [S, S] of 8-bit grey."""
    rng = exposure_generator(patient, exposure, config)
    drawn = exposure.lesions if lesions else ()
    rays = expose_body(patient, exposure, rng, lesions=drawn, look=PRESETS[config.preset].look, size_px=size_px)
    style = scanner_style(patient.hospital, generator(config, patient.hospital, "scanner"))
    return expose(rays, style, rng, view=exposure.view)


def expose_body(
    patient: Patient,
    exposure: Exposure,
    rng: np.random.Generator,
    *,
    lesions: tuple[Lesion, ...],
    look: Conspicuity,
    size_px: int,
) -> FloatArray:
    """Attenuation [S, S] of the patient in one pose, with the given lesions."""
    anatomy, pose = posed(patient.anatomy, rng, view=exposure.view)
    scene = build_scene(Canvas(size_px, pose), deformed(anatomy, lesions, look))
    for lesion in lesions:
        draw_lesion(scene, lesion, look)
    return attenuation(scene)


def exposure_generator(patient: Patient, exposure: Exposure, config: PhantomConfig) -> np.random.Generator:
    """The randomness of one exposure: pose first, then scanner; the same with and without lesions."""
    seeds = np.random.SeedSequence([config.seed, patient.number, 1_000 + exposure.index])
    return np.random.default_rng(seeds)
