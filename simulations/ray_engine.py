"""The same federation through Flower's own simulation: a SuperLink of ours, and one Ray worker a hospital at a time.

The SuperLink is started for this run, in the run's folder and with a Flower home of its own, and ended with it. One
left over from another folder would serve that folder's code to this run.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

from aecnn.errors import FederationError
from server.run_folder import RunFolder
from simulations.grid import Settings

START_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.5
TAIL_LINES = 15
RUN_LOG = "run.log"


def run_with_ray(folder: RunFolder, run_config: Settings, *, num_nodes: int, threads: int) -> None:
    """Runs a prepared federation with Flower's simulation engine.

    Args:
        folder: The run's folder; Flower's own files and log go to `flower/` in it.
        run_config: What both apps read.
        num_nodes: Hospitals.
        threads: CPU cores that each hospital's training takes.

    Raises:
        FederationError: The SuperLink does not start, or the run does not complete.
    """
    app = _app_folder()
    home = folder.path / "flower"
    home.mkdir()
    port = _free_port()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "run"\n\n[superlink.run]\naddress = "127.0.0.1:{port}"\ninsecure = true\n',
        encoding="utf-8",
    )
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    log_file = home / "superlink.log"
    with log_file.open("wb") as log:
        superlink = subprocess.Popen(
            [*_command("flower-superlink"), "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)],
            cwd=home,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_listening(superlink, port, log_file)
        _submit_and_follow(app, home, environment, run_config, num_nodes=num_nodes, threads=threads)
        _require_completed(folder, home, environment)
    finally:
        _end(superlink)


def _submit_and_follow(
    app: Path, home: Path, environment: dict[str, str], run_config: Settings, *, num_nodes: int, threads: int
) -> None:
    """Submits the run and writes its log to `run.log` until it has finished."""
    settings = " ".join(f"{key}={json.dumps(value)}" for key, value in run_config.items())
    gpus = 1.0 if torch.cuda.is_available() else 0.0  # one hospital a GPU at a time; Ray hides the others
    resources = f"num-supernodes={num_nodes} client-resources-num-cpus={threads} client-resources-num-gpus={gpus}"
    arguments = ["run", str(app), "--stream", "--run-config", settings, "--federation-config", resources]
    with (home / RUN_LOG).open("wb") as log:
        subprocess.run(
            [*_command("flwr"), *arguments],
            cwd=home,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )


def _require_completed(folder: RunFolder, home: Path, environment: dict[str, str]) -> None:
    """Asks Flower how the run ended; a failure is told with the history's reason, or else with the log's end."""
    listed = subprocess.run(
        [*_command("flwr"), "ls", "--format", "json"],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if '"finished:completed"' in listed.stdout:
        return
    end = folder.ended()
    if end is not None and end["reason"]:
        raise FederationError(str(end["reason"]))
    raise FederationError(f"Flower did not complete the run; the end of {home / RUN_LOG}:\n{_tail(home / RUN_LOG)}")


def _command(name: str) -> list[str]:
    """The console script beside this interpreter."""
    script = Path(sys.executable).with_name(name)
    if not script.exists():
        raise FederationError(f"{script} is missing: reinstall flwr[simulation]")
    return [str(script)]


def _app_folder() -> Path:
    folder = Path(__file__).resolve().parents[1]
    if not (folder / "pyproject.toml").is_file():
        raise FederationError(
            "the ray engine submits this project's source folder to Flower, and these packages were installed without "
            "it: install with pip install -e, or use --engine inprocess"
        )
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_listening(superlink: "subprocess.Popen[bytes]", port: int, log_file: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if superlink.poll() is not None:
            raise FederationError(f"Flower's SuperLink ended with code {superlink.returncode}:\n{_tail(log_file)}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(POLL_INTERVAL_S)
    raise FederationError(f"Flower's SuperLink did not start in {START_TIMEOUT_S:.0f} s:\n{_tail(log_file)}")


def _end(superlink: "subprocess.Popen[bytes]") -> None:
    """Ends the SuperLink and all it started."""
    if superlink.poll() is None:
        os.killpg(superlink.pid, signal.SIGTERM)
    try:
        superlink.wait(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(superlink.pid, signal.SIGKILL)
        superlink.wait()


def _tail(log_file: Path) -> str:
    return "\n".join(log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:])
