"""The command `describe`: what a model is made of."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.console import Console

from aecnn.config import Backbone, ImagesConfig, ModelConfig, validate_config
from aecnn.console import JsonOption, print_json, say, table_of
from aecnn.errors import ConfigError

if TYPE_CHECKING:  # a command imports what it needs when it runs: PyTorch alone takes seconds
    from aecnn.model.describe import Description


def describe(
    backbone: Annotated[str | None, typer.Option(help="A backbone, such as densenet121.", show_default=False)] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="A checkpoint's model.", show_default=False)] = None,
    input_size_px: Annotated[
        int | None, typer.Option(help="Side of the input; default 896, or the checkpoint's.", show_default=False)
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Describe a model: layers, parameters, multiply-accumulates, latent shape, megabytes on the wire."""
    if (backbone is None) == (checkpoint is None):
        known = ", ".join(get_args(Backbone))
        raise ConfigError("aecnn describe", [f"give either --checkpoint or --backbone; backbones: {known}"])
    from aecnn.model.checkpoint import load_checkpoint
    from aecnn.model.describe import describe_model

    if checkpoint is not None:
        metadata = load_checkpoint(checkpoint).metadata
        config, images = metadata.model, metadata.images
    else:
        config = validate_config({"backbone": backbone}, ModelConfig, subject="aecnn describe --backbone")
        images = ImagesConfig(size_px=896)
    description = describe_model(config, input_size_px=images.input_size_px if input_size_px is None else input_size_px)
    if json_:
        print_json(description.to_dict())
    else:
        _show_description(description, Console())


def _show_description(description: "Description", console: Console) -> None:
    table = table_of("layer", "kind", "output", "parameters", "MACs")
    for layer in description.layers:
        shape = "" if layer.output_shape is None else "×".join(str(side) for side in layer.output_shape)
        table.add_row(layer.name, layer.kind, shape, f"{layer.num_parameters:,}", f"{layer.macs:,}")
    console.print(table)
    counts, latent = description.num_parameters, "×".join(str(side) for side in description.latent_shape)
    say(
        console,
        f"\n{description.backbone}, normalisation {description.normalisation}: {counts['total']:,} parameters "
        f"(encoder {counts['encoder']:,}, decoder {counts['decoder']:,}, classifier {counts['classifier']:,})\n"
        f"input {description.input_size_px} px → latent {latent}, {description.macs['total'] / 1e6:,.1f} M "
        f"multiply-accumulates an image, {description.megabytes:.1f} MB on the wire",
    )
