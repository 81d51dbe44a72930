"""Whether the compressed domain holds: size and quality beside other codecs, and what classifying from disk changes.

Every image is compressed into a file as `aecnn compress` writes it and read back. Logits of the 8-bit latents are
compared with those of the images; then some images, spread evenly over the set, are coded by others at the same size.

SSIM: Wang et al. 2004, 11 px Gaussian window. MS-SSIM: Wang et al. 2003, five scales; images of over 160 px.
Shapes: N images, F findings, S = input side in pixels, L = S/4.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from pytorch_msssim import ms_ssim, ssim
from torch import Tensor

from aecnn.compression.codec import dequantise, header_for, quantise, read_latent, to_grey
from aecnn.compression.format import SUFFIX, Record, open_compressed, write_compressed
from aecnn.compression.packing import pack, require_packer
from aecnn.config import ImagesConfig
from aecnn.data.augmentation import to_input
from aecnn.data.buffer import DeviceReader
from aecnn.data.source import LoadedImages
from aecnn.evaluation.auroc import auroc, macro_mean
from aecnn.evaluation.codecs import SCALINGS, Coded, Grey, at_quality, at_size, known_codecs, scaled
from aecnn.evaluation.metrics import mean_psnr_db, null_if_nan
from aecnn.model.checkpoint import CheckpointMetadata
from aecnn.model.joint import JointAECNN
from aecnn.progress import OnProgress

MS_SSIM_ABOVE_PX = 160  # five scales of an 11 px window: (11 − 1) · 2⁴
OURS = "AE-CNN"


@dataclass(frozen=True)
class Quality:
    """What one way of coding came to: means over the compared images."""

    name: str
    bytes_per_image: float
    bits_per_pixel: float
    psnr_db: float | None  # None where every copy is perfect
    ssim: float
    ms_ssim: float | None  # None for images that are too small for it


@dataclass(frozen=True)
class Classification:
    """How far logits of 8-bit latents from disk lie from those of the images; latents are off by 1/510 at most."""

    max_latent_change: float
    max_logit_change: float
    mean_logit_change: float
    macro_auroc_of_images: float | None
    macro_auroc_of_latents: float | None
    max_auroc_change: float | None  # over the findings


@dataclass(frozen=True)
class Compression:
    """How well a set of images compresses."""

    image_size_px: int
    num_images: int
    num_bytes: int  # of one file with all of them
    classification: Classification
    num_compared_images: int
    methods: tuple[Quality, ...]  # ours first; the codecs at our size, image by image
    curves: dict[str, tuple[Quality, ...]]  # by codec, from small to large; empty where not asked for

    @property
    def bits_per_pixel(self) -> float:
        """Bits of the file for each pixel."""
        return 8 * self.num_bytes / (self.num_images * self.image_size_px**2)

    def to_json(self) -> dict[str, object]:
        """Gives plain data for JSON."""
        return {**asdict(self), "bits_per_pixel": self.bits_per_pixel}


@dataclass(frozen=True)
class _Copy:
    """One coded picture against the original."""

    num_bytes: int
    mse: float
    ssim: float
    ms_ssim: float


def judge_compression(
    model: JointAECNN,
    metadata: CheckpointMetadata,
    loaded: LoadedImages,
    *,
    device: torch.device,
    batch_size: int,
    num_compared: int,
    with_curves: bool,
    on_progress: OnProgress | None = None,
) -> Compression:
    """Compresses a set of images and compares.

    Args:
        model: The model.
        metadata: Of its checkpoint; the centre crop it names is what is compressed.
        loaded: Images with their targets.
        device: Where the model computes.
        batch_size: Images in one forward pass.
        num_compared: Most images that the other codecs are tried on; they take most of the time.
        with_curves: Also code these at several qualities, for a rate-distortion plot.
        on_progress: Called with images done and images in all, for the comparison.
    """
    require_packer()
    model.to(device).eval()
    num_images = len(loaded.manifest)
    rows = np.unique(np.linspace(0, num_images - 1, min(num_compared, num_images)).round().astype(np.int64))
    header = header_for(model, metadata, num_images=num_images)
    reader = DeviceReader(loaded.images, device)
    first_pass = _FirstPass([], [])
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = Path(folder) / f"images{SUFFIX}"
        records = first_pass.records(model, metadata.images, reader, num_images=num_images, batch_size=batch_size)
        num_bytes = write_compressed(path, header, records)
        logits, copies = _read_back(path, model, device, batch_size=batch_size, wanted=set(rows.tolist()))
        originals = [to_grey(to_input(reader.read(row), metadata.images))[0] for row in rows[:, None]]
    classification = _classification(first_pass, logits, loaded.manifest.targets)
    methods, curves = _compare(originals, copies, with_curves=with_curves, on_progress=on_progress)
    return Compression(header.image_size_px, num_images, num_bytes, classification, len(rows), methods, curves)


@dataclass(frozen=True)
class _FirstPass:
    """What is noted while the images are compressed."""

    logits: list[Tensor]  # [B, F] of the latents as the encoder gives them
    latent_changes: list[float]

    def records(
        self, model: JointAECNN, images: ImagesConfig, reader: DeviceReader, *, num_images: int, batch_size: int
    ) -> Iterator[Record]:
        for start in range(0, num_images, batch_size):
            rows = np.arange(start, min(start + batch_size, num_images))
            latent = model.encode(to_input(reader.read(rows), images))  # [B, 1, L, L]
            values = quantise(latent)
            self.logits.append(model.classify(latent)[0].float().cpu())
            self.latent_changes.append(float((dequantise(values) - latent).abs().max()))
            for row, square in zip(rows, values[:, 0].cpu().numpy(), strict=True):
                yield Record(f"{row}.png", pack(square))


def _read_back(
    path: Path, model: JointAECNN, device: torch.device, *, batch_size: int, wanted: set[int]
) -> tuple[Tensor, list[Coded]]:
    """Logits [N, F] of the latents in a file, and the wanted images as its decoder rebuilds them."""
    logits: list[Tensor] = []
    copies: list[Coded] = []
    with open_compressed(path) as (header, records):
        numbered = enumerate(records)
        while batch := list(islice(numbered, batch_size)):
            latents = [dequantise(read_latent(path, header, record).to(device)) for _, record in batch]
            logits.append(model.classify(torch.cat(latents))[0].float().cpu())
            copies += [
                Coded(len(record.packed), to_grey(model.decode(latent))[0])
                for (row, record), latent in zip(batch, latents, strict=True)
                if row in wanted
            ]
    return torch.cat(logits), copies


def _classification(first_pass: _FirstPass, of_latents: Tensor, targets: npt.NDArray[np.float32]) -> Classification:
    of_images = torch.cat(first_pass.logits)
    change = (of_latents - of_images).abs()
    areas = [auroc(logits.numpy(), targets) for logits in (of_images, of_latents)]
    changes = np.abs(areas[0] - areas[1])
    return Classification(
        max_latent_change=max(first_pass.latent_changes),
        max_logit_change=float(change.max()),
        mean_logit_change=float(change.mean()),
        macro_auroc_of_images=null_if_nan(macro_mean(areas[0])),
        macro_auroc_of_latents=null_if_nan(macro_mean(areas[1])),
        max_auroc_change=None if np.isnan(changes).all() else float(np.nanmax(changes)),
    )


def _compare(
    originals: Sequence[Grey], copies: Sequence[Coded], *, with_curves: bool, on_progress: OnProgress | None
) -> tuple[tuple[Quality, ...], dict[str, tuple[Quality, ...]]]:
    """The methods at our size, and the codecs' curves."""
    by_method: dict[str, list[_Copy]] = {}
    by_point: dict[tuple[str, int], list[_Copy]] = {}

    def code(pair: tuple[Grey, Coded]) -> tuple[dict[str, _Copy], dict[tuple[str, int], _Copy]]:
        original, ours = pair
        coded = {OURS: ours}
        coded |= {codec.name: at_size(codec, original, ours.num_bytes) for codec in known_codecs()}
        coded |= {f"×4 down, {name} up": scaled(original, resampling) for name, resampling in SCALINGS.items()}
        points = {
            (codec.name, quality): _against(original, at_quality(codec, original, quality))
            for codec in (known_codecs() if with_curves else ())
            for quality in codec.curve
        }
        return {name: _against(original, picture) for name, picture in coded.items()}, points

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as threads:
        for number, (methods, points) in enumerate(threads.map(code, zip(originals, copies, strict=True)), start=1):
            for name, copy in methods.items():
                by_method.setdefault(name, []).append(copy)
            for point, copy in points.items():
                by_point.setdefault(point, []).append(copy)
            if on_progress is not None:
                on_progress(number, len(originals))
    num_pixels = originals[0].size
    curves: dict[str, tuple[Quality, ...]] = {}
    for (name, _), found in by_point.items():
        curves[name] = (*curves.get(name, ()), _mean(name, found, num_pixels))
    return tuple(_mean(name, found, num_pixels) for name, found in by_method.items()), curves


def _against(original: Grey, coded: Coded) -> _Copy:
    one, other = (torch.from_numpy(grey.astype(np.float32) / 255.0)[None, None] for grey in (original, coded.grey))
    with torch.inference_mode():
        is_large = original.shape[0] > MS_SSIM_ABOVE_PX
        return _Copy(
            num_bytes=coded.num_bytes,
            mse=float((one - other).square().mean()),
            ssim=float(ssim(one, other, data_range=1.0)),
            ms_ssim=float(ms_ssim(one, other, data_range=1.0)) if is_large else float("nan"),
        )


def _mean(name: str, copies: Sequence[_Copy], num_pixels: int) -> Quality:
    num_bytes, mse, similar, at_scales = (
        np.array(column, dtype=np.float64) for column in zip(*map(astuple, copies), strict=True)
    )
    return Quality(
        name=name,
        bytes_per_image=float(num_bytes.mean()),
        bits_per_pixel=8 * float(num_bytes.mean()) / num_pixels,
        psnr_db=null_if_nan(mean_psnr_db(mse)),
        ssim=float(similar.mean()),
        ms_ssim=null_if_nan(float(at_scales.mean())),
    )
