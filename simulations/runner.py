"""One simulated federation, from a configuration to a finished run folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, RecordDict

from aecnn.config import Engine, SimulationConfig, dump_config
from aecnn.data.phantom import write_phantom
from aecnn.errors import FederationError
from client.app import app as client_app
from server.app import app as server_app
from server.run_folder import RunFolder
from simulations.grid import RUN_ID, SERVER_NODE_ID, InProcessGrid, Settings
from simulations.hospitals import write_hospitals
from simulations.ray_engine import run_with_ray


@dataclass(frozen=True)
class Prepared:
    """A run folder with its resolved configuration and its hospitals' site files."""

    config: SimulationConfig
    folder: RunFolder
    num_hospitals: int


def prepare_run(
    config: SimulationConfig, path: Path, *, on_phantom: Callable[[int, int], None] | None = None
) -> Prepared:
    """Makes the dataset where it is a phantom, and the run folder with one site file a hospital.

    Raises:
        FederationError: The folder holds a run already, or there are fewer hospitals than the run needs.
        ManifestError: The dataset is faulty.
    """
    folder = RunFolder.create(path)
    if config.data.phantom is not None:
        write_phantom(config.data.root, config.data.phantom, on_progress=on_phantom)
    partition = write_hospitals(config, folder.hospitals_folder)
    if len(partition) < config.federation.min_hospitals:
        raise FederationError(
            f"the partition has {len(partition)} hospitals, and federation.min_hospitals is "
            f"{config.federation.min_hospitals}: lower it, or make more hospitals"
        )
    folder.config_file.write_text(dump_config(config), encoding="utf-8")
    return Prepared(config, folder, num_hospitals=len(partition))


def run_prepared(prepared: Prepared, engine: Engine) -> None:
    """Runs the federation; the run folder then holds the released model, its figures and the report.

    Raises:
        FederationError: The run failed; the history's last event says why.
    """
    run_config: Settings = {
        "config": str(prepared.folder.config_file),
        "run-folder": str(prepared.folder.path),
        "hospitals": str(prepared.folder.hospitals_folder),
    }
    if engine == "ray":
        run_with_ray(
            prepared.folder, run_config, num_nodes=prepared.num_hospitals, threads=prepared.config.training.num_threads
        )
        return
    grid = InProcessGrid(client_app, num_nodes=prepared.num_hospitals, run_config=run_config)
    context = Context(
        run_id=RUN_ID, node_id=SERVER_NODE_ID, node_config={}, state=RecordDict(), run_config=dict(run_config)
    )
    server_app(grid, context)
