"""The hospital's answer to one message: logged as it came, looked up, made by the installed app, kept, logged, given.

Nothing leaves that is not in the audit log before, no round is answered twice, and what costs the patients privacy is
reserved before the work and settled before it leaves. Flower's node is not known here.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from aecnn import contract
from aecnn.config import load_config
from aecnn.contract import Request
from aecnn.data.consent import consent_state
from aecnn.errors import AecnnError, ManifestError
from client.audit_log import IN, OUT, AuditLog
from client.deployment import Deployment, node_settings
from client.guard import DECISION
from client.inventory import Inventory, digest_of, inventory_of, printable, request_digest, shortened
from client.paths import SitePaths
from client.policy import check_available, check_memory, refuse_against_policy
from client.progress import Progress
from client.refusal import RefusalError, refusal
from client.replies import KEPT_KINDS, Asked, Kept, ReplyStore
from client.site import PolicyConfig, SiteConfig
from client.spending import LINE_KEY, Reserved, Spending
from client.state import RequestKey, SiteState
from client.wire import request_of
from client.words import stage_of

log = logging.getLogger(__name__)

Read = TypeVar("Read")

_PHASES = {
    contract.JOIN: "joining",
    contract.TRAIN: "evaluating",
    contract.EVALUATE: "evaluating",
    contract.PLACE: "evaluating",
}
_NOT_IN_AN_ANSWER: dict[str, Any] = {"working_hours": True, "privacy": {"max_epsilon", "ledger_folder"}}


@dataclass(frozen=True)
class _Answer:
    reply: Message
    decision: str
    inventory: Inventory = field(default_factory=dict)  # of the reply


class Desk:
    """Answers the centre's messages at one hospital.

    Args:
        paths: The hospital's folder.
        app: The installed app.
        clock: Local time.

    Raises:
        AuditError: The audit log is not the one this client wrote.
        ConfigError: The site file is faulty.
    """

    def __init__(self, paths: SitePaths, app: ClientApp, *, clock: Callable[[], datetime] = datetime.now) -> None:
        self._paths, self._app, self._clock = paths, app, clock
        self._name = load_config(paths.site, SiteConfig).name
        self._state = SiteState(paths.database)
        self._audit = AuditLog(paths.audit_log, self._state)
        self._replies = ReplyStore(paths.replies, self._state)
        self._spending = Spending(paths, self._state)

    def answer(self, message: Message) -> Message:
        """Gives the reply to a message; it is in the audit log, and kept if it took work, when the call returns.

        Whatever a message holds, it gets a line and an answer. Only a log that cannot be written ends the worker.
        """
        inventory, request = _readable(_inventory, message), _readable(request_of, message)
        about = {"kind": printable(message.metadata.message_type), **_named(request)}
        line = {"direction": IN, **about, "from": "centre", "to": self._name, "records": shortened(inventory or {})}
        head = self._audit.append(line | {"decision": "received"})
        self._spending.mark = None
        try:
            answer = self._decide(message, request, inventory, head)
        except RefusalError as error:
            answer = _refused(error.code, str(error), message)
        except ManifestError as error:
            answer = _refused(contract.CODE_NO_DATA, f"the data cannot be read: {error}", message)
        except AecnnError as error:
            answer = _refused(contract.CODE_REFUSED, str(error), message)
        except Exception as error:
            log.exception("The message could not be answered")
            answer = _refused(contract.CODE_FAILED, f"it could not be answered ({type(error).__name__})", message)
        line = {"direction": OUT, **about, "from": self._name, "to": "centre", "records": answer.inventory}
        if self._spending.mark is not None:
            line[LINE_KEY] = self._spending.mark.to_json()
        self._audit.append(line | {"decision": answer.decision})
        return answer.reply

    def _decide(
        self, message: Message, request: Request | None, inventory: Inventory | None, head: contract.AuditHead
    ) -> _Answer:
        """Gives the answer.

        Raises:
            RefusalError: There is none, with the code for the centre.
            AecnnError: The site file or the request is faulty.
        """
        kind = message.metadata.message_type
        if request is None or inventory is None or kind not in contract.RECORDS_OF:
            raise RefusalError(contract.CODE_REFUSED, f"a message of type {kind!r} without a request that is known")
        _tell_refusal(request)
        config = load_config(self._paths.site, SiteConfig)
        check_available(config.policy, self._state, request, kind, self._clock())
        if config.policy is not None:
            check_memory(config.policy.accept, self._state, request, kind)
        asked = _asked(request, kind, inventory, config)
        kept = self._replies.find(asked) if kind in KEPT_KINDS else None
        if kept is not None:
            if config.policy is not None:
                self._spending.settle_again(request, asked, config.policy, content=digest_of(kept.inventory))
            stage = stage_of(kind, request.round).capitalize()
            log.info("%s of run %s was answered before: the same answer goes out", stage, request.run)
            return _Answer(Message(kept.content, reply_to=message), "resent", kept.inventory)
        deployment = Deployment(self._paths, head, asked.request, kind)
        Progress.of(deployment, request).tell(_PHASES.get(kind, "delivering"))
        reserved = self._reserved(message, request, asked, config.policy, deployment)
        epsilon = None if reserved is None else reserved.epsilon
        if kind == contract.PLACE:  # a refusal tells something too, so this is the run's one question from here on
            self._replies.note(asked)
        try:
            answer = self._made(message, replace(deployment, epsilon=epsilon))
            if answer.reply.has_content():
                self._check_still_allowed(asked, reserved)
        except RefusalError as error:
            self._spend_on_code(reserved, error.code)
            raise
        if not answer.reply.has_content():
            self._spend_on_code(reserved, answer.reply.error.code)
        elif kind != contract.DELIVER:
            self._state.set_validation_fraction(request.validation_fraction)
            self._keep(answer, asked)
            self._settle(request, asked, config.policy, reserved, content=_digest(answer, kind))
        return answer

    def _keep(self, answer: _Answer, asked: Asked) -> None:
        """Keeps an answer that took work, for when the same is asked again."""
        if asked.key.kind in KEPT_KINDS:
            self._replies.keep(asked, Kept(answer.reply.content, answer.inventory))
            self._paths.checkpoint.unlink(missing_ok=True)

    def _reserved(
        self, message: Message, request: Request, asked: Asked, policy: PolicyConfig | None, deployment: Deployment
    ) -> Reserved | None:
        """Reserves what the answer costs, once the site file allows it; None where it costs nothing.

        Raises:
            RefusalError: The site file, the budget or the ledger does not allow it.
            AecnnError: The plan cannot be kept with these data.
        """
        if policy is None or asked.key.kind == contract.DELIVER:
            return None
        if request.plan.training.privacy is None:
            self._spending.refuse_less_than_before(request, policy)
            return None
        refuse_against_policy(message, _context(message, deployment), lambda allowed, _: allowed)  # costs nothing yet
        reserved = self._spending.reserve(request, asked, policy)
        if reserved is not None and not reserved.reservation.is_resumed:
            self._paths.checkpoint.unlink(missing_ok=True)  # of a training that something else had paid for
        return reserved

    def _settle(
        self, request: Request, asked: Asked, policy: PolicyConfig | None, reserved: Reserved | None, *, content: str
    ) -> None:
        """Notes in the ledger what leaves now: an answer that was paid for, or one without privacy.

        Raises:
            RefusalError: It cannot be noted, and does not leave now; it is kept.
        """
        if reserved is not None:
            self._spending.settle(reserved, content=content)
        elif policy is not None and request.plan.training.privacy is None:
            self._spending.record_unprotected(request, asked, policy, content=content)

    def _spend_on_code(self, reserved: Reserved | None, code: int) -> None:
        """Takes a code that came of private work for the answer that was paid for: asked again, it costs again.

        Whether a training ends in weights or in a code may follow from the noise that was drawn. Repeated for nothing,
        it would tell more with every try. Only after a crash, of which nobody was told, it goes on as it was paid for.
        """
        if reserved is not None:
            self._paths.checkpoint.unlink(missing_ok=True)
            self._spending.settle(reserved, content=f"code {code}")

    def _check_still_allowed(self, asked: Asked, reserved: Reserved | None) -> None:
        """Keeps in what was made while the hospital thought better of it; hours and a pause let it be finished.

        Raises:
            RefusalError: The hospital withdrew, or the policy or a list of withdrawn patients changed meanwhile.
        """
        if self._state.is_withdrawn(asked.key.run_id):
            raise RefusalError(contract.CODE_WITHDRAWN, f"this hospital withdrew from run {asked.key.run_id} meanwhile")
        if _terms(load_config(self._paths.site, SiteConfig)) != asked.policy:
            self._paths.checkpoint.unlink(missing_ok=True)  # it may hold what a patient withdrew
            reason = "the policy or a list of withdrawn patients changed while the answer was made"
            raise RefusalError(contract.CODE_WITHHELD, reason)
        if reserved is not None:
            self._spending.refuse_other_patients(reserved)

    def _made(self, message: Message, deployment: Deployment) -> _Answer:
        """Has the app answer, in a context that holds nothing of the centre's."""
        context = _context(message, deployment)
        try:
            reply = self._app(message, context)
        except Exception as error:
            log.exception("The app failed")
            raise RefusalError(contract.CODE_FAILED, f"the app failed ({type(error).__name__})") from error
        if reply.has_content():
            return _Answer(reply, "answered", inventory_of(reply.content))
        reason = str(context.state.config_records[DECISION]["reason"])
        return _Answer(reply, _words(reply.error.code, reason))


def _context(message: Message, deployment: Deployment) -> Context:
    return Context(
        run_id=message.metadata.run_id,
        node_id=message.metadata.dst_node_id,
        node_config=node_settings(deployment),
        state=RecordDict(),
        run_config={},
    )


def _refused(code: int, reason: str, message: Message) -> _Answer:
    log.error("Code %d (%s): %s", code, contract.CODE_TEXT[code], printable(reason))
    return _Answer(refusal(code, message), _words(code, reason))


def _digest(answer: _Answer, kind: str) -> str:
    """What the ledger knows an answer by: all of it where it is kept, and the same each time where it is made anew."""
    told = {name: records for name, records in answer.inventory.items() if name != contract.AUDIT}
    return digest_of(answer.inventory if kind in KEPT_KINDS else told)


def _words(code: int, reason: str) -> str:
    verb = "withheld" if code == contract.CODE_WITHHELD else "refused"
    return f"{verb} (code {code}): {printable(reason)}"


def _tell_refusal(request: Request) -> None:
    """Logs why the centre did not average this hospital's last update."""
    if request.last_refusal:
        text = contract.REFUSAL_TEXT.get(request.last_refusal, "the code is not known here")
        log.warning("The centre refused this hospital's last update of run %s: %s", request.run, text)


def _readable(read: Callable[[Message], Read], message: Message) -> Read | None:
    """What a reader gives, None where the message is none or was made with ill will."""
    try:
        return read(message)
    except AecnnError as error:
        log.error("The message cannot be read: %s", printable(str(error)))
    except Exception:
        log.exception("The message cannot be read")
    return None


def _inventory(message: Message) -> Inventory:
    return inventory_of(message.content) if message.has_content() else {}


def _named(request: Request | None) -> dict[str, Any]:
    if request is None:
        return {"run": None, "run_id": None, "round": None}
    return {"run": request.run, "run_id": request.run_id, "round": request.round}


def _asked(request: Request, kind: str, inventory: Inventory, config: SiteConfig) -> Asked:
    return Asked(
        # A run's released model is placed once, whatever round a request says: other histograms would tell more.
        key=RequestKey(request.run_id, kind, 0 if kind == contract.PLACE else request.round),
        request=request_digest(request, inventory),
        policy=_terms(config),
    )


def _terms(config: SiteConfig) -> str:
    """The digest of what decides what an answer may hold: the policy and who has withdrawn.

    Hours, the budget and where the ledger lies decide whether there is an answer, and not what is in it.
    """
    policy = None if config.policy is None else config.policy.model_dump(mode="json", exclude=_NOT_IN_AN_ANSWER)
    return digest_of({"policy": policy, "withdrawn": consent_state(config.data)})
