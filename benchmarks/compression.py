"""Which lossless packer makes 8-bit latents smallest, among what the dependencies bring.

    python benchmarks/compression.py --images $AECNN_TEST_DATA/nih_1024px/images --size-px 1024

The latents are those of the autoencoder's start, or of a checkpoint. JPEG-LS is measured where the extra `dicom` is
installed; it is no candidate, since everybody must be able to open the files. Results: ``results/compression.md``.
"""

import argparse
import bz2
import io
import lzma
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from aecnn.compression.codec import quantise
from aecnn.compression.packing import pack, unpack
from aecnn.config import ImagesConfig, ModelConfig
from aecnn.data.augmentation import to_input
from aecnn.data.images import decode_radiograph
from aecnn.model.checkpoint import load_checkpoint
from aecnn.model.joint import build_model

Values = npt.NDArray[np.uint8]
Packer = tuple[Callable[[Values], bytes], Callable[[bytes], Values]]


def from_left(values: Values) -> bytes:
    """Each value less the one before it, modulo 256."""
    return np.diff(values.ravel(), prepend=np.uint8(0)).tobytes()


def summed(content: bytes) -> Values:
    """The way back from `from_left`."""
    return np.cumsum(np.frombuffer(content, np.uint8), dtype=np.uint8)


def by_pillow(kind: str, **options: object) -> Packer:
    """A picture format."""

    def packed(values: Values) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, kind, **options)
        return buffer.getvalue()

    return packed, lambda content: np.asarray(Image.open(io.BytesIO(content)).convert("L"))


def packers(side: int) -> dict[str, Packer]:
    """The candidates by name."""
    found: dict[str, Packer] = {
        "zlib 9": (lambda v: zlib.compress(v.tobytes(), 9), lambda b: np.frombuffer(zlib.decompress(b), np.uint8)),
        "zlib 9, differences": (lambda v: zlib.compress(from_left(v), 9), lambda b: summed(zlib.decompress(b))),
        "bz2 9, differences": (lambda v: bz2.compress(from_left(v)), lambda b: summed(bz2.decompress(b))),
        "LZMA 9": (
            lambda v: lzma.compress(v.tobytes(), preset=9),
            lambda b: np.frombuffer(lzma.decompress(b), np.uint8),
        ),
        "LZMA 9, differences": (
            lambda v: lzma.compress(from_left(v), preset=9),
            lambda b: summed(lzma.decompress(b)),
        ),
        "TIFF, deflate, differences": by_pillow("TIFF", compression="tiff_adobe_deflate", tiffinfo={317: 2}),
        "PNG, optimised": by_pillow("PNG", optimize=True),
        "JPEG 2000, lossless": by_pillow("JPEG2000", irreversible=False, no_jp2=True),
        "**WebP, lossless, method 4** (chosen)": (pack, lambda b: unpack(b, size_px=side)),
        "WebP, lossless, method 6, quality 100": by_pillow("WEBP", lossless=True, quality=100, method=6),
    }
    try:
        import jpeg_ls
    except ImportError:
        return found
    return {
        **found,
        "JPEG-LS (extra `dicom`)": (
            lambda v: bytes(jpeg_ls.encode_array(v)),
            lambda b: jpeg_ls.decode(np.frombuffer(b, np.uint8)),
        ),
    }


def latents(arguments: argparse.Namespace) -> list[Values]:
    """[L, L] for each image."""
    if arguments.checkpoint is None:
        images = ImagesConfig(size_px=arguments.size_px)
        model = build_model(ModelConfig(backbone="resnet18"), seed=0, input_size_px=images.input_size_px).eval()
    else:
        checkpoint = load_checkpoint(arguments.checkpoint)
        images, model = checkpoint.metadata.images, checkpoint.build()
    found = []
    for path in sorted(arguments.images.glob("*.png"))[: arguments.limit]:
        pixels = torch.from_numpy(decode_radiograph(path, size_px=images.size_px))[None, None]
        with torch.inference_mode():
            found.append(quantise(model.encode(to_input(pixels, images)))[0, 0].numpy())
    return found


def main() -> None:
    """Prints a table: bytes, bits for each pixel of the image, and milliseconds of processor time."""
    parser = argparse.ArgumentParser(description="Lossless packers of 8-bit latents")
    parser.add_argument("--images", type=Path, required=True, help="a folder of PNGs")
    parser.add_argument("--size-px", type=int, default=1024)
    parser.add_argument("--limit", type=int, default=48, help="images at most")
    parser.add_argument("--checkpoint", type=Path, help="instead of the autoencoder's start")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    squares = latents(arguments)
    side = squares[0].shape[0]
    print(f"\n{len(squares)} images, latents of {side} × {side} values ({side**2:,} bytes)\n")
    print("| packer | bytes | bits a pixel | pack, ms | unpack, ms |\n|---|---|---|---|---|")
    for name, (packed, unpacked) in packers(side).items():
        start = time.process_time()
        contents = [packed(values) for values in squares]
        middle = time.process_time()
        back = [unpacked(content) for content in contents]
        end = time.process_time()
        if not all(np.array_equal(one.ravel(), other.ravel()) for one, other in zip(squares, back, strict=True)):
            raise SystemExit(f"{name} is not lossless")
        size = np.mean([len(content) for content in contents])
        each = 1000 / len(squares)
        print(
            f"| {name} | {size:,.0f} | {8 * size / (16 * side**2):.3f} | "
            f"{each * (middle - start):.1f} | {each * (end - middle):.1f} |"
        )


if __name__ == "__main__":
    main()
