"""Trains the net behind the picture checks of `aecnn check`, and measures how good all those checks are.

    python benchmarks/radiograph_checks.py train      # writes aecnn/data/check/orientation.safetensors
    python benchmarks/radiograph_checks.py measure    # writes benchmarks/results/radiograph_checks.{json,md}

Patients of ``nih_256px`` are divided once, by their id: tuning patients give weights, temperatures and thresholds;
report patients give every figure of the report, and nothing else. ``nih_64px`` adds its other patients to the training.
"""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from radiograph_measuring import false_alarms, hit_rates, images_per_second, reliability
from radiograph_training import SET_ASIDE, train

from aecnn.data.check.orientation import WEIGHTS_PATH, scale_down
from aecnn.data.images import decode_radiograph
from aecnn.data.manifest import Manifest, read_manifest
from aecnn.data.split import in_validation

RESULTS = Path(__file__).with_name("results")
REPORT_SHARE = 0.4
SPLIT_KEY = "radiograph checks"


def is_report(manifest: Manifest) -> npt.NDArray[np.bool_]:
    """Says of each image [B] whether its patient is kept for the report."""
    return in_validation(manifest.table["patient"].tolist(), fraction=REPORT_SHARE, key=SPLIT_KEY)


def decode(manifest: Manifest) -> npt.NDArray[np.uint8]:
    """Gives the thumbnails [B, 256, 256] of a manifest."""
    return np.stack([decode_radiograph(Path(path), size_px=256) for path in manifest.table["path"]])


def run_training(data: Path, weights: Path) -> None:
    """Trains on the tuning patients and writes the weights file."""
    large, small = read_manifest(data / "nih_256px"), read_manifest(data / "nih_64px")
    small = small.select(~small.table["patient"].isin(set(large.table["patient"][is_report(large)])).to_numpy())
    large = large.select(~is_report(large))
    names = np.concatenate([part.table["image"].to_numpy() for part in (large, small)])
    patients = np.concatenate([part.table["patient"].to_numpy() for part in (large, small)])
    images = torch.cat([scale_down(decode(part)) for part in (large, small)])
    kept = ~np.isin(names, SET_ASIDE)
    counted = np.arange(len(names)) < len(large)
    train(images[torch.from_numpy(kept)], patients[kept], counted=counted[kept], path=weights)


def run_measurement(data: Path, results: Path) -> None:
    """Measures on the report patients and writes both files of results."""
    manifest = read_manifest(data / "nih_256px")
    manifest = manifest.select(is_report(manifest))
    sound = decode(manifest)
    patients = f"{len(manifest)} images of {len(manifest.patients)} patients"
    alarm_rates, alarms = false_alarms(manifest, sound)
    rates = hit_rates(sound)
    speed = images_per_second(sound)
    command = "python benchmarks/radiograph_checks.py measure"
    head = "| case | images | share | 95 % interval | remark |\n|---|---|---|---|---|"
    found = [f"| {item['image']} | {item['kind']} | {item['sureness']} | {item['inspected']} |" for item in alarms]
    lines = [
        "# The picture checks of `aecnn check`, measured",
        f"Made by `{command}` on the report patients of nih_256px: {patients}. Speed: {speed:.0f} images a second "
        "on one core at batches of 128, without decoding.",
        "## False alarms: images as they are\n\n" + "\n".join([head, *(rate.row for rate in alarm_rates)]),
        "| image | suspected | sureness | looked at |\n|---|---|---|---|\n" + "\n".join(found),
        "## Hits: each image spoiled in one way\n\n" + "\n".join([head, *(rate.row for rate in rates)]),
        "## Sureness against truth\n\nFaults are mixed in as often as the sureness assumes. Images that are faulty as "
        "they are (see above) count as sound.\n\n"
        "| kind | stated | pictures | share of all | mean stated | truly so |\n|---|---|---|---|---|---|\n"
        + "\n".join(reliability(sound)),
    ]
    results.mkdir(parents=True, exist_ok=True)
    (results / "radiograph_checks.md").write_text("\n\n".join(lines) + "\n")
    record = {
        "command": command,
        "data": f"nih_256px, report patients: {patients}",
        "images_per_second_one_core": round(speed),
        "false_alarms": [asdict(rate) | {"interval": rate.interval} for rate in alarm_rates],
        "suspects": alarms,
        "hits": [asdict(rate) | {"interval": rate.interval} for rate in rates],
    }
    (results / "radiograph_checks.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print((results / "radiograph_checks.md").read_text())


def main() -> None:
    """Reads the command line and runs one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("train", "measure"))
    default = os.environ.get("AECNN_TEST_DATA", str(Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(default), help="folder that holds nih_256px and nih_64px")
    parser.add_argument("--weights", type=Path, default=WEIGHTS_PATH, help="where train writes the weights")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder where measure writes")
    arguments = parser.parse_args()
    if arguments.command == "train":
        run_training(arguments.data, arguments.weights)
    else:
        run_measurement(arguments.data, arguments.results)


if __name__ == "__main__":
    main()
