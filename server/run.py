"""One run under way: what it was asked to be, where its things lie, and how far it has come."""

import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from aecnn.contract import PACKED, WEIGHTS, Request
from aecnn.errors import PrivacyError
from aecnn.model.joint import build_model
from aecnn.model.weights import pack_weights, weights_of
from server.admission import accepted_fingerprints
from server.exchange import REVOKED, Envelope, Exchange
from server.history import Event, answer_event, left_event, resume_event
from server.members import EnrolledHospitals, Members, present
from server.privacy import Spending, cost_of, fault_of_report, promise_to
from server.run_folder import RunFolder
from server.settings import RunSettings
from server.spool import Spool, SpooledWeights
from server.status import OnStatus, RunStatus, StatusBoard
from server.store import Progress, RoundStore
from server.wire import Answer, bytes_record, request_content


@dataclass
class Run:
    """The run's settings, its places, and its state."""

    settings: RunSettings
    folder: RunFolder
    store: RoundStore
    spool: Spool
    exchange: Exchange
    enrolled: EnrolledHospitals | None
    board: StatusBoard
    accepted: frozenset[str]  # fingerprints of the code that may take part
    progress: Progress
    model: SpooledWeights  # the present global model
    spending: Spending  # of the hospitals' patients
    begin: float = field(default_factory=time.monotonic)
    arrived: Members = field(default_factory=dict)  # joined since the last step, and take part from the next

    @property
    def members(self) -> Members:
        """All that ever joined."""
        return self.progress.joined

    @property
    def is_private(self) -> bool:
        """Whether the hospitals train with differential privacy."""
        return self.settings.plan.training.privacy is not None

    @property
    def seconds(self) -> float:
        """That the run has taken, over all its processes."""
        return self.progress.seconds + time.monotonic() - self.begin

    def append(self, event: Event) -> None:
        """Adds an event to the history."""
        self.folder.append_event(event)

    def append_answer(self, round_number: int, answer: Answer) -> None:
        """Adds an answer to the history, with what it cost and what its hospital's patients have spent by now."""
        event, hospital = answer_event(round_number, answer, cost=self._cost(answer)), answer.origin.hospital
        self.spending.add(event)
        spent = self.spending.of(hospital)
        self.append(event if spent is None else {**event, "privacy": spent})

    def _cost(self, answer: Answer) -> Event | None:
        """What an answer cost in privacy; one that is not as the plan asks is refused, and not believed."""
        member, plan, report = self.members.get(answer.origin.hospital), self.settings.plan, answer.report
        if member is None or not self.is_private or (report is None and answer.noised is None):
            return None
        if report is not None and fault_of_report(report, counts=member.counts, plan=plan) is not None:
            return None
        try:
            promise = promise_to(member.counts, plan)
        except PrivacyError:
            return None
        return None if promise is None else cost_of(report, promise=promise, is_judged=answer.noised is not None)

    def commit(
        self,
        progress: Progress,
        *,
        weights: bytes | memoryview | None = None,
        strategy: bytes | memoryview | None = None,
        promotes: bool = False,
        judgement: bytes | None = None,
    ) -> None:
        """Keeps a finished step: from here the run goes on after a crash.

        Args:
            progress: The step; its history and its time are filled in.
            weights: The new global model, if there is one.
            strategy: The strategy's new state, if there is one.
            promotes: The global model that was present until now becomes the candidate for release.
            judgement: How that model was judged, where it becomes the candidate.
        """
        seconds, self.begin = self.seconds, time.monotonic()
        self.progress = replace(progress, history_bytes=self.folder.history_bytes, seconds=seconds)
        self.store.commit(
            self.progress, weights=weights, strategy=strategy, judgement=judgement, is_candidate_new=promotes
        )
        if weights is not None:
            self.model = self.spool.put_model(weights)

    def admit_arrived(self) -> None:
        """Makes those who joined in the meantime members."""
        self.progress = replace(self.progress, members={**self.members, **self.arrived})
        self.arrived = {}

    def remove(self, name: str, reason: str, *, round_number: int) -> None:
        """Takes out who withdrew, for the rest of the run, or was revoked: as if it had never been here.

        Who was revoked may be enrolled anew, even before this is called, and then joins like any other.
        """
        self.append(left_event(name, reason, round_number))
        members = {other: member for other, member in self.members.items() if other != name}
        if reason != REVOKED:
            members[name] = replace(self.members[name], left=reason)
        self.progress = replace(self.progress, members=members)

    def revoked(self) -> list[str]:
        """Gives who takes part and is no longer enrolled."""
        listed = None if self.enrolled is None else self.enrolled()
        return [] if listed is None else [name for name in self.present() if name not in listed]

    def envelope(
        self, kind: str, round_number: int, *, hospital: str | None = None, arrays: Mapping[str, ArrayRecord]
    ) -> Envelope:
        """Gives what a hospital is sent; the records of arrays go to all hospitals, and each is held once."""
        request = Request(
            run=self.settings.name,
            run_id=self.progress.run_id,
            round=round_number,
            seed=self.settings.seed,
            plan_json=self.settings.plan.model_dump_json(),
            validation_fraction=self.settings.federation.validation_fraction,
            last_refusal=0 if hospital is None else self.members[hospital].last_refusal,
        )
        return Envelope(kind, request_content(request, arrays))

    def model_record(self) -> dict[str, ArrayRecord]:
        """Gives the present global model as a message carries it: one model in memory."""
        return {WEIGHTS: bytes_record({PACKED: self.model.path.read_bytes()})}

    def show(self, status: RunStatus) -> None:
        """Tells those who follow the run."""
        self.board.show(status)

    def show_online(self) -> None:
        """Tells who is online where that has changed."""
        self.board.show(replace(self.board.status, online=tuple(sorted(self.exchange.online()))))

    def present(self) -> list[str]:
        """Gives who takes part, in order."""
        return present(self.members)


def open_run(
    grid: Grid,
    settings: RunSettings,
    folder: RunFolder,
    store: RoundStore,
    *,
    enrolled: EnrolledHospitals | None,
    on_status: OnStatus | None,
) -> Run:
    """Begins a run in a folder, or takes up the one that was interrupted there.

    Raises:
        ModelError: The model cannot be built as asked.
    """
    spool = Spool(folder.spool_folder)
    spool.remove()  # whatever was under way is asked for again
    progress = _progress(store)
    folder.cut_history(progress.history_bytes)
    status = RunStatus(folder.path.name, progress.run_id, settings.federation.num_rounds, round=progress.round_number)
    run = Run(
        settings=settings,
        folder=folder,
        store=store,
        spool=spool,
        exchange=Exchange(grid, spool, enrolled=enrolled),
        enrolled=enrolled,
        board=StatusBoard(status, on_status),
        accepted=accepted_fingerprints(settings.accepted_fingerprints),
        progress=progress,
        model=spool.put_model(_present_model(settings, store, progress)),
        spending=_spending(settings, folder),
    )
    if progress.phase in ("rounds", "released"):
        run.append(resume_event(progress.round_number, run.present()))
    return run


def _spending(settings: RunSettings, folder: RunFolder) -> Spending:
    """What the patients have spent by the answers in the history."""
    privacy = settings.plan.training.privacy
    return Spending("prv" if privacy is None else privacy.accountant, folder.events() if privacy else ())


def _progress(store: RoundStore) -> Progress:
    """How far the run has come; a new one gets its id here."""
    progress = store.progress()
    if progress is None:
        progress = Progress(run_id=secrets.token_hex(8))
        store.commit(progress)
    return progress


def _present_model(settings: RunSettings, store: RoundStore, progress: Progress) -> bytes | memoryview:
    """The global model of the last finished round; before the first, the one that the seed gives."""
    if progress.phase != "joining":
        return store.weights()
    plan = settings.plan
    initial = weights_of(build_model(plan.model, seed=settings.seed, input_size_px=plan.images.input_size_px))
    return pack_weights(initial).data


def reasons(refused: dict[str, str], missing: Iterable[str], left: dict[str, str]) -> list[str]:
    """Gives who is not there and why, one sentence each."""
    told = [f"{name}: {reason}" for name, reason in sorted((refused | left).items())]
    return told + [f"{name}: did not answer in time" for name in sorted(missing)]
