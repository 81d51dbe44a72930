"""The sections of a configuration that ask for differential privacy: of patients, and of whole hospitals."""

from typing import Literal, Self

from pydantic import Field, model_validator

from aecnn.strict_model import StrictModel

Accountant = Literal["prv", "rdp"]
Gradients = Literal["auto", "loop", "hooks"]
Clipping = Literal["fixed", "adaptive"]


class EvaluationPrivacyConfig(StrictModel):
    """Validation histograms that leave with noise; without this section none leave under differential privacy."""

    epsilon: float = Field(gt=0.0)  # of all the plan's evaluations together, at the plan's δ
    images_per_patient: int = Field(default=1, ge=1)  # counted at most, of each patient
    every_rounds: int = Field(default=5, ge=1)  # the model that arrives in every k-th round, and the last one
    total_evaluations: int | None = Field(default=None, ge=1)  # planned; None: as the federation's rounds say


class PrivacyConfig(StrictModel):
    """Patient-level differential privacy of the local training (DP-SGD; add or remove one patient)."""

    epsilon: float | None = Field(default=None, gt=0.0)  # of all local steps of the plan; the noise is solved for it
    noise_multiplier: float | None = Field(default=None, gt=0.0)  # or the noise, in units of max_grad_norm
    delta: float | None = Field(default=None, gt=0.0, lt=1.0)  # None: min(1e-5, 1/(10·patients)) at each hospital
    max_grad_norm: float = Field(default=1.0, ge=1e-4, le=1e4)  # a patient's gradient is clipped to it
    sample_rate: float = Field(gt=0.0, le=1.0)  # of each patient, in each step
    images_per_patient: int = Field(default=1, ge=1, le=16)  # drawn of a sampled patient; their gradients are averaged
    total_steps: int | None = Field(default=None, ge=1)  # planned; None: local steps × rounds of the federation
    gradients: Gradients = "auto"  # of each patient: loop (one backward pass each) or hooks (Opacus); auto: measured
    accountant: Accountant = "prv"
    evaluation: EvaluationPrivacyConfig | None = None

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give exactly one of epsilon and noise_multiplier, and unset the other with null")
        return self


def evaluated_rounds(every_rounds: int, num_rounds: int) -> list[int]:
    """Gives the rounds in which the arriving model is judged with noise; the last one is judged after the rounds."""
    return [*range(every_rounds, num_rounds + 1, every_rounds), num_rounds + 1]


class CentralPrivacyConfig(StrictModel):
    """Differential privacy of whole hospitals, by noise that the centre adds to their clipped average.

    It needs a centre that is trusted, and many hospitals: noise_multiplier / hospitals is the noise on each weight, in
    units of the clip.
    """

    clipping: Clipping = "fixed"  # of a hospital's update, by its norm; adaptive follows a quantile of the norms
    noise_multiplier: float = Field(gt=0.0)  # in units of the clip, on the sum over the hospitals
    delta: float = Field(default=1e-5, gt=0.0, lt=1.0)
    clipping_norm: float | None = Field(default=None, gt=0.0)  # fixed
    initial_clipping_norm: float | None = Field(default=None, gt=0.0)  # adaptive
    target_clipped_quantile: float | None = Field(default=None, ge=0.0, le=1.0)  # adaptive: share of updates to clip
    clip_norm_lr: float | None = Field(default=None, gt=0.0, le=10.0)  # adaptive
    clipped_count_stddev: float | None = Field(default=None, gt=0.0)  # adaptive: noise on how many were clipped

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        if self.clipping == "fixed":
            adaptive = ("initial_clipping_norm", "target_clipped_quantile", "clip_norm_lr", "clipped_count_stddev")
            odd = [key for key in adaptive if getattr(self, key) is not None]
            if self.clipping_norm is None:
                raise ValueError("clipping 'fixed' needs clipping_norm: the largest norm that an update keeps")
        else:
            odd = ["clipping_norm"] if self.clipping_norm is not None else []
        if odd:
            raise ValueError(f"{', '.join(odd)} does not go with clipping {self.clipping!r}: remove it")
        return self
