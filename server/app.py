"""The centre's Flower app: reads the run's configuration, runs the rounds, releases the model and reports on it."""

import logging
import secrets
import time
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from aecnn.config import SimulationConfig, dump_config, load_config, locate_config
from aecnn.data.phantom import write_phantom
from aecnn.errors import AecnnError
from aecnn.evaluation.report import write_report
from aecnn.model.joint import build_model
from aecnn.model.weights import weights_of
from server.history import end_event
from server.loop import Federation, run_federation
from server.release import save_released, score_on_test
from server.run_folder import RunFolder

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
    run_and_release(
        grid, config, folder, expected_nodes=_expected_nodes(str(context.run_config.get("hospitals", "")), config)
    )
    write_report(folder.path)


def run_and_release(grid: Grid, config: SimulationConfig, folder: RunFolder, *, expected_nodes: int) -> None:
    """Runs the rounds, writes the released model and scores it on the test split.

    Raises:
        AecnnError: The run cannot go on; the history ends with an event that says why.
    """
    begin = time.monotonic()
    plan = config.plan
    try:
        initial = weights_of(build_model(plan.model, seed=config.seed, input_size_px=plan.images.input_size_px))
        federation = Federation(config.name, secrets.token_hex(8), config.seed, config.federation, plan, folder)
        released = run_federation(grid, federation, initial, expected_nodes=expected_nodes)
        save_released(folder, released, plan, run=config.name)
        score_on_test(folder, config.data, plan)
    except AecnnError as error:
        seconds = time.monotonic() - begin
        folder.append_event(end_event(status="failed", released_round=None, seconds=seconds, reason=str(error)))
        raise
    seconds = time.monotonic() - begin
    folder.append_event(
        end_event(status="completed", released_round=released.round_number, seconds=seconds, reason=None)
    )


def _new_folder(given: str, config: SimulationConfig) -> RunFolder:
    path = Path(given) if given else Path("runs") / f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = RunFolder.create(path)
    folder.write_text(folder.config_file.name, dump_config(config))
    return folder


def _expected_nodes(hospitals: str, config: SimulationConfig) -> int:
    return len(list(Path(hospitals).glob("*/site.yaml"))) if hospitals else config.federation.min_hospitals
