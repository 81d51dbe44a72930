"""One simulated federation, from a configuration to a finished run folder."""

from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, RecordDict

from aecnn.config import Engine, SimulationConfig, dump_config
from aecnn.data.manifest import read_manifest
from aecnn.data.phantom import write_phantom
from aecnn.data.source import refuse_unreadable
from aecnn.errors import FederationError, ManifestError
from aecnn.model.backbone import check_input_size
from aecnn.progress import OnProgress
from client.app import app as client_app
from server.app import app as server_app
from server.run_folder import RunFolder
from simulations.grid import RUN_ID, SERVER_NODE_ID, InProcessGrid, Settings
from simulations.hospitals import write_hospitals
from simulations.partition import partition_patients
from simulations.partition_record import record_partition
from simulations.ray_engine import run_with_ray


@dataclass(frozen=True)
class Prepared:
    """A run folder with its resolved configuration and its hospitals' site files."""

    config: SimulationConfig
    folder: RunFolder
    num_hospitals: int


def prepare_run(config: SimulationConfig, path: Path, *, on_phantom: OnProgress | None = None) -> Prepared:
    """Makes the dataset where it is a phantom, and the run folder with one site file a hospital.

    Whatever would end the run hours later is looked at now, and nothing is made before it is found in order.

    Raises:
        ModelError: The backbone cannot take images of this size.
        FederationError: The folder is not empty, or there are fewer hospitals than the run needs.
        ManifestError: The dataset is faulty, or has no test split.
    """
    check_input_size(config.model.backbone, input_size_px=config.images.input_size_px)
    RunFolder.refuse_used(path)
    if config.data.phantom is not None:
        write_phantom(config.data.root, config.data.phantom, on_progress=on_phantom)
    manifest = read_manifest(config.data)
    if len(manifest.of_split("test")) == 0:
        raise ManifestError(
            config.data.root,
            ["has no test split, on which the released model is scored: add the two lists, or data.table.split_column"],
        )
    if config.data.on_unreadable == "refuse":
        refuse_unreadable(manifest, config.data, size_px=config.images.size_px)
    train_val = manifest.of_split("train_val")
    partition = partition_patients(train_val, config.partition, seed=config.seed)
    if len(partition) < config.federation.min_hospitals:
        raise FederationError(
            f"the partition has {len(partition)} hospitals, and federation.min_hospitals is "
            f"{config.federation.min_hospitals}: lower it, or make more hospitals"
        )
    record = record_partition(train_val, partition, config.partition, seed=config.seed, split="train_val")
    folder = RunFolder.create(path)
    record.write(folder)
    write_hospitals(config, partition, folder.hospitals_folder)
    folder.write_text(folder.config_file.name, dump_config(config))
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
