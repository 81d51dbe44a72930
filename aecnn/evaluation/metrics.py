"""The figures of one evaluation, and the JSON object that carries them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from aecnn.evaluation.auroc import (
    Float64s,
    Floats,
    OperatingPoint,
    auroc,
    average_precision,
    macro_mean,
)
from aecnn.evaluation.bootstrap import LEVEL, Interval
from aecnn.evaluation.calibration import CalibrationBin, expected_calibration_error
from aecnn.findings import FINDINGS


@dataclass(frozen=True)
class FindingFigures:
    """One finding's figures; NaN where it has no positive or no negative image, or was not predicted."""

    auroc: float
    auprc: float
    num_positive: int
    num_negative: int
    auroc_ci: Interval | None = None  # by patient, where asked for
    at_specificity: OperatingPoint | None = None
    calibration: tuple[CalibrationBin, ...] = ()

    @property
    def is_defined(self) -> bool:
        """Whether the finding has an AUROC."""
        return not np.isnan(self.auroc)

    @property
    def ece(self) -> float:
        """Expected calibration error; NaN without a calibration curve."""
        return expected_calibration_error(self.calibration)

    @property
    def why_undefined(self) -> str | None:
        """Why there is no AUROC; None where there is one."""
        if self.is_defined:
            return None
        if self.num_positive == self.num_negative == 0:
            return "not labelled in any image"
        if self.num_positive == 0:
            return "no positive image"
        return "no negative image" if self.num_negative == 0 else "not predicted"

    def to_json(self) -> dict[str, object]:
        """Gives plain data for JSON."""
        return {
            "auroc": null_if_nan(self.auroc),
            "auroc_ci": _list_of(self.auroc_ci),
            "auprc": null_if_nan(self.auprc),
            "num_positive": self.num_positive,
            "num_negative": self.num_negative,
            "sensitivity_at_specificity": None if self.at_specificity is None else asdict(self.at_specificity),
            "ece": null_if_nan(self.ece),
            "calibration": [point.to_json() for point in self.calibration] or None,
        }


@dataclass(frozen=True)
class Reconstruction:
    """Mean quality of the decoder's radiographs over the images."""

    psnr_db: float
    ssim: float


@dataclass(frozen=True)
class Resampling:
    """How the intervals were made."""

    num_resamples: int
    seed: int
    num_undefined: dict[str, int]  # resamples without a positive or without a negative image, of findings that had some

    def to_json(self) -> dict[str, object]:
        """Gives plain data for JSON."""
        return {
            "method": "patient bootstrap",
            "num_resamples": self.num_resamples,
            "level": LEVEL,
            "seed": self.seed,
            "undefined_resamples": self.num_undefined,
        }


@dataclass(frozen=True)
class Baseline:
    """What can be told of the findings without the radiograph, by AUROC."""

    findings: dict[str, float]
    macro_auroc_ci: Interval | None = None

    @property
    def macro_auroc(self) -> float:
        """Mean over the findings that are defined."""
        return macro_mean(np.array(list(self.findings.values())))

    def to_json(self) -> dict[str, object]:
        """Gives plain data for JSON."""
        return {
            "macro_auroc": null_if_nan(self.macro_auroc),
            "macro_auroc_ci": _list_of(self.macro_auroc_ci),
            "findings": {name: null_if_nan(area) for name, area in self.findings.items()},
        }


@dataclass(frozen=True)
class Metrics:
    """What an evaluation found, over all images and by finding.

    `score` gives what is quick; `aecnn.evaluation.judging` adds intervals, calibration, subgroups and baselines.
    """

    findings: dict[str, FindingFigures]
    num_images: int
    num_patients: int
    reconstruction: Reconstruction | None = None
    num_skipped_images: int = 0  # unreadable, left out
    macro_auroc_ci: Interval | None = None
    resampling: Resampling | None = None
    subgroups: tuple["Subgroup", ...] = ()
    view_baseline: Baseline | None = None

    @property
    def macro_auroc(self) -> float:
        """Mean AUROC over the findings that have one; NaN when none has."""
        return macro_mean(np.array([figures.auroc for figures in self.findings.values()]))

    @property
    def macro_auprc(self) -> float:
        """Mean average precision over the findings that have one."""
        return macro_mean(np.array([figures.auprc for figures in self.findings.values()]))

    @property
    def ece(self) -> float:
        """Mean expected calibration error over the findings that have a calibration curve."""
        return macro_mean(np.array([figures.ece for figures in self.findings.values()]))

    @property
    def undefined_findings(self) -> list[str]:
        """Findings left out of the macro means."""
        return [name for name, figures in self.findings.items() if not figures.is_defined]

    @property
    def why_undefined(self) -> dict[str, str]:
        """Why each of the undefined findings is."""
        return {name: why for name, figures in self.findings.items() if (why := figures.why_undefined) is not None}

    def to_json(self) -> dict[str, object]:
        """Gives plain data for JSON; undefined figures are null."""
        document: dict[str, object] = {
            "macro_auroc": null_if_nan(self.macro_auroc),
            "macro_auroc_ci": _list_of(self.macro_auroc_ci),
            "macro_auprc": null_if_nan(self.macro_auprc),
            "interval": None if self.resampling is None else self.resampling.to_json(),
            "findings": {name: figures.to_json() for name, figures in self.findings.items()},
            "ece": null_if_nan(self.ece),
            "subgroups": [subgroup.to_json() for subgroup in self.subgroups],
            "baselines": {} if self.view_baseline is None else {"view_position": self.view_baseline.to_json()},
            "undefined_findings": self.undefined_findings,
            "why_undefined": self.why_undefined,
            "num_images": self.num_images,
            "num_patients": self.num_patients,
            "num_skipped_images": self.num_skipped_images,
        }
        if self.reconstruction is not None:
            document["reconstruction"] = {
                "psnr_db": null_if_nan(self.reconstruction.psnr_db),
                "ssim": null_if_nan(self.reconstruction.ssim),
            }
        return document


@dataclass(frozen=True)
class Subgroup:
    """The figures on the images of one group of patients."""

    attribute: str  # sex, age, view or hospital
    group: str
    metrics: Metrics | None  # None where the group has too few patients for figures of it to be shown

    def to_json(self) -> dict[str, object]:
        """Gives plain data for JSON; of a suppressed group no more than its name."""
        of = self.metrics
        return {
            "attribute": self.attribute,
            "group": self.group,
            "num_images": None if of is None else of.num_images,
            "num_patients": None if of is None else of.num_patients,
            "is_suppressed": of is None,
            "macro_auroc": None if of is None else null_if_nan(of.macro_auroc),
            "macro_auroc_ci": None if of is None else _list_of(of.macro_auroc_ci),
            "ece": None if of is None else null_if_nan(of.ece),
            "findings": None
            if of is None
            else {
                name: {
                    "auroc": null_if_nan(figures.auroc),
                    "auroc_ci": _list_of(figures.auroc_ci),
                    "num_positive": figures.num_positive,
                }
                for name, figures in of.findings.items()
            },
        }


def score(
    scores: Floats,
    targets: Floats,
    patients: Sequence[str],
    *,
    reconstruction: Reconstruction | None = None,
    num_skipped_images: int = 0,
) -> Metrics:
    """Gives AUROC and average precision of every finding.

    Args:
        scores: [N, F] logits or probabilities; a finding whose column is NaN throughout was not predicted.
        targets: [N, F] in {0, 1, NaN}.
        patients: [N] identifiers, for the count.
        reconstruction: Added to the result as it is.
        num_skipped_images: Likewise.
    """
    predicted = ~np.isnan(scores).all(axis=0) if len(scores) else np.zeros(len(FINDINGS), dtype=bool)
    areas, precisions = np.full(len(FINDINGS), np.nan), np.full(len(FINDINGS), np.nan)
    areas[predicted] = auroc(scores[:, predicted], targets[:, predicted])
    precisions[predicted] = average_precision(scores[:, predicted], targets[:, predicted])
    findings = {
        name: FindingFigures(
            auroc=float(areas[index]),
            auprc=float(precisions[index]),
            num_positive=int((targets[:, index] == 1).sum()),
            num_negative=int((targets[:, index] == 0).sum()),
        )
        for index, name in enumerate(FINDINGS)
    }
    return Metrics(
        findings,
        num_images=len(scores),
        num_patients=len(set(patients)),
        reconstruction=reconstruction,
        num_skipped_images=num_skipped_images,
    )


def psnr_db(mse: Floats) -> Float64s:
    """Gives the peak signal-to-noise ratio of intensities in [0, 1], in dB; infinite for a perfect copy."""
    with np.errstate(divide="ignore"):
        return np.asarray(-10.0 * np.log10(mse), dtype=np.float64)


def mean_psnr_db(mse: Floats) -> float:
    """Gives the mean PSNR over images, in dB; perfect copies (an all-black image, say) have none and are left out."""
    imperfect = mse[mse > 0]
    return float(psnr_db(imperfect).mean()) if imperfect.size else float("nan")


def null_if_nan(value: float) -> float | None:
    """Gives None for NaN and infinities, which JSON does not have."""
    return float(value) if np.isfinite(value) else None


def _list_of(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)
