"""Figures of a model as a run folder's JSON says them, as frozen dataclasses; what is undefined (null or NaN) is None.

Keys this report does not know are let through, so that an older report reads a newer run.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BeforeValidator

from aecnn.evaluation.bootstrap import often_undefined

LEVEL = 0.95  # of an interval whose file does not say it
FEW_IMAGES = 10  # of a class: with fewer, chance moves an AUROC by tenths
UNTOLD = "withheld by every hospital, or labelled at none"
Item = TypeVar("Item")
Point = tuple[float, float]


def _finite_or_none(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _empty_if_none(value: object) -> object:
    return {} if value is None else value


def _known_ends(value: object) -> object:
    """An interval with an end that is not known is no interval."""
    unknown = isinstance(value, list) and any(_finite_or_none(end) is None for end in value)
    return None if unknown else value


def _in_unit_square(points: tuple[Point, ...]) -> tuple[Point, ...]:
    finite = [point for point in points if all(math.isfinite(number) for number in point)]
    return tuple((min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)) for x, y in finite)


Number = Annotated[float | None, BeforeValidator(_finite_or_none)]
Interval = Annotated[tuple[float, float] | None, BeforeValidator(_known_ends)]
Points = Annotated[tuple[Point, ...], AfterValidator(_in_unit_square)]
ByName = Annotated[dict[str, Item], BeforeValidator(_empty_if_none)]


@dataclass(frozen=True)
class CalibrationBin:
    """Images with nearly the same predicted probability, and how many of them are positive."""

    mean_predicted: Number = None
    observed: Number = None
    num_images: int | None = None


@dataclass(frozen=True)
class OperatingPoint:
    """The share of positive images found where a share of the negative ones is let pass."""

    specificity: Number = None
    sensitivity: Number = None


@dataclass(frozen=True)
class FindingScores:
    """One finding's scores on one split."""

    auroc: Number = None
    auroc_ci: Interval = None
    auprc: Number = None
    num_positive: int | None = None
    num_negative: int | None = None
    sensitivity_at_specificity: OperatingPoint | None = None
    ece: Number = None
    calibration: tuple[CalibrationBin, ...] | None = None
    roc: Points | None = None  # (false positive rate, true positive rate)
    pr: Points | None = None  # (recall, precision)

    @property
    def why_undefined(self) -> str | None:
        """Why there is no AUROC, as the end of a sentence; None where there is one."""
        if self.auroc is not None:
            return None
        if self.num_positive == 0 and self.num_negative == 0:
            return "no image is labelled for it"
        if self.num_positive == 0:
            return "no positive image"
        return "no negative image" if self.num_negative == 0 else "the run gives no AUROC for it"

    def why_not_pooled(self, *, is_judged: bool, is_noised: bool = False) -> str | None:
        """Why hospitals' histograms give no AUROC, as the end of a sentence; None where they give one.

        What a hospital withholds looks like what it does not have, so that neither is claimed.

        Args:
            is_judged: The figures are the closing judgement's, which counts images where any were told.
            is_noised: They have the noise of differential privacy.
        """
        if self.auroc is not None:
            return None
        if is_noised:
            return "too few images with it, or without it, beside the noise"
        if not is_judged:
            return "no hospital told images both with it and without it"
        if not self.num_positive and not self.num_negative:
            return UNTOLD
        return "no positive image told" if not self.num_positive else "no negative image told"

    @property
    def is_of_few(self) -> bool:
        """Whether one class is known to have fewer than `FEW_IMAGES` images."""
        return any(count is not None and count < FEW_IMAGES for count in (self.num_positive, self.num_negative))

    @property
    def share_positive(self) -> float | None:
        """Share of positive images: what AUPRC is by chance."""
        if self.num_positive is None or self.num_negative is None or not self.num_positive + self.num_negative:
            return None
        return self.num_positive / (self.num_positive + self.num_negative)


@dataclass(frozen=True)
class Reconstruction:
    """How near the decoded images are to the originals."""

    psnr_db: Number = None
    ssim: Number = None


@dataclass(frozen=True)
class Resampling:
    """How the intervals of a split were made."""

    method: str | None = None
    num_resamples: int | None = None
    level: Number = None
    undefined_resamples: ByName[int] = field(default_factory=dict)  # finding -> how many lack one of its classes

    @property
    def often_undefined(self) -> dict[str, float]:
        """Findings whose intervals are not to be trusted, with the share of resamples that lack one of the classes."""
        return often_undefined(self.undefined_resamples, self.num_resamples or 0)


@dataclass(frozen=True)
class Subgroup:
    """The scores of one group of patients; of a suppressed one nothing but its name."""

    attribute: str
    group: str
    num_images: int | None = None
    num_patients: int | None = None
    is_suppressed: bool = False
    macro_auroc: Number = None
    macro_auroc_ci: Interval = None
    ece: Number = None


@dataclass(frozen=True)
class Baseline:
    """What can be told of the findings without looking at the radiograph."""

    macro_auroc: Number = None
    macro_auroc_ci: Interval = None
    findings: ByName[Number] = field(default_factory=dict)  # finding -> AUROC


@dataclass(frozen=True)
class ModelScores:
    """One model's scores on one split."""

    macro_auroc: Number = None
    macro_auroc_ci: Interval = None
    macro_auprc: Number = None
    interval: Resampling | None = None
    findings: dict[str, FindingScores] = field(default_factory=dict)
    ece: Number = None
    subgroups: tuple[Subgroup, ...] | None = None
    baselines: ByName[Baseline] = field(default_factory=dict)
    num_images: int | None = None
    num_patients: int | None = None
    num_skipped_images: int | None = None
    split: str = "test"
    reconstruction: Reconstruction | None = None


@dataclass(frozen=True)
class Alone:
    """Each hospital's own model, trained without the others for as many steps, on the same split."""

    hospitals: dict[str, ModelScores]
    mean_macro_auroc: Number = None
    num_steps: int | None = None

    def mean_auroc(self, finding: str) -> float | None:
        """Mean AUROC of one finding over the hospitals where it is defined."""
        scores = [model.findings[finding].auroc for model in self.hospitals.values() if finding in model.findings]
        defined = [score for score in scores if score is not None]
        return sum(defined) / len(defined) if defined else None


@dataclass(frozen=True)
class HospitalScores:
    """The released model on one hospital's validation images."""

    macro_auroc: Number = None
    findings: ByName[Number] = field(default_factory=dict)  # finding -> AUROC
    auroc_ci: ByName[Interval] = field(default_factory=dict)  # finding -> interval by image
    counts: ByName[tuple[int, int] | None] = field(default_factory=dict)  # finding -> positive and negative images

    def of(self, finding: str) -> FindingScores:
        """Gives what is known of one finding; all None where the hospital does not tell it."""
        positive, negative = self.counts.get(finding) or (None, None)
        return FindingScores(
            auroc=self.findings.get(finding),
            auroc_ci=self.auroc_ci.get(finding),
            num_positive=positive,
            num_negative=negative,
        )


@dataclass(frozen=True)
class Judged:
    """The released model on all validation images together, from what hospitals told of their scores."""

    round: int
    mode: str | None = None  # of the histograms: fine, floored or mixed
    hospitals: tuple[str, ...] = ()  # that told a finding in them
    macro_auroc: Number = None
    macro_auroc_error_bound: Number = None
    macro_auroc_ci: Interval = None
    interval: str | None = None  # by patient or by image
    findings: ByName[FindingScores] = field(default_factory=dict)
    by_hospital: ByName[HospitalScores] = field(default_factory=dict)
    withheld: ByName[tuple[str, ...]] = field(default_factory=dict)  # hospital -> sentences
