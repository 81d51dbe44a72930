"""``python -m server.coordinator FOLDER CONFIG``: runs the rounds of a federation folder beside its SuperLink.

It may be killed at any time: started again it stops what is left at the SuperLink, and goes on with the run that has
not ended. Exit codes: 0 all runs are done, 10 a run failed for good; after any other it is to be started again.
"""

import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aecnn.errors import AecnnError, ConfigError, FederationError
from server.app import run_and_release
from server.centre import EXIT_ALL_DONE, EXIT_RUN_FAILED, link_of, read_json, write_json
from server.centre_runs import next_run
from server.flower import Control, LinkError, LocalLink, server_task
from server.members import Enrolled
from server.roster import Roster, bring_to_link, read_roster
from server.run_folder import RunFolder, now_iso
from server.settings import CentrePaths, RunSettings, ServerConfig, read_server_config
from server.store import StoreError
from server.words import counted

log = logging.getLogger(__name__)

EXIT_TRY_AGAIN = 11
LINK_TIMEOUT_S = 120.0
TASK_TIMEOUT_S = 60.0


class RosterAtLink:
    """The roster as the file says now; a change of it reaches the SuperLink with the next look."""

    def __init__(self, paths: CentrePaths, control: Control) -> None:
        self._path, self._control = paths.roster, control
        self._roster = read_roster(self._path)
        self._registered: Roster | None = None

    def enrolled(self) -> Mapping[str, Enrolled]:
        """Gives the hospitals that may take part now, by name."""
        try:
            self._roster = read_roster(self._path)
        except ConfigError as error:  # edited by hand while the run goes on
            log.warning("The roster as it was before counts on: %s", error)
        if self._roster != self._registered:
            try:
                self._roster = self._registered = bring_to_link(self._path, self._control)
            except (ConfigError, FederationError) as error:
                log.warning("The roster has not reached the SuperLink as it should: %s", error)
        return {
            name: Enrolled(hospital.num_images, hospital.num_patients, hospital.code_fingerprint)
            for name, hospital in self._roster.enrolled.items()
        }


def coordinate(paths: CentrePaths, config: ServerConfig) -> int:
    """Runs all runs that are planned; gives the exit code.

    Raises:
        LinkError: The SuperLink does not answer; a later attempt goes on from here.
    """
    link = link_of(paths, config)
    control = Control(link)
    _wait_for(control)
    if stopped := control.stop_runs():
        log.info("Stopped at the SuperLink: %s of an earlier process", counted(stopped, "run"))
    roster = RosterAtLink(paths, control)
    roster.enrolled()
    while (planned := next_run(paths, config)) is not None:
        folder, own = planned
        try:
            _run(folder, own, paths, link, control, roster)
        except LinkError:
            raise
        except AecnnError as error:
            log.error("The run %s failed: %s", folder.path.name, error)
            failed = {"phase": "failed", "reason": str(error), "goes_on": not isinstance(error, StoreError)}
            _write_status(paths, folder, read_json(paths.status) | failed)
            return EXIT_RUN_FAILED
    return EXIT_ALL_DONE


def _run(
    folder: RunFolder,
    config: ServerConfig,
    paths: CentrePaths,
    link: LocalLink,
    control: Control,
    roster: RosterAtLink,
) -> None:
    log.info("The run's folder is %s", folder.path)

    def on_status(status: Mapping[str, Any]) -> None:
        _write_status(paths, folder, status)

    settings = RunSettings.of_server(config)  # its seed is this run's own
    _write_status(paths, folder, {"phase": "joining", "num_rounds": config.federation.num_rounds})
    with server_task(link, control.start_run(), timeout_s=TASK_TIMEOUT_S) as (grid, _context):
        run_and_release(
            grid,
            settings,
            folder,
            expected_nodes=max(len(roster.enrolled()), config.federation.min_hospitals),
            hospitals=roster.enrolled,
            on_status=on_status,
        )


def _write_status(paths: CentrePaths, folder: RunFolder, status: Mapping[str, Any]) -> None:
    write_json(paths.status, {**status, "run": folder.path.name, "updated_at": now_iso()})


def _wait_for(control: Control) -> None:
    deadline = time.monotonic() + LINK_TIMEOUT_S
    while not control.is_up():
        if time.monotonic() > deadline:
            raise LinkError(f"the SuperLink did not answer in {LINK_TIMEOUT_S:.0f} s")
        time.sleep(0.2)


def main(folder: Path, config_file: Path) -> int:
    """Coordinates one federation folder; what ends it is told in the log."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    for chatty in ("httpx", "flwr"):  # a line for every call
        logging.getLogger(chatty).setLevel(logging.WARNING)
    paths = CentrePaths(folder)
    try:
        return coordinate(paths, read_server_config(config_file))
    except LinkError as error:
        log.error("%s", error)
        return EXIT_TRY_AGAIN
    except AecnnError as error:  # files that were changed since the start was checked
        log.error("%s", error)
        write_json(paths.status, {"phase": "failed", "reason": str(error), "updated_at": now_iso()})
        return EXIT_RUN_FAILED


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
