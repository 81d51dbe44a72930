"""The rounds of a federation, from the first question to the released weights.

A round is one message each way: hospitals judge the arriving global model on their validation part, train it, and
answer with both. The model after round r is therefore judged by the answers of round r + 1, the last one by a closing
evaluate message. Nothing here knows whether the hospitals are simulated.
"""

import logging
import time
from dataclasses import dataclass

import numpy as np
from flwr.app import MessageType
from flwr.serverapp import Grid

from aecnn.config import FederationConfig, Plan
from aecnn.contract import HospitalCounts, Request, code_fingerprint
from aecnn.errors import FederationError
from aecnn.training.seeds import derive_seed
from server.admission import by_name, fault_of_judgement, fault_of_update
from server.average import federated_average
from server.exchange import Collected, ask, wait_for_nodes
from server.history import answer_event, round_event, start_event, validation_event
from server.run_folder import RunFolder
from server.wire import Weights, request_content

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Federation:
    """One run's settings, and where its history goes."""

    run: str
    run_id: str
    seed: int
    settings: FederationConfig
    plan: Plan
    folder: RunFolder


@dataclass(frozen=True)
class Member:
    """A hospital that joined: its node and what it declared."""

    node_id: int
    counts: HospitalCounts


@dataclass(frozen=True)
class Released:
    """The weights a run gives out, and the round they come from."""

    round_number: int
    weights: Weights
    validation_macro_auroc: float | None


def run_federation(grid: Grid, federation: Federation, initial: Weights, *, expected_nodes: int) -> Released:
    """Runs all rounds and writes each into the history.

    Raises:
        FederationError: Too few hospitals joined, or too few updates of a round were fit to average.
    """
    members = _join(grid, federation, expected_nodes=expected_nodes)
    weights, candidate = initial, Released(0, initial, None)
    for round_number in range(1, federation.settings.num_rounds + 1):
        judged, averaged = _run_round(grid, federation, members, round_number, weights)
        candidate = better(federation, candidate, Released(round_number - 1, weights, judged))
        weights = averaged
    judged = _close(grid, federation, members, weights)
    return better(federation, candidate, Released(federation.settings.num_rounds, weights, judged))


def _join(grid: Grid, federation: Federation, *, expected_nodes: int) -> dict[str, Member]:
    """Asks every node who it is; those with other code are left out by name."""
    settings = federation.settings
    nodes = wait_for_nodes(grid, at_least=expected_nodes, timeout_s=settings.join_timeout_s)
    content = request_content(_request(federation, 0), None)
    collected = ask(
        grid,
        dict.fromkeys(nodes, (MessageType.QUERY, content)),
        group="0",
        names={},
        timeout_s=settings.join_timeout_s,
    )
    fingerprint, members = code_fingerprint(), {}
    for answer in by_name(collected.answers):
        name = answer.origin.hospital
        if answer.origin.fingerprint != fingerprint:
            collected.refused[name] = "runs other code than the centre: install one version"
        elif answer.counts is None:
            collected.refused[name] = "does not say how much it holds"
        else:
            members[name] = Member(answer.node_id, answer.counts)
    _log_refusals(collected)
    if len(members) < settings.min_hospitals:
        raise FederationError(_too_few("joined", len(members), settings.min_hospitals, collected))
    federation.folder.append_event(
        start_event(federation.run, {name: member.counts for name, member in members.items()})
    )
    return members


def _run_round(
    grid: Grid, federation: Federation, members: dict[str, Member], round_number: int, weights: Weights
) -> tuple[float | None, Weights]:
    """One round: gives the arriving model's pooled validation AUROC and the averaged weights."""
    begin, settings, folder = time.monotonic(), federation.settings, federation.folder
    content = request_content(_request(federation, round_number), weights)
    chosen = _participants(federation, sorted(members), round_number)
    collected = ask(
        grid,
        {
            member.node_id: (MessageType.TRAIN if name in chosen else MessageType.EVALUATE, content)
            for name, member in members.items()
        },
        group=str(round_number),
        names={member.node_id: name for name, member in members.items()},
        timeout_s=settings.round_timeout_s,
        on_answer=lambda answer: folder.append_event(answer_event(round_number, answer)),
    )
    _admit(collected, members, round_number, trained=chosen, model=weights)
    answers = by_name(collected.answers)
    judged = validation_event(round_number - 1, answers)
    folder.append_event(judged)
    updates = [(a.weights, a.report.num_images) for a in answers if a.weights is not None and a.report is not None]
    needed = min(settings.min_hospitals, len(chosen))
    if len(updates) < needed:
        raise FederationError(
            f"round {round_number}: " + _too_few("gave an update fit to average", len(updates), needed, collected)
        )
    averaged = federated_average(updates)
    seconds = time.monotonic() - begin
    folder.append_event(
        round_event(round_number, answers, seconds=seconds, refused=collected.refused, missing=collected.missing)
    )
    return judged["macro_auroc"], averaged


def _close(grid: Grid, federation: Federation, members: dict[str, Member], weights: Weights) -> float | None:
    """Has every hospital judge the final model; gives the pooled validation AUROC."""
    number = federation.settings.num_rounds
    content = request_content(_request(federation, number), weights)
    collected = ask(
        grid,
        {member.node_id: (MessageType.EVALUATE, content) for member in members.values()},
        group="closing",
        names={member.node_id: name for name, member in members.items()},
        timeout_s=federation.settings.round_timeout_s,
    )
    _admit(collected, members, number, trained=set(), model=weights)
    judged = validation_event(number, by_name(collected.answers))
    federation.folder.append_event(judged)
    macro_auroc: float | None = judged["macro_auroc"]
    return macro_auroc


def _admit(
    collected: Collected, members: dict[str, Member], round_number: int, *, trained: set[str], model: Weights
) -> None:
    """Moves the answers that break a rule from `answers` to `refused`, each with its reason."""
    fingerprint = code_fingerprint()
    for name, answer in list(collected.answers.items()):
        counts = members[name].counts
        fault = fault_of_judgement(answer, round_number=round_number, fingerprint=fingerprint, counts=counts)
        if fault is None and name in trained:
            fault = fault_of_update(answer, counts=counts, model=model)
        if fault is not None:
            collected.refused[name] = fault
            del collected.answers[name]
    _log_refusals(collected)


def _participants(federation: Federation, names: list[str], round_number: int) -> set[str]:
    """Draws this round's training hospitals by name; the draw follows from the run's seed and the round."""
    count = max(federation.settings.min_hospitals, round(federation.settings.fraction * len(names)))
    random = np.random.default_rng(derive_seed(federation.seed, "participants", round_number))
    return {names[index] for index in random.permutation(len(names))[:count]}


def better(federation: Federation, candidate: Released, new: Released) -> Released:
    """Gives whichever is to be released; the initial weights never are."""
    if candidate.round_number == 0 or federation.settings.released_round == "last":
        return new
    if candidate.validation_macro_auroc is None:
        return new  # nothing to choose by: the later one
    if new.validation_macro_auroc is None or new.validation_macro_auroc < candidate.validation_macro_auroc:
        return candidate
    return new


def _request(federation: Federation, round_number: int) -> Request:
    return Request(
        run=federation.run,
        run_id=federation.run_id,
        round=round_number,
        seed=federation.seed,
        plan_json=federation.plan.model_dump_json(),
        validation_fraction=federation.settings.validation_fraction,
    )


def _too_few(what: str, found: int, needed: int, collected: Collected) -> str:
    reasons = [f"{name}: {reason}" for name, reason in sorted(collected.refused.items())]
    reasons += [f"{name}: did not answer in time" for name in collected.missing]
    told = "".join(f"\n  - {reason}" for reason in reasons)
    return f"{found} hospital(s) {what}, and {needed} are needed{told}"


def _log_refusals(collected: Collected) -> None:
    for name, reason in sorted(collected.refused.items()):
        log.warning("Refused %s: %s", name, reason)
    for name in collected.missing:
        log.warning("No answer from %s", name)
