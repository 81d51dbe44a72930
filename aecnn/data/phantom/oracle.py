"""How learnable each finding is: the AUROC of an observer who knows everything but the severity.

The observer is a matched filter with perfect knowledge of the anatomy, the pose, the scanner and the place, shape and
texture of the lesion (signal and background known exactly: Barrett & Myers, *Foundations of Image Science*, 2004,
chapter 13). For a picture x of a body whose lesion-free picture is b, and the template t = (picture with a lesion of
severity 1) − b, it scores

    ŝ = ⟨t, x − b⟩ / ⟨t, t⟩ + noise,    noise ~ N(0, σ² / ⟨t, t⟩),

an unbiased estimate of the severity for a lesion that acts linearly. What keeps it from AUROC 1 is that variants of
normal overlap with mild lesions, and the scanner's noise σ. No model that must find the lesion in an unknown body,
among other lesions, can be expected to do better: an upper reference, not a target. It looks at 64 px pictures of a
cohort of its own in which each finding is present in half the bodies and comes alone, so that rare findings have a
figure too.
"""

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from aecnn.config import PhantomConfig
from aecnn.data.phantom.lesions import Lesion
from aecnn.data.phantom.population import (
    PRESETS,
    Exposure,
    Patient,
    draw_lesion_template,
    draw_patient,
    generator,
    lesion_severities,
    variant_severities,
    with_severity,
)
from aecnn.data.phantom.render import expose_body, exposure_generator
from aecnn.data.phantom.style import NOISE_LATTICE_PX, ScannerStyle, display_of, scanner_style
from aecnn.findings import FINDINGS

ORACLE_SIZE_PX = 64
ORACLE_BODIES = 16  # each is looked at with a lesion, with a variant of normal, and with neither
FIRST_ORACLE_NUMBER = 90_000_000  # patients of the cohort are none of the dataset's


@dataclass(frozen=True)
class _Body:
    patient: Patient
    exposure: Exposure
    style: ScannerStyle
    background: NDArray[np.float64]  # the lesion-free picture


def oracle_auroc(config: PhantomConfig) -> dict[str, float]:
    """Gives the oracle's AUROC per finding, each pair of a diseased and a healthy picture weighed equally."""
    cohort = [_body(config, index) for index in range(ORACLE_BODIES)]
    return {finding: _auroc_of(config, finding, cohort) for finding in FINDINGS}


def _auroc_of(config: PhantomConfig, finding: str, cohort: list[_Body]) -> float:
    preset, rng = PRESETS[config.preset], generator(config, FINDINGS.index(finding), "oracle")
    lesions = lesion_severities(preset, rng, len(cohort))
    variants = variant_severities(preset, rng, len(cohort))
    diseased, varied, errors = (np.zeros(len(cohort)) for _ in range(3))
    for index, body in enumerate(cohort):
        lesion = draw_lesion_template(finding, rng)
        template = _picture(config, body, lesions=(lesion,)) - body.background
        energy = float(np.sum(template**2))
        if energy == 0.0:  # hidden wholly, for instance behind the heart: nothing can be told
            errors[index] = 1.0
            continue
        errors[index] = body.style.noise * ORACLE_SIZE_PX / NOISE_LATTICE_PX / math.sqrt(energy)
        for estimates, severity in ((diseased, lesions[index]), (varied, variants[index])):
            seen = _picture(config, body, lesions=(with_severity(lesion, float(severity)),)) - body.background
            estimates[index] = float(np.sum(template * seen)) / energy
    plain = expected_auroc(diseased, np.zeros(len(cohort)), errors)
    return (1.0 - preset.variant_rate) * plain + preset.variant_rate * expected_auroc(diseased, varied, errors)


def expected_auroc(diseased: NDArray[np.float64], healthy: NDArray[np.float64], errors: NDArray[np.float64]) -> float:
    """Mean probability over all pairs that the diseased picture scores higher, the Gaussian noise integrated.

    Args:
        diseased: Noise-free scores of each body with a lesion, [K].
        healthy: Noise-free scores of the same bodies without, [K].
        errors: Standard deviation of each body's noise in the score, [K].
    """
    difference = diseased[:, None] - healthy[None, :]
    spread = np.maximum(np.sqrt(errors[:, None] ** 2 + errors[None, :] ** 2), 1e-12)
    return float(np.mean([NormalDist().cdf(z) for z in (difference / spread).ravel().tolist()]))


def _body(config: PhantomConfig, index: int) -> _Body:
    hospital = index % config.num_hospitals
    patient = draw_patient(config, FIRST_ORACLE_NUMBER + index, hospital=hospital)
    style = scanner_style(hospital, generator(config, hospital, "scanner"))
    bare = _Body(patient, patient.exposures[0], style, np.zeros(()))
    return replace(bare, background=_picture(config, bare, lesions=()))


def _picture(config: PhantomConfig, body: _Body, *, lesions: tuple[Lesion, ...]) -> NDArray[np.float64]:
    """The noise-free display [S, S] of a body with the given lesions and no others."""
    rng = exposure_generator(body.patient, body.exposure, config)
    look = PRESETS[config.preset].look
    rays = expose_body(body.patient, body.exposure, rng, lesions=lesions, look=look, size_px=ORACLE_SIZE_PX)
    return display_of(rays, body.style).astype(np.float64)
