"""The yardstick of the round's overhead: plain Flower with its own FedAvg, as its documentation has it.

A SuperLink without TLS and with its state in memory, one SuperNode a hospital, which starts a process for each message.
Weights are DenseNet-121's tensors, random so that nothing is stored once for all; a hospital adds a little noise.
"""

import itertools
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from server.flower import flower_environment

BIN = Path(sys.executable).parent
_PROJECT = """[project]
name = "plain"
version = "1.0.0"
description = "Plain Flower with FedAvg"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "aecnn"
[tool.flwr.app.components]
serverapp = "plain.server_app:app"
clientapp = "plain.client_app:app"
[tool.flwr.app.config]
rounds = {rounds}
hospitals = {hospitals}
"""
_CLIENT = """import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    noise = np.float32(np.random.default_rng().random() * 1e-3)
    arrays = {name: Array(array.numpy() + noise) for name, array in message.content["arrays"].items()}
    metrics = MetricRecord({"num-examples": 100})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message, context):
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 100, "loss": 0.5})}), reply_to=message)
"""
_SERVER = """import time

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()
SHAPES = {shapes}


class Timed(FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        print("ROUND-BEGINS", server_round, time.time(), flush=True)
        return super().configure_train(server_round, arrays, config, grid)


@app.main()
def main(grid, context):
    random = np.random.default_rng(0)
    arrays = {{f"tensor-{{i}}": Array(random.random(shape, dtype=np.float32)) for i, shape in enumerate(SHAPES)}}
    hospitals = int(context.run_config["hospitals"])
    strategy = Timed(min_train_nodes=hospitals, min_evaluate_nodes=hospitals, min_available_nodes=hospitals)
    rounds = int(context.run_config["rounds"])
    strategy.start(grid=grid, initial_arrays=ArrayRecord(arrays), num_rounds=rounds)
    print("ROUND-BEGINS", rounds + 1, time.time(), flush=True)
"""


def free_port() -> int:
    """Gives a TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def seconds_of_rounds(folder: Path, shapes: list[tuple[int, ...]], *, hospitals: int, rounds: int) -> list[float]:
    """Runs plain Flower and gives the wall-clock seconds of each round."""
    app = folder / "plain"
    (app / "plain").mkdir(parents=True)
    (app / "pyproject.toml").write_text(_PROJECT.format(rounds=rounds, hospitals=hospitals))
    (app / "plain" / "__init__.py").write_text("")
    (app / "plain" / "client_app.py").write_text(_CLIENT)
    (app / "plain" / "server_app.py").write_text(_SERVER.format(shapes=shapes))
    control, fleet = free_port(), free_port()
    home = folder / "home"
    home.mkdir()
    environment = {**flower_environment(home), "PATH": f"{BIN}:/usr/bin:/bin"}
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "run"\n\n[superlink.run]\naddress = "127.0.0.1:{control}"\ninsecure = true\n'
    )
    superlink = [str(BIN / "flower-superlink"), "--insecure", "--port", str(control)]
    commands = [[*superlink, "--fleet-api-address", f"127.0.0.1:{fleet}"]]
    for _ in range(hospitals):
        node = [str(BIN / "flower-supernode"), "--insecure", "--superlink", f"127.0.0.1:{fleet}"]
        commands.append([*node, "--port", str(free_port())])
    processes = []
    try:
        for number, command in enumerate(commands):
            with (folder / f"plain-{number}.log").open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
                    )
                )
            time.sleep(8 if number == 0 else 1)
        run = [str(BIN / "flwr"), "run", str(app), "--stream"]
        output = subprocess.run(
            run, env=environment, cwd=folder, capture_output=True, text=True, timeout=1200, check=False
        )
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
    begins = [float(value) for value in re.findall(r"ROUND-BEGINS \d+ ([0-9.]+)", output.stdout + output.stderr)]
    if len(begins) != rounds + 1:
        raise RuntimeError(
            f"plain Flower did not run {rounds} rounds:\n{output.stdout[-3000:]}\n{output.stderr[-3000:]}"
        )
    return [later - earlier for earlier, later in itertools.pairwise(begins)]
