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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Context, Message
from flwr.common.constant import SubStatus
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse
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
        self._held = ""  # the token of a task that was taken while another's message did not come
        self._taking = threading.Lock()
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
        token, self._held = self._held or self._acquire(), ""
        if not token:
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
        # A task that ends without an answer is left to lapse: only then does the SuperNode answer in its place.
        # One that is said to have failed would be waited for without end.
        task = None
        try:
            task = self._pulled(client)
            yield task
        finally:
            if task is not None and task.is_answered:
                _end_task(client, SubStatus.COMPLETED)
            heartbeat.stop()
            client.close()

    def _pulled(self, client: RuntimeHttpClient) -> Task | None:
        """The task, None where its message cannot be had: there is nothing to log or to answer then."""
        watched: Any = _Watched(client, self._has_another)
        try:
            message, context, _run, _bundle = pull_task_input(watched)  # the bundle is dropped here, unread
        except _UNREADABLE as error:
            log.error("A message that Flower cannot read came (%s): its task is left to lapse", type(error).__name__)
            return None
        except _AbandonedError:
            log.warning("The SuperNode gave a message up before it was here, and has another one")
            _end_task(client, SubStatus.FAILED)
            return None
        return Task(message, context, client)

    def _has_another(self) -> bool:
        """Whether the SuperNode has a further task: it is taken, and is the next one."""
        with self._taking:
            self._held = self._held or self._acquire()
            return self._held != ""

    def _acquire(self) -> str:
        """The token of a task that waits; empty where none does."""
        try:
            answer = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        except httpx.TransportError:
            return ""  # the SuperNode starts, or starts again
        return str(answer.token) if answer.HasField("task") else ""

    def wait(self) -> None:
        """Waits a moment before the next question."""
        time.sleep(POLL_INTERVAL_S)

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()


class _AbandonedError(Exception):
    """The SuperNode went on to another message before the one of this task was here."""


class _Watched:
    """A client for pulling a message, which ends the wait for one that will never be here.

    Where a run ends while the SuperNode fetches a message of it, 1.39 keeps message and task and fetches no further.
    It handles one message after the other, so another task tells that this one was abandoned.
    """

    def __init__(self, client: RuntimeHttpClient, has_another: Callable[[], bool]) -> None:
        self._client = client
        self._has_another = has_another

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def PullObject(self, asked: PullObjectRequest) -> PullObjectResponse:  # noqa: N802 - Flower's name
        """Pulls a part of the message."""
        given = self._client.PullObject(asked)
        if given.object_found and not given.object_available and self._has_another():
            raise _AbandonedError
        return given


def _end_task(client: RuntimeHttpClient, status: str) -> None:
    try:
        client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=""))
    except httpx.HTTPError as error:
        log.warning("The SuperNode no longer knows this task (%s)", type(error).__name__)


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
