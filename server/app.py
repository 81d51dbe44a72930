"""The centre's Flower app: reads the run's configuration, runs the rounds, releases the model and reports on it."""

import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from aecnn.config import SimulationConfig, dump_config, load_config, locate_config
from aecnn.data.phantom import write_phantom
from aecnn.errors import AecnnError, FederationError
from aecnn.evaluation.report import write_report
from aecnn.model.weights import unpack_weights
from server.flower import LinkError
from server.held_out import HeldOut
from server.history import end_event
from server.joining import Reception, join
from server.judging import judge_released
from server.loop import run_rounds
from server.members import EnrolledHospitals
from server.model_card import write_model_card
from server.release import deliver, save_released, score_on_test
from server.run import Run, open_run
from server.run_folder import RunFolder
from server.settings import RunSettings
from server.status import OnStatus
from server.store import RoundStore

log = logging.getLogger(__name__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs one federation as the run's configuration says (`config`, `run-folder`, `hospitals`)."""
    config = load_config(locate_config(str(context.run_config["config"])), SimulationConfig)
    if config.data.phantom is not None:
        write_phantom(config.data.root, config.data.phantom)
    given = str(context.run_config.get("run-folder", ""))
    folder = RunFolder.prepared(Path(given)) if Path(given, "config.yaml").exists() else _new_folder(given, config)
    log.info("The run's folder is %s", folder.path)
    expected_nodes = _expected_nodes(str(context.run_config.get("hospitals", "")), config)
    run_and_release(grid, RunSettings.of_simulation(config), folder, expected_nodes=expected_nodes)


def run_and_release(
    grid: Grid,
    settings: RunSettings,
    folder: RunFolder,
    *,
    expected_nodes: int,
    hospitals: EnrolledHospitals | None = None,
    on_status: OnStatus | None = None,
) -> None:
    """Runs the rounds, writes the released model with its figures and report, and hands it to the hospitals.

    A run that was interrupted in this folder goes on after its last finished round, with the same result.

    Args:
        grid: Flower's grid.
        settings: The run. They must be those it was begun with.
        folder: Where everything of the run goes.
        expected_nodes: Hospitals to wait for, until the deadline for joining.
        hospitals: Gives the enrolled hospitals anew at each call; None where the hospitals are simulated.
        on_status: Called with a status each time something changes.

    Raises:
        AecnnError: The run cannot go on; the history ends with an event that says why.
    """
    with RoundStore(folder.store_file) as store:
        run = open_run(grid, settings, folder, store, enrolled=hospitals, on_status=on_status)
        try:
            if run.progress.phase != "delivering":
                _run(run, expected_nodes=expected_nodes)
        except LinkError:
            raise  # the centre's own SuperLink is gone: no end of the run
        except AecnnError as error:
            _fail(run, error)
            raise
        if run.enrolled is not None:
            deliver(run)
            write_report(folder.path)
        run.spool.remove()
        store.remove()
    run.show(replace(run.board.status, phase="done", deadline_at=None))


def _run(run: Run, *, expected_nodes: int) -> None:
    """Everything from the hospitals' joining to the end event and the report."""
    settings, folder = run.settings, run.folder
    held_out = None
    if settings.test_data is not None and settings.is_tested_each_round:
        held_out = HeldOut.read(settings.test_data, settings.plan)  # before anything else: it may be faulty
    reception = Reception(run)
    join(run, reception, expected_nodes=expected_nodes)
    run_rounds(run, reception, held_out)
    released = run.progress.candidate
    if released is None:
        raise FederationError("the run has no model to release: it is of another version")
    judged = judge_released(run)
    if settings.test_data is not None:
        run.show(replace(run.board.status, phase="testing", deadline_at=None))
    weights = unpack_weights(np.frombuffer(run.store.candidate_weights(), dtype=np.uint8))
    save_released(folder, released, weights, settings.plan, run=settings.name)
    if settings.test_data is not None and held_out is None:
        held_out = HeldOut.read(settings.test_data, settings.plan)
    test = None if held_out is None else score_on_test(folder, held_out)
    spent = run.spending.by_hospital()
    write_model_card(folder, settings, run.members, released, judged=judged, test=test, privacy=spent)
    run.append(
        end_event(
            status="completed",
            released_round=released.round_number,
            seconds=run.seconds,
            reason=None,
            privacy=spent,
        )
    )
    write_report(folder.path)
    run.commit(replace(run.progress, phase="delivering"))


def _fail(run: Run, error: AecnnError) -> None:
    """Says in the history and the report why the run ended; started again, it goes on after its last finished round."""
    run.append(
        end_event(
            status="failed",
            released_round=None,
            seconds=run.seconds,
            reason=str(error),
            privacy=run.spending.by_hospital(),
        )
    )
    run.commit(run.progress)
    run.spool.remove()
    run.show(replace(run.board.status, phase="failed", deadline_at=None, reason=str(error)))
    write_report(run.folder.path)


def _new_folder(given: str, config: SimulationConfig) -> RunFolder:
    path = Path(given) if given else Path("runs") / f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = RunFolder.create(path)
    folder.write_text(folder.config_file.name, dump_config(config))
    return folder


def _expected_nodes(hospitals: str, config: SimulationConfig) -> int:
    return len(list(Path(hospitals).glob("*/site.yaml"))) if hospitals else config.federation.min_hospitals
