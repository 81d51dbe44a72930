"""The rounds of a federation, from the first to the choice of the model that is released.

A round is one message each way: hospitals judge the arriving global model on their validation part, train it, and
answer with both. The model after round r is therefore judged by the answers of round r + 1, the last one by a closing
evaluate message, which is round `num_rounds` + 1. Nothing here knows whether the hospitals are simulated.

A round that is finished is committed whole. One that was interrupted is asked for again: hospitals give the same
answers to the same request, so the run ends with the same weights, bit for bit.
"""

import logging
import time
from dataclasses import dataclass, field, replace

import numpy as np

from aecnn.contract import EVALUATE, TRAIN
from aecnn.errors import FederationError
from aecnn.model.weights import pack_weights
from aecnn.training.seeds import derive_seed
from server.admission import Fault, by_name, fault_of_judgement, fault_of_update, faults_of_values, reasons_of
from server.average import Update
from server.central_privacy import aggregate_with_noise, clip_of, spent_centrally
from server.exchange import REVOKED, Collected, Envelope
from server.held_out import HeldOut
from server.history import Event, attempt_event, round_event, test_event, validation_event
from server.joining import Reception, absent, wait_for_quorum
from server.judgement import Judgement
from server.members import with_refusals
from server.privacy import is_judged_in
from server.run import Run, reasons
from server.status import iso_in
from server.store import Candidate
from server.strategy import Aggregated, aggregate
from server.wire import Answer
from server.words import counted

log = logging.getLogger(__name__)

MAX_NORMS_KEPT = 20  # rounds whose median norm small rounds are compared with


@dataclass
class Round:
    """What has come in one round, over all its attempts."""

    number: int
    begin: float  # seconds of the run
    chosen: set[str] = field(default_factory=set)  # who trains; the others only judge
    answers: dict[str, Answer] = field(default_factory=dict)  # in order, and admitted
    refused: dict[str, Fault] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    median_norm: float | None = None  # of the admitted updates

    @property
    def updates(self) -> list[Update]:
        """The updates to average, in hospital-name order."""
        return [
            Update(answer.origin.hospital, answer.weights, answer.report.num_images)
            for answer in by_name(self.answers)
            if answer.origin.hospital in self.chosen and answer.weights is not None and answer.report is not None
        ]


def run_rounds(run: Run, reception: Reception, held_out: HeldOut | None) -> None:
    """Runs the rounds that are not finished yet, and has the final model judged.

    Args:
        run: Its hospitals have joined.
        reception: Lets in those that come late.
        held_out: The centre's test images, where every round is scored on them.

    Raises:
        FederationError: Too few updates of a round were fit to average, at every attempt.
    """
    while run.progress.round_number < run.settings.federation.num_rounds:
        _run_round(run, reception, held_out)
    if run.progress.phase == "rounds":
        _close(run)


def _run_round(run: Run, reception: Reception, held_out: HeldOut | None) -> None:
    number, settings = run.progress.round_number + 1, run.settings.federation
    under_way = Round(number, run.seconds)
    for attempt in range(1, settings.max_failed_rounds + 1):
        _try_once(run, reception, under_way, attempt)
        if len(under_way.updates) >= settings.min_hospitals:
            break
        reason = _too_few(run, reception, under_way)
        if attempt == settings.max_failed_rounds:
            raise FederationError(f"round {number}: {reason}")
        log.warning("Round %d is tried again: %s", number, reason)
        run.append(attempt_event(number, attempt, reason))
        run.admit_arrived()
    _finish(run, under_way, attempt, held_out)


def _try_once(run: Run, reception: Reception, under_way: Round, attempt: int) -> None:
    """One attempt, which too few hospitals do not end before the round's timeout: others may come until then."""
    settings = run.settings.federation
    deadline = time.monotonic() + settings.round_timeout_s

    def alongside() -> None:
        _drop_revoked(run, under_way)

    while wait_for_quorum(run, reception, round_number=under_way.number, deadline=deadline, alongside=alongside):
        _ask(run, reception, under_way, attempt)
        _drop_revoked(run, under_way)
        if len(run.present()) >= settings.min_hospitals:
            return


def _ask(run: Run, reception: Reception, under_way: Round, attempt: int) -> None:
    """Asks those whose answer is not there yet, and admits what comes."""
    number, settings = under_way.number, run.settings.federation
    names = run.present()
    under_way.chosen = _participants(run, names, under_way, attempt)
    record = run.model_record()
    envelopes: dict[str, Envelope] = {}
    names = names if _is_judged(run, number) else sorted(under_way.chosen)  # under privacy not all judge each model
    for name in names:
        answer = under_way.answers.get(name)
        if answer is None or (name in under_way.chosen and answer.weights is None):
            kind = TRAIN if name in under_way.chosen else EVALUATE
            envelopes[name] = run.envelope(kind, number, hospital=name, arrays=record)
    run.show(
        replace(
            run.board.status,
            phase="round",
            round=number,
            attempt=attempt,
            asked=tuple(names),
            answered=tuple(sorted(under_way.answers)),
            deadline_at=iso_in(settings.round_timeout_s),
        )
    )
    collected = _collect(run, reception, envelopes, under_way)
    under_way.missing = collected.missing
    under_way.refused = dict(collected.refused)
    del envelopes, record  # a model less in memory while updates are looked through
    _admit(run, under_way, collected.answers)


def _collect(run: Run, reception: Reception, envelopes: dict[str, Envelope], under_way: Round) -> Collected:
    number = under_way.number

    def on_answer(answer: Answer) -> None:
        run.append_answer(number, answer)
        status = run.board.status
        run.show(replace(status, answered=tuple(sorted({*status.answered, answer.origin.hospital}))))

    def on_left(name: str, reason: str) -> None:
        run.remove(name, reason, round_number=number)
        under_way.answers.pop(name, None)

    def alongside() -> None:
        reception.turn(from_round=number + 1)
        run.show_online()

    return run.exchange.ask(
        envelopes,
        round_number=number,
        timeout_s=run.settings.federation.round_timeout_s,
        on_answer=on_answer,
        on_left=on_left,
        alongside=alongside,
    )


def _admit(run: Run, under_way: Round, arrived: dict[str, Answer]) -> None:
    """Sorts the answers that arrived into admitted and refused; all updates of the round are compared."""
    for name, answer in sorted(arrived.items()):
        counts = run.members[name].counts
        fault = fault_of_judgement(
            answer,
            round_number=under_way.number,
            accepted=run.accepted,
            counts=counts,
            plan=run.settings.plan,
            is_judged=_is_judged(run, under_way.number),
        )
        if fault is None and name in under_way.chosen:
            fault = fault_of_update(answer, counts=counts, model=run.model, plan=run.settings.plan)
        if fault is None:
            under_way.answers[name] = answer
        else:
            under_way.refused[name] = fault
    settings = run.settings.federation
    looked = faults_of_values(
        {update.hospital: update.weights for update in under_way.updates},
        model=run.model,
        max_norm_ratio=settings.max_update_norm_ratio if settings.central_privacy is None else None,
        earlier_norms=run.progress.norms,
    )
    under_way.median_norm = looked.median_norm
    for name, fault in looked.faults.items():
        under_way.refused[name] = fault
        del under_way.answers[name]
    for name, reason in reasons_of(under_way.refused).items():
        log.warning("Refused %s: %s", name, reason)
    for name in under_way.missing:
        log.warning("No answer from %s", name)


def _finish(run: Run, under_way: Round, attempt: int, held_out: HeldOut | None) -> None:
    """Averages, judges, writes the history, and commits all of it in one step."""
    number, updates = under_way.number, under_way.updates
    aggregated, central = _aggregated(run, updates, number)
    answers = by_name(under_way.answers)
    judged_macro_auroc = _tell_validation(run, number - 1, answers)
    run.append(
        round_event(
            number,
            answers,
            admitted=[update.hospital for update in updates],
            attempt=attempt,
            seconds=run.seconds - under_way.begin,
            refused=reasons_of(under_way.refused),
            missing=under_way.missing,
            privacy=run.spending.by_hospital(),
            central_privacy=central,
        )
    )
    if held_out is not None:
        run.show(replace(run.board.status, phase="testing", deadline_at=None))
        run.append(test_event(number, held_out.score(aggregated.weights).metrics))
    _commit(run, under_way, aggregated, judged_macro_auroc=judged_macro_auroc)
    run.spool.forget_round(number)


def _aggregated(run: Run, updates: list[Update], number: int) -> tuple[Aggregated, Event | None]:
    """The next global model, and what noise of the centre's own has cost by now, where there is any."""
    settings, state = run.settings.federation, run.store.strategy_state()
    central = settings.central_privacy
    if central is None:
        return aggregate(settings.strategy, updates, model=run.model, state=state, round_number=number), None
    aggregated = aggregate_with_noise(central, updates, model=run.model, state=state, round_number=number)
    spent = spent_centrally(central, num_rounds=number, num_updates=len(updates), clip=clip_of(central, state))
    return aggregated, spent


def _tell_validation(run: Run, number: int, answers: list[Answer]) -> float | None:
    """Adds to the history how the model after a round was judged; under privacy most rounds are not judged at all."""
    if run.is_private and all(answer.noised is None for answer in answers):
        return None
    judged = validation_event(number, answers)
    run.append(judged)
    macro_auroc: float | None = judged["macro_auroc"]
    return macro_auroc


def _is_judged(run: Run, number: int) -> bool:
    return is_judged_in(number, plan=run.settings.plan, num_rounds=run.settings.federation.num_rounds)


def _commit(run: Run, under_way: Round, aggregated: Aggregated, *, judged_macro_auroc: float | None) -> None:
    """Keeps the round; the model before it, which it judged, may become the candidate for release."""
    number = under_way.number
    candidate, promotes = run.progress.candidate, False
    if number > 1 and run.settings.federation.released_round == "best":
        present = Candidate(number - 1, judged_macro_auroc)
        candidate = better(candidate, present)
        promotes = candidate is present
    run.admit_arrived()
    codes = {name: fault.code for name, fault in under_way.refused.items() if name in under_way.chosen}
    members = with_refusals(run.members, codes, {update.hospital for update in under_way.updates})
    norms = run.progress.norms + (() if under_way.median_norm is None else (under_way.median_norm,))
    run.commit(
        replace(run.progress, round_number=number, members=members, candidate=candidate, norms=norms[-MAX_NORMS_KEPT:]),
        weights=pack_weights(aggregated.weights).data,
        strategy=aggregated.state,
        promotes=promotes,
        judgement=_judgement(run, under_way) if promotes else None,
    )


def _close(run: Run) -> None:
    """Has every hospital judge the final model, and settles which model is released."""
    settings = run.settings.federation
    number = settings.num_rounds + 1
    record, names = run.model_record(), run.present() if _is_judged(run, number) else []
    envelopes = {name: run.envelope(EVALUATE, number, hospital=name, arrays=record) for name in names}
    deadline_at = iso_in(settings.round_timeout_s)
    run.show(
        replace(run.board.status, phase="closing", asked=tuple(names), answered=(), attempt=1, deadline_at=deadline_at)
    )
    collected = run.exchange.ask(
        envelopes,
        round_number=number,
        timeout_s=settings.round_timeout_s,
        on_answer=lambda answer: run.append_answer(number, answer) if answer.noised is not None else None,
        on_left=lambda name, reason: run.remove(name, reason, round_number=number),
        alongside=run.show_online,
    )
    closing = Round(number, run.seconds, refused=dict(collected.refused), missing=collected.missing)
    _admit(run, closing, collected.answers)
    final = Candidate(settings.num_rounds, _tell_validation(run, settings.num_rounds, by_name(closing.answers)))
    candidate = final if settings.released_round == "last" else better(run.progress.candidate, final)
    run.commit(
        replace(run.progress, phase="released", candidate=candidate),
        promotes=candidate is final,
        judgement=_judgement(run, closing) if candidate is final else None,
    )


def _judgement(run: Run, under_way: Round) -> bytes | None:
    """How a round's answers judged the model before it, to be kept; under privacy there are no exact counts."""
    if run.is_private:
        return None
    return Judgement.of(under_way.number - 1, by_name(under_way.answers)).packed()


def _drop_revoked(run: Run, under_way: Round) -> None:
    """Takes out those that were revoked since they answered, in an earlier attempt too: they are not averaged."""
    for name in run.revoked():
        run.remove(name, REVOKED, round_number=under_way.number)
        under_way.answers.pop(name, None)


def _participants(run: Run, names: list[str], under_way: Round, attempt: int) -> set[str]:
    """Draws this attempt's training hospitals by name.

    The first draw of a round follows from the run's seed and the round. A later one keeps those whose update is there,
    and draws others: who is online before who is not, and who has just failed last.
    """
    settings = run.settings.federation
    count = max(settings.min_hospitals, round(settings.fraction * len(names)))
    again = () if attempt == 1 else (attempt,)
    random = np.random.default_rng(derive_seed(run.settings.seed, "participants", under_way.number, *again))
    drawn = [names[index] for index in random.permutation(len(names))]
    if under_way.chosen:
        trained = {update.hospital for update in under_way.updates}
        online, failed = run.exchange.online(), {*under_way.refused, *under_way.missing}
        drawn.sort(key=lambda name: (name not in trained, name not in online, name in failed))
    return set(drawn[:count])


def better(candidate: Candidate | None, new: Candidate) -> Candidate:
    """Gives whichever is to be released by its validation AUROC; where there is nothing to choose by, the later one."""
    if candidate is None or candidate.validation_macro_auroc is None:
        return new
    if new.validation_macro_auroc is None or new.validation_macro_auroc < candidate.validation_macro_auroc:
        return candidate
    return new


def _too_few(run: Run, reception: Reception, under_way: Round) -> str:
    needed, present = run.settings.federation.min_hospitals, len(run.present())
    told = reasons(reasons_of(under_way.refused), under_way.missing, {})
    given = counted(len(under_way.updates), "hospital")
    found = f"{given} gave an update fit to average, and {needed} are needed"
    if present < needed:
        told += absent(run, reception)
        found = f"{found}; taking part: {', '.join(run.present()) or 'nobody'}"
    return found + "".join(f"\n  - {reason}" for reason in told)
