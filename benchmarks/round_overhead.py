"""What a round costs beside training: this federation, deployed on one machine, against plain Flower, side by side.

    python benchmarks/round_overhead.py                     # 3 hospitals, DenseNet-121 (28.2 MB), 4 rounds each
    python benchmarks/round_overhead.py --rounds 6

Ours: TLS, node authentication and database on, hospitals' own evaluation included, one message each way a round. The
overhead of a round is its wall clock less the slowest hospital's time in training. Plain Flower: no TLS, state in
memory, FedAvg with train and evaluate, clients that compute nothing; once with DenseNet-121's 733 tensors, as its
documentation has it, and once with all of them in one array.

Bound: a 28.2 MB model crosses loopback in 0.03 s at 1 GB/s, six times a round. What is above that is polling (the
SuperNode asks every 3 s, its worker's answer is looked for every 0.5 s), hashing and copying in Flower.

Writes benchmarks/results/round_overhead.md.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from datetime import datetime
from pathlib import Path

from plain_flower import seconds_of_rounds

from aecnn.config import ModelConfig, PhantomConfig
from aecnn.data.phantom import write_phantom
from aecnn.model.joint import build_architecture

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from deployed_federation import Deployed, deploy
from federation_in_process import small_config

RESULTS = Path(__file__).with_name("results") / "round_overhead.md"
BACKBONE, SIZE_PX = "densenet121", 128


def run_ours(folder: Path, *, rounds: int) -> Deployed:
    """Runs one deployed federation of three hospitals to its end."""
    data = folder / "data"
    write_phantom(data, PhantomConfig(num_patients=48, image_size_px=SIZE_PX, seed=5, num_hospitals=3))
    config = small_config(
        data,
        federation={"num_rounds": rounds, "min_hospitals": 3},
        images={"size_px": SIZE_PX},
        model={"backbone": BACKBONE},
        training={"local_steps": 1},
    )
    deployed = deploy(folder, config)
    try:
        deployed.start("centre", *deployed.hospitals)
        code = deployed.wait_for_end(1200)
    finally:
        deployed.stop()
    if code != 0:
        raise RuntimeError(f"the federation ended with {code}:\n{deployed.logs()}")
    return deployed


def overheads(deployed: Deployed) -> list[float]:
    """Gives each round's seconds less its slowest hospital's training."""
    return [
        event["seconds"] - max(hospital["seconds"] for hospital in event["hospitals"].values())
        for event in deployed.history()
        if event["event"] == "round"
    ]


def where_it_goes(deployed: Deployed) -> dict[str, float]:
    """Gives the median seconds a hospital's worker has a request of a round in hand, from its audit log."""
    spans, trained = [], {}
    for event in deployed.history():
        if event["event"] == "round":
            trained[event["round"]] = {name: hospital["seconds"] for name, hospital in event["hospitals"].items()}
    for name, folder in deployed.hospitals.items():
        began: dict[int, float] = {}
        for line in (folder / "audit.jsonl").read_text().splitlines():
            entry = json.loads(line)
            if entry.get("kind") != "train":
                continue
            at = datetime.fromisoformat(entry["time"]).timestamp()
            if entry["direction"] == "in":
                began[entry["round"]] = at
            elif entry["round"] in began:
                spans.append(at - began[entry["round"]] - trained[entry["round"]][name])
    return {"at the hospital beside training (evaluation, guard, hashing, storing)": statistics.median(spans)}


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    model = build_architecture(ModelConfig(backbone=BACKBONE), input_size_px=SIZE_PX)
    shapes = [tuple(tensor.shape) for tensor in model.state_dict().values()]
    flat = [(sum(tensor.numel() for tensor in model.state_dict().values()),)]
    rounds = arguments.rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "ours").mkdir()
        one = seconds_of_rounds(folder / "one", flat, hospitals=3, rounds=rounds)
        deployed = run_ours(folder / "ours", rounds=rounds)
        ours, parts = overheads(deployed), where_it_goes(deployed)
        many = seconds_of_rounds(folder / "many", shapes, hospitals=3, rounds=rounds)
    lines = [
        "# Seconds of a round beside training, three hospitals, DenseNet-121 (28.2 MB)",
        "",
        f"`benchmarks/round_overhead.py --rounds {rounds}`, {os.cpu_count()} {platform.machine()} cores, loopback.",
        "",
        "| | median | each round | to ours |",
        "|---|---|---|---|",
    ]
    middle = statistics.median(ours)
    for label, seconds in (
        ("ours: TLS, authentication, database, evaluation included", ours),
        ("plain Flower, all weights in one array", one),
        (f"plain Flower, {len(shapes)} tensors", many),
    ):
        median = statistics.median(seconds)
        each = ", ".join(f"{value:.1f}" for value in seconds)
        lines.append(f"| {label} | {median:.1f} | {each} | {median / middle:.1f} |")
    lines += ["", "Of ours, the median by hospital and round:", ""]
    lines += [f"- {label}: {seconds:.1f} s" for label, seconds in parts.items()]
    lines += ["- the rest: Flower's polls and transfers, both ways, and averaging"]
    text = "\n".join(lines) + "\n"
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
