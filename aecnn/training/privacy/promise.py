"""What a plan's privacy means at one hospital: its δ, its noise, and what a round and the whole plan cost."""

from dataclasses import dataclass

from aecnn.config import Plan
from aecnn.errors import PrivacyError
from aecnn.privacy_config import PrivacyConfig
from aecnn.training.privacy.accounting import Mechanism, default_delta, noise_for


@dataclass(frozen=True)
class Promise:
    """A plan's privacy with the hospital's public number of training patients."""

    config: PrivacyConfig
    declared_patients: int
    delta: float
    noise_multiplier: float
    steps_per_round: int

    @property
    def round(self) -> Mechanism:
        """What one round's training does to each training patient."""
        return Mechanism(self.noise_multiplier, self.config.sample_rate, self.steps_per_round)

    @property
    def evaluation(self) -> Mechanism | None:
        """What one noised evaluation does to each validation patient, None where there is none."""
        evaluation = self.config.evaluation
        if evaluation is None:
            return None
        noise = noise_for(
            epsilon=evaluation.epsilon,
            delta=self.delta,
            sample_rate=1.0,
            steps=evaluation.total_evaluations or 1,
            accountant=self.config.accountant,
        )
        return Mechanism(noise, 1.0, 1)


def promise_of(plan: Plan, *, declared_patients: int) -> Promise | None:
    """Gives what a plan promises the patients of a hospital, None where it promises nothing.

    Args:
        plan: As it arrives at the hospital.
        declared_patients: The hospital's public number of training patients.

    Raises:
        PrivacyError: δ is too large for so many patients, the plan does not say how many steps it has, or no noise
            keeps its ε.
    """
    privacy, steps = plan.training.privacy, plan.training.local_steps
    if privacy is None or steps is None:
        return None
    if privacy.total_steps is None:
        raise PrivacyError("training.privacy.total_steps is not given: the noise is solved for the whole plan")
    delta = default_delta(declared_patients) if privacy.delta is None else privacy.delta
    if delta >= 1.0 / declared_patients:
        raise PrivacyError(
            f"training.privacy.delta is {delta:g}, and with {declared_patients} patients it must be below "
            f"{1.0 / declared_patients:.3g}: a larger one allows that some patient's data are published as they are. "
            "Lower it, or set it to null"
        )
    noise = privacy.noise_multiplier
    if noise is None:
        noise = noise_for(
            epsilon=privacy.epsilon or 0.0,
            delta=delta,
            sample_rate=privacy.sample_rate,
            steps=privacy.total_steps,
            accountant=privacy.accountant,
        )
    return Promise(privacy, declared_patients, delta, noise, steps)
