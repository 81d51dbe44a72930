"""Who is imaged, how often, and what they have: patients, hospitals, the official split, findings that occur together.

Findings follow a Gaussian copula: a correlated normal vector per patient and one per image, thresholded at each
finding's prevalence, so that prevalence is exact in expectation, findings co-occur and persist over follow-ups. They
are drawn independently of all that a lesion-free picture shows (age, sex, view, anatomy, hospital) and of the number of
images, so that without lesions nothing can be learnt: real data have such shortcuts, these deliberately have none.
"""

from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from aecnn.config import PhantomConfig
from aecnn.data.phantom.anatomy import LEFT, RIGHT, Anatomy, Sex, View, draw_anatomy
from aecnn.data.phantom.lesions import Conspicuity, Lesion
from aecnn.findings import FINDINGS, NUM_FINDINGS

TEST_FRACTION = 0.25  # of each hospital's patients
PERSISTENCE = 0.6  # share of a finding's variance that belongs to the patient rather than to the image

# Pairs that come together in ChestX-ray14 (co-occurrence lift above about 2), as correlations of the copula.
_TOGETHER = {
    ("Effusion", "Atelectasis"): 0.30,
    ("Effusion", "Cardiomegaly"): 0.30,
    ("Effusion", "Consolidation"): 0.25,
    ("Effusion", "Edema"): 0.25,
    ("Effusion", "Pleural_Thickening"): 0.20,
    ("Atelectasis", "Consolidation"): 0.25,
    ("Infiltration", "Edema"): 0.25,
    ("Infiltration", "Pneumonia"): 0.30,
    ("Edema", "Pneumonia"): 0.25,
    ("Mass", "Nodule"): 0.30,
    ("Pneumothorax", "Emphysema"): 0.40,
    ("Fibrosis", "Pleural_Thickening"): 0.25,
}


@dataclass(frozen=True)
class Preset:
    """What sets the two populations apart.

    Attributes:
        prevalence: Probability of each finding in an image, in `FINDINGS` order.
        look: How conspicuous lesions are.
        severity_spread: Standard deviation of the logarithm of a lesion's severity.
        variant_rate: Probability of a variant of normal for each finding an image does not have.
        variant_severity: Range of severities of those variants.
        count_median: Median of the follow-ups before rounding down.
        count_spread: Standard deviation of the logarithm of images a patient; larger is more skewed.
        max_images: Most images of one patient.
    """

    prevalence: tuple[float, ...]
    look: Conspicuity
    severity_spread: float
    variant_rate: float
    variant_severity: tuple[float, float]
    count_median: float
    count_spread: float
    max_images: int


PRESETS: dict[str, Preset] = {
    "demo": Preset(
        prevalence=(0.15,) * NUM_FINDINGS,
        look=Conspicuity(contrast=1.0, scale=2.1),
        severity_spread=0.22,
        variant_rate=0.06,
        variant_severity=(0.30, 1.00),
        count_median=1.6,
        count_spread=0.9,
        max_images=12,
    ),
    "nih": Preset(  # prevalence of the whole of ChestX-ray14, release v2020
        prevalence=(
            *(0.1031, 0.0248, 0.1188, 0.1774, 0.0516, 0.0565, 0.0128),
            *(0.0473, 0.0416, 0.0205, 0.0224, 0.0150, 0.0302, 0.0020),
        ),
        look=Conspicuity(contrast=0.55, scale=1.0),
        severity_spread=0.40,
        variant_rate=0.30,
        variant_severity=(0.10, 0.90),
        count_median=0.77,
        count_spread=1.45,
        max_images=60,
    ),
}


@dataclass(frozen=True)
class Exposure:
    """One image of a patient before it is taken.

    Attributes:
        index: 0 for the patient's first image.
        follow_up: The official column; real ones sometimes skip a number, and so do these.
        lesions: What is drawn, variants of normal included; `findings` says which of them count.
    """

    index: int
    follow_up: int
    age_years: int
    view: View
    findings: tuple[str, ...]
    lesions: tuple[Lesion, ...]


@dataclass(frozen=True)
class Patient:
    """One patient with all exposures; `number` is the official Patient ID, `hospital` counts from 0."""

    number: int
    hospital: int
    split: Literal["train_val", "test"]
    sex: Sex
    anatomy: Anatomy
    exposures: tuple[Exposure, ...]


def draw_population(config: PhantomConfig) -> tuple[Patient, ...]:
    """Draws every patient of a dataset; hospital and split apart, a patient depends on seed and number alone."""
    order = generator(config, 0, "roles").permutation(config.num_patients)
    patients = []
    for number in range(1, config.num_patients + 1):
        rank = int(order[number - 1])
        hospital, turn = rank % config.num_hospitals, rank // config.num_hospitals
        in_test = int((turn + 1) * TEST_FRACTION) > int(turn * TEST_FRACTION)
        if config.num_patients < 4 * config.num_hospitals:  # too few for a quarter of each hospital
            in_test = rank == config.num_patients - 1 or int((rank + 1) * TEST_FRACTION) > int(rank * TEST_FRACTION)
        patients.append(draw_patient(config, number, hospital=hospital, split="test" if in_test else "train_val"))
    return tuple(patients)


def draw_patient(
    config: PhantomConfig, number: int, *, hospital: int, split: Literal["train_val", "test"] = "train_val"
) -> Patient:
    """Draws one patient: body, images and findings."""
    preset = PRESETS[config.preset]
    rng = generator(config, number, "person")
    sex: Sex = "F" if rng.uniform() < 0.44 else "M"
    age_years = int(np.clip(rng.normal(47.0, 16.5), 4, 92))
    ward_share = float(rng.beta(0.8, 1.2))  # of this patient's images are taken in bed (AP)
    num_images = min(preset.max_images, 1 + int(preset.count_median * np.exp(preset.count_spread * rng.normal())))
    present = _findings(preset, generator(config, number, "findings"), num_images)
    lesions = _lesions(preset, generator(config, number, "lesions"), present)
    exposures, follow_up = [], 0
    for index in range(num_images):
        view: View = "AP" if rng.uniform() < ward_share else "PA"
        names = tuple(name for name, has in zip(FINDINGS, present[index], strict=True) if has)
        exposures.append(Exposure(index, follow_up, min(age_years, 95), view, names, lesions[index]))
        age_years += int(rng.uniform() < 0.15)
        follow_up += 1 + int(rng.uniform() < 0.10)
    anatomy = draw_anatomy(generator(config, number, "anatomy"), sex=sex, age_years=age_years)
    return Patient(number, hospital, split, sex, anatomy, tuple(exposures))


Stream = Literal["roles", "person", "findings", "lesions", "anatomy", "exposure", "scanner", "oracle"]
_STREAMS: tuple[Stream, ...] = ("roles", "person", "findings", "lesions", "anatomy", "exposure", "scanner", "oracle")


def generator(config: PhantomConfig, number: int, stream: Stream) -> np.random.Generator:
    """An independent source of randomness for each patient (or hospital) and purpose."""
    return np.random.default_rng(np.random.SeedSequence([config.seed, number, _STREAMS.index(stream)]))


@lru_cache(maxsize=1)
def copula_correlation() -> NDArray[np.float64]:
    """Correlation [14, 14] of the normal vectors behind the findings."""
    matrix = np.eye(NUM_FINDINGS)
    for (one, other), value in _TOGETHER.items():
        i, j = FINDINGS.index(one), FINDINGS.index(other)
        matrix[i, j] = matrix[j, i] = value
    return matrix


def _findings(preset: Preset, rng: np.random.Generator, num_images: int) -> NDArray[np.bool_]:
    """Which findings each image has [num_images, 14]."""
    root = np.linalg.cholesky(copula_correlation())
    lasting = root @ rng.standard_normal(NUM_FINDINGS)
    passing = rng.standard_normal((num_images, NUM_FINDINGS)) @ root.T
    normal = np.sqrt(PERSISTENCE) * lasting + np.sqrt(1.0 - PERSISTENCE) * passing
    thresholds = np.array([NormalDist().inv_cdf(1.0 - p) for p in preset.prevalence])
    above: NDArray[np.bool_] = normal > thresholds
    return above


def _lesions(preset: Preset, rng: np.random.Generator, present: NDArray[np.bool_]) -> tuple[tuple[Lesion, ...], ...]:
    """The lesions of each image: one for every finding present, and variants of normal for some that are absent."""
    drawn: list[list[Lesion]] = [[] for _ in present]
    for column, finding in enumerate(FINDINGS):
        template = draw_lesion_template(finding, rng)
        severities = draw_severities(preset, rng, present[:, column])
        for image, severity in enumerate(severities.tolist()):
            if severity:
                drawn[image].append(with_severity(template, severity))
    return tuple(tuple(lesions) for lesions in drawn)


def draw_lesion_template(finding: str, rng: np.random.Generator) -> Lesion:
    """Side, place, size and texture of a finding in one patient, at severity 1."""
    side = LEFT if rng.uniform() < 0.5 else RIGHT
    place = (float(rng.uniform()), float(rng.uniform()))
    return Lesion(finding, 1.0, side, place, float(rng.uniform()), int(rng.integers(2**31)))


def with_severity(lesion: Lesion, severity: float) -> Lesion:
    """The same lesion, more or less severe."""
    return Lesion(lesion.finding, severity, lesion.side, lesion.place, lesion.size, lesion.seed)


def draw_severities(preset: Preset, rng: np.random.Generator, present: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Severity per image: that of a lesion where the finding is present, else 0 or that of a variant of normal."""
    lesions, variants = lesion_severities(preset, rng, len(present)), variant_severities(preset, rng, len(present))
    return np.where(present, lesions, variants * (rng.uniform(size=len(present)) < preset.variant_rate))


def lesion_severities(preset: Preset, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Log-normal around 1."""
    return np.exp(preset.severity_spread * rng.standard_normal(count))


def variant_severities(preset: Preset, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """How far variants of normal go, where there is one."""
    low, high = preset.variant_severity
    return rng.uniform(low, high, count)
