"""What noised histograms of validation scores cost and what they are worth, before anyone agrees to them."""

import math
from dataclasses import dataclass

from aecnn.evaluation.noised import expected_auroc_error, fewest_images
from aecnn.privacy_config import EvaluationPrivacyConfig, evaluated_rounds
from aecnn.training.privacy.accounting import noise_for

PREVALENCE = 0.05  # share of patients with the finding that an error is told for, where nobody says another


@dataclass(frozen=True)
class EvaluationOutlook:
    """What noised histograms of the validation scores cost, and what they are worth."""

    epsilon: float  # of all evaluations together, of each validation patient
    delta: float
    evaluations: int
    noise_multiplier: float  # of each
    positives: float  # expected validation images with the finding, one image a patient
    fewest_images: float  # of a class, for an AUROC to be told
    auroc_error: float | None  # standard deviation, one hospital alone; None: there will be no AUROC


def evaluation_outlook(
    *, epsilon: float, delta: float, evaluations: int, validation_patients: int, prevalence: float = PREVALENCE
) -> EvaluationOutlook:
    """Gives what a hospital's noised histograms tell, one image of each validation patient counted.

    Args:
        epsilon: Of all evaluations together.
        delta: δ.
        evaluations: How many; each has the same noise.
        validation_patients: Whose scores they count.
        prevalence: Share of these with the finding that the error is told for.

    Raises:
        PrivacyError: No noise gives this ε.
    """
    noise = noise_for(epsilon=epsilon, delta=delta, sample_rate=1.0, steps=evaluations)
    positives = prevalence * validation_patients
    error = expected_auroc_error(positives, validation_patients - positives, noise, 1)
    return EvaluationOutlook(
        epsilon=epsilon,
        delta=delta,
        evaluations=evaluations,
        noise_multiplier=noise,
        positives=positives,
        fewest_images=fewest_images(noise, 1),
        auroc_error=None if math.isnan(error) else error,
    )


def evaluations_of(num_rounds: int) -> int:
    """Gives how often a run of so many rounds judges with noise, where its plan does not say how often."""
    every = int(EvaluationPrivacyConfig.model_fields["every_rounds"].default)
    return len(evaluated_rounds(every, num_rounds))
