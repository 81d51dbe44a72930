"""How a hospital's client stands, and its end."""

import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from aecnn.config import load_config
from aecnn.errors import AecnnError, PrivacyError
from aecnn.processes import FolderLock, ProcessError, stop_holder
from client.ledger import Ledger
from client.node_log import NodeState, node_state, supernode_log
from client.paths import SitePaths
from client.site import PrivacyPolicyConfig, SiteConfig
from client.state import SiteState

STOP_TIMEOUT_S = 40.0
AUDIT_TRIES = 3


@dataclass(frozen=True)
class BudgetStatus:
    """How the privacy budget stood after the last charge, as the ledger has it written."""

    max_epsilon: float  # the site file's cap
    epsilon: float | None  # of the patient who has spent most; None: the ledger cannot be trusted
    left: float | None
    fault: str | None = None  # of the ledger


@dataclass(frozen=True)
class ClientStatus:
    """How a hospital's client stands."""

    hospital: str | None  # None: the site file does not say it
    federation: str | None
    address: str | None  # of the centre
    faults: tuple[str, ...]  # of the folder's own files: with one, no request is answered
    pid: int | None  # None: it does not run
    connection: NodeState | None
    work: dict[str, Any] | None  # what the worker wrote last: phase, kind of message, run, round, step
    runs: dict[str, str]  # names of the runs that ever asked something, by id
    paused_since: str | None
    withdrawn: dict[str, str]
    budget: BudgetStatus | None  # None: the site file names no ledger, or cannot be read

    def to_json(self) -> dict[str, Any]:
        """Gives plain data for JSON."""
        return {
            "is_running": self.pid is not None,
            **vars(self),
            "budget": None if self.budget is None else vars(self.budget),
        }


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
    """Gives how the client stands, whether it runs or not, and what is wrong with its folder."""
    from client.audit import known_runs
    from client.check import check_files

    (files,), config, federation = check_files(paths)
    pid, state = FolderLock(paths.lock).holder(), SiteState(paths.database)
    return ClientStatus(
        hospital=_name_in(paths),
        federation=None if federation is None else federation.name,
        address=None if federation is None else federation.address,
        faults=files.details,
        pid=pid,
        connection=None if pid is None else node_state(supernode_log(paths)),
        work=None if pid is None else read_work(paths),
        runs=known_runs(paths.audit_log),
        paused_since=state.paused_since(),
        withdrawn=state.withdrawn_runs(),
        budget=_budget_status(config, state),
    )


def _budget_status(config: SiteConfig | None, state: SiteState) -> BudgetStatus | None:
    """Reads what the last charges came to, without composing anything: that takes the seconds of ``budget``."""
    policy = config.policy.privacy if config and config.policy else PrivacyPolicyConfig()
    if policy.ledger_folder is None:
        return None
    try:
        ledger, seen = Ledger.open(policy.ledger_folder), state.ledger_seen()
        if seen is not None and not ledger.holds(seen):
            raise PrivacyError("the privacy ledger is not the one that this client saw: aecnn-client budget says more")
        # Each line has ε of its patients up to then, so whoever has spent most is in the largest.
        spent = max((charge.epsilon for charge in ledger.charges() if charge.epsilon is not None), default=0.0)
    except PrivacyError as error:
        return BudgetStatus(policy.max_epsilon, None, None, str(error))
    return BudgetStatus(policy.max_epsilon, spent, max(0.0, policy.max_epsilon - spent))


def _name_in(paths: SitePaths) -> str | None:
    """The hospital's name, also where other keys of the site file are faulty."""
    try:
        return load_config(paths.site, _SiteName).name
    except AecnnError:
        return None


def read_work(paths: SitePaths) -> dict[str, Any] | None:
    """Gives what the worker wrote last of its work, None before it wrote anything."""
    try:
        return dict(json.loads(paths.status.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
