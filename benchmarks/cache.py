"""How fast the decoded cache is built and read, against what bounds it: the decoder alone, and copying memory.

    python benchmarks/cache.py --data /data/ChestX-ray14    # or without --data: on phantoms
    python benchmarks/cache.py --scale 112120               # also: as many images as ChestX-ray14 has, tiny ones

The bound: beside decoding (10 ms), an image of 1024 px costs the SHA-256 of its 0.4 MB file (0.23 ms), the CRC-32 of
its 1 MB of pixels (0.25 ms) and writing these into the page cache (0.2 ms at least, plus what the disk asks for): at
most 93 % of the decoder's pace.

Writes benchmarks/results/cache.md. What is compared runs in turns, and a ratio is the median of the turns' ratios,
because other work on the machine moves single figures.
"""

import argparse
import functools
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from aecnn.config import DatasetConfig, PhantomConfig
from aecnn.data.cache.build import build_cache
from aecnn.data.cache.lookup import locate
from aecnn.data.cache.plan import Plan
from aecnn.data.cache.update import Place, carry_out
from aecnn.data.cache.workers import work_off
from aecnn.data.cache.write import Item, ShardTask
from aecnn.data.images import decode_radiograph
from aecnn.data.manifest import read_manifest
from aecnn.data.phantom import write_phantom
from aecnn.data.source import FileImages, load_images

SIZE_PX = 1024
BATCH = 32
TASK_IMAGES = 32
RESULTS = Path(__file__).with_name("results") / "cache.md"


def repeated(paths: list[Path], root: Path, *, num_images: int) -> DatasetConfig:
    """Makes a dataset of copies of some files, each copy a file of its own."""
    (root / "images").mkdir(parents=True)
    lines = ["Image Index,Finding Labels,Patient ID"]
    for number in range(num_images):
        name = f"{number:08d}_000.png"
        shutil.copyfile(paths[number % len(paths)], root / "images" / name)
        lines.append(f"{name},No Finding,{number}")
    (root / "Data_Entry_2017.csv").write_text("\n".join(lines) + "\n")
    return DatasetConfig(root=root)


def decode_only(paths: tuple[str, ...], on_images: Callable[[int], None]) -> int:
    """Decodes files and keeps nothing."""
    for path in paths:
        decode_radiograph(Path(path), size_px=SIZE_PX)
        on_images(1)
    return len(paths)


class Pace:
    """Images a second from the first report on, so that starting processes does not count."""

    def __init__(self) -> None:
        self.done = self.first_done = 0
        self.begin = 0.0

    def add(self, num_images: int) -> None:
        """Counts images."""
        self.done += num_images
        if not self.begin and num_images:
            self.begin, self.first_done = time.perf_counter(), self.done

    def images_per_second(self) -> float:
        """Gives the pace until now."""
        return (self.done - self.first_done) / (time.perf_counter() - self.begin)


Way = Callable[[Pace], object]


def in_turns(first: Way, second: Way, run: Callable[[Way], float], *, turns: int) -> list[tuple[float, float]]:
    """Gives the figures of two ways, each turn the other one first."""
    pairs = []
    for turn in range(turns):
        order = (first, second) if turn % 2 == 0 else (second, first)
        figures = {way: run(way) for way in order}
        pairs.append((figures[first], figures[second]))
    return pairs


def measure_building(dataset: DatasetConfig, *, num_workers: int, turns: int) -> list[str]:
    """Compares building with decoding alone, both in as many processes."""
    paths = read_manifest(dataset).table["path"].tolist()
    tasks = [tuple(paths[start : start + TASK_IMAGES]) for start in range(0, len(paths), TASK_IMAGES)]

    def decode(pace: Pace) -> None:
        for _ in work_off(tasks, decode_only, num_workers=num_workers, on_images=pace.add):
            pass

    def build(pace: Pace) -> None:
        shutil.rmtree(dataset.root / "aecnn-cache", ignore_errors=True)
        build_cache(
            dataset, size_px=SIZE_PX, num_workers=num_workers, on_progress=lambda done, _: pace.add(done - pace.done)
        )

    def run(way: Way) -> float:
        pace = Pace()
        way(pace)
        return pace.images_per_second()

    pairs = in_turns(decode, build, run, turns=turns)
    wall = [built / decoded for decoded, built in pairs]
    return [
        f"| decoder alone, {num_workers} processes | {median([d for d, _ in pairs]):.1f} images/s | – |",
        f"| building the cache, {num_workers} processes | {median([b for _, b in pairs]):.1f} images/s | "
        f"{median(wall):.1%} of the decoder alone ({spread(wall)}) |",
    ]


def measure_building_alone(dataset: DatasetConfig, *, num_images: int, turns: int) -> list[str]:
    """Compares the processor time of both in one process, which other work on the machine moves least."""
    folders = (dataset.root.parent / f"one-process-{turn}" for turn in range(turns))
    paths = tuple(read_manifest(dataset).table["path"].tolist()[:num_images])
    items = tuple(Item(Path(path).name, "", ("",) * 14, path, path) for path in paths)

    def build(_: Pace) -> None:
        place = Place(next(folders), SIZE_PX, dataset.files, num_workers=1)
        place.folder.mkdir()
        carry_out(Plan((), (), (), (ShardTask(0, items),)), place, on_images=lambda _: None)

    def run(way: Way) -> float:
        begin = time.process_time()
        way(Pace())
        return (time.process_time() - begin) / len(paths) * 1e3

    pairs = in_turns(lambda pace: decode_only(paths, pace.add), build, run, turns=turns)
    ratios = [decoded / built for decoded, built in pairs]
    return [
        f"| decoder alone, processor time | {median([d for d, _ in pairs]):.2f} ms an image | – |",
        f"| building the cache, processor time | {median([b for _, b in pairs]):.2f} ms an image | "
        f"{median(ratios):.1%} of the decoder alone ({spread(ratios)}) |",
    ]


def measure_reading(dataset: DatasetConfig, *, turns: int) -> list[str]:
    """Compares reading batches from a warm cache with decoding them, and with copying as many bytes."""
    manifest = read_manifest(dataset)
    images = load_images(manifest, dataset, size_px=SIZE_PX).images
    files = FileImages(tuple(map(Path, manifest.table["path"])), SIZE_PX, dataset.files)
    room = torch.zeros((BATCH, 1, SIZE_PX, SIZE_PX), dtype=torch.uint8)
    in_memory = images.read(np.arange(len(manifest))).numpy()[:, 0]
    random = np.random.default_rng(0)

    def copy(rows: np.ndarray) -> None:
        for place, row in enumerate(rows):
            np.copyto(room.numpy()[place, 0], in_memory[row])

    def copy_block(rows: np.ndarray) -> None:
        begin = min(rows[0], len(in_memory) - BATCH)
        np.copyto(room.numpy()[:, 0], in_memory[begin : begin + BATCH])

    ways: dict[str, Callable[[np.ndarray], object]] = {
        "from the cache, `out` given": functools.partial(images.read, out=room),
        "from the cache, new room": images.read,
        "copying 32 arrays in memory": copy,
        "copying one array of 32 images": copy_block,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, read in ways.items():  # each its own rows: the processor's cache must not favour the second
            seconds[name].append(timed(read, np.sort(random.permutation(len(manifest))[:BATCH])))
    slow = [timed(files.read, random.permutation(len(manifest))[:BATCH]) for _ in range(5)]
    first, *others = ways
    lines = [f"| {first} | {gigabytes_per_second(seconds[first]):.1f} GB/s | – |"]
    for name in others:
        ratios = [other / own for own, other in zip(seconds[first], seconds[name], strict=True)]
        lines.append(
            f"| {name} | {gigabytes_per_second(seconds[name]):.1f} GB/s | "
            f"the cache reads at {median(ratios):.0%} of it |"
        )
    ratio = median(slow) / median(seconds[first])
    lines.append(
        f"| decoding, all cores | {BATCH / median(slow):.0f} images/s | the cache reads {ratio:.0f} times as fast |"
    )
    return lines


def measure_scale(root: Path, *, num_images: int, num_workers: int) -> list[str]:
    """Times the steps whose time goes with the number of images, on images too small to matter."""
    picture = root.with_suffix(".png")
    Image.new("L", (16, 16), color=7).save(picture)
    dataset = repeated([picture], root, num_images=num_images)
    report = build_cache(dataset, size_px=16, num_workers=num_workers)
    again = [build_cache(dataset, size_px=16, num_workers=num_workers).seconds for _ in range(3)]
    manifest = read_manifest(dataset)
    look_up = [timed(lambda _: locate(manifest, dataset, size_px=16), np.arange(0)) for _ in range(3)]
    return [
        f"| building {num_images:,} images of 16 px | {report.seconds:.1f} s | – |",
        f"| a second run, nothing changed (without reading the table) | {median(again):.2f} s | – |",
        f"| looking up all of them before a training | {median(look_up):.2f} s | – |",
    ]


def timed(read: Callable[[np.ndarray], object], rows: np.ndarray) -> float:
    """Gives the seconds one call takes."""
    begin = time.perf_counter()
    read(rows)
    return time.perf_counter() - begin


def median(values: list[float]) -> float:
    """Gives the median."""
    return statistics.median(values)


def spread(values: list[float]) -> str:
    """Gives the smallest and the largest value of some ratios."""
    return f"{min(values):.1%} to {max(values):.1%}"


def gigabytes_per_second(seconds: list[float]) -> float:
    """Gives the bandwidth of one batch's bytes."""
    return BATCH * SIZE_PX**2 / median(seconds) / 1e9


def _shown(options: argparse.Namespace) -> str:
    """The arguments, without where on this machine the data are."""
    data = [] if options.data is None else [f"--data …/{options.data.name}"]
    scale = [] if options.scale is None else [f"--scale {options.scale}"]
    return " ".join([*data, f"--images {options.images} --turns {options.turns}", *scale])


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a dataset whose files are repeated; default: phantoms")
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--scale", type=int, help="also time this many tiny images")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if options.data is None:
            write_phantom(place / "phantom", PhantomConfig(num_patients=24, image_size_px=SIZE_PX))
        source = read_manifest(options.data or place / "phantom")
        dataset = repeated([Path(p) for p in source.table["path"]], place / "data", num_images=options.images)
        lines = measure_building(dataset, num_workers=options.workers, turns=options.turns)
        lines += measure_building_alone(dataset, num_images=min(96, options.images), turns=2 * options.turns)
        lines += measure_reading(dataset, turns=20 * options.turns)
        if options.scale:
            lines += measure_scale(place / "scale", num_images=options.scale, num_workers=options.workers)
    text = "\n".join(
        [
            f"`python benchmarks/cache.py {_shown(options)}`",
            "",
            f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}; {options.images} files of "
            f"{len(source)} different ones, {SIZE_PX} px; medians of {options.turns} turns",
            "",
            "| | pace | ratio |",
            "|---|---|---|",
            *lines,
        ]
    )
    print(text)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
