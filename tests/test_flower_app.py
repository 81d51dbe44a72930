"""The project as a Flower app: what its bundle holds, and that Flower's own simulation gives the same weights."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import aecnn
import client
import server
import simulations
from aecnn.model.checkpoint import load_checkpoint
from conftest import PROJECT
from federation_in_process import same_weights, small_config
from simulations.runner import prepare_run, run_prepared

FLWR = Path(sys.executable).with_name("flwr")
PACKAGES = ("aecnn", "client", "server", "simulations")


def _offline(home: Path) -> dict[str, str]:
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": f"{FLWR.parent}{os.pathsep}{os.environ['PATH']}",
    }


@pytest.mark.parametrize("package", [aecnn, client, server, simulations], ids=PACKAGES)
def test_the_packages_that_are_imported_are_this_trees(package):
    assert Path(package.__file__).parents[1] == PROJECT


@pytest.mark.flower
@pytest.mark.slow
def test_the_bundle_holds_the_packages_and_configurations_and_nothing_that_lies_about(tmp_path):
    app = tmp_path / "project"
    for name in (*PACKAGES, "configs"):
        shutil.copytree(PROJECT / name, app / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(PROJECT / name, app / name)
    for stray in ("hospital_a/manifest.json", "runs/demo/history.jsonl", "site.yaml", "notes.md"):
        (app / stray).parent.mkdir(parents=True, exist_ok=True)
        (app / stray).write_text("{}")
    subprocess.run([FLWR, "build", "--app", app], cwd=tmp_path, env=_offline(tmp_path / "home"), check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.fab"))) as bundle:
        held = {name for name in bundle.namelist() if not name.startswith(".info")}
    code = {path.relative_to(app).as_posix() for name in PACKAGES for path in (app / name).rglob("*.py")}
    configs = {f"configs/{path.name}" for path in (app / "configs").glob("*.yaml")}
    assert code | configs <= held
    assert held - code - configs <= {"pyproject.toml", "README.md", "LICENSE", "flwr-app.toml"}


@pytest.mark.flower
@pytest.mark.slow
def test_flowers_own_simulation_gives_the_weights_of_the_in_process_engine_bit_for_bit(phantom_64px, tmp_path):
    config = small_config(phantom_64px)
    for engine in ("inprocess", "ray"):
        run_prepared(prepare_run(config, tmp_path / engine), engine)
    one, two = (load_checkpoint(tmp_path / engine / "global.safetensors") for engine in ("inprocess", "ray"))
    assert same_weights(one.weights, two.weights)
    assert one.metadata.round == two.metadata.round
    assert (tmp_path / "ray" / "report.html").is_file()


@pytest.mark.flower
@pytest.mark.slow
def test_plain_flwr_run_works_from_the_projects_folder(tmp_path):
    """`flwr run .` with nothing but a Flower home and a port of the test's own."""
    home = tmp_path / "home"
    home.mkdir()
    environment = _offline(home) | {
        "HOME": str(tmp_path),  # phantoms go to the user's cache
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(_free_port()),
        "FLWR_LOCAL_CONTROL_API_PORT": str(_free_port()),
    }
    run = tmp_path / "run"
    try:
        done = subprocess.run(
            [FLWR, "run", PROJECT, "--stream", "--run-config", f'run-folder="{run}"'],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=True,
        )
        end = json.loads((run / "history.jsonl").read_text().splitlines()[-1])
        assert end["status"] == "completed", done.stdout[-3000:]
        assert json.loads((run / "metrics.json").read_text())["num_images"] > 0
    finally:
        _end_processes_of(home)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _end_processes_of(home: Path) -> None:
    """Ends the SuperLink that `flwr run` left behind, by its Flower home."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"FLWR_HOME={home}".encode() in variables and int(process.name) != os.getpid():
            try:
                os.kill(int(process.name), 9)
            except ProcessLookupError:
                continue
