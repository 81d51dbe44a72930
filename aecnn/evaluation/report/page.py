"""Puts the report together and writes it beside the run's other files."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined

from aecnn.evaluation.report.basis import (
    SMALL_NUM_IMAGES,
    headline,
    judged_of,
    split_basis,
    validation_basis,
    validation_of,
)
from aecnn.evaluation.report.curves import alone_drawing, learning_curves, partition_drawing, privacy_curve
from aecnn.evaluation.report.events import CentralSpent
from aecnn.evaluation.report.figures import HOSPITALS, hospital_colours, variable
from aecnn.evaluation.report.history import History
from aecnn.evaluation.report.images import triptychs
from aecnn.evaluation.report.load import REPORT_NAME, Run, load_run
from aecnn.evaluation.report.page_look import REPORT_STYLE
from aecnn.evaluation.report.page_model_sections import MODEL_SECTIONS
from aecnn.evaluation.report.page_run_sections import RUN_SECTIONS
from aecnn.evaluation.report.page_template import MACROS, PAGE_TEMPLATE
from aecnn.evaluation.report.panels import calibration_panels, curves_of, pr_panels, roc_panels
from aecnn.evaluation.report.scores import FEW_IMAGES, LEVEL, FindingScores
from aecnn.evaluation.report.tables import (
    VIEW_POSITION,
    FindingRow,
    attributes,
    finding_rows,
    hospital_rows,
    pooled_scores,
    round_rows,
)
from aecnn.evaluation.report.words import (
    bar,
    bound,
    count,
    date,
    duration,
    epsilon,
    heat,
    interval,
    percent,
    resumptions,
    score,
    share,
    short,
    significant,
    size,
    spaced,
)
from aecnn.evaluation.tensorboard import add_events
from aecnn.page_style import PAGE_STYLE

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


MODES = {
    "fine": "Each hospital told how many of its scores fall in each bin of a fine grid, small numbers too, "
    "for findings with enough patients on both sides.",
    "floored": "Each hospital merged neighbouring bins of its scores until each held enough patients. "
    "That widens what the pooled figures can be off by.",
    "mixed": "Some hospitals told how many of their scores fall in each bin of a fine grid; others merged "
    "neighbouring bins until each held enough patients, which widens what the pooled figures can be off by.",
}
WORDS = (bar, bound, count, date, duration, epsilon, heat, interval, percent)
MORE_WORDS = (resumptions, score, share, short, significant, size, spaced)


@dataclass(frozen=True)
class PrivacyFact:
    """What privacy has cost, on top of the page; None is beyond any promise."""

    title: str
    epsilon: float | None
    remark: str


@dataclass(frozen=True)
class Columns:
    """Which columns of the table of findings have any figure."""

    interval: bool
    validation: bool
    validation_interval: bool
    alone: bool
    auprc: bool
    sensitivity: bool
    counts: bool


def write_report(run_folder: Path) -> Path:
    """Writes ``report.html`` into a run folder, from the files there alone, and gives its path.

    A section without content is left out, and the page says why; the same files give the same bytes. With the extra
    ``tensorboard``, the curves are written for it too.

    Raises:
        FaultyInputError: The folder is absent or holds no file of a run.
    """
    run = load_run(run_folder)
    page = render(run)
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
    add_events(run.history, run_folder)
    return path


def report_without_images(run_folder: Path) -> bytes:
    """Gives the report for those who may not see the test set's radiographs: without examples and the centre's files.

    Raises:
        FaultyInputError: The folder is absent or holds no file of a run.
    """
    return render(replace(load_run(run_folder), examples=(), files=())).encode("utf-8", errors="replace")


def render(run: Run) -> str:
    """Gives the page of a run as HTML."""
    templates = {
        "page.html": PAGE_TEMPLATE,
        "macros.html": MACROS,
        "model.html": MODEL_SECTIONS,
        "run.html": RUN_SECTIONS,
        "style.css": PAGE_STYLE,
        "report.css": REPORT_STYLE,
    }
    environment = Environment(
        loader=DictLoader(templates), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    for word in (*WORDS, *MORE_WORDS):
        environment.filters[word.__name__] = word
    return environment.get_template("page.html").render(_context(run))


def _context(run: Run) -> dict[str, Any]:
    history = run.history
    colours = hospital_colours(history.hospital_names or tuple(run.alone.hospitals if run.alone else ()))
    validation = validation_of(history, round_number=history.released_round)
    drawn = _drawn(run, colours) | _drawn_of_findings(run, pooled_scores(history, validation))
    return (
        drawn
        | _judged(run)
        | {
            "run": run,
            "headline": headline(history, run.metrics),
            "validation": validation,
            "validation_basis": validation_basis(history, validation) if validation else None,
            "test_basis": split_basis(run.metrics) if run.metrics else None,
            "small": SMALL_NUM_IMAGES,
            "few_images": FEW_IMAGES,
            "colours": {name: variable(colour) for name, colour in colours.items()},
            "num_colours": len(HOSPITALS),
            "findings": (findings := finding_rows(run, validation)),
            "columns": _columns(findings, run),
            "rounds": round_rows(history),
            "central": _central(history),
            "privacy_facts": _privacy_facts(history),
            "absences": _absences(run, drawn),
            "file_meanings": FILES,
            "model": _section(run, "model"),
            "images": _section(run, "images"),
        }
    )


def _drawn(run: Run, colours: dict[str, str]) -> dict[str, Any]:
    federated_auroc = run.metrics.macro_auroc if run.metrics else None
    return {
        "alone": alone_drawing(run.alone, federated_auroc, colours)
        if run.alone is not None and federated_auroc is not None
        else None,
        "curves": learning_curves(run.history, colours),
        "partition": partition_drawing(run.history, colours),
        "privacy_curve": privacy_curve(run.history, colours),
        "triptychs": triptychs(run.examples),
    }


def _drawn_of_findings(run: Run, pooled: Mapping[str, FindingScores]) -> dict[str, Any]:
    """The small drawings; those of the test split where there is one, with validation's behind them."""
    test = curves_of(run.predictions) if run.predictions else None
    has_test, has_pooled = bool(test and test.roc), any(scores.roc for scores in pooled.values())
    basis = split_basis(run.metrics) if has_test and run.metrics else None
    if not has_test:
        validation = validation_of(run.history, round_number=run.history.released_round)
        basis = validation_basis(run.history, validation) if validation else None
    return {
        "roc": roc_panels(test, pooled),
        "pr": pr_panels(test, pooled),
        "calibration": calibration_panels(run.metrics.findings if run.metrics else {}, pooled),
        "curve_basis": basis,
        "has_both_curves": has_test and has_pooled,
        "has_both_calibrations": has_test and any(scores.calibration for scores in pooled.values()),
    }


def _judged(run: Run) -> dict[str, Any]:
    """What the test split and the closing judgement say beyond the figures by finding."""
    metrics, judged = run.metrics, judged_of(run.history)
    findings, rows = hospital_rows(run.history)
    made = metrics.interval if metrics else None
    every = [*(metrics.findings if metrics else {}).values(), *(judged.findings if judged else {}).values()]
    points = [scores.sensitivity_at_specificity for scores in every if scores.sensitivity_at_specificity]
    return {
        "judged": judged,
        "modes": MODES,
        "level": LEVEL if made is None or made.level is None else made.level,
        "specificity": next((point.specificity for point in points if point.specificity is not None), 0.0),
        "subgroups": attributes(run),
        "view_baseline": metrics.baselines.get(VIEW_POSITION) if metrics else None,
        "hospital_findings": findings,
        "hospital_rows": rows,
    }


def _columns(rows: Sequence[FindingRow], run: Run) -> Columns:
    scores = [row.scores for row in rows]
    validation = [row.validation for row in rows if row.validation]
    return Columns(
        interval=any(one.auroc_ci for one in scores),
        validation=any(one.auroc is not None for one in validation),
        validation_interval=any(one.auroc_ci for one in validation),
        alone=run.alone is not None and run.metrics is not None,
        auprc=run.metrics is not None or any(one.auprc is not None for one in scores),
        sensitivity=any(one.sensitivity_at_specificity for one in scores),
        counts=any(one.num_positive is not None for one in scores),
    )


def _privacy_facts(history: History) -> list[PrivacyFact]:
    facts = []
    trained = [spent.epsilon for spent in history.privacy.values() if spent.steps]
    if trained:
        largest = None if None in trained else max(value for value in trained if value is not None)
        facts.append(PrivacyFact("ε of a patient", largest, "at the hospital where it is largest"))
    central = _central(history)
    if central is not None:
        facts.append(PrivacyFact("ε of a hospital", central.epsilon, "noise at the centre; the weights alone"))
    return facts


def _central(history: History) -> CentralSpent | None:
    """What noise at the centre has cost each hospital by the last round; None where there was none."""
    spent = [event.central_privacy for event in history.rounds if event.central_privacy is not None]
    return spent[-1] if spent else None


def _absences(run: Run, drawn: Mapping[str, object]) -> list[str]:
    """Why a section is not on the page, in sentences."""
    of_test_set = {
        "test figures": run.metrics,
        "curves of the test split": run.predictions,
        "example images": drawn["triptychs"],
    }
    lacking = [name for name, content in of_test_set.items() if not content]
    sentences = []
    if lacking:
        sentences.append(
            f"No {', no '.join(lacking)}: these come from a test set of the centre's own, after the last round. "
            "No radiograph leaves a hospital."
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
