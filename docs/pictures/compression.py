"""Makes compression.png, the plot of docs/compression.md, and prints its table: the autoencoder at its start.

Run from the repository root: ``.venv/bin/python docs/pictures/compression.py …/nih_1024px 24`` (a dataset in the
official layout, and how many of its test images the codecs are tried on). Takes about six minutes on two cores.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from aecnn.config import ImagesConfig, ModelConfig
from aecnn.model.checkpoint import CheckpointMetadata, save_checkpoint
from aecnn.model.joint import build_model
from aecnn.model.weights import weights_of

if __name__ == "__main__":
    data, num_compared = sys.argv[1:]
    config, images = ModelConfig(backbone="densenet121"), ImagesConfig(size_px=1024)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "start.safetensors"
        weights = weights_of(build_model(config, seed=0, input_size_px=images.input_size_px))
        save_checkpoint(path, weights, CheckpointMetadata(model=config, images=images))
        command = [Path(sys.executable).with_name("aecnn"), "evaluate", "--checkpoint", path, "--data", data]
        plot = ["--plot", Path(__file__).with_suffix(".png")]
        options = ["--batch-size", "8", "--reconstruction", "--compared-images", num_compared]
        subprocess.run([*command, *options, *plot], check=True)
