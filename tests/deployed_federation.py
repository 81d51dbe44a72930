"""A real federation on this machine for tests: the commands a centre and its hospitals type, on free ports."""

import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import yaml

from aecnn.config import SimulationConfig
from aecnn.model.checkpoint import load_checkpoint
from aecnn.model.weights import Weights
from client.cli import main as client_main
from server.cli import main as server_main
from server.run_folder import RunFolder
from simulations.runner import Prepared, prepare_run, run_prepared

BIN = Path(sys.executable).parent
HOSPITALS = ("hospital-1", "hospital-2", "hospital-3")
FIRST_PORT, PORTS_OF_A_WORKER = 20_000, 1_000  # below those that the kernel gives to outgoing connections
_given_ports: set[int] = set()


def free_port() -> int:
    """A port of loopback for something that starts later: no other process of the test run is given it meanwhile."""
    first = FIRST_PORT + PORTS_OF_A_WORKER * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    while True:
        port = random.SystemRandom().randrange(first, first + PORTS_OF_A_WORKER)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _given_ports:
            _given_ports.add(port)
            return port


def command(name: str, *arguments: object, code_of: Path | None = None) -> subprocess.CompletedProcess:
    """Types a command; its output is in the error when it fails.

    Args:
        name: The console script.
        arguments: The rest of the line.
        code_of: A folder with another version of the packages, which is run in place of the installed one.
    """
    done = subprocess.run(
        [BIN / name, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        stdin=subprocess.DEVNULL,
        env=_environment(code_of),
    )
    if done.returncode != 0:
        raise AssertionError(f"{name} {arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def typed_here(name: str, *arguments: object) -> None:
    """Runs a console script's function in this process, where PyTorch and Flower are imported already."""
    main = {"aecnn-client": client_main, "flower-server": server_main}[name]
    said, status = io.StringIO(), 0
    with redirect_stdout(said), redirect_stderr(said), patch.object(sys, "argv", [name, *map(str, arguments)]):
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
    if status != 0:
        raise AssertionError(f"{name} {arguments} ended with {status}:\n{said.getvalue()}")


def _environment(code_of: Path | None) -> dict[str, str]:
    return dict(os.environ) if code_of is None else {**os.environ, "PYTHONPATH": str(code_of)}


def edit(path: Path, **sections: object) -> None:
    """Changes values of a YAML file; a section's keys are merged."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key, value in sections.items():
        merged = {**(document.get(key) or {}), **value} if isinstance(value, dict) else value
        document[key] = merged
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


class RecordingProxy:
    """Passes TCP on and keeps what the two sides said."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.streams: list[bytearray] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                inside, _ = self._listener.accept()
            except OSError:
                return
            try:
                outside = socket.create_connection(("127.0.0.1", self._target_port))
            except OSError:
                inside.close()
                continue
            for source, sink in ((inside, outside), (outside, inside)):
                stream = bytearray()
                self.streams.append(stream)
                threading.Thread(target=self._pass_on, args=(source, sink, stream), daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, sink: socket.socket, stream: bytearray) -> None:
        try:
            while data := source.recv(65536):
                stream += data
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            end.close()

    def close(self) -> None:
        """Takes no more connections."""
        self._listener.close()


@dataclass
class Deployed:
    """A centre's folder, its hospitals' folders, and the processes that were started of them."""

    centre: Path
    hospitals: dict[str, Path]
    fleet_port: int
    local_port: int
    proxy: RecordingProxy | None
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)

    def start(self, *names: str, code_of: Path | None = None) -> None:
        """Starts the centre (`centre`) or hospitals by name; their output goes to a file in their folder."""
        for name in names:
            folder = self.centre if name == "centre" else self.hospitals[name]
            if name in self.processes:  # it was told to stop, or was killed
                self.processes[name].wait(timeout=60)
            program = "flower-server" if name == "centre" else "aecnn-client"
            with (folder / "output.log").open("ab") as output:
                self.processes[name] = subprocess.Popen(
                    [BIN / program, "start", "--folder", folder],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=_environment(code_of),
                )

    def wait_for_end(self, timeout_s: float) -> int:
        """Waits until the centre ends; gives its exit code."""
        try:
            return self.processes["centre"].wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the centre did not end in {timeout_s} s:\n{self.logs()}") from None

    def stop(self) -> None:
        """Ends everything that was started, hospitals first; kills what does not heed."""
        for name in sorted(self.processes, key=lambda name: name == "centre"):
            process = self.processes[name]
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self.proxy is not None:
            self.proxy.close()

    def run_folder(self) -> Path:
        """The newest run's folder."""
        return sorted((self.centre / "runs").iterdir())[-1]

    def history(self) -> list[dict]:
        """The newest run's events."""
        path = self.run_folder() / "history.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def rounds(self) -> list[dict]:
        """The newest run's finished rounds."""
        return [event for event in self.history() if event["event"] == "round"]

    def status(self) -> dict:
        """What the coordinator says it is doing."""
        return json.loads((self.centre / "state" / "status.json").read_text(encoding="utf-8"))

    def wait_for_phase(self, phase: str) -> None:
        """Waits until the coordinator waits for hospitals in a phase of the run."""
        self.wait_for(lambda: (now := self.status())["phase"] == phase and now["deadline_at"], phase, 300)

    def wait_for(self, is_so, what: str, timeout_s: float = 180) -> None:
        """Waits until a question about files or processes is answered with yes."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                if is_so():
                    return
            except (FileNotFoundError, IndexError, KeyError, json.JSONDecodeError):
                pass
            time.sleep(0.05)
        raise AssertionError(f"waited {timeout_s} s for {what}:\n{self.logs()}")

    def logs(self) -> str:
        """The ends of all log files, for an error's text."""
        folders = [self.centre, *self.hospitals.values()]
        files = [
            file
            for folder in folders
            for file in (folder / "output.log", *sorted((folder / "state" / "logs").glob("*.log")))
        ]
        texts = [
            f"== {file.parent.parent.parent.name}/{file.name}\n{file.read_text(errors='replace')[-1500:]}"
            for file in files
            if file.exists()
        ]
        return "\n".join(texts)


def children_of(pid: int) -> dict[int, str]:
    """The running processes below a process, with their command lines."""
    found: dict[int, str] = {}
    parents = {pid}
    table = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                table[int(entry.name)] = (parent, (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except (OSError, ValueError, IndexError):
                continue
    while True:
        added = {child: line for child, (parent, line) in table.items() if parent in parents and child not in found}
        if not added:
            return found
        found |= added
        parents |= set(added)


def kill(deployed: Deployed, owner: str, *words: str) -> None:
    """Kills (−9) the processes below a command whose command lines hold these words, one process a word, at once."""
    running = children_of(deployed.processes[owner].pid)
    pids = [next((pid for pid, line in running.items() if word in line), None) for word in words]
    assert None not in pids, f"{owner} has no process for each of {words}: {running}"
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def simulated_weights(config: SimulationConfig, deployed: Deployed) -> Weights:
    """What the same hospitals give in the simulation that was prepared beside a deployment."""
    folder = deployed.centre.parent / "simulated"
    run_prepared(Prepared(config, RunFolder(folder), num_hospitals=len(HOSPITALS)), "inprocess")
    return load_checkpoint(folder / "global.safetensors").weights


def deploy(folder: Path, config: SimulationConfig, *, with_proxy: bool = False, **server: object) -> Deployed:
    """Sets up a centre and three hospitals that hold what the simulated ones of `config` hold, and enrols them.

    The simulated run that was prepared lies in `simulated/`, so that its result can be compared.
    """
    prepared = prepare_run(config, folder / "simulated")
    fleet_port, local_port = free_port(), free_port()
    proxy = RecordingProxy(fleet_port) if with_proxy else None
    centre = folder / "centre"
    address = f"127.0.0.1:{proxy.port if proxy else fleet_port}"
    typed_here(
        "flower-server", "init", centre, "--name", config.name, "--address", address,
        "--listen", f"127.0.0.1:{fleet_port}", "--local-port", local_port,
    )  # fmt: skip
    sections = {key: config.model_dump(mode="json")[key] for key in ("federation", "images", "model", "training")}
    edit(centre / "server.yaml", seed=config.seed, **{**sections, **server})
    hospitals = {}
    for site in sorted(prepared.folder.hospitals_folder.glob("*/site.yaml")):
        simulated = yaml.safe_load(site.read_text())
        name, place = simulated["name"], folder / simulated["name"]
        federation, data = centre / "federation.yaml", config.data.root
        typed_here("aecnn-client", "init", place, "--federation", federation, "--name", name, "--data", data)
        (place / "patients.txt").write_text((site.parent / "patients.txt").read_text())
        edit(
            place / "site.yaml",
            validation_key=simulated["validation_key"],
            data=simulated["data"],
            policy={"min_patients": 1},
            local_port=free_port(),
            device="cpu",
        )
        typed_here("aecnn-client", "request", "--folder", place)
        typed_here("flower-server", "enroll", name, place / "enrolment-request.json", "--yes", "--folder", centre)
        hospitals[name] = place
    return Deployed(centre, hospitals, fleet_port, local_port, proxy)
