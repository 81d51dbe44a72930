"""Sound radiographs made unsound in known ways, to measure what the picture checks find.

Every function gives [B, 256, 256] pictures of the same shape; draws come from the generator handed in.
"""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from aecnn.data.check.orientation import turn

Pictures = npt.NDArray[np.uint8]  # [B, 256, 256]


def laid(pictures: Pictures, orientation: int) -> Pictures:
    """In another of the eight orientations."""
    return turn(torch.from_numpy(pictures), orientation).numpy()


def constant(pictures: Pictures, random: np.random.Generator, *, noise: float) -> Pictures:
    """One grey value each, with normal noise of up to this standard deviation."""
    levels = random.uniform(0, 255, (len(pictures), 1, 1))
    spread = random.uniform(0, noise, (len(pictures), 1, 1))
    return (levels + random.normal(size=pictures.shape) * spread).round().clip(0, 255).astype(np.uint8)


def saturated(pictures: Pictures, random: np.random.Generator, *, white: bool) -> Pictures:
    """All but the brightest (or darkest) 1 to 10 % of each picture clipped to black (or white)."""
    left = random.uniform(0.01, 0.10, len(pictures))
    clipped = []
    for picture, share in zip(pictures.astype(np.float64), left, strict=True):
        positive = 255.0 - picture if white else picture
        start = np.quantile(positive, 1 - share)
        scaled = ((positive - start) / max(1.0, positive.max() - start)).clip(0, 1) * 255.0
        clipped.append((255.0 - scaled if white else scaled).round())
    return np.stack(clipped).astype(np.uint8)


def framed(pictures: Pictures, random: np.random.Generator, *, widths: tuple[float, float], sides: str) -> Pictures:
    """Scaled into a frame of one grey value, a third each black, white and grey.

    Args:
        pictures: Sound ones.
        random: Draws widths and grey values.
        widths: Least and greatest width of a band, as a share of the side.
        sides: ``all`` four, each with its own width, or two opposite ones of one width.
    """
    framed = np.empty_like(pictures)
    for index, picture in enumerate(pictures):
        top, bottom, left, right = (random.uniform(*widths, 4) * 256).round().astype(int)
        if sides != "all":
            top, bottom, left, right = (top, top, 0, 0) if random.random() < 0.5 else (0, 0, left, left)
        framed[index] = random.choice([0, 255, int(random.integers(20, 236))])
        inside = _scaled(picture, height=256 - top - bottom, width=256 - left - right)
        framed[index, top : 256 - bottom, left : 256 - right] = inside
    return framed


def half(pictures: Pictures, *, right: bool) -> Pictures:
    """One half of the chest, stretched over the whole picture: something no frontal radiograph shows."""
    halves = pictures[:, :, 128:] if right else pictures[:, :, :128]
    return np.stack([_scaled(picture, height=256, width=256) for picture in halves])


def letterboxed(pictures: Pictures, *, tall: bool) -> Pictures:
    """Cut to 3 : 4 (tall) or 4 : 3 and letterboxed with black, as `decode_radiograph` does."""
    result = pictures.copy()
    if tall:
        result[:, :, :32] = result[:, :, 224:] = 0
    else:
        result[:, :32] = result[:, 224:] = 0
    return result


def _scaled(picture: npt.NDArray[np.uint8], *, height: int, width: int) -> npt.NDArray[np.uint8]:
    image = torch.from_numpy(picture.astype(np.float32))[None, None]
    scaled = F.interpolate(image, size=(height, width), mode="bilinear", antialias=True)
    return scaled[0, 0].round().clamp(0, 255).byte().numpy()
