"""What a hospital says about a model's scores on its validation images: histograms, and sums for intervals by patient.

Both keep the floor of patients (`policy.min_patients`): findings below it are withheld, and with
`policy.report.histogram_mode: floored`, which needs twice as many, every count of a histogram stands for that many.
"""

from typing import cast

import numpy as np
from flwr.app import ArrayRecord, Message
from numpy.typing import NDArray

from aecnn import contract
from aecnn.contract import CODE_AGAINST_POLICY, CODE_REFUSED, PlacementReport
from aecnn.evaluation.auroc import Float64s, Floats
from aecnn.evaluation.floored import findings_told, floored_histogram, patients_needed
from aecnn.evaluation.histogram import NUM_BINS, Bins, ScoreHistogram, counts_of
from aecnn.evaluation.placements import covers, placement_sums
from aecnn.findings import NUM_FINDINGS
from client.refusal import RefusalError
from client.site import PolicyConfig, TrainingData

MOST_POOLED_IMAGES = 1e9  # of one class, of all hospitals
_SHAPE = (NUM_FINDINGS, 2, NUM_BINS)


def validation_targets(data: TrainingData, policy: PolicyConfig) -> Floats:
    """Gives the validation images' targets, NaN throughout for findings that may not be told, [N, F]."""
    targets = data.loaded.manifest.targets[data.validation_rows]
    told = findings_told(targets, validation_patients(data), min_patients=validation_floor(policy))
    return np.where(told, targets, np.nan)


def validation_floor(policy: PolicyConfig) -> int:
    """Gives how many validation patients a finding needs in each class for its histogram to leave."""
    return patients_needed(policy.min_patients, is_floored=policy.report.histogram_mode == "floored")


def validation_patients(data: TrainingData) -> list[str]:
    """Gives whose each validation image is, [N]."""
    return cast("list[str]", data.loaded.manifest.table["patient"].iloc[data.validation_rows].tolist())


def validation_images(data: TrainingData) -> list[str]:
    """Gives the validation images' names, [N]."""
    return cast("list[str]", data.loaded.manifest.table["image"].iloc[data.validation_rows].tolist())


def histogram_told(bins: Bins, data: TrainingData, policy: PolicyConfig) -> ScoreHistogram:
    """Gives the histogram that may leave.

    Args:
        bins: Of the validation images' logits, [N, F].
        data: The hospital's.
        policy: The site file's.
    """
    targets = validation_targets(data, policy)
    if policy.report.histogram_mode == "floored":
        return floored_histogram(bins, targets, validation_patients(data), min_patients=policy.min_patients)
    return ScoreHistogram(counts_of(bins, targets))


def histogram_name(policy: PolicyConfig) -> str:
    """Gives the name under which the histogram leaves, which says how it is counted."""
    return contract.FLOORED_COUNTS if policy.report.histogram_mode == "floored" else contract.SCORE_COUNTS


def placements_told(
    bins: Bins, data: TrainingData, policy: PolicyConfig, *, pooled_images: Float64s
) -> PlacementReport:
    """Gives the sums that may leave about the released model.

    Args:
        bins: Of the validation images' logits, [N, F], as they were when the histogram was told.
        data: The hospital's.
        policy: The site file's.
        pooled_images: Where all hospitals' images are taken to lie, [F, 2, B].

    Raises:
        RefusalError: The histogram stays here, or the pooled one was made up: this hospital's images are not in it.
    """
    own = histogram_told(bins, data, policy)
    if not covers(pooled_images, own):
        reason = "the pooled histogram has fewer images in a bin than this hospital alone: it is made up"
        raise RefusalError(CODE_AGAINST_POLICY, reason)
    sums = placement_sums(
        bins,
        validation_targets(data, policy),
        validation_patients(data),
        own=own,
        pooled_images=pooled_images,
    )
    return sums.told(min_patients=policy.min_patients).to_report()


def pooled_images_in(message: Message) -> Float64s:
    """Gives where all hospitals' images are taken to lie, as the centre says, [F, 2, B].

    Raises:
        RefusalError: The message holds something else.
    """
    record = message.content.get(contract.POOLED)
    if not isinstance(record, ArrayRecord) or list(record) != [contract.POOLED_IMAGES]:
        raise RefusalError(CODE_REFUSED, "the message carries no pooled histogram")
    array = record[contract.POOLED_IMAGES]
    try:
        images: NDArray[np.generic] = array.numpy()
    except (ValueError, TypeError, EOFError, MemoryError, SyntaxError) as error:
        raise RefusalError(CODE_REFUSED, f"the pooled histogram cannot be read ({error})") from error
    if images.shape != _SHAPE or images.dtype != np.float64:
        raise RefusalError(CODE_REFUSED, f"the pooled histogram is {images.dtype} {images.shape}, expected {_SHAPE}")
    found = images.astype(np.float64)
    if not np.isfinite(found).all() or (found < 0.0).any() or found.sum(axis=-1).max() > MOST_POOLED_IMAGES:
        raise RefusalError(CODE_REFUSED, "the pooled histogram holds counts that no images give")
    return found
