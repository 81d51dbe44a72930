"""Radiographs → latents in 8 bits → file, and back.

Shapes: B images, S pixels a side, L = S/4 values of a latent's side. A latent lies in [0, 1]; as 8-bit values it is off
by at most half a step, 1/510. What is kept of an image is what the model sees of it: scaled to `size_px`, then the
centre crop, where the model has one.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from aecnn.compression.format import SUFFIX, Header, Origin, Record, name_fault, open_compressed, write_compressed
from aecnn.compression.packing import pack, require_packer, unpack
from aecnn.config import ImagesConfig
from aecnn.data.augmentation import to_input
from aecnn.data.images import decode_radiograph, verify_radiograph
from aecnn.errors import CompressedFileError, ImageError
from aecnn.model.checkpoint import Checkpoint, CheckpointMetadata
from aecnn.model.joint import JointAECNN
from aecnn.model.weights import weights_of
from aecnn.progress import OnProgress

LEVELS = 255  # steps of a latent's value from 0 to 1
SHOWN_DIGITS = 12  # of a fingerprint, in a sentence


@dataclass(frozen=True)
class Compressed:
    """What compressing some images came to."""

    num_images: int
    image_size_px: int
    num_bytes: int  # of the file
    num_bytes_before: int  # of the images' own files

    @property
    def bits_per_pixel(self) -> float:
        """Bits of the file for each pixel it stands for."""
        return 8 * self.num_bytes / (self.num_images * self.image_size_px**2)


def quantise(latent: Tensor) -> Tensor:
    """Gives a latent in [0, 1] as uint8 of the same shape, off by 1/510 at most."""
    return (latent * LEVELS).round().to(torch.uint8)


def dequantise(values: Tensor) -> Tensor:
    """Gives 8-bit values as a latent, float32 in [0, 1] of the same shape."""
    return values.float() / LEVELS


def to_grey(images: Tensor) -> npt.NDArray[np.uint8]:
    """Gives images [B, 1, S, S] in [0, 1] as grey values [B, S, S] from 0 to 255."""
    return np.asarray((images * 255.0).round().to(torch.uint8)[:, 0].cpu().numpy())


def decoder_fingerprint(model: JointAECNN) -> str:
    """Gives the SHA-256 (hexadecimal) of all that decides what a decoder makes of a latent: padding and weights."""
    digest = hashlib.sha256(f"aecnn decoder, padding {model.decoder.padding}\n".encode())
    for name, array in sorted(weights_of(model.decoder).items()):
        array = array.astype(array.dtype.newbyteorder("<"))
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode() + array.tobytes())
    return digest.hexdigest()


def header_for(model: JointAECNN, metadata: CheckpointMetadata, *, num_images: int) -> Header:
    """Gives the header of a file of images that this model compresses."""
    return Header(
        decoder=decoder_fingerprint(model),
        origin=Origin(backbone=metadata.model.backbone, run=metadata.run, round=metadata.round),
        image_size_px=metadata.images.input_size_px,
        num_images=num_images,
    )


def compress_files(
    paths: Sequence[Path], out: Path, checkpoint: Checkpoint, *, on_progress: OnProgress | None = None
) -> Compressed:
    """Compresses image files into one file, which is there whole or not at all.

    Args:
        paths: PNG, JPEG or DICOM. The file keeps their names, with the ending ``.png``.
        out: Ends in ``.aec``, and is not there yet.
        checkpoint: The model; it scales the images to its own input.
        on_progress: Called with images done and images in all.

    Raises:
        CompressedFileError: A place or a name that cannot be, or images that cannot be read; with every one of them.
    """
    require_packer()
    names = [f"{path.stem}.png" for path in paths]
    faults = _faults_of_place(out) + _faults_of_names(names, paths) + _faults_of_images(paths)
    if faults:
        raise CompressedFileError(out, faults)
    model = checkpoint.build()
    images = checkpoint.metadata.images

    def records() -> Iterator[Record]:
        for number, (path, name) in enumerate(zip(paths, names, strict=True), start=1):
            yield Record(name, pack(_latent_of(path, model, images)))
            if on_progress is not None:
                on_progress(number, len(paths))

    header = header_for(model, checkpoint.metadata, num_images=len(paths))
    try:
        num_bytes = write_compressed(out, header, records())
    except ImageError as error:  # damage that only decoding shows
        raise CompressedFileError(out, [str(error)]) from error
    before = sum(path.stat().st_size for path in paths)
    return Compressed(len(paths), header.image_size_px, num_bytes, before)


def decompress_file(path: Path, folder: Path, checkpoint: Checkpoint, *, on_progress: OnProgress | None = None) -> int:
    """Rebuilds the images of a compressed file as grey PNGs and gives their number.

    Args:
        path: The ``.aec`` file.
        folder: New or empty; it is filled at once, when all images are rebuilt, or not at all.
        checkpoint: The model whose decoder the file was made for.
        on_progress: Called with images done and images in all.

    Raises:
        CompressedFileError: The file is damaged or not of this decoder, or the folder is not empty.
    """
    require_packer()
    _refuse_folder(folder)
    model = checkpoint.build()
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        with open_compressed(path) as (header, records):
            refuse_other_decoder(path, header, model, checkpoint)
            partial.mkdir()
            for number, record in enumerate(records, start=1):
                Image.fromarray(_rebuild(path, header, record, model)).save(partial / record.name)
                if on_progress is not None:
                    on_progress(number, header.num_images)
        partial.replace(folder)
    except OSError as error:
        raise CompressedFileError(folder, [f"cannot be written ({error.strerror or error})"]) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return header.num_images


def read_latent(path: Path, header: Header, record: Record) -> Tensor:
    """Gives the 8-bit latent of one image, uint8 [1, 1, L, L].

    Raises:
        CompressedFileError: Its packed bytes are no such latent.
    """
    try:
        values = unpack(record.packed, size_px=header.latent_size_px)
    except ValueError as error:
        raise CompressedFileError(path, [f"{record.name!r} is damaged: {error}: fetch the file again"]) from error
    return torch.from_numpy(values)[None, None]


def refuse_other_decoder(path: Path, header: Header, model: JointAECNN, checkpoint: Checkpoint) -> None:
    """Refuses a file whose images another decoder was trained to rebuild.

    Raises:
        CompressedFileError: It names both decoders.
    """
    own = decoder_fingerprint(model)
    if header.decoder == own:
        return
    mine = header_for(model, checkpoint.metadata, num_images=1)
    raise CompressedFileError(
        path,
        [
            f"was made with {_described(header)}, and {checkpoint.path} has {_described(mine)}: "
            "give the checkpoint that the images were compressed with"
        ],
    )


def _latent_of(path: Path, model: JointAECNN, images: ImagesConfig) -> npt.NDArray[np.uint8]:
    """[L, L]."""
    pixels = torch.from_numpy(decode_radiograph(path, size_px=images.size_px))[None, None]
    with torch.inference_mode():
        return np.asarray(quantise(model.encode(to_input(pixels, images)))[0, 0].numpy())


def _rebuild(path: Path, header: Header, record: Record, model: JointAECNN) -> npt.NDArray[np.uint8]:
    """[S, S]."""
    with torch.inference_mode():
        rebuilt = to_grey(model.decode(dequantise(read_latent(path, header, record))))
    return np.asarray(rebuilt[0])


def _described(header: Header) -> str:
    origin = header.origin
    run = "" if origin.run is None else f" of run {origin.run!r}"
    number = "" if origin.round is None else f", round {origin.round}"
    return f"the decoder {header.decoder[:SHOWN_DIGITS]}…{run}{number} ({origin.backbone!r})"


def _faults_of_place(out: Path) -> list[str]:
    if out.suffix != SUFFIX:
        return [f"ends in {out.suffix!r}: give a name that ends in {SUFFIX}"]
    if out.exists():
        return ["is there already: give another name, or remove it"]
    return [] if out.parent.is_dir() else [f"its folder {out.parent} is not there: make it first"]


def _faults_of_names(names: Sequence[str], paths: Sequence[Path]) -> list[str]:
    faults = [
        f"{path}: {fault}: rename it" for name, path in zip(names, paths, strict=True) if (fault := name_fault(name))
    ]
    first: dict[str, int] = {}
    for number, (name, path) in enumerate(zip(names, paths, strict=True)):
        other = first.setdefault(name.casefold(), number)
        if other != number:
            faults.append(f"{path} and {paths[other]} would both become {name}: rename one, or make two files")
    return faults


def _faults_of_images(paths: Sequence[Path]) -> list[str]:
    faults = []
    for path in paths:
        try:
            verify_radiograph(path)
        except ImageError as error:
            faults.append(str(error))
    return faults


def _refuse_folder(folder: Path) -> None:
    try:
        is_free = not folder.exists() or not any(folder.iterdir())
    except OSError as error:
        raise CompressedFileError(folder, [f"is no folder that can be read ({error.strerror or error})"]) from error
    if not is_free:
        raise CompressedFileError(folder, ["is not empty: give a new folder"])
    if not folder.absolute().parent.is_dir():
        raise CompressedFileError(folder, [f"its folder {folder.parent} is not there: make it first"])
