"""Puts the report together and writes it beside the run's other files."""

import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined

from aecnn.evaluation.report.curves import alone_drawing, learning_curves, partition_drawing, roc_panels
from aecnn.evaluation.report.events import Round
from aecnn.evaluation.report.figures import HOSPITALS, hospital_colours, variable
from aecnn.evaluation.report.images import triptychs
from aecnn.evaluation.report.load import REPORT_NAME, Run, load_run
from aecnn.evaluation.report.page_template import PAGE_TEMPLATE
from aecnn.findings import FINDINGS
from aecnn.page_style import PAGE_STYLE

ABSENT = "–"
CHANCE = 0.5
LOWEST_BAR = 0.4  # left end of the AUROC bars; a lower AUROC ends there
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
class Headline:
    """The one figure on top of the page, and what it was measured on."""

    auroc: float | None
    measured_on: str


@dataclass(frozen=True)
class FindingRow:
    """One line of the table of findings."""

    name: str
    auroc: float | None
    auprc: float | None
    alone_auroc: float | None
    num_positive: int | None
    num_negative: int | None
    why_undefined: str | None

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
    is_released: bool
    test_auroc: float | None = None

    @property
    def lowest_alive_fraction(self) -> float | None:
        """Share of live latent pixels at the hospital where it is lowest."""
        hospitals = self.training.hospitals.values() if self.training else ()
        return min((h.latent_alive_fraction for h in hospitals if h.latent_alive_fraction is not None), default=None)


def write_report(run_folder: Path) -> Path:
    """Writes ``report.html`` into a run folder, from the files there alone, and gives its path.

    Files that are absent or damaged leave a sentence in their section; the same files give the same bytes.

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


def render(run: Run) -> str:
    """Gives the page of a run as HTML."""
    environment = Environment(
        loader=DictLoader({"page.html": PAGE_TEMPLATE, "style.css": PAGE_STYLE}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        score=_score, count=_count, share=_share, duration=_duration, date=_date, size=_size, spaced=_spaced, bar=_bar
    )
    return environment.get_template("page.html").render(_context(run))


def _context(run: Run) -> dict[str, Any]:
    history = run.history
    colours = hospital_colours(history.hospital_names or tuple(run.alone.hospitals if run.alone else ()))
    federated_auroc = run.metrics.macro_auroc if run.metrics else None
    return {
        "run": run,
        "headline": _headline(run),
        "colours": {name: variable(colour) for name, colour in colours.items()},
        "num_colours": len(HOSPITALS),
        "findings": _finding_rows(run),
        "chance": _bar(CHANCE),
        "curves": learning_curves(history, colours),
        "rounds": _round_rows(run),
        "roc": roc_panels(run.predictions) if run.predictions else [],
        "alone": alone_drawing(run.alone, federated_auroc, colours)
        if run.alone and federated_auroc is not None
        else None,
        "partition": partition_drawing(history, colours),
        "triptychs": triptychs(run.examples),
        "file_meanings": FILES,
        "model": _section(run, "model"),
        "images": _section(run, "images"),
    }


def _headline(run: Run) -> Headline:
    """The test split's macro AUROC; before there is one, the newest validation's."""
    if run.metrics is not None:
        return Headline(run.metrics.macro_auroc, f"{run.metrics.split} split")
    if run.history.validations:
        newest = run.history.validations[-1]
        return Headline(newest.macro_auroc, f"validation, after round {newest.round}")
    return Headline(None, "not measured")


def _finding_rows(run: Run) -> list[FindingRow]:
    if run.metrics is None:
        return []
    known = [name for name in FINDINGS if name in run.metrics.findings]
    others = [name for name in run.metrics.findings if name not in FINDINGS]
    return [
        FindingRow(
            name=name,
            auroc=scores.auroc,
            auprc=scores.auprc,
            alone_auroc=run.alone.mean_auroc(name) if run.alone else None,
            num_positive=scores.num_positive,
            num_negative=scores.num_negative,
            why_undefined=scores.why_undefined,
        )
        for name, scores in ((name, run.metrics.findings[name]) for name in [*known, *others])
    ]


def _round_rows(run: Run) -> list[RoundRow]:
    trainings = {event.round: event for event in run.history.rounds}
    scores = {event.round: event.macro_auroc for event in run.history.validations}
    tests = {event.round: event.macro_auroc for event in run.history.tests}
    released = run.history.end.released_round if run.history.end else None
    return [
        RoundRow(number, trainings.get(number), scores.get(number), number == released, tests.get(number))
        for number in sorted(trainings | scores)
    ]


def _section(run: Run, name: str) -> dict[str, Any]:
    section = run.config.get(name)
    return section if isinstance(section, dict) else {}


def _score(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3f}"


def _count(value: int | None) -> str:
    return ABSENT if value is None else f"{value:,}"


def _share(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:.1f} %"


def _bar(value: float) -> str:
    """Place of an AUROC on the bars' scale, as a CSS length."""
    return f"{100 * min(max((value - LOWEST_BAR) / (1.0 - LOWEST_BAR), 0.0), 1.0):.2f}%"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ABSENT
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _date(text: str | None) -> str:
    """Gives an ISO 8601 instant in words; other text as it is."""
    try:
        instant = datetime.fromisoformat(text or "")
    except ValueError:
        return text or ABSENT
    zone = ""
    if instant.tzinfo is not None:
        instant, zone = instant.astimezone(UTC), " UTC"
    return f"{instant.day} {instant:%B %Y, %H:%M}{zone}"


def _size(num_bytes: int) -> str:
    if num_bytes < 1000:
        return f"{num_bytes} B"
    return f"{num_bytes / 1e3:.1f} kB" if num_bytes < 1e6 else f"{num_bytes / 1e6:.1f} MB"


def _spaced(name: str) -> str:
    return name.replace("_", " ")
