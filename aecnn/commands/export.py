"""The command `export`: a model as an ONNX file, for programs without PyTorch."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from aecnn.console import JsonOption, print_json, say
from aecnn.errors import ConfigError

COMMAND = "aecnn export"


def export(
    checkpoint: Annotated[
        Path | None, typer.Option(help="The model: .safetensors, as a run leaves it.", show_default=False)
    ] = None,
    onnx: Annotated[Path | None, typer.Option(help="The file to write: .onnx.", show_default=False)] = None,
    json_: JsonOption = False,
) -> None:
    """Write a model as ONNX, for any batch size, and check that ONNX Runtime gives what PyTorch gives.

    The file says of itself what a radiograph must go through first, and in which order the findings come.
    """
    faults = [] if checkpoint is not None else ["--checkpoint is missing: give a model, as a run leaves it"]
    if onnx is None or onnx.suffix != ".onnx":
        faults.append(f"--onnx is {str(onnx or '')!r}: name the file to write, ending in .onnx")
    elif not onnx.absolute().parent.is_dir():
        faults.append(f"--onnx {onnx}: there is no folder {onnx.absolute().parent}: make it first")
    if faults or checkpoint is None or onnx is None:
        raise ConfigError(COMMAND, faults)
    from aecnn.model.checkpoint import load_checkpoint
    from aecnn.model.onnx_export import MAX_DIFFERENCE, export_onnx

    report = export_onnx(load_checkpoint(checkpoint), onnx)
    if json_:
        document = {"checkpoint": str(checkpoint), "onnx": str(report.path), "num_bytes": report.num_bytes}
        print_json({**document, "max_difference": report.max_difference})
        return
    console = Console()
    say(console, f"Written: {escape(str(report.path))} ({report.num_bytes / 1e6:.1f} MB). Not for clinical use.")
    differences = ", ".join(f"{name} {value:.1g}" for name, value in report.max_difference.items())
    say(console, f"ONNX Runtime gives what PyTorch gives: {differences} ({MAX_DIFFERENCE:g} is allowed).")
