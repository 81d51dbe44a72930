"""The hospital's answer to one message: logged as it came, looked up, made by the installed app, kept, logged, given.

Nothing leaves that is not in the audit log before, and no round is answered twice. Flower's node is not known here.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from aecnn import contract
from aecnn.config import load_config
from aecnn.contract import Request
from aecnn.errors import AecnnError
from client.audit_log import IN, OUT, AuditLog
from client.deployment import Deployment, node_settings
from client.guard import DECISION
from client.inventory import Inventory, digest_of, inventory_of, request_digest
from client.paths import SitePaths
from client.policy import check_available
from client.progress import Progress
from client.refusal import RefusalError, refusal
from client.replies import KEPT_KINDS, Asked, Kept, ReplyStore
from client.site import PolicyConfig, SiteConfig
from client.state import RequestKey, SiteState
from client.wire import request_of

log = logging.getLogger(__name__)

_PHASES = {contract.JOIN: "joining", contract.TRAIN: "evaluating", contract.EVALUATE: "evaluating"}


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

    def answer(self, message: Message) -> Message:
        """Gives the reply to a message; it is in the audit log, and kept if it took work, when the call returns."""
        inventory = inventory_of(message.content) if message.has_content() else {}
        request = _readable_request(message)
        about = {"kind": message.metadata.message_type, **_named(request)}
        line = {"direction": IN, **about, "from": "centre", "to": self._name, "records": inventory}
        head = self._audit.append(line | {"decision": "received"})
        answer = self._decide(message, request, inventory, head)
        line = {"direction": OUT, **about, "from": self._name, "to": "centre", "records": answer.inventory}
        self._audit.append(line | {"decision": answer.decision})
        return answer.reply

    def _decide(
        self, message: Message, request: Request | None, inventory: Inventory, head: contract.AuditHead
    ) -> _Answer:
        kind = message.metadata.message_type
        try:
            if request is None or kind not in contract.RECORDS_OF:
                raise RefusalError(contract.CODE_REFUSED, f"a message of type {kind!r} without a request that is known")
            if request.last_update_refused:
                log.warning(
                    "The centre refused this hospital's last update of run %s; its history says why", request.run
                )
            policy = load_config(self._paths.site, SiteConfig).policy
            check_available(policy, self._state, request, kind, self._clock())
            asked = _asked(request, kind, inventory, policy)
            deployment = Deployment(self._paths, head, asked.request)
            kept = self._replies.find(asked) if kind in KEPT_KINDS else None
            if kept is not None:
                log.info("Round %d of %s was answered before: the same answer goes out", request.round, request.run)
                return _Answer(Message(kept.content, reply_to=message), "resent", kept.inventory)
            answer = self._made(message, request, deployment)
        except RefusalError as error:
            return _refused(error.code, str(error), message)
        except AecnnError as error:
            return _refused(contract.CODE_REFUSED, str(error), message)
        if kind in KEPT_KINDS and answer.reply.has_content():
            self._replies.keep(asked, Kept(answer.reply.content, answer.inventory))
            self._paths.checkpoint.unlink(missing_ok=True)
        return answer

    def _made(self, message: Message, request: Request, deployment: Deployment) -> _Answer:
        """Has the app answer, in a context that holds nothing of the centre's."""
        kind = message.metadata.message_type
        Progress.of(deployment, request).tell(_PHASES.get(kind, "delivering"))
        context = Context(
            run_id=message.metadata.run_id,
            node_id=message.metadata.dst_node_id,
            node_config=node_settings(deployment.paths, deployment.head, request=deployment.request),
            state=RecordDict(),
            run_config={},
        )
        try:
            reply = self._app(message, context)
        except Exception as error:
            log.exception("The app failed")
            raise RefusalError(contract.CODE_FAILED, f"the app failed ({type(error).__name__})") from error
        if reply.has_content():
            return _Answer(reply, "answered", inventory_of(reply.content))
        reason = str(context.state.config_records[DECISION]["reason"])
        return _Answer(reply, _words(reply.error.code, reason))


def _refused(code: int, reason: str, message: Message) -> _Answer:
    log.error("Code %d (%s): %s", code, contract.CODE_TEXT[code], reason)
    return _Answer(refusal(code, message), _words(code, reason))


def _words(code: int, reason: str) -> str:
    verb = "withheld" if code == contract.CODE_WITHHELD else "refused"
    return f"{verb} (code {code}): {reason}"


def _readable_request(message: Message) -> Request | None:
    try:
        return request_of(message)
    except AecnnError as error:
        log.error("The message cannot be read: %s", error)
        return None


def _named(request: Request | None) -> dict[str, Any]:
    if request is None:
        return {"run": None, "run_id": None, "round": None}
    return {"run": request.run, "run_id": request.run_id, "round": request.round}


def _asked(request: Request, kind: str, inventory: Inventory, policy: PolicyConfig | None) -> Asked:
    return Asked(
        key=RequestKey(request.run_id, kind, request.round),
        request=request_digest(request, inventory),
        policy=digest_of({"policy": None if policy is None else policy.model_dump(mode="json")}),
    )
