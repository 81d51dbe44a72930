"""Commands about compressed files: `compress` and `decompress`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from aecnn.console import JsonOption, print_json, progress_bar, say

CheckpointOption = Annotated[Path, typer.Option(help="The model: .safetensors, as a run leaves it.")]


def compress(
    images: Annotated[list[Path], typer.Argument(help="Radiographs: PNG, JPEG or DICOM.")],
    checkpoint: CheckpointOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to make; ends in .aec.")],
    json_: JsonOption = False,
) -> None:
    """Compress radiographs into one file: the model's latents in 8 bits, packed without loss.

    What is kept of an image is what the model sees: scaled to the size it was trained with, then the centre crop, where
    it has one. The file is as much patient data as the images are, and holds their names.

    Exit codes: 0 the file is written, 2 nothing is.
    """
    from aecnn.compression.codec import compress_files
    from aecnn.model.checkpoint import load_checkpoint

    loaded = load_checkpoint(checkpoint)
    with progress_bar("compressing") as (progress, task):
        done = compress_files(
            images,
            output,
            loaded,
            on_progress=lambda number, total: progress.update(task, completed=number, total=total),
        )
    if json_:
        print_json({"output": str(output), **vars(done), "bits_per_pixel": done.bits_per_pixel})
        return
    config = loaded.metadata.images
    if config.crop_size_px is not None and config.crop_size_px < config.size_px:
        kept = f"the centre {config.input_size_px} of {config.size_px} px is kept, as the model sees it"
        say(Console(stderr=True), f"[yellow]warning[/] of each image {kept}")
    say(
        Console(),
        f"{done.num_images} image(s) of {done.image_size_px} px in {escape(str(output))}: {done.num_bytes:,} bytes, "
        f"{done.bits_per_pixel:.3f} bits a pixel; the images' own files have {done.num_bytes_before:,} bytes",
    )


def decompress(
    file: Annotated[Path, typer.Argument(help="A file that `aecnn compress` made.")],
    checkpoint: CheckpointOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the PNGs; new or empty.")],
    json_: JsonOption = False,
) -> None:
    """Rebuild the radiographs of a compressed file as grey PNGs, with the decoder they were compressed for.

    Another decoder is refused by name, and a damaged file in a sentence; then nothing is written.

    Exit codes: 0 all images are written, 2 none is.
    """
    from aecnn.compression.codec import decompress_file
    from aecnn.model.checkpoint import load_checkpoint

    loaded = load_checkpoint(checkpoint)
    with progress_bar("rebuilding") as (progress, task):
        num_images = decompress_file(
            file,
            output,
            loaded,
            on_progress=lambda number, total: progress.update(task, completed=number, total=total),
        )
    if json_:
        print_json({"output": str(output), "num_images": num_images})
    else:
        say(Console(), f"{num_images} image(s) in {escape(str(output))}")
