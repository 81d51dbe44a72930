"""Everything a hospital takes from inside Flower, in one place: its names change between minor versions (1.39 here).

The SuperNode carries messages and starts no code: `--isolation process` leaves the tasks to this hospital's own worker,
which takes them with a secret only the two know. The bundle that the centre sends with a run is dropped unread here;
Flower itself reads no more of it than its configuration.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Context, Message
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PushTaskOutputRequest, SendTaskHeartbeatRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError, ObjectUnavailableError
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import RetryInvoker, constant
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message

from aecnn.errors import FederationError

log = logging.getLogger(__name__)


class NodeLostError(FederationError):
    """The SuperNode ended or started anew while a task was in work; what was answered is kept for the next question."""


LOOPBACK = "127.0.0.1"
POLL_INTERVAL_S = 0.1
RETRY_INTERVAL_S, RETRY_FOR_S = 0.2, 10.0
_LOST = (httpx.HTTPError, ObjectPullError, ObjectPushError, ObjectUnavailableError)
_UNREADABLE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"


@dataclass(frozen=True)
class LocalNode:
    """How the worker reaches this hospital's SuperNode."""

    port: int
    secret: bytes

    @property
    def address(self) -> str:
        """Of its Runtime service, on loopback."""
        return f"{LOOPBACK}:{self.port}"


@dataclass
class Task:
    """A message of the centre, and how to answer it."""

    message: Message
    context: Context
    _client: Any
    is_answered: bool = False

    def answer(self, reply: Message) -> None:
        """Hands the reply to the SuperNode, which sends it."""
        push_message(self._client, reply, self.context)
        self.is_answered = True


def flower_environment(home: Path) -> dict[str, str]:
    """Gives the environment for the SuperNode: no telemetry, no update check, nothing installed at run time.

    A proxy of the site (`HTTPS_PROXY`) is used for the way to the centre, never for loopback.
    """
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "NO_PROXY": ",".join(filter(None, (os.environ.get("NO_PROXY", ""), LOOPBACK))),
    }


def supernode_command(*, address: str, ca_certificate: Path, key: Path, port: int, secret_file: Path) -> list[str]:
    """Gives the command of the SuperNode: TLS with one authority, this hospital's key, and no app process of its own.

    Args:
        address: The centre's, host:port.
        ca_certificate: PEM file of the only authority trusted.
        key: This hospital's private key, OpenSSH format.
        port: Of the Runtime service on loopback.
        secret_file: What the worker must know to take tasks.
    """
    program = Path(sys.executable).with_name("flower-supernode")
    if not program.exists():
        raise FederationError(f"{program} is missing: reinstall this distribution")
    options = {
        "--superlink": address,
        "--root-certificates": ca_certificate,
        "--auth-supernode-private-key": key,
        "--isolation": "process",
        "--superexec-auth-secret-file": secret_file,
        "--host": LOOPBACK,
        "--port": port,
    }
    return [str(program), *(str(part) for pair in options.items() for part in pair)]


class TaskSource:
    """Takes the tasks that the SuperNode has for this hospital's worker, one at a time."""

    def __init__(self, node: LocalNode) -> None:
        self._node = node
        # No retries: the SuperNode may be restarting, and the worker waits by itself.
        self._client = RuntimeHttpClient.from_server_address(
            node.address,
            insecure=True,  # loopback; a task is only given to who knows the secret
            root_certificates=None,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperExec"),
                SuperExecAuthHttpInterceptor(master_secret=node.secret, protected_methods=frozenset({_ACQUIRE})),
            ],
        )

    @contextmanager
    def next_task(self) -> Iterator[Task | None]:
        """Gives the next task, kept alive while the context lasts; None when there is none now.

        Raises:
            NodeLostError: The SuperNode no longer answers, or no longer knows the task.
        """
        try:
            with self._next_task() as task:
                yield task
        except _LOST as error:
            raise NodeLostError(f"the SuperNode no longer knows the task ({type(error).__name__})") from error

    @contextmanager
    def _next_task(self) -> Iterator[Task | None]:
        token = self._acquire()
        if token is None:
            yield None
            return
        client = RuntimeHttpClient.from_server_address(
            self._node.address,
            insecure=True,
            root_certificates=None,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
                RuntimeTokenHttpInterceptor(token),
            ],
            retry_invoker=_short_retries(),
        )
        heartbeat = HeartbeatSender(_Heartbeat(client))
        heartbeat.start()
        status = SubStatus.FAILED
        try:
            task = _pulled(client)
            if task is None:
                yield None
                return
            yield task
            status = SubStatus.COMPLETED if task.is_answered else SubStatus.FAILED
        finally:
            try:
                client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=""))
            except httpx.HTTPError as error:
                log.warning("The SuperNode no longer knows this task (%s)", type(error).__name__)
            heartbeat.stop()
            client.close()

    def _acquire(self) -> str | None:
        try:
            answer = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        except httpx.TransportError:
            return None  # the SuperNode starts, or starts again
        return str(answer.token) if answer.HasField("task") and answer.token else None

    def wait(self) -> None:
        """Waits a moment before the next question."""
        time.sleep(POLL_INTERVAL_S)


def _pulled(client: RuntimeHttpClient) -> Task | None:
    """The task, None where Flower itself cannot read its message: there is nothing to log or to answer then."""
    try:
        message, context, _run, _bundle = pull_task_input(client)  # the bundle is dropped here, unread
    except _UNREADABLE as error:
        log.error("A message that Flower cannot read came (%s): the SuperNode is told so", type(error).__name__)
        return None
    return Task(message, context, client)


def _short_retries() -> RetryInvoker:
    """Gives retries for a connection that breaks, for some seconds.

    Flower's own go on for ever, and interrupt this very process when the SuperNode no longer knows the task.
    """
    return RetryInvoker(
        lambda: constant(RETRY_INTERVAL_S),
        recoverable_exceptions=httpx.TransportError,
        max_tries=None,
        max_time=RETRY_FOR_S,
    )


class _Heartbeat:
    """Tells the SuperNode that the task is being worked on.

    Unlike Flower's own, it goes on when the SuperNode has given the task up: the work is finished and its answer
    kept for the centre's next question.
    """

    def __init__(self, client: RuntimeHttpClient) -> None:
        self._client = client
        self._is_lost = threading.Event()

    def __call__(self) -> bool:
        if self._is_lost.is_set():
            return True
        try:
            is_known = self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success
        except httpx.TransportError:
            return False
        except httpx.HTTPStatusError:
            is_known = False
        if not is_known:
            self._is_lost.set()
            log.warning("The SuperNode has given this task up; its answer is kept for the centre's next question")
        return True
