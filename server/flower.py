"""Everything the centre takes from inside Flower, in one place: its names change between minor versions (1.39 here).

The SuperLink is Flower's own; its Control and Runtime services stay on loopback, hospitals reach the Fleet port alone.
The ServerApp's task is taken by this process with the shared secret, and the bundle that comes with it is not read:
what runs is the code installed here.
"""

import hashlib
import os
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
from flwr.app import Context
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, fab_to_proto, run_from_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest, PushTaskOutputRequest
from flwr.serverapp import Grid
from flwr.supercore.constant import NodeStatus, TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.retry.retry_invoker import RetryInvoker, constant
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from aecnn.contract import told
from aecnn.errors import FederationError

LOOPBACK = "127.0.0.1"
POLL_INTERVAL_S = 0.2
CALL_TIMEOUT_S = 30.0
RETRY_INTERVAL_S, RETRY_FOR_S = 1.0, 60.0  # of a call of the grid while the SuperLink restarts
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_UNFINISHED = ("pending", "starting", "running")
_BUNDLE = """[project]
name = "aecnn-federated"
version = "1.0.0"
description = "Names the apps; hospitals and centre run the code that is installed."
license = "Apache-2.0"

[tool.flwr.app]
publisher = "aecnn"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"
"""


Request = TypeVar("Request")
Reply = TypeVar("Reply")


class LinkError(FederationError):
    """The SuperLink on this machine does not answer, or refuses; what a later attempt may mend."""


@dataclass(frozen=True)
class Node:
    """A registered hospital as the SuperLink sees it."""

    node_id: int
    name: str
    public_key: str  # PEM
    is_online: bool


@dataclass(frozen=True)
class LocalLink:
    """How this machine reaches its own SuperLink."""

    port: int
    ca_certificate: bytes
    secret: bytes

    @property
    def address(self) -> str:
        """Of the Control and Runtime services."""
        return f"{LOOPBACK}:{self.port}"


def flower_environment(home: Path) -> dict[str, str]:
    """Gives the environment for Flower's processes: no telemetry, no update check, nothing installed at run time."""
    # A lower-case no_proxy hides the upper-case one, so both say the same.
    spared = [os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    no_proxy = ",".join(dict.fromkeys(filter(None, (*",".join(spared).split(","), LOOPBACK, "localhost"))))
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
    }


def superlink_command(
    *, listen: str, port: int, certificate: Path, key: Path, ca_certificate: Path, database: Path, secret_file: Path
) -> list[str]:
    """Gives the command of the SuperLink: TLS, node authentication, a database, and no app process of its own."""
    program = Path(sys.executable).with_name("flower-superlink")
    if not program.exists():
        raise FederationError(f"{program} is missing: reinstall this distribution")
    options = {
        "--host": LOOPBACK,
        "--port": port,
        "--fleet-api-address": listen,
        "--ssl-certfile": certificate,
        "--ssl-keyfile": key,
        "--ssl-ca-certfile": ca_certificate,
        "--database": database,
        "--isolation": "process",
        "--superexec-auth-secret-file": secret_file,
    }
    flags = ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
    return [str(program), *(str(part) for pair in options.items() for part in pair), *flags]


class Control:
    """The SuperLink's Control service: who is registered, and which runs there are.

    Every call raises `LinkError` where the SuperLink does not answer or refuses.
    """

    def __init__(self, link: LocalLink) -> None:
        self._address = link.address
        self._client = ControlHttpClient.from_server_address(
            link.address,
            insecure=False,
            root_certificates=link.ca_certificate,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flower-server")],
        )
        _spare_proxies(self._client, link)

    def _call(self, method: Callable[[Request], Reply], request: Request) -> Reply:
        try:
            return method(request)
        except httpx.HTTPStatusError as error:
            raise LinkError(f"the SuperLink refuses ({told(error.response.text.strip())})") from error
        except httpx.HTTPError as error:
            raise LinkError(f"the SuperLink on {self._address} does not answer ({type(error).__name__})") from error

    def is_up(self) -> bool:
        """Tells whether the SuperLink answers."""
        try:
            self.nodes()
        except LinkError:
            return False
        return True

    def nodes(self) -> list[Node]:
        """Gives the registered hospitals, by name; those that were unregistered are no longer among them."""
        listed = self._call(self._client.ListNodes, ListNodesRequest()).nodes_info
        nodes = [
            Node(info.node_id, info.name, bytes(info.public_key).decode(), info.status == NodeStatus.ONLINE)
            for info in listed
            if info.status != NodeStatus.UNREGISTERED
        ]
        return sorted(nodes, key=lambda node: node.name)

    def register(self, name: str, public_key: str) -> int:
        """Registers a hospital's public key (PEM); gives its node id. A key once unregistered is refused for ever."""
        request = RegisterNodeRequest(public_key=public_key.encode(), name=name)
        return int(self._call(self._client.RegisterNode, request).node_id)

    def unregister(self, node_id: int) -> None:
        """Cuts a hospital off; its requests are refused from now on."""
        self._call(self._client.UnregisterNode, UnregisterNodeRequest(node_id=node_id))

    def start_run(self) -> int:
        """Submits a run of the apps; gives its id."""
        bundle, _ = build_fab_from_files({"pyproject.toml": _BUNDLE.encode()})
        fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
        request = StartRunRequest(
            fab=fab_to_proto(fab), override_config=user_config_to_proto({}), federation="", app_spec=""
        )
        return int(self._call(self._client.StartRun, request).run_id)

    def stop_runs(self) -> int:
        """Ends all runs that are not finished; gives how many."""
        runs = self._call(self._client.ListRuns, ListRunsRequest()).run_dict
        unfinished = [run_id for run_id, run in runs.items() if run.status.status in _UNFINISHED]
        for run_id in unfinished:
            self._call(self._client.StopRun, StopRunRequest(run_id=run_id))
        return len(unfinished)

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()


@contextmanager
def server_task(link: LocalLink, run_id: int, *, timeout_s: float) -> Iterator[tuple[Grid, Context]]:
    """Takes the ServerApp's task of a run and keeps it alive while the context lasts.

    Raises:
        LinkError: The task does not come in time.
    """
    token = _acquire(link, run_id, timeout_s=timeout_s)
    grid = HttpGrid(link.address, insecure=False, root_certificates=link.ca_certificate, token=token)
    grid._retry_invoker = _bounded_retries()
    client: Any = grid._runtime_client
    _spare_proxies(client, link)
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
    heartbeat.start()
    status, details = SubStatus.FAILED, "the centre's process ended"
    try:
        task = client.PullTaskInput(PullTaskInputRequest())
        # Flower reads the sender of a new message from the process's identity.
        TaskIdentity.task_id, TaskIdentity.run_id = task.task_id, task.run.run_id
        TaskIdentity.node_id = task.context.node_id
        grid.set_run(run_from_proto(task.run))
        yield grid, context_from_proto(task.context)
        status, details = SubStatus.COMPLETED, ""
    finally:
        grid._retry_invoker.max_tries = 1  # no waiting for a SuperLink that is gone
        with suppress(httpx.HTTPError):  # where it does not arrive, the run is stopped with the next start
            client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=details))
        heartbeat.stop()
        grid.close()


def _bounded_retries() -> RetryInvoker:
    """Gives retries that end: Flower's own go on for ever, past any deadline, and interrupt this process on a 401."""
    return RetryInvoker(
        lambda: constant(RETRY_INTERVAL_S),
        recoverable_exceptions=httpx.TransportError,
        max_tries=None,
        max_time=RETRY_FOR_S,
    )


def _acquire(link: LocalLink, run_id: int, *, timeout_s: float) -> str:
    client = RuntimeHttpClient.from_server_address(
        link.address,
        insecure=False,
        root_certificates=link.ca_certificate,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(master_secret=link.secret, protected_methods=frozenset({_ACQUIRE})),
        ],
    )
    _spare_proxies(client, link)
    deadline = time.monotonic() + timeout_s
    try:
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):  # it may be starting again
                answer = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
                if answer.HasField("task") and answer.token and answer.task.run_id == run_id:
                    return str(answer.token)  # tasks of runs that were stopped meanwhile are left to lapse
            time.sleep(POLL_INTERVAL_S)
    except httpx.HTTPStatusError as error:
        raise LinkError(f"the SuperLink refuses the run's task ({told(error.response.text.strip())})") from error
    finally:
        client.close()
    raise LinkError(f"the SuperLink did not hand out the run's task in {timeout_s:.0f} s")


def _spare_proxies(client: Any, link: LocalLink) -> None:
    """Lets a client reach loopback directly, whatever proxy the environment names."""
    trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusted.load_verify_locations(cadata=link.ca_certificate.decode("ascii"))
    client._client.close()
    client._client = httpx.Client(verify=trusted, timeout=CALL_TIMEOUT_S, trust_env=False)


def names_of_nodes(grid: Grid) -> Mapping[int, str]:
    """Gives the online nodes with the names they were registered under, empty where a node has none (simulations)."""
    return {node.node_id: node.name for node in grid.get_nodes()}
