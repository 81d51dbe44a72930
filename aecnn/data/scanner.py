"""Another scanner's hand on radiographs that were all taken by one: a shift of style, applied when images are read.

In the order in which a picture comes about: detector elements (resolution), grey curve, noise, collimator's frame. Each
step maps uint8 images to uint8 images, and a step left at its default changes nothing.

Shapes: B images of a batch, N of a source, S their side in pixels.
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from aecnn.config import ScannerConfig
from aecnn.data.source import ImageSource, IntArray, LoadedImages

Pixels = npt.NDArray[np.uint8]

WHITE = 255
MIDDLE_GREY = 0.5  # of greys from 0 to 1


@dataclass(frozen=True, eq=False)
class ShiftedImages:
    """Another source's images as a hospital's scanner would show them; the same image is always shifted the same way.

    Attributes:
        source: Where the images are kept.
        names: [N] the images' names, which with the scanner's seed decide their noise.
        scanner: The shift.
    """

    source: ImageSource
    names: tuple[str, ...]  # [N]
    scanner: ScannerConfig

    @property
    def size_px(self) -> int:
        """Side of every image, in pixels."""
        return self.source.size_px

    def __len__(self) -> int:
        return len(self.source)

    def read(self, rows: IntArray, out: torch.Tensor | None = None) -> torch.Tensor:
        """Gives [B, 1, S, S] images, shifted, in `out` where it is given."""
        images = self.source.read(rows, out)
        pixels: Pixels = images.numpy()  # shares its memory with the images
        for place, row in enumerate(rows):
            pixels[place, 0] = shifted(pixels[place, 0], self.scanner, name=self.names[row])
        return images


def with_scanner(loaded: LoadedImages, scanner: ScannerConfig) -> LoadedImages:
    """Gives the same images through a hospital's scanner."""
    names = tuple(loaded.manifest.table["image"])
    return replace(loaded, images=ShiftedImages(loaded.images, names, scanner))


def shifted(pixels: Pixels, scanner: ScannerConfig, *, name: str) -> Pixels:
    """Gives one image [S, S] as the scanner would show it; its name and the scanner's seed decide the noise."""
    pixels = with_resolution(pixels, factor=scanner.resolution_factor)
    pixels = grey_curve(gamma=scanner.gamma, contrast=scanner.contrast, brightness=scanner.brightness)[pixels]
    pixels = with_noise(pixels, std=scanner.noise_std, seed=_noise_seed(scanner.noise_seed, name))
    return with_border(pixels, fraction=scanner.border_fraction)


def with_resolution(pixels: Pixels, *, factor: float) -> Pixels:
    """Gives [S, S] in squares of `factor` pixels, each the mean of what it covers; a whole number of squares."""
    side = pixels.shape[0]
    coarse = max(1, round(side / factor))
    if coarse >= side:
        return pixels
    means = Image.fromarray(pixels.astype(np.float32)).resize((coarse, coarse), Image.Resampling.BOX)
    squares = Image.fromarray(_as_bytes(np.array(means)))
    return np.asarray(squares.resize((side, side), Image.Resampling.NEAREST))


def grey_curve(*, gamma: float, contrast: float, brightness: float) -> Pixels:
    """Gives the new grey of each of the 256: contrast·(grey^gamma − ½) + ½ + brightness, of greys from 0 to 1."""
    greys = np.linspace(0.0, 1.0, WHITE + 1)
    return _as_bytes((contrast * (greys**gamma - MIDDLE_GREY) + MIDDLE_GREY + brightness) * WHITE)


def with_noise(pixels: Pixels, *, std: float, seed: int) -> Pixels:
    """Adds normal noise [S, S] of a standard deviation given as a fraction of white; black and white cut it off."""
    if std == 0.0:
        return pixels
    greys = np.random.default_rng(seed).standard_normal(pixels.shape, dtype=np.float32)
    greys *= np.float32(std * WHITE)
    greys += pixels
    return _as_bytes(greys)


def with_border(pixels: Pixels, *, fraction: float) -> Pixels:
    """Blackens a frame along the edges, as wide as a fraction of the side."""
    width = round(fraction * pixels.shape[0])
    if width == 0:
        return pixels
    framed = np.zeros_like(pixels)
    framed[width:-width, width:-width] = pixels[width:-width, width:-width]
    return framed


def _as_bytes(greys: npt.NDArray[np.floating]) -> Pixels:
    """Rounds and clips in place."""
    np.rint(greys, out=greys)
    np.clip(greys, 0, WHITE, out=greys)
    return greys.astype(np.uint8)


def _noise_seed(scanner_seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{scanner_seed}\x1f{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big")
