"""``aecnn-client start``: the SuperNode and the worker as one group, kept running for as long as it takes."""

import logging
import sys
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from aecnn.enrolment import FederationFile
from aecnn.errors import ConfigError
from aecnn.processes import Command, FolderLock, ProcessError, ProcessGroup, run_until_ended
from client.check import check_files
from client.connection import another_centre, is_port_free, node_command, node_environment
from client.display import Display
from client.log_lines import logs_on, say_line
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
        paths.status.unlink(missing_ok=True)
        with logs_on(console):
            code = _run(paths, config, federation, console)
    finally:
        lock.release()
    say_line(console, "stopped")
    return 0 if code == STOPPED_BY_SIGNAL else code


def _run(paths: SitePaths, config: SiteConfig, federation: FederationFile, console: Console) -> int:
    """Runs both processes; gives the exit code of the group."""
    group = ProcessGroup(_commands(paths, config, federation))
    display = Display(console, connection=lambda: node_state(supernode_log(paths)), work=lambda: read_work(paths))

    def tend() -> None:
        if _shown(display) == "connected":
            paths.old_key.unlink(missing_ok=True)  # the key made last is the one the centre knows
            if another_centre(paths, federation) is not None:
                paths.ca_certificate.write_text(federation.ca_certificate, encoding="utf-8")

    odd = another_centre(paths, federation)
    if odd is not None:
        log.warning("%s", odd)
    say_line(console, f"{config.name} goes to {federation.address}; Ctrl-C or `aecnn-client stop` ends it")
    with display:
        return run_until_ended(group, on_tick=tend)


def _shown(display: Display) -> NodeState | None:
    """Shows how things stand; what goes wrong with that never ends the client, and gives None."""
    try:
        return display.update()
    except Exception:
        log.exception("The display failed; the client goes on")
        return None


def _commands(paths: SitePaths, config: SiteConfig, federation: FederationFile) -> list[Command]:
    environment = node_environment(paths.flower_home)
    supernode = node_command(paths, federation, port=config.local_port)
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
