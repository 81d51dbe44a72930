"""How a hospital's client stands, and its end: what can be told without the model's software."""

import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from aecnn.config import load_config
from aecnn.enrolment import FederationFile
from aecnn.processes import FolderLock, ProcessError, stop_holder
from client.node_log import NodeState, node_state, supernode_log
from client.paths import SitePaths
from client.state import SiteState

STOP_TIMEOUT_S = 40.0
AUDIT_TRIES = 3


@dataclass(frozen=True)
class ClientStatus:
    """How a hospital's client stands."""

    hospital: str
    federation: str
    pid: int | None  # None: it does not run
    connection: NodeState | None
    work: dict[str, Any] | None  # what the worker wrote last: phase, run, round, step
    paused_since: str | None
    withdrawn: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Gives plain data for JSON."""
        return {"is_running": self.pid is not None, **vars(self)}


class _SiteName(BaseModel):
    """The one key of a site file that is needed here; the others stay unread."""

    name: str


def stop_client(paths: SitePaths) -> bool:
    """Asks the running client to end and waits for it; tells whether there was one."""
    return stop_holder(FolderLock(paths.lock), timeout_s=STOP_TIMEOUT_S)


def refuse_while_running(paths: SitePaths) -> None:
    """Makes sure that no client works in the folder.

    Raises:
        ProcessError: One does.
    """
    pid = FolderLock(paths.lock).holder()
    if pid is not None:
        raise ProcessError(f"the client runs (process {pid}): aecnn-client stop -f {paths.folder}")


def audit_problems(paths: SitePaths) -> list[str]:
    """Gives what is wrong with the audit log; a client that writes to it meanwhile is no fault."""
    from client.audit import verify  # it brings PyTorch, which takes seconds

    problems: list[str] = []
    for _ in range(AUDIT_TRIES):
        problems = verify(paths.audit_log, SiteState(paths.database).audit_head())
        if not problems or FolderLock(paths.lock).holder() is None:
            break
    return problems


def client_status(paths: SitePaths) -> ClientStatus:
    """Gives how the client stands, whether it runs or not.

    Raises:
        ConfigError: The site file or the federation's is faulty.
    """
    config, federation = load_config(paths.site, _SiteName), load_config(paths.federation, FederationFile)
    pid, state = FolderLock(paths.lock).holder(), SiteState(paths.database)
    return ClientStatus(
        hospital=config.name,
        federation=federation.name,
        pid=pid,
        connection=None if pid is None else node_state(supernode_log(paths)),
        work=None if pid is None else read_work(paths),
        paused_since=state.paused_since(),
        withdrawn=state.withdrawn_runs(),
    )


def read_work(paths: SitePaths) -> dict[str, Any] | None:
    """Gives what the worker wrote last of its work, None before it wrote anything."""
    try:
        return dict(json.loads(paths.status.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
