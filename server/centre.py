"""The centre's processes: what must hold before they start, how they are started, and what they are doing."""

import errno
import json
import logging
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aecnn.config import load_config
from aecnn.enrolment import FederationFile, split_address, whole_file
from aecnn.errors import ConfigError
from aecnn.processes import Command, FolderLock, ProcessGroup, run_until_ended
from server.centre_setup import federation_file
from server.certificates import WARN_DAYS, certificate_faults, days_left, read_issued
from server.roster import read_roster
from server.settings import CentrePaths, ServerConfig
from server.words import counted

if TYPE_CHECKING:
    from server.flower import LocalLink

log = logging.getLogger(__name__)

EXIT_ALL_DONE, EXIT_RUN_FAILED = 0, 10  # of the coordinator; Python's own code for a crash is 1
LOOPBACK = "127.0.0.1"
PORT_PATIENCE_S = 20.0  # a SuperLink whose parent was killed needs a moment to end


def link_of(paths: CentrePaths, config: ServerConfig) -> "LocalLink":
    """Gives how this machine reaches its own SuperLink."""
    from server.flower import LocalLink

    return LocalLink(config.local_port, paths.ca_certificate.read_bytes(), paths.secret.read_bytes())


def check_ready(paths: CentrePaths, config: ServerConfig) -> list[str]:
    """Checks all that `start` stands on.

    Returns:
        What should be looked at, but keeps nothing from starting.

    Raises:
        ConfigError: With all that is wrong, before anything was started.
    """
    needed = (paths.ca_certificate, paths.certificate, paths.key, paths.secret)
    faults = [f"{path} is missing: restore it from a backup" for path in needed if not path.is_file()]
    if faults:
        raise ConfigError(paths.folder, faults)
    server = read_issued(paths.certificate, paths.key)
    host = split_address(config.address)[0]
    faults = certificate_faults(paths.ca_certificate.read_bytes(), server, host=host)
    faults += _port_faults(config)
    enrolled = read_roster(paths.roster).enrolled
    if faults:
        raise ConfigError(paths.folder, faults)
    warnings = []
    if (days := days_left(server.certificate)) < WARN_DAYS:
        warnings.append(
            f"the server certificate expires in {counted(days, 'day')}: run flower-server rotate-certificate"
        )
    if len(enrolled) < config.federation.min_hospitals:
        warnings.append(
            f"{counted(len(enrolled), 'hospital')} enrolled, and federation.min_hospitals is "
            f"{config.federation.min_hospitals}: enrol more, also while this runs (flower-server enroll)"
        )
    if not _is_federation_file_current(paths, config):
        warnings.append("federation.yaml is out of date: run flower-server federation, and send it to the hospitals")
    return warnings


def _is_federation_file_current(paths: CentrePaths, config: ServerConfig) -> bool:
    try:
        return load_config(paths.federation, FederationFile) == federation_file(paths, config)
    except ConfigError:
        return False


def _port_faults(config: ServerConfig) -> list[str]:
    places = {"listen": split_address(config.listen), "local_port": (LOOPBACK, config.local_port)}
    deadline = time.monotonic() + PORT_PATIENCE_S
    while True:
        reasons = {key: reason for key, place in places.items() if (reason := _why_not_free(*place)) is not None}
        if errno.EADDRINUSE not in {reason.errno for reason in reasons.values()} or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    return [
        f"{host}:{port} cannot be listened on ({reasons[key].strerror}): end what uses it, or change {key} in "
        "server.yaml"
        for key, (host, port) in places.items()
        if key in reasons
    ]


def _why_not_free(host: str, port: int) -> OSError | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None


def commands_of(paths: CentrePaths, config: ServerConfig, config_file: Path) -> list[Command]:
    """Gives the processes of the centre: Flower's SuperLink, and the coordinator that runs the rounds."""
    from server.flower import flower_environment, superlink_command

    environment = flower_environment(paths.flower_home)
    superlink = superlink_command(
        listen=config.listen,
        port=config.local_port,
        certificate=paths.certificate,
        key=paths.key,
        ca_certificate=paths.ca_certificate,
        database=paths.database,
        secret_file=paths.secret,
    )
    coordinator = [sys.executable, "-P", "-m", "server.coordinator", str(paths.folder), str(config_file.absolute())]
    return [
        Command("superlink", superlink, environment, paths.logs / "superlink.log"),
        Command(
            "coordinator",
            coordinator,
            environment,
            paths.logs / "coordinator.log",
            final_codes=(EXIT_ALL_DONE, EXIT_RUN_FAILED),
        ),
    ]


def run_processes(commands: list[Command], paths: CentrePaths, *, on_tick: Callable[[], None]) -> int:
    """Keeps the processes running until the runs are done, one failed for good, or a signal comes.

    Returns:
        The coordinator's last exit code; 130 after a signal.
    """
    group = ProcessGroup(commands)
    told: dict[str, int | None] = {}

    def tick() -> None:
        nonlocal told
        if (pids := group.pids()) != told:
            told = pids
            write_json(paths.processes, pids)
        on_tick()

    return run_until_ended(group, on_tick=tick)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Writes a file of the state folder, whole."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(document, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file of the state folder; what is not there or not whole is empty."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def running_process(paths: CentrePaths) -> int | None:
    """Gives the process id of the `start` that runs in this folder, None where none does."""
    return FolderLock(paths.lock).holder()
