"""Makes check.png and partition.png: the data-quality page of spoiled phantoms, and ten hospitals of a dataset.

Run from the repository root: ``.venv/bin/python docs/pictures/data.py``. Needs Chromium for the screenshots.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from aecnn.config import DatasetConfig, PartitionConfig, PhantomConfig
from aecnn.data.check.page import write_page
from aecnn.data.check.report import check_dataset
from aecnn.data.manifest import read_manifest
from aecnn.data.phantom import write_phantom
from simulations.partition_command import make_partition

HERE = Path(__file__).parent
PHANTOMS = PhantomConfig(num_patients=160, image_size_px=256, seed=3, preset="demo")
COLOURS = 96  # of the stored pictures: a third of the bytes


def spoil(root: Path) -> None:
    """Damages a few images in the ways that hospitals' exports do."""
    paths = [Path(path) for path in read_manifest(root).table["path"]][::9]

    def change(path: Path, pixels: np.ndarray) -> None:
        Image.fromarray(np.ascontiguousarray(pixels)).save(path)

    for path in paths[:3]:
        change(path, 255 - np.asarray(Image.open(path)))
    for path, turns in zip(paths[3:6], (1, 2, 3), strict=True):
        change(path, np.rot90(np.asarray(Image.open(path)), turns))
    for path in paths[6:8]:
        change(path, np.asarray(Image.open(path))[:, ::-1])
    framed = np.full((256, 256), 12, dtype=np.uint8)
    framed[24:232, 24:232] = np.asarray(Image.open(paths[8]).resize((208, 208)))
    change(paths[8], framed)
    change(paths[9], np.full((256, 256), 3, dtype=np.uint8))
    paths[10].write_bytes(paths[10].read_bytes()[:4000])
    shutil.copy(paths[11], paths[12])
    (root / "excluded_patients.txt").write_text("7\n")


def screenshot(page: Path, target: Path, *, width_px: int, height_px: int) -> None:
    """Renders a page with Chromium and stores it with few colours."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or "google-chrome"
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             "--disable-background-networking", f"--user-data-dir={folder}/profile", f"--screenshot={folder}/page.png",
             f"--window-size={width_px},{height_px}", page.as_uri()],
            check=True, capture_output=True,
        )  # fmt: skip
        picture = Image.open(f"{folder}/page.png").convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        picture.save(target, optimize=True)


def main() -> None:
    """Draws both pictures."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "st-mary"
        write_phantom(root, PHANTOMS)
        out = Path(folder) / "hospitals"
        config = PartitionConfig(by="labels", num_hospitals=10, alpha=0.5, min_patients=4)
        make_partition(DatasetConfig(root=root), config, out, seed=7, split=None)
        screenshot(out / "partition.svg", HERE / "partition.png", width_px=980, height_px=640)
        spoil(root)
        page = Path(folder) / "check.html"
        write_page(check_dataset(DatasetConfig(root=root), labels_only=False), page)
        page.write_text(page.read_text(encoding="utf-8").replace(folder, "/data"), encoding="utf-8")
        screenshot(page, HERE / "check.png", width_px=1240, height_px=1960)


if __name__ == "__main__":
    main()
