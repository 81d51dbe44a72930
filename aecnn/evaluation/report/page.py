"""Puts the report together and writes it beside the run's other files."""

import os
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined

from aecnn.evaluation.report.basis import (
    SMALL_NUM_IMAGES,
    Basis,
    headline,
    split_basis,
    validation_basis,
    validation_of,
)
from aecnn.evaluation.report.curves import alone_drawing, learning_curves, partition_drawing, privacy_curve, roc_panels
from aecnn.evaluation.report.events import CentralSpent, Round, Validation
from aecnn.evaluation.report.figures import HOSPITALS, hospital_colours, variable
from aecnn.evaluation.report.history import History
from aecnn.evaluation.report.images import triptychs
from aecnn.evaluation.report.load import REPORT_NAME, Run, load_run
from aecnn.evaluation.report.page_template import PAGE_TEMPLATE, REPORT_STYLE
from aecnn.evaluation.report.words import (
    bar,
    count,
    date,
    duration,
    epsilon,
    resumptions,
    score,
    share,
    significant,
    size,
    spaced,
)
from aecnn.findings import FINDINGS
from aecnn.page_style import PAGE_STYLE

CHANCE = 0.5
FILES = {
    "alone.json": "scores of each hospital's own model",
    "config.yaml": "configuration, every default written out",
    "examples.json": "findings and probabilities of the examples",
    "examples.npz": "pictures of the examples",
    "global.json": "what the released weights are",
    "global.safetensors": "released weights of the global model",
    "history.jsonl": "events of the run, one a line",
    "metrics.json": "scores of the released model",
    "model_card.json": "the model card, for programs",
    "model_card.md": "the model card: what the model is, was trained on, and is not for",
    "partition.json": "hospitals of the partition, counted, with its hash",
    "partition.svg": "findings of each hospital, drawn",
    "patients.csv": "each patient's hospital",
    "predictions.csv": "predicted probabilities, image by image",
    "targets.csv": "annotated findings, image by image",
}


@dataclass(frozen=True)
class FindingRow:
    """One line of the table of findings."""

    name: str
    auroc: float | None
    why_undefined: str | None
    auprc: float | None = None
    alone_auroc: float | None = None
    num_positive: int | None = None
    num_negative: int | None = None

    @property
    def share_positive(self) -> float | None:
        """Share of positive images: what AUPRC is by chance."""
        if self.num_positive is None or self.num_negative is None or not self.num_positive + self.num_negative:
            return None
        return self.num_positive / (self.num_positive + self.num_negative)


@dataclass(frozen=True)
class RoundRow:
    """One line of the table of rounds."""

    round: int
    training: Round | None  # None for the initial model
    macro_auroc: float | None
    basis: Basis | None  # of the validation AUROC
    test_auroc: float | None
    is_released: bool
    is_resumed: bool  # its time is counted from the resumption

    @property
    def lowest_alive_fraction(self) -> float | None:
        """Share of live latent pixels at the hospital where it is lowest."""
        hospitals = self.training.hospitals.values() if self.training else ()
        return min((h.latent_alive_fraction for h in hospitals if h.latent_alive_fraction is not None), default=None)


def write_report(run_folder: Path) -> Path:
    """Writes ``report.html`` into a run folder, from the files there alone, and gives its path.

    A section without content is left out, and the page says why; the same files give the same bytes.

    Raises:
        FaultyInputError: The folder is absent or holds no file of a run.
    """
    page = render(load_run(run_folder))
    path = run_folder / REPORT_NAME
    with tempfile.NamedTemporaryFile("wb", dir=run_folder, prefix=".report-", suffix=".tmp", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(page.encode("utf-8", errors="replace"))
            file.close()
            temporary.chmod(0o644)  # a temporary file is readable by its owner alone
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def report_without_images(run_folder: Path) -> bytes:
    """Gives the report for those who may not see the test set's radiographs: without examples and their file names.

    Raises:
        FaultyInputError: The folder is absent or holds no file of a run.
    """
    return render(replace(load_run(run_folder), examples=())).encode("utf-8", errors="replace")


def render(run: Run) -> str:
    """Gives the page of a run as HTML."""
    environment = Environment(
        loader=DictLoader({"page.html": PAGE_TEMPLATE, "style.css": PAGE_STYLE, "report.css": REPORT_STYLE}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for word in (score, count, share, bar, duration, date, size, spaced, resumptions, epsilon, significant):
        environment.filters[word.__name__] = word
    return environment.get_template("page.html").render(_context(run))


def _context(run: Run) -> dict[str, Any]:
    history = run.history
    colours = hospital_colours(history.hospital_names or tuple(run.alone.hospitals if run.alone else ()))
    federated_auroc = run.metrics.macro_auroc if run.metrics else None
    validation = validation_of(history, round_number=history.released_round)
    drawn = {
        "alone": alone_drawing(run.alone, federated_auroc, colours)
        if run.alone and federated_auroc is not None
        else None,
        "roc": roc_panels(run.predictions) if run.predictions else [],
        "curves": learning_curves(history, colours),
        "partition": partition_drawing(history, colours),
        "privacy_curve": privacy_curve(history, colours),
        "triptychs": triptychs(run.examples),
    }
    return drawn | {
        "run": run,
        "headline": headline(history, run.metrics),
        "validation": validation,
        "validation_basis": validation_basis(history, validation) if validation else None,
        "test_basis": split_basis(run.metrics) if run.metrics else None,
        "small": SMALL_NUM_IMAGES,
        "colours": {name: variable(colour) for name, colour in colours.items()},
        "num_colours": len(HOSPITALS),
        "findings": _finding_rows(run, validation),
        "chance": bar(CHANCE),
        "rounds": _round_rows(run),
        "central": _central(history),
        "absences": _absences(run, drawn),
        "file_meanings": FILES,
        "model": _section(run, "model"),
        "images": _section(run, "images"),
    }


def _finding_rows(run: Run, validation: Validation | None) -> list[FindingRow]:
    """The test split's figures; without any, the pooled validation AUROC, which is all that hospitals tell."""
    if run.metrics is None:
        pooled = validation.findings if validation else {}
        return [
            FindingRow(name, pooled[name], why_undefined="no positive or no negative image")
            for name in _in_order(pooled)
        ]
    return [
        FindingRow(
            name=name,
            auroc=scores.auroc,
            why_undefined=scores.why_undefined,
            auprc=scores.auprc,
            alone_auroc=run.alone.mean_auroc(name) if run.alone else None,
            num_positive=scores.num_positive,
            num_negative=scores.num_negative,
        )
        for name, scores in ((name, run.metrics.findings[name]) for name in _in_order(run.metrics.findings))
    ]


def _in_order(names: Collection[str]) -> list[str]:
    return [*(name for name in FINDINGS if name in names), *(name for name in names if name not in FINDINGS)]


def _round_rows(run: Run) -> list[RoundRow]:
    history = run.history
    trainings = {event.round: event for event in history.rounds}
    validations = {event.round: event for event in history.validations}
    tests = {event.round: event.macro_auroc for event in history.tests}
    return [
        RoundRow(
            round=number,
            training=trainings.get(number),
            macro_auroc=validations[number].macro_auroc if number in validations else None,
            basis=validation_basis(history, validations[number]) if number in validations else None,
            test_auroc=tests.get(number),
            is_released=number == history.released_round,
            is_resumed=number - 1 in history.resumed_after,
        )
        for number in sorted(trainings | validations)
    ]


def _central(history: History) -> CentralSpent | None:
    """What noise at the centre has cost each hospital by the last round; None where there was none."""
    spent = [event.central_privacy for event in history.rounds if event.central_privacy is not None]
    return spent[-1] if spent else None


def _absences(run: Run, drawn: Mapping[str, object]) -> list[str]:
    """Why a section is not on the page, in sentences."""
    of_test_set = {"test figures": run.metrics, "ROC curves": drawn["roc"], "example images": drawn["triptychs"]}
    lacking = [name for name, content in of_test_set.items() if not content]
    sentences = []
    if lacking:
        sentences.append(
            f"No {', no '.join(lacking)}: these come from a test set of the centre's own, after the last round. "
            "No image and no score of a patient leaves a hospital."
        )
    if run.alone and not drawn["alone"]:
        sentences.append("No comparison with the hospitals alone: one side of it has no macro AUROC.")
    if not run.history.rounds:
        sentences.append("No finished round in history.jsonl.")
    if not run.history.hospitals:
        sentences.append("No start event in history.jsonl, so what each hospital brings is not known.")
    if not run.config_text:
        sentences.append("No readable config.yaml.")
    return sentences


def _section(run: Run, name: str) -> dict[str, Any]:
    section = run.config.get(name)
    return section if isinstance(section, dict) else {}
