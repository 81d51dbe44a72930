"""The released model, report and model card, as the centre delivers them at the end of a run."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from aecnn.config import ModelConfig
from aecnn.contract import DELIVERED_FILES, RELEASED_CARD, RELEASED_MODEL, RELEASED_REPORT, Request
from aecnn.errors import CheckpointError, FederationError
from aecnn.model.checkpoint import load_checkpoint
from client.files import sync_folder, write_durably
from client.words import counted

LARGEST_BYTES = {RELEASED_MODEL: 2 << 30, RELEASED_REPORT: 64 << 20, RELEASED_CARD: 1 << 20}


def released_folder(models: Path, request: Request) -> Path:
    """Gives where the released files of a run lie."""
    return models / f"{request.run}-{request.run_id}"


def keep_released(folder: Path, files: Mapping[str, bytes], *, model: ModelConfig) -> None:
    """Keeps a run's released files, all of them or none; those of an earlier delivery are replaced.

    Args:
        folder: Of the run.
        files: Content by name.
        model: What the run trained: the released weights must be this model's.

    Raises:
        FederationError: A file that is not one of the three, is missing or too large.
        CheckpointError: The weights are no checkpoint of the model.
    """
    contents = _checked(files)
    unfinished = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a delivery that a crash cut short
    unfinished.mkdir(parents=True)
    try:
        for name, content in contents.items():
            write_durably(unfinished / name, [content])
        checkpoint = load_checkpoint(unfinished / RELEASED_MODEL)
        if checkpoint.metadata.model != model:
            found = checkpoint.metadata.model
            raise CheckpointError(RELEASED_MODEL, [f"is a {found.backbone} with {found.normalisation} normalisation"])
        if folder.exists():
            for name in contents:
                (unfinished / name).replace(folder / name)
            sync_folder(folder)
        else:
            unfinished.rename(folder)
            sync_folder(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _checked(files: Mapping[str, bytes]) -> dict[str, bytes]:
    contents = dict(files)
    faults = [f"{name!r} is none of {', '.join(DELIVERED_FILES)}" for name in files if name not in DELIVERED_FILES]
    faults += [f"{name} is missing" for name in DELIVERED_FILES if name not in contents]
    faults += [
        f"{name} has {counted(len(content), 'byte')}, at most {LARGEST_BYTES[name]:,} are taken"
        for name, content in contents.items()
        if len(content) > LARGEST_BYTES.get(name, 0) and name in DELIVERED_FILES
    ]
    if faults:
        raise FederationError(f"what was delivered is not kept: {'; '.join(faults)}")
    return contents
