"""``aecnn-client start``: the SuperNode and the worker as one group, kept running for as long as it takes."""

import logging
import sys
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from aecnn.console import say
from aecnn.enrolment import FederationFile
from aecnn.errors import ConfigError
from aecnn.processes import Command, FolderLock, ProcessError, ProcessGroup, run_until_ended
from client.check import check_files
from client.connection import is_port_free, node_environment
from client.display import Display
from client.flower import supernode_command
from client.node_log import BEGIN_OF_LOG, NodeState, node_state, supernode_log
from client.paths import SitePaths
from client.site import SiteConfig
from client.status import read_work

log = logging.getLogger(__name__)

STOPPED_BY_SIGNAL = 130


def read_folder(paths: SitePaths) -> tuple[SiteConfig, FederationFile]:
    """Reads what a start needs of the folder.

    Raises:
        ConfigError: With every fault of the site file, the federation's file and the key.
    """
    (outcome,), config, federation = check_files(paths)
    faults = list(outcome.details)
    if config is not None and not config.data.root.exists():
        faults.append(f"data.root {config.data.root} is not there: mount it, or mend {paths.site}")
    if not paths.secret.is_file():
        faults.append(f"{paths.secret} is missing: restore it, or start a new folder with aecnn-client init")
    if faults or config is None or federation is None:
        raise ConfigError(paths.folder, faults)
    return config, federation


def run_client(paths: SitePaths, console: Console) -> int:
    """Runs the client until it is stopped.

    Returns:
        0 after Ctrl-C or SIGTERM.

    Raises:
        ConfigError: The folder is faulty.
        ProcessError: Another client uses the folder, or its port is taken.
    """
    config, federation = read_folder(paths)
    lock = FolderLock(paths.lock)
    lock.acquire(what=f"the client of {paths.folder}")
    try:
        if not is_port_free(config.local_port):
            raise ProcessError(f"port {config.local_port} of this machine is taken: set local_port in {paths.site}")
        paths.ca_certificate.write_text(federation.ca_certificate, encoding="utf-8")  # it may be a newer one
        paths.status.unlink(missing_ok=True)
        group = ProcessGroup(_commands(paths, config, federation))
        display = Display(console, connection=lambda: node_state(supernode_log(paths)), work=lambda: read_work(paths))

        def tend() -> None:
            if _shown(display) == "connected":
                paths.old_key.unlink(missing_ok=True)  # the key made last is the one the centre knows

        say(console, f"{config.name} goes to {escape(federation.address)}; Ctrl-C or `aecnn-client stop` ends it")
        with display:
            code = run_until_ended(group, on_tick=tend)
    finally:
        lock.release()
    say(console, "stopped")
    return 0 if code == STOPPED_BY_SIGNAL else code


def _shown(display: Display) -> NodeState | None:
    """Shows how things stand; what goes wrong with that never ends the client, and gives None."""
    try:
        return display.update()
    except Exception:
        log.exception("The display failed; the client goes on")
        return None


def _commands(paths: SitePaths, config: SiteConfig, federation: FederationFile) -> list[Command]:
    environment = node_environment(paths.flower_home)
    supernode = supernode_command(
        address=federation.address,
        ca_certificate=paths.ca_certificate,
        key=paths.key,
        port=config.local_port,
        secret_file=paths.secret,
    )
    worker = [sys.executable, "-P", "-m", "client.worker", str(paths.folder)]  # -P: no module from the working folder
    return [
        Command("SuperNode", supernode, environment, _log_file(paths, "supernode")),
        Command("worker", worker, environment, _log_file(paths, "worker")),
    ]


def _log_file(paths: SitePaths, name: str) -> Path:
    path = paths.logs / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{BEGIN_OF_LOG} {datetime.now(UTC).isoformat(timespec='seconds')}\n")  # what stands above is past
    return path
