"""Options that several commands have, and what stands in the way of an output."""

from pathlib import Path
from typing import Annotated

import typer

from aecnn.config import OnUnreadable, TestCrops

OnUnreadableOption = Annotated[
    OnUnreadable | None,
    typer.Option(help="Images that cannot be decoded: refuse (the default), or skip them.", show_default=False),
]
CropsOption = Annotated[
    TestCrops | None,
    typer.Option(help="centre, or the mean of ten crops; default: as the checkpoint says.", show_default=False),
]
BatchSizeOption = Annotated[int, typer.Option(min=1, help="Images in one forward pass.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def faults_of_output(output: Path | None, *, suffix: str, what: str) -> list[str]:
    """Gives why nothing can be written to an ``--output``, whatever is there now.

    Args:
        output: Where to.
        suffix: How its name must end.
        what: What is written, as in "name the table".
    """
    if output is None or output.suffix.lower() != suffix:
        return [f"--output is {str(output or '')!r}: name the {what}, ending in {suffix}"]
    if not output.absolute().parent.is_dir():
        return [f"--output {output}: there is no folder {output.absolute().parent}: make it first"]
    if output.exists() and not output.is_file():
        return [f"--output {output} is a folder, or another thing that is no file: give another name"]
    return []
