"""What a plan's differential privacy costs, as `plan-privacy` tells it: over the rounds, and with other settings."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aecnn.errors import ConfigError
from aecnn.evaluation.noised_outlook import PREVALENCE, EvaluationOutlook, evaluation_outlook, evaluations_of
from aecnn.privacy_config import Accountant
from aecnn.progress import OnProgress
from aecnn.training.privacy.accounting import LARGEST_EPSILON, Mechanism, default_delta, epsilon_of, noise_for

FACTORS_OF_NOISE = (0.5, 0.7, 1.0, 1.5, 2.0)
FACTORS_OF_PATIENTS = (0.5, 1.0, 2.0, 4.0)
SMALL_BATCH = 16.0  # patients: below it a step is mostly noise
ACCOUNTANTS: tuple[Accountant, ...] = ("prv", "rdp")
PLOT_ENDINGS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Question:
    """What is asked: the hospital's size, the plan's length, and either a target or the noise."""

    patients: int
    sample_rate: float
    steps: int
    epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float | None = None
    rounds: int = 1
    evaluation_epsilon: float | None = None
    validation_patients: int | None = None
    prevalence: float = PREVALENCE
    plot: Path | None = None

    def refuse_faults(self) -> None:
        """Refuses what cannot be answered.

        Raises:
            ConfigError: With every fault.
        """
        if faults := [*self._faults_of_numbers(), *self._faults_together()]:
            raise ConfigError("aecnn plan-privacy", faults)

    def _faults_of_numbers(self) -> Iterator[str]:
        for name in ("patients", "steps", "rounds", "validation_patients"):
            count = getattr(self, name)
            if count is not None and count < 1:
                yield f"{_option(name)} {count}: give 1 or more"
        for name, limit in (("epsilon", LARGEST_EPSILON), ("evaluation_epsilon", LARGEST_EPSILON)):
            epsilon = getattr(self, name)
            if epsilon is not None and not 0.0 < epsilon <= limit:
                yield f"{_option(name)} {epsilon:g}: give a number above 0, up to {limit:,.0f}"
        if not 0.0 < self.sample_rate <= 1.0:
            yield f"--sample-rate {self.sample_rate:g}: give a probability above 0, up to 1: expected batch / patients"
        if self.noise_multiplier is not None and not 0.0 < self.noise_multiplier < math.inf:
            yield f"--noise-multiplier {self.noise_multiplier:g}: give a number above 0"
        for name in ("delta", "prevalence"):
            share = getattr(self, name)
            if share is not None and not 0.0 < share < 1.0:
                yield f"{_option(name)} {share:g}: give a number between 0 and 1"

    def _faults_together(self) -> Iterator[str]:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            yield "give exactly one of --epsilon and --noise-multiplier"
        if self.rounds > 0 and self.steps % self.rounds:
            nearest = self.rounds * max(1, round(self.steps / self.rounds))
            yield f"{self.steps} steps are not {self.rounds} equal rounds: give --steps {nearest}, or other --rounds"
        if (self.evaluation_epsilon is None) != (self.validation_patients is None):
            yield "--evaluation-epsilon and --validation-patients go together: give both, or neither"
        if self.plot is not None and self.plot.suffix.lower() not in PLOT_ENDINGS:
            yield f"--plot {self.plot}: end its name with one of {', '.join(PLOT_ENDINGS)}"
        if self.plot is not None and not self.plot.absolute().parent.is_dir():
            yield f"--plot {self.plot}: its folder is not there"


@dataclass(frozen=True)
class Cost:
    """ε by both accountants; None: beyond what they can tell."""

    prv: float | None
    rdp: float | None


@dataclass(frozen=True)
class RoundCost:
    """What all rounds up to one cost."""

    round: int
    steps: int
    epsilon: Cost


@dataclass(frozen=True)
class AtNoise:
    """What the whole plan costs with other noise."""

    noise_multiplier: float
    epsilon: Cost


@dataclass(frozen=True)
class AtPatients:
    """What the same expected batch and steps cost among other numbers of patients."""

    patients: int
    sample_rate: float
    delta: float
    epsilon: Cost  # with the plan's noise
    noise_multiplier: float | None  # for the target, where one was given


@dataclass(frozen=True)
class Outlook:
    """The whole answer."""

    patients: int
    sample_rate: float
    steps: int
    rounds: int
    delta: float
    noise_multiplier: float
    noise_multiplier_by_rdp: float | None  # where a target was given: what the looser accountant would ask for
    epsilon: Cost
    expected_batch: float
    steps_of_a_patient: float  # in which a patient is expected
    empty_steps: float  # share of steps that are expected to draw nobody
    after_rounds: tuple[RoundCost, ...]
    against_noise: tuple[AtNoise, ...]
    against_patients: tuple[AtPatients, ...]
    evaluation: EvaluationOutlook | None
    warnings: tuple[str, ...]


def outlook(question: Question, *, on_progress: OnProgress | None = None) -> Outlook:
    """Answers a question.

    Args:
        question: One without faults.
        on_progress: Called after each round with rounds done and rounds in all.

    Raises:
        PrivacyError: No noise gives the ε asked for.
    """
    delta = default_delta(question.patients) if question.delta is None else question.delta
    rate, steps, rounds = question.sample_rate, question.steps, question.rounds
    by_rdp = _solved(question, rate, delta, "rdp")
    noise = question.noise_multiplier or _solved(question, rate, delta, "prv") or math.nan
    after = []
    for number in range(1, rounds + 1):
        done = steps // rounds * number
        after.append(RoundCost(number, done, _cost(Mechanism(noise, rate, done), delta)))
        if on_progress is not None:
            on_progress(number, rounds)
    return Outlook(
        patients=question.patients,
        sample_rate=rate,
        steps=steps,
        rounds=rounds,
        delta=delta,
        noise_multiplier=noise,
        noise_multiplier_by_rdp=by_rdp,
        epsilon=after[-1].epsilon,
        expected_batch=rate * question.patients,
        steps_of_a_patient=rate * steps,
        empty_steps=(1.0 - rate) ** question.patients,
        after_rounds=tuple(after),
        against_noise=tuple(
            AtNoise(some, _cost(Mechanism(some, rate, steps), delta))
            for some in (factor * noise for factor in FACTORS_OF_NOISE)
        ),
        against_patients=tuple(_among(question, noise)),
        evaluation=_evaluation(question, delta),
        warnings=tuple(_warnings(question, delta)),
    )


def _cost(mechanism: Mechanism, delta: float) -> Cost:
    prv, rdp = (epsilon_of([mechanism], delta=delta, accountant=how) for how in ACCOUNTANTS)
    return Cost(*(None if math.isinf(epsilon) else epsilon for epsilon in (prv, rdp)))


def _solved(question: Question, sample_rate: float, delta: float, accountant: Accountant) -> float | None:
    """Gives the noise for the target, None where there is no target."""
    if question.epsilon is None:
        return None
    return noise_for(
        epsilon=question.epsilon, delta=delta, sample_rate=sample_rate, steps=question.steps, accountant=accountant
    )


def _among(question: Question, noise: float) -> Iterator[AtPatients]:
    """The same expected batch and steps among fewer patients, and among more."""
    batch = question.sample_rate * question.patients
    for factor in FACTORS_OF_PATIENTS:
        patients = round(factor * question.patients)
        if patients < max(1.0, batch):
            continue
        rate = batch / patients
        delta = default_delta(patients) if question.delta is None else question.delta
        cost = _cost(Mechanism(noise, rate, question.steps), delta)
        yield AtPatients(patients, rate, delta, cost, _solved(question, rate, delta, "prv"))


def _evaluation(question: Question, delta: float) -> EvaluationOutlook | None:
    if question.evaluation_epsilon is None or question.validation_patients is None:
        return None
    return evaluation_outlook(
        epsilon=question.evaluation_epsilon,
        delta=delta,
        evaluations=evaluations_of(question.rounds),
        validation_patients=question.validation_patients,
        prevalence=question.prevalence,
    )


def _warnings(question: Question, delta: float) -> Iterator[str]:
    patients, batch = question.patients, question.sample_rate * question.patients
    if delta >= 1.0 / patients:
        yield (
            f"delta {delta:g} is not below 1/patients ({1.0 / patients:.3g}): it allows that some patient's data are "
            "published as they are, and training refuses it"
        )
    if batch < SMALL_BATCH:
        yield (
            f"the expected batch is {batch:.3g} patients, and the noise on each step's mean gradient is the noise "
            f"multiplier over that: below {SMALL_BATCH:.0f} a step is mostly noise. Raise the sample rate, and take "
            "fewer steps"
        )


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
