"""What a finished run leaves behind: the released model, its figures where the centre has a test set, its delivery."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from aecnn.config import Plan
from aecnn.contract import DELIVER, DELIVERED_FILES, FILES, RELEASED_REPORT, code_fingerprint
from aecnn.data.augmentation import to_input
from aecnn.evaluation.evaluate import Evaluation, judge_evaluation
from aecnn.evaluation.explain import can_explain, explain_images
from aecnn.evaluation.judging import Judging
from aecnn.evaluation.metrics import Metrics
from aecnn.evaluation.predictions import write_predictions, write_targets
from aecnn.evaluation.report import report_without_images
from aecnn.findings import FINDINGS
from aecnn.model.checkpoint import CheckpointMetadata, load_checkpoint, save_checkpoint
from aecnn.model.weights import Weights
from server.admission import reasons_of
from server.held_out import HeldOut
from server.history import delivered_event
from server.run import Run, reasons
from server.run_folder import RunFolder
from server.status import iso_in
from server.store import Candidate
from server.wire import bytes_record

NUM_EXAMPLES = 6
log = logging.getLogger(__name__)


def save_released(folder: RunFolder, released: Candidate, weights: Weights, plan: Plan, *, run: str) -> None:
    """Writes the released weights with all that is needed to use them."""
    metadata = CheckpointMetadata(
        model=plan.model,
        images=plan.images,
        round=released.round_number,
        run=run,
        fingerprint=code_fingerprint(),
        figures={"validation_macro_auroc": released.validation_macro_auroc},
    )
    save_checkpoint(folder.checkpoint_file, weights, metadata)


def score_on_test(folder: RunFolder, held_out: HeldOut) -> Metrics:
    """Scores the released model on the centre's test images; writes figures, predictions and example images."""
    evaluation = held_out.score(load_checkpoint(folder.checkpoint_file).weights)
    manifest = evaluation.loaded.manifest
    images, patients = manifest.table["image"].tolist(), manifest.table["patient"].tolist()
    probabilities = _sigmoid(evaluation.outputs.logits)
    folder.write_whole("predictions.csv", lambda path: write_predictions(path, images, probabilities))
    folder.write_whole(
        "targets.csv",
        lambda path: write_targets(path, images, patients, manifest.targets, described=manifest.table),
    )
    _write_examples(folder, held_out, evaluation, probabilities)
    metrics = judge_evaluation(evaluation, Judging())
    folder.write_json("metrics.json", {"checkpoint": folder.checkpoint_file.name, "split": "test", **metrics.to_json()})
    return metrics


def deliver(run: Run) -> None:
    """Hands the released model, the report and the model card to every hospital; one that is away goes without.

    The report goes without the examples: they show radiographs of the centre's test set.
    """
    number, settings = run.settings.federation.num_rounds + 1, run.settings.federation
    files = {name: (run.folder.path / name).read_bytes() for name in DELIVERED_FILES if name != RELEASED_REPORT}
    files[RELEASED_REPORT] = report_without_images(run.folder.path)
    arrays, names = {FILES: bytes_record(files)}, run.present()
    del files
    envelopes = {name: run.envelope(DELIVER, number, arrays=arrays) for name in names}
    deadline_at = iso_in(settings.join_timeout_s)
    run.show(replace(run.board.status, phase="delivering", asked=tuple(names), answered=(), deadline_at=deadline_at))
    collected = run.exchange.ask(
        envelopes, round_number=number, timeout_s=settings.join_timeout_s, alongside=run.show_online
    )
    for reason in reasons(reasons_of(collected.refused), collected.missing, collected.left):
        log.warning("Not delivered to %s", reason)
    run.append(delivered_event(sorted(collected.answers)))


def _write_examples(
    folder: RunFolder, held_out: HeldOut, evaluation: Evaluation, probabilities: NDArray[np.floating]
) -> None:
    """Writes original, latent and reconstruction of a few test images, as 8 bit, with findings and probabilities.

    Where the extra ``explain`` is installed, also where the model looked for one finding of each.
    """
    manifest = evaluation.loaded.manifest
    rows = _example_rows(manifest.targets)
    with torch.inference_mode():
        images = to_input(evaluation.loaded.images.read(rows).to(held_out.device), held_out.plan.images)
        output = held_out.model.eval()(images)
    pictures = {"original": images, "latent": output.latent, "reconstruction": output.reconstruction}
    explained = [_explained_finding(manifest.targets[row], probabilities[row]) for row in rows]
    if can_explain():
        pictures["heatmap"] = explain_images(held_out.model, images, explained)[:, None]
    folder.write_whole("examples.npz", lambda path: _write_npz(path, pictures))
    described = [
        {
            "image": str(manifest.table["image"].iloc[row]),
            "findings": [FINDINGS[index] for index in np.flatnonzero(manifest.targets[row] == 1)],
            "probabilities": {name: round(float(p), 4) for name, p in zip(FINDINGS, probabilities[row], strict=True)},
            **({"explained": finding} if "heatmap" in pictures else {}),
        }
        for row, finding in zip(rows, explained, strict=True)
    ]
    folder.write_json("examples.json", described)


def _explained_finding(targets: NDArray[np.floating], probabilities: NDArray[np.floating]) -> str:
    """Gives the most probable of an image's findings; of all fourteen where it has none."""
    present = targets == 1
    return FINDINGS[int(np.where(present | ~present.any(), probabilities, -1.0).argmax())]


def _write_npz(path: Path, pictures: dict[str, torch.Tensor]) -> None:
    with path.open("wb") as file:  # given a name, NumPy would add a suffix to it
        np.savez_compressed(file, allow_pickle=False, **{name: _as_uint8(stack) for name, stack in pictures.items()})


def _example_rows(targets: NDArray[np.floating]) -> NDArray[np.intp]:
    """Picks the first image of each of several findings, so that the examples differ; then fills up in order."""
    rows: list[int] = []
    for finding in range(targets.shape[1]):
        positive = [row for row in np.flatnonzero(targets[:, finding] == 1) if row not in rows]
        rows += [int(positive[0])] if positive else []
    rows += [row for row in range(len(targets)) if row not in rows]
    return np.sort(np.array(rows[:NUM_EXAMPLES], dtype=np.intp))


def _as_uint8(images: torch.Tensor) -> NDArray[np.uint8]:
    array: NDArray[np.uint8] = (images[:, 0].float().clamp(0, 1) * 255.0).round().to(torch.uint8).cpu().numpy()
    return array


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    return 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))
