"""The figures of one evaluation, and the JSON object that carries them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aecnn.evaluation.auroc import Float64s, Floats, auroc, average_precision, macro_mean
from aecnn.findings import FINDINGS


@dataclass(frozen=True)
class FindingFigures:
    """One finding's figures; NaN where it has no positive or no negative image, or was not predicted."""

    auroc: float
    auprc: float
    num_positive: int
    num_negative: int

    @property
    def is_defined(self) -> bool:
        """Whether the finding has an AUROC."""
        return not np.isnan(self.auroc)


@dataclass(frozen=True)
class Reconstruction:
    """Mean quality of the decoder's radiographs over the images."""

    psnr_db: float
    ssim: float


@dataclass(frozen=True)
class Metrics:
    """What an evaluation found, over all images and by finding."""

    findings: dict[str, FindingFigures]
    num_images: int
    num_patients: int
    reconstruction: Reconstruction | None = None
    num_skipped_images: int = 0  # unreadable, left out

    @property
    def macro_auroc(self) -> float:
        """Mean AUROC over the findings that have one; NaN when none has."""
        return macro_mean(np.array([figures.auroc for figures in self.findings.values()]))

    @property
    def macro_auprc(self) -> float:
        """Mean average precision over the findings that have one."""
        return macro_mean(np.array([figures.auprc for figures in self.findings.values()]))

    @property
    def undefined_findings(self) -> list[str]:
        """Findings left out of the macro means."""
        return [name for name, figures in self.findings.items() if not figures.is_defined]

    def to_json(self) -> dict[str, object]:
        """Gives plain data for JSON; undefined figures are null."""
        document: dict[str, object] = {
            "macro_auroc": null_if_nan(self.macro_auroc),
            "macro_auprc": null_if_nan(self.macro_auprc),
            "findings": {
                name: {
                    "auroc": null_if_nan(figures.auroc),
                    "auprc": null_if_nan(figures.auprc),
                    "num_positive": figures.num_positive,
                    "num_negative": figures.num_negative,
                }
                for name, figures in self.findings.items()
            },
            "undefined_findings": self.undefined_findings,
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
