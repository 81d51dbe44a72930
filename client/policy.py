"""What a hospital lets itself be asked: its site file against each request, before anything is done for it."""

from datetime import datetime, time

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable
from numpy.typing import NDArray

from aecnn import contract
from aecnn.config import Plan
from aecnn.contract import Request
from aecnn.training.batches import Rows
from aecnn.training.loop import batching_of
from aecnn.training.seeds import derive_seed
from client.deployment import deployment_of
from client.privacy import promise_at
from client.refusal import RefusalError
from client.site import AcceptedConfig, PolicyConfig, TrainingData, hospital_of, read_training_data
from client.state import SiteState
from client.wire import request_of

LARGEST_BATCH = 4096  # beyond it one step takes more memory than a hospital has


def refuse_against_policy(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """A mod inside the guard: a request beyond the site file reaches no handler.

    Raises:
        RefusalError: With the code for the centre and the reasons for the hospital's log.
    """
    request, kind = request_of(message), message.metadata.message_type
    hospital = hospital_of(context.node_config, context.run_config)
    policy = policy_of(hospital.config.policy)
    check_request(policy.accept, request, kind)
    if kind == contract.PLACE and not policy.report.histograms:
        _refuse(["sums by patient of the scores are asked for, policy.report.histograms is false"])
    if kind != contract.DELIVER:
        data = read_training_data(hospital, request.plan.images.size_px, request.validation_fraction)
        check_patients(policy, data)
        check_steps(policy, request.plan, data, kind)
        promise = promise_at(hospital, data, request)
        if promise is not None and policy.privacy.ledger_folder is not None and _has_no_desk(context):
            raise RefusalError(contract.CODE_BUDGET, "no desk stands before the app, so nothing would be in the ledger")
        if kind == contract.TRAIN and request.plan.training.privacy is None:  # else nobody may know who is drawn
            check_batches(policy, request, data, hospital=hospital.config.name)
        if kind in (contract.EVALUATE, contract.PLACE):
            check_validation(policy, data)
    return call_next(message, context)


def _has_no_desk(context: Context) -> bool:
    return deployment_of(context.node_config) is None


def policy_of(policy: PolicyConfig | None) -> PolicyConfig:
    """Gives the policy.

    Raises:
        RefusalError: There is none, so nothing leaves.
    """
    if policy is None:
        raise RefusalError(contract.CODE_WITHHELD, "the site file has no policy, so nothing leaves: add one")
    return policy


def check_request(accept: AcceptedConfig, request: Request, kind: str) -> None:
    """Refuses what can be told from the request alone.

    Raises:
        RefusalError: With every fault.
        ConfigError: The plan is none that this installation knows.
    """
    plan, faults = request.plan, []
    last_round = accept.max_rounds + (kind != contract.TRAIN)  # the last round's model is judged after it
    if kind not in contract.RECORDS_OF:
        faults.append(f"messages of type {kind!r} are not answered")
    if request.round > last_round:
        faults.append(f"round {request.round} is asked for, policy.accept.max_rounds is {accept.max_rounds}")
    if accept.backbones is not None and plan.model.backbone not in accept.backbones:
        faults.append(
            f"the backbone is {plan.model.backbone}, policy.accept.backbones has {', '.join(accept.backbones)}"
        )
    if accept.validation_fraction not in (None, request.validation_fraction):
        faults.append(
            f"the validation share is {request.validation_fraction}, policy.accept.validation_fraction is "
            f"{accept.validation_fraction}"
        )
    if plan.training.batch_size > LARGEST_BATCH:
        faults.append(f"batches of {plan.training.batch_size} images are asked for, {LARGEST_BATCH} are the most")
    if kind == contract.PLACE and plan.training.privacy is not None:
        faults.append("sums by patient are asked for, and the plan has differential privacy, under which none leave")
    if accept.requires_privacy and kind != contract.DELIVER and plan.training.privacy is None:
        faults.append("the plan trains without differential privacy, policy.accept.requires_privacy is true")
    _refuse(faults)


def check_patients(policy: PolicyConfig, data: TrainingData) -> None:
    """Lets nothing leave where too few patients stand behind it.

    Raises:
        RefusalError: There are fewer than `policy.min_patients` in training.
    """
    found = _patients_of(data, data.train_rows).size
    if found < policy.min_patients:
        reason = f"{found} patients are in training, policy.min_patients is {policy.min_patients}"
        raise RefusalError(contract.CODE_WITHHELD, reason)


def check_batches(policy: PolicyConfig, request: Request, data: TrainingData, *, hospital: str) -> None:
    """Lets no update leave that is made of too few patients: those in the batches that the training will draw.

    Raises:
        RefusalError: There are fewer than `policy.min_patients`.
        ModelError: The plan's batches are too small for its model.
    """
    random = np.random.default_rng(derive_seed(request.seed, hospital, request.round))
    found: set[str] = set()
    for batch in batching_of(request.plan).batches(data.train_rows, random):
        found.update(_patients_of(data, batch))
        if len(found) >= policy.min_patients:
            return
    reason = f"{len(found)} patients are in the round's batches, policy.min_patients is {policy.min_patients}"
    raise RefusalError(contract.CODE_WITHHELD, reason)


def check_validation(policy: PolicyConfig, data: TrainingData) -> None:
    """Lets nothing about the validation part leave where too few patients stand behind it; none at all hide nobody.

    Raises:
        RefusalError: There are fewer than `policy.min_patients`.
    """
    found = _patients_of(data, data.validation_rows).size
    if 0 < found < policy.min_patients:
        reason = f"{found} patients validate, policy.min_patients is {policy.min_patients}"
        raise RefusalError(contract.CODE_WITHHELD, reason)


def _patients_of(data: TrainingData, rows: Rows) -> NDArray[np.object_]:
    """The distinct patients of some images."""
    return np.asarray(data.loaded.manifest.table["patient"].iloc[rows].unique(), dtype=object)


def check_steps(policy: PolicyConfig, plan: Plan, data: TrainingData, kind: str) -> None:
    """Refuses more steps than the site file accepts, and fewer than hide a patient among others.

    Raises:
        RefusalError: The plan makes too many or too few.
    """
    steps, most = planned_steps(plan, data), policy.accept.max_steps_per_round
    _refuse([f"{steps} steps are asked for, policy.accept.max_steps_per_round is {most}"] if steps > most else [])
    if kind == contract.TRAIN and steps < policy.min_steps:
        reason = f"the plan makes {steps} steps, policy.min_steps is {policy.min_steps}"
        raise RefusalError(contract.CODE_WITHHELD, reason)


def planned_steps(plan: Plan, data: TrainingData) -> int:
    """Gives how many steps a round's training takes at this hospital."""
    return batching_of(plan).num_steps(data.train_rows.size)


def check_available(policy: PolicyConfig | None, state: SiteState, request: Request, kind: str, now: datetime) -> None:
    """Refuses while the hospital is not there for this run: withdrawn, paused, or outside its working hours.

    A released model is taken at any hour: nothing is computed for it.

    Args:
        policy: The site file's.
        state: Where pause and withdrawal are noted.
        request: What is asked.
        kind: Message type.
        now: Local time.

    Raises:
        RefusalError: With `CODE_WITHDRAWN` or `CODE_LATER`.
    """
    if state.is_withdrawn(request.run_id):
        raise RefusalError(contract.CODE_WITHDRAWN, f"this hospital has withdrawn from run {request.run_id}")
    if kind == contract.DELIVER:
        return
    since = state.paused_since()
    if since is not None:
        raise RefusalError(contract.CODE_LATER, f"paused since {since}")
    if policy is not None and policy.working_hours is not None and not is_within(policy.working_hours, now.time()):
        raise RefusalError(contract.CODE_LATER, f"{now:%H:%M} is outside policy.working_hours {policy.working_hours}")


def check_memory(accept: AcceptedConfig, state: SiteState, request: Request, kind: str) -> None:
    """Refuses what goes against what this hospital answered before, in this run or another.

    Args:
        accept: The site file's.
        state: What was answered.
        request: What is asked.
        kind: Message type.

    Raises:
        RefusalError: With every fault.
    """
    runs, faults = state.answered_runs(), []
    if kind == contract.DELIVER:
        _refuse([] if request.run_id in runs else [f"run {request.run_id} delivers, and was never answered here"])
        return
    if request.run_id not in runs and len(runs) >= accept.max_runs:
        faults.append(f"{len(runs)} runs were answered here, policy.accept.max_runs is {accept.max_runs}: raise it")
    fraction = state.validation_fraction() if accept.validation_fraction is None else None
    if fraction not in (None, request.validation_fraction):
        faults.append(
            f"the validation share is {request.validation_fraction}, and {fraction} was answered before: ask the "
            f"centre to go back to {fraction}, or accept the new one for good with policy.accept.validation_fraction"
        )
    _refuse(faults)


def is_within(working_hours: str, moment: time) -> bool:
    """Whether a time of day lies in ``HH:MM-HH:MM``; the end is outside, and the hours may go over midnight.

    Equal times mean the whole day.
    """
    begin, end = (time.fromisoformat(part) for part in working_hours.split("-"))
    if begin < end:
        return begin <= moment < end
    return moment >= begin or moment < end


def _refuse(faults: list[str]) -> None:
    if faults:
        raise RefusalError(contract.CODE_AGAINST_POLICY, "; ".join(faults))
