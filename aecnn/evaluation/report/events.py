"""What a run's history says, as frozen dataclasses; an undefined score (null or NaN) is None.

Keys this report does not know are let through, so that an older report reads a newer run.
"""

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BeforeValidator

from aecnn.evaluation.report.scores import ByName, Number


def _with_pooled(value: object) -> object:
    """Marks the hospitals that told scores, whose AUROC, be it undefined, is there: they are in the pooled one."""
    if not isinstance(value, dict):
        return value
    return {
        name: {**scores, "is_pooled": "macro_auroc" in scores} if isinstance(scores, dict) else scores
        for name, scores in value.items()
    }


@dataclass(frozen=True)
class HospitalCounts:
    """What one hospital brings to the run."""

    num_train_images: int | None = None
    num_train_patients: int | None = None
    num_validation_images: int | None = None
    num_validation_patients: int | None = None
    num_skipped_images: int | None = None
    positives: ByName[int] = field(default_factory=dict)  # finding -> images; empty where the hospital does not tell


@dataclass(frozen=True)
class PrivacySpent:
    """What differential privacy has cost one hospital's patients, all answers until then."""

    epsilon: Number = None  # None: beyond any promise
    delta: Number = None
    noise_multiplier: Number = None
    sample_rate: Number = None
    steps: int = 0
    evaluations: int = 0  # noised histograms of validation patients, who are not those of the training
    evaluation_epsilon: Number = None


@dataclass(frozen=True)
class CentralPlan:
    """What noise at the centre was to amount to, when the run began."""

    clipping: str | None = None
    num_rounds: int | None = None
    num_hospitals: int | None = None
    epsilon: Number = None  # of all rounds, of a hospital; None: beyond any promise
    delta: Number = None
    noise_multiplier: Number = None
    noise_to_clip: Number = None  # on each weight of the average
    noise_norm_to_clip: Number = None  # on all of them
    warning: str | None = None


@dataclass(frozen=True)
class CentralSpent:
    """What noise at the centre has cost each hospital, all rounds until then."""

    epsilon: Number = None  # None: beyond any promise
    delta: Number = None
    noise_multiplier: Number = None
    clipping_norm: Number = None
    num_hospitals: int | None = None
    noise_to_clip: Number = None


@dataclass(frozen=True)
class Answer:
    """One hospital's answer, of which the report takes what it cost."""

    round: int
    hospital: str
    privacy: PrivacySpent | None = None


@dataclass(frozen=True)
class Start:
    """The first event of a run."""

    run: str | None = None
    started_at: str | None = None
    hospitals: dict[str, HospitalCounts] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # who may not join -> reason
    central_privacy: CentralPlan | None = None


@dataclass(frozen=True)
class Joined:
    """A hospital that came late, with what it brings."""

    hospital: str
    round: int  # the first it takes part in
    counts: HospitalCounts = HospitalCounts()


@dataclass(frozen=True)
class Left:
    """A hospital that withdrew or was revoked."""

    hospital: str
    round: int
    reason: str = ""


@dataclass(frozen=True)
class Attempt:
    """A round that was tried again."""

    round: int
    attempt: int
    reason: str = ""


@dataclass(frozen=True)
class Resume:
    """An interrupted run that went on."""

    round: int  # the last finished
    at: str | None = None


@dataclass(frozen=True)
class Test:
    """The global model after a round, on the centre's own test images."""

    round: int
    macro_auroc: Number = None
    num_images: int | None = None


@dataclass(frozen=True)
class Delivered:
    """Who was handed the released model."""

    hospitals: tuple[str, ...] = ()


@dataclass(frozen=True)
class HospitalValidation:
    """The global model on one hospital's validation part."""

    macro_auroc: Number = None
    bce: Number = None
    mse: Number = None
    num_images: int | None = None
    is_pooled: bool = False  # in the AUROC of all hospitals: its histogram told at least one finding


@dataclass(frozen=True)
class Validation:
    """The global model after a round, on all validation parts together; round 0 is the initial model."""

    round: int
    is_noised: bool = False  # the pooled histogram has the noise of differential privacy
    macro_auroc: Number = None
    macro_auroc_error_bound: Number = None  # what the histograms' bins can have moved it by
    findings: dict[str, Number] = field(default_factory=dict)  # finding -> pooled AUROC
    bce: Number = None
    mse: Number = None
    num_images: int | None = None
    hospitals: Annotated[dict[str, HospitalValidation], BeforeValidator(_with_pooled)] = field(default_factory=dict)


@dataclass(frozen=True)
class HospitalTraining:
    """One hospital's local training in one round."""

    num_images: int | None = None
    images_seen: int | None = None
    num_steps: int | None = None
    bce: Number = None
    mse: Number = None
    latent_alive_fraction: Number = None
    seconds: Number = None


@dataclass(frozen=True)
class Round:
    """One round of local training and averaging."""

    round: int
    seconds: Number = None
    hospitals: dict[str, HospitalTraining] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # hospital -> reason
    missing: tuple[str, ...] = ()
    attempt: int = 1
    bytes: dict[str, int] = field(default_factory=dict)  # hospital -> size of the weights it sent
    central_privacy: CentralSpent | None = None

    def mean(self, quantity: str) -> float | None:
        """Mean of ``bce`` or ``mse`` over the images seen in training; None where nothing was reported."""
        trainings = self.hospitals.values()
        pairs = [(getattr(training, quantity), training.images_seen or training.num_images) for training in trainings]
        known = [(value, weight) for value, weight in pairs if value is not None and weight]
        return sum(value * weight for value, weight in known) / sum(weight for _, weight in known) if known else None


@dataclass(frozen=True)
class End:
    """The last event of a run."""

    status: str
    released_round: int | None = None
    finished_at: str | None = None
    seconds: Number = None
    reason: str | None = None
