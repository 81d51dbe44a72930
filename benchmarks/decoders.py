"""Which library decodes 1024-px radiographs fastest on one core: paired and interleaved, so that load hits all alike.

    python benchmarks/decoders.py --images $AECNN_TEST_DATA/nih_1024px/images
    python benchmarks/decoders.py                                   # phantoms, drawn for the purpose

Only Pillow is a dependency of the project. The others are measured where they are installed:
``pip install opencv-python-headless imagecodecs pyspng``. Results and the decision: ``results/decoders.md``.
"""

import argparse
import importlib.metadata
import io
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import features
from PIL.PngImagePlugin import PngImageFile

from aecnn.config import PhantomConfig
from aecnn.data.images import decode_content
from aecnn.data.phantom import write_phantom

Decode = Callable[[bytes], npt.NDArray[np.uint8]]
NUM_PHANTOM_PATIENTS = 12


def pillow(content: bytes) -> npt.NDArray[np.uint8]:
    """Pillow alone, without any check of ours."""
    image = PngImageFile(io.BytesIO(content))
    return np.asarray(image if image.mode == "L" else image.convert("L"))


def product(content: bytes) -> npt.NDArray[np.uint8]:
    """What the project calls: checksums, checks, grey, a copy that can be written to."""
    return decode_content(content, Path("benchmark.png"), size_px=1024)


def decoders() -> dict[str, tuple[Decode, str]]:
    """The decoders that are installed, by the name shown, and the distribution each comes from."""
    found: dict[str, tuple[Decode, str]] = {"Pillow": (pillow, "pillow"), "aecnn (Pillow)": (product, "pillow")}
    try:
        import torch
        from torchvision.io import ImageReadMode, decode_png

        torch.set_num_threads(1)

        def torchvision(content: bytes) -> npt.NDArray[np.uint8]:
            data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            return decode_png(data, ImageReadMode.GRAY)[0].numpy()

        found["torchvision"] = (torchvision, "torchvision")
    except ImportError:
        pass
    try:
        import cv2

        cv2.setNumThreads(1)
        grey = cv2.IMREAD_GRAYSCALE
        found["OpenCV"] = (
            lambda content: cv2.imdecode(np.frombuffer(content, np.uint8), grey),
            "opencv-python-headless",
        )
    except ImportError:
        pass
    try:
        import imagecodecs

        found["imagecodecs"] = (lambda content: first_channel(imagecodecs.png_decode(content)), "imagecodecs")
    except ImportError:
        pass
    try:
        import pyspng

        found["pyspng"] = (lambda content: first_channel(pyspng.load(content)), "pyspng")
    except ImportError:
        pass
    return found


def first_channel(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """[H, W] the first of equal channels."""
    return picture if picture.ndim == 2 else np.ascontiguousarray(picture[..., 0])


def measure(contents: Sequence[bytes], found: dict[str, tuple[Decode, str]], *, rounds: int) -> npt.NDArray[np.float64]:
    """[decoders, rounds × files] seconds of processor time; the decoders take turns in a new order at every file."""
    draw = random.Random(0)
    names = list(found)
    seconds: list[list[float]] = [[] for _ in names]
    for _ in range(rounds):
        for content in contents:
            for index in draw.sample(range(len(names)), len(names)):
                start = time.process_time()
                picture = found[names[index]][0](content)
                del picture  # giving its memory back counts, too
                seconds[index].append(time.process_time() - start)
    return np.array(seconds)


def flips(decode: Decode, content: bytes, *, count: int = 100) -> str:
    """What becomes of files with one flipped bit: how many come back as a picture, how many end the process.

    Each is decoded by a copy of this process.
    """
    draw = random.Random(1)
    unseen = crashes = 0
    for _ in range(count):
        damaged = bytearray(content)
        damaged[draw.randrange(8, len(content))] ^= 1 << draw.randrange(8)
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the libraries' own chatter
            try:
                os._exit(0 if decode(bytes(damaged)) is not None else 1)
            except Exception:  # noqa: BLE001 - each library has its own errors
                os._exit(1)
        status = os.waitpid(child, 0)[1]
        unseen += status == 0
        crashes += os.WIFSIGNALED(status)
    return f"{unseen} | {crashes}"


def table(title: str, contents: Sequence[bytes], *, rounds: int) -> None:
    """Prints the medians over all files and rounds, and the median of the ratios to Pillow on the same file."""
    found = decoders()
    expected = [pillow(content) for content in contents]
    seconds = measure(contents, found, rounds=rounds)
    print(f"\n{title}: {len(contents)} files, {rounds} rounds\n")
    print(
        "| decoder | version | ms a file | files/s | speed against Pillow (quartiles) | same pixels | unseen | crashes |"  # noqa: E501
    )
    print("|---|---|---|---|---|---|---|---|")
    for (name, (decode, distribution)), taken in zip(found.items(), seconds, strict=True):
        ratio = np.percentile(seconds[0] / taken, [25, 50, 75])
        same = sum(np.array_equal(decode(content), grey) for content, grey in zip(contents, expected, strict=True))
        middle = float(np.median(taken))
        print(
            f"| {name} | {importlib.metadata.version(distribution)} | {1000 * middle:.2f} | {1 / middle:.0f} | "
            f"{ratio[1]:.2f} ({ratio[0]:.2f} to {ratio[2]:.2f}) | {same} of {len(contents)} | "
            f"{flips(decode, contents[0])} |"
        )


def main() -> None:
    """Measures the files of a folder, by their mode, or phantoms."""
    parser = argparse.ArgumentParser(description="Decoders of 1024-px PNGs on one core")
    parser.add_argument("--images", type=Path, help="a folder of PNGs; without it phantoms are drawn")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    zlib = "zlib-ng" if features.check("zlib_ng") else "zlib"
    print(f"Python {sys.version.split()[0]}, Pillow with {zlib} {features.version('zlib')}")
    with tempfile.TemporaryDirectory() as folder:
        images = arguments.images
        if images is None:
            config = PhantomConfig(num_patients=NUM_PHANTOM_PATIENTS, image_size_px=1024, num_hospitals=1)
            write_phantom(Path(folder) / "phantoms", config)
            images = Path(folder) / "phantoms" / "images"
        groups: dict[str, list[bytes]] = {}
        for path in sorted(images.glob("*.png")):
            content = path.read_bytes()
            groups.setdefault(PngImageFile(io.BytesIO(content)).mode, []).append(content)
    for mode, contents in sorted(groups.items()):
        table(f"Mode {mode}", contents, rounds=arguments.rounds)


if __name__ == "__main__":
    main()
