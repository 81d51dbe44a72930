"""What differential privacy asks of one hospital's answers: what is promised, and what may be said at all.

Under it everything that leaves is noised, declared in the site file or in the plan, or absent; `docs/privacy.md` lists
every field.
"""

from aecnn import contract
from aecnn.contract import HospitalCounts, Request, RoundReport
from aecnn.errors import PrivacyError
from aecnn.privacy_config import EvaluationPrivacyConfig
from aecnn.training.privacy.promise import Promise, promise_of
from client.refusal import RefusalError
from client.site import Hospital, PrivacyPolicyConfig, TrainingData


def promise_at(hospital: Hospital, data: TrainingData, request: Request) -> Promise | None:
    """Gives what a request's plan promises this hospital's patients, None where it promises nothing.

    Raises:
        RefusalError: The site file does not say how many patients may be told of, or the plan promises too little.
    """
    if request.plan.training.privacy is None:
        return None
    config = hospital.config.policy
    policy = PrivacyPolicyConfig() if config is None else config.privacy
    try:
        promise = promise_of(request.plan, declared_patients=declared_patients(policy, data))
    except PrivacyError as error:
        raise RefusalError(contract.CODE_AGAINST_POLICY, str(error)) from error
    if promise is not None:
        _refuse_weaker(policy, promise)
    return promise


def declared_patients(policy: PrivacyPolicyConfig, data: TrainingData) -> int:
    """Gives the number of training patients that this hospital tells under privacy.

    Raises:
        RefusalError: The site file does not say it.
    """
    if policy.patients is not None:
        return policy.patients
    if policy.ledger_folder is None:  # a simulation
        return int(data.loaded.manifest.table["patient"].iloc[data.train_rows].nunique())
    reason = (
        "the plan trains with differential privacy, and policy.privacy.patients is null: give the number of training "
        "patients that may be told, rounded as you like; weight, noise and delta follow from it"
    )
    raise RefusalError(contract.CODE_AGAINST_POLICY, reason)


def _refuse_weaker(policy: PrivacyPolicyConfig, promise: Promise) -> None:
    """Refuses less than the site file asks for; what has been spent is the ledger's to know."""
    faults = []
    least, most = policy.min_noise_multiplier, policy.max_evaluation_epsilon
    if least is not None and promise.noise_multiplier < least:
        faults.append(
            f"the plan's noise multiplier is {promise.noise_multiplier:.3g}, policy.privacy.min_noise_multiplier is "
            f"{least:g}"
        )
    evaluation = promise.config.evaluation
    if evaluation is not None and (most is None or evaluation.epsilon > most):
        faults.append(
            f"noised histograms at ε {evaluation.epsilon:g} are asked for, policy.privacy.max_evaluation_epsilon is "
            f"{'null: none leave' if most is None else format(most, 'g')}"
        )
    if faults:
        raise RefusalError(contract.CODE_AGAINST_POLICY, "; ".join(faults))


def noised_evaluation(request: Request, kind: str) -> EvaluationPrivacyConfig | None:
    """Gives how the arriving model's histogram is noised in this answer; None where none leaves.

    Args:
        request: With a plan that has privacy.
        kind: Message type.
    """
    privacy = request.plan.training.privacy
    evaluation = None if privacy is None else privacy.evaluation
    if evaluation is None:
        return None
    due = kind == contract.EVALUATE or (kind == contract.TRAIN and request.round % evaluation.every_rounds == 0)
    return evaluation if due else None


def declared_counts(promise: Promise) -> HospitalCounts:
    """Gives what a hospital says of its size under privacy: the declared number, and nothing that was counted."""
    declared = promise.declared_patients
    return HospitalCounts(
        num_train_images=declared,
        num_train_patients=declared,
        num_validation_images=0,
        num_validation_patients=0,
        num_skipped_images=0,
    )


def private_report(promise: Promise, *, epsilon: float | None) -> RoundReport:
    """Gives the report of a private round: what it cost, and nothing that depends on the data.

    Args:
        promise: What the round kept.
        epsilon: Of the run so far, by the ledger; None where there is none.
    """
    return RoundReport(
        num_images=promise.declared_patients,
        num_steps=promise.steps_per_round,
        noise_multiplier=promise.noise_multiplier,
        sample_rate=promise.config.sample_rate,
        delta=promise.delta,
        epsilon=epsilon,
    )
