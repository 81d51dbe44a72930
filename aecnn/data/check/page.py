"""The data-quality report as one self-contained HTML page, readable by its owner alone."""

import base64
import os
import tempfile
from collections import Counter
from pathlib import Path

from jinja2 import DictLoader, Environment, StrictUndefined

from aecnn.data.check.counts import EVALUABLE_PATIENTS
from aecnn.data.check.outcome import MAX_PICTURES
from aecnn.data.check.page_template import CHECK_STYLE, CHECK_TEMPLATE
from aecnn.data.check.report import DataReport
from aecnn.errors import ConfigError, ManifestError
from aecnn.page_style import PAGE_STYLE

MOST_DETAILS = 100  # lines of one check on the page; the JSON has all

_VERDICTS = {
    "pass": "ready to join",
    "warn": "look at the warnings before joining",
    "fail": "mend the failures before joining",
}


def refuse_place(path: Path) -> None:
    """Refuses a place for the page before the work is done.

    Raises:
        ConfigError: It is no .html file (it might be the table), or its folder is not there or not to be written to.
    """
    faults = []
    if path.suffix.lower() not in (".html", ".htm"):
        faults.append("does not end in .html: give the page a name of its own")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        faults.append(f"{path.absolute().parent} is no folder that can be written to: make it, or give another")
    if faults:
        raise ConfigError(f"--report {path}", faults)


def write_page(report: DataReport, path: Path) -> None:
    """Writes the page whole or not at all, with permissions for its owner alone (it shows radiographs).

    Raises:
        ManifestError: The place cannot be written to.
    """
    try:
        with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            temporary = Path(file.name)  # 0600 as the module makes it
            try:
                file.write(render(report).encode("utf-8", errors="replace"))
                file.close()
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ManifestError(
            path, [f"the report cannot be written ({error.strerror or error}): give another place"]
        ) from error


def render(report: DataReport) -> str:
    """Gives the page as HTML."""
    environment = Environment(
        loader=DictLoader({"page.html": CHECK_TEMPLATE, "style.css": PAGE_STYLE, "check.css": CHECK_STYLE}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=lambda number: f"{number:,}", spaced=_spaced, of=_share, png=_png_uri)
    numbers: Counter[str] = Counter(check.status for check in report.checks)
    groups = {
        "Sex": report.labels.sex,
        "Age in years": report.labels.age,
        "View position": report.labels.view,
        "Images a patient has": report.labels.images_per_patient,
    }
    return environment.get_template("page.html").render(
        report=report,
        verdict=_verdict(report),
        numbers={name: numbers[name] for name in _VERDICTS},
        most=MOST_DETAILS,
        evaluable=EVALUABLE_PATIENTS,
        shown=MAX_PICTURES,
        largest=max(report.num_images, 1),
        groups=groups,
        pictures=any(suspect.picture for check in report.checks for suspect in check.suspects),
    )


def _verdict(report: DataReport) -> str:
    if report.labels_only and report.status == "pass":
        return "the tables are in order; images not opened"
    return _VERDICTS[report.status]


def _share(part: int, whole: int) -> str:
    """A share as a CSS length."""
    return f"{100 * part / max(whole, 1):.2f}%"


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _png_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
