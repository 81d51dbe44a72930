"""What the desk's answers cost the patients: reserved in the hospital's ledger before the work, settled afterwards.

A ledger that is missing, another one, or older than what this client saw of it is refused: a backup that was put back
does not know what was spent since.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aecnn import contract
from aecnn.contract import Request
from aecnn.errors import PrivacyError
from aecnn.training.batches import Rows
from aecnn.training.privacy.accounting import Mechanism, default_delta
from client.audit_log import NOTE, AuditLog, last_with
from client.ledger import EVALUATE, TRAIN, UNPROTECTED, About, Cost, Ledger, Limit, Reservation
from client.ledger_store import LedgerMark, create_ledger, has_ledger
from client.paths import SitePaths
from client.policy import check_validation, planned_steps
from client.privacy import noised_evaluation, promise_at
from client.refusal import RefusalError
from client.replies import Asked
from client.site import Hospital, PolicyConfig, PrivacyPolicyConfig, TrainingData, read_hospital, read_training_data
from client.state import SiteState

LINE_KEY = "ledger"  # of a line of the audit log: the mark of the ledger after the answer
_ROUNDING = 1e-3  # of ε: the noise was solved for the limit
_MARK_KEYS = ("id", "sequence", "mark")


@dataclass(frozen=True)
class Reserved:
    """What pays for one private answer."""

    reservation: Reservation
    ledger: Ledger
    hospital: Hospital  # as read when its patients were charged
    epsilon: float | None  # of the run's training, this answer included; None: it trains nobody


class Spending:
    """What one client takes from the hospital's ledger.

    Args:
        paths: The client's folder.
        state: What it remembers of the ledger.
    """

    def __init__(self, paths: SitePaths, state: SiteState) -> None:
        self._paths, self._state = paths, state
        self.mark: LedgerMark | None = None  # after the last change for the message being answered
        seen = ledger_seen(paths.audit_log, state)
        if seen is not None:
            state.set_ledger_seen(seen)

    def reserve(self, request: Request, asked: Asked, policy: PolicyConfig) -> Reserved | None:
        """Reserves what the answer to a request costs; None where the answer costs nothing.

        Whoever asks for privacy is not even told a size without a ledger that can be trusted.

        Raises:
            RefusalError: The budget, or the state of the ledger, does not allow it.
            ManifestError: The data cannot be read.
        """
        if request.plan.training.privacy is None:
            return None
        try:
            ledger = self._ledger(policy.privacy)
            hospital = read_hospital(self._paths.site)
            data = _data(hospital, request)
            costs = costs_of(hospital, data, request, kind=asked.key.kind)
            if not costs:
                return None
            reservation = ledger.reserve(costs, self._about(request, asked), limit_of(policy.privacy))
            self._note(ledger)
            self._refuse_many_evaluations(hospital, data, request, policy.privacy, ledger)
            epsilon = None
            if asked.key.kind == contract.TRAIN:
                promise = promise_at(hospital, data, request)
                delta = limit_of(policy.privacy).delta if promise is None else promise.delta
                epsilon = ledger.spent_of_run(request.run_id, delta=delta, what=TRAIN)
        except PrivacyError as error:
            raise RefusalError(contract.CODE_BUDGET, str(error)) from error
        return Reserved(reservation, ledger, hospital, epsilon)

    def refuse_other_patients(self, reserved: Reserved) -> None:
        """Keeps an answer in whose patients may not be those that were charged.

        Whatever changes in the site file but its policy, or among those who withdrew, has the patients read anew, and
        be it changed back: the manifest is another object then.

        Raises:
            RefusalError: They were read anew since.
        """
        if read_hospital(self._paths.site).manifest is not reserved.hospital.manifest:
            reason = "the site file or a list of withdrawn patients changed while the answer was made"
            raise RefusalError(contract.CODE_WITHHELD, f"{reason}: others than those who were charged may be in it")

    def refuse_less_than_before(self, request: Request, policy: PolicyConfig) -> None:
        """Refuses a request without privacy in a run that had it: exact figures would stand beside noised ones.

        Raises:
            RefusalError: The run was answered with differential privacy, or the ledger is not to be trusted.
        """
        if policy.privacy.ledger_folder is None:
            return
        try:
            charges = self._ledger(policy.privacy).charges()
        except PrivacyError as error:
            raise RefusalError(contract.CODE_BUDGET, str(error)) from error
        if any(charge.is_protected and charge.about.run_id == request.run_id for charge in charges):
            reason = f"run {request.run} was answered with differential privacy, and now asks without"
            raise RefusalError(contract.CODE_AGAINST_POLICY, reason)

    def settle(self, reserved: Reserved, *, content: str) -> None:
        """Notes which answer was paid for; the answer may leave afterwards, and not before.

        Raises:
            RefusalError: It cannot be noted. The answer is kept, and what it cost counts.
        """
        try:
            reserved.ledger.settle(reserved.reservation, content=content)
            self._note(reserved.ledger)
        except PrivacyError as error:
            raise RefusalError(contract.CODE_BUDGET, str(error)) from error

    def record_unprotected(self, request: Request, asked: Asked, policy: PolicyConfig, *, content: str) -> None:
        """Notes whom an answer tells of without privacy, where the site has a ledger.

        Raises:
            RefusalError: The ledger is not to be trusted, or cannot be written.
            ManifestError: The data cannot be read.
        """
        if policy.privacy.ledger_folder is None:
            return
        told_of = _exact_costs(_data(read_hospital(self._paths.site), request), request, kind=asked.key.kind)
        try:
            ledger = self._ledger(policy.privacy)
            ledger.record_unprotected(told_of, self._about(request, asked), content=content)
            self._note(ledger)
        except PrivacyError as error:
            raise RefusalError(contract.CODE_BUDGET, str(error)) from error

    def settle_again(self, request: Request, asked: Asked, policy: PolicyConfig, *, content: str) -> None:
        """Makes sure that a kept answer was paid for before it goes out again: a crash may have come between.

        Raises:
            RefusalError: It was not.
            ManifestError: The data cannot be read.
        """
        if request.plan.training.privacy is None:
            self.record_unprotected(request, asked, policy, content=content)
            return
        hospital = read_hospital(self._paths.site)
        if not costs_of(hospital, _data(hospital, request), request, kind=asked.key.kind):
            return
        try:
            ledger = self._ledger(policy.privacy)
            ledger.settle_again(self._about(request, asked), content=content)
            self._note(ledger)
        except PrivacyError as error:
            raise RefusalError(contract.CODE_BUDGET, str(error)) from error

    @staticmethod
    def _refuse_many_evaluations(
        hospital: Hospital, data: TrainingData, request: Request, policy: PrivacyPolicyConfig, ledger: Ledger
    ) -> None:
        """Holds all of a run's noised histograms together against the site file's limit; what was reserved is spent."""
        promise = promise_at(hospital, data, request)
        if promise is None or policy.max_evaluation_epsilon is None:
            return
        spent = ledger.spent_of_run(request.run_id, delta=promise.delta, what=EVALUATE)
        if spent > policy.max_evaluation_epsilon * (1.0 + _ROUNDING):
            raise PrivacyError(
                f"the noised histograms of run {request.run} come to ε {spent:.2f} at δ {promise.delta:.3g}, and "
                f"policy.privacy.max_evaluation_epsilon is {policy.max_evaluation_epsilon:g}"
            )

    def _about(self, request: Request, asked: Asked) -> About:
        key = asked.key
        return About(self._state.client_name(), key.run_id, request.run, key.kind, key.round, asked.request)

    def _ledger(self, policy: PrivacyPolicyConfig) -> Ledger:
        return trusted_ledger(policy.ledger_folder, self._state.ledger_seen())

    def _note(self, ledger: Ledger) -> None:
        self.mark = ledger.mark()
        self._state.set_ledger_seen(self.mark)


def trusted_ledger(folder: Path | None, seen: LedgerMark | None) -> Ledger:
    """Opens the ledger that this client saw last, with everything it had then.

    Args:
        folder: The site file's.
        seen: What the client remembers; None before it saw one.

    Raises:
        PrivacyError: There is none, or it is another one, or an older copy.
    """
    if folder is None:
        raise PrivacyError(
            "policy.privacy.ledger_folder is null, so nobody would know what the patients have spent: name a folder "
            "on a disk of this machine, then aecnn-client budget --adopt-ledger"
        )
    if not has_ledger(folder):
        raise PrivacyError(
            f"there is no privacy ledger in {folder}: without it nobody knows what was spent. Restore it as it was, or "
            "mend policy.privacy.ledger_folder; if it is lost for good, or was never made: aecnn-client budget "
            "--adopt-ledger"
        )
    ledger = Ledger.open(folder)
    if seen is not None and not ledger.holds(seen):
        found = ledger.mark()
        what = "an older copy" if found.ledger == seen.ledger else "another ledger"
        raise PrivacyError(
            f"{folder} holds {what} (ledger {found.ledger[:8]}, change {found.sequence}) than this client saw (ledger "
            f"{seen.ledger[:8]}, change {seen.sequence}): what was spent since is not in it, and a backup refunds "
            "nothing. Restore the one that was seen; if it is lost for good: aecnn-client budget --adopt-ledger"
        )
    return ledger


def ledger_seen(audit_log: Path, state: SiteState) -> LedgerMark | None:
    """Gives the ledger that a client saw last: as its state says, or its audit log where that knows more."""
    logged, seen = _mark_in(last_with(audit_log, LINE_KEY)), state.ledger_seen()
    if logged is None or (seen is not None and seen.ledger == logged.ledger and seen.sequence >= logged.sequence):
        return seen
    return logged


def adopt_ledger(paths: SitePaths, folder: Path) -> tuple[LedgerMark, bool]:
    """Makes a client use the ledger that lies in a folder, or a new one where there is none; its audit log says so.

    What an earlier ledger had is not in it: this is for a ledger that is lost for good, and for a first one.

    Returns:
        How far the ledger has come, and whether it was made now.

    Raises:
        PrivacyError: The one that is there is damaged, or the folder is no place for one.
    """
    is_new = not has_ledger(folder)
    if is_new:
        create_ledger(folder)
    mark, state = Ledger.open(folder).mark(), SiteState(paths.database)
    log, seen = AuditLog(paths.audit_log, state), ledger_seen(paths.audit_log, state)
    was = "before it there was none" if seen is None else f"in place of {seen.ledger}, change {seen.sequence}"
    told = f"the privacy ledger {mark.ledger}, change {mark.sequence}, was adopted by hand; {was}"
    log.append({"direction": NOTE, "decision": told, LINE_KEY: mark.to_json()})
    state.set_ledger_seen(mark)
    return mark, is_new


def costs_of(hospital: Hospital, data: TrainingData, request: Request, *, kind: str) -> list[Cost]:
    """Gives what an answer does to patients: its training, and the noised histogram where one will be in it.

    Raises:
        RefusalError: The site file does not allow what the plan promises.
    """
    promise, policy = promise_at(hospital, data, request), hospital.config.policy
    if promise is None or policy is None:
        return []
    costs = []
    if kind == contract.TRAIN:
        costs.append(Cost(TRAIN, _patients(data, data.train_rows), promise.round))
    if policy.report.histograms and promise.evaluation is not None and noised_evaluation(request, kind) is not None:
        validating = _patients(data, data.validation_rows)
        if validating and _may_tell(policy, data):
            costs.append(Cost(EVALUATE, validating, promise.evaluation))
    return costs


def _exact_costs(data: TrainingData, request: Request, *, kind: str) -> list[Cost]:
    """Whom an answer without privacy tells of: by their counts, their scores, or weights that were trained on them."""
    training, validating = _patients(data, data.train_rows), _patients(data, data.validation_rows)
    if kind == contract.JOIN:
        told_of = [([*training, *validating], 0)]
    elif kind == contract.TRAIN:
        told_of = [(training, planned_steps(request.plan, data)), (validating, 0)]
    else:
        told_of = [(validating, 0)]
    return [Cost(UNPROTECTED, patients, Mechanism(0.0, 1.0, steps)) for patients, steps in told_of if patients]


def limit_of(policy: PrivacyPolicyConfig, *, otherwise: int = 1) -> Limit:
    """Gives the site file's cap, and the δ at which it counts.

    Args:
        policy: The site file's.
        otherwise: Patients from whose number δ follows where the site file declares none.
    """
    delta = default_delta(policy.patients or max(1, otherwise)) if policy.delta is None else policy.delta
    return Limit(policy.max_epsilon, delta)


def _may_tell(policy: PolicyConfig, data: TrainingData) -> bool:
    try:
        check_validation(policy, data)
    except RefusalError:
        return False
    return True


def _data(hospital: Hospital, request: Request) -> TrainingData:
    return read_training_data(hospital, request.plan.images.size_px, request.validation_fraction)


def _patients(data: TrainingData, rows: Rows) -> list[str]:
    return [str(patient) for patient in data.loaded.manifest.table["patient"].iloc[rows].unique()]


def _mark_in(line: dict[str, Any] | None) -> LedgerMark | None:
    found = None if line is None else line[LINE_KEY]
    if not isinstance(found, dict) or set(found) != set(_MARK_KEYS) or type(found["sequence"]) is not int:
        return None
    return LedgerMark(str(found["id"]), found["sequence"], str(found["mark"]))
