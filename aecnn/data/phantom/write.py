"""Writes a phantom dataset in the official ChestX-ray14 layout, whole or not at all.

Data_Entry_2017_v2020.csv   the official header, brackets unquoted, and its columns
images/00000001_000.png …   8-bit grey
train_val_list.txt, test_list.txt
patients.csv                Patient ID, Hospital: where each patient was imaged
phantom.json                configuration, prevalence, and the oracle's AUROC per finding
"""

import csv
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from PIL import Image

from aecnn.config import PhantomConfig
from aecnn.data.phantom.oracle import oracle_auroc
from aecnn.data.phantom.population import Patient, draw_population
from aecnn.data.phantom.render import render_patient
from aecnn.errors import ManifestError
from aecnn.findings import FINDINGS, NO_FINDING
from aecnn.progress import OnProgress

VERSION = 1  # of the drawing: raised when the same configuration gives other pictures
TABLE_NAME = "Data_Entry_2017_v2020.csv"
REPORT_NAME = "phantom.json"
OFFICIAL_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
DETECTOR_WIDTH_MM = 430.0
PNG_COMPRESSION = 4  # a third of the time of Pillow's default, for files 3 % larger

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PhantomReport:
    """What a phantom dataset holds.

    Attributes:
        num_images: Of the whole dataset.
        num_patients: Of the whole dataset.
        num_test_images: On the official test list.
        num_test_patients: On the official test list.
        prevalence: Fraction of images with each finding, `No Finding` included.
        oracle_auroc: Upper reference of how learnable each finding is, see `oracle`.
    """

    num_images: int
    num_patients: int
    num_test_images: int
    num_test_patients: int
    prevalence: dict[str, float]
    oracle_auroc: dict[str, float]


def write_phantom(
    root: Path, config: PhantomConfig, *, on_progress: OnProgress | None = None, num_workers: int = 1
) -> PhantomReport:
    """Writes the dataset to ``root``, or reads the report of the same dataset already there.

    Args:
        root: Folder to make; it appears only when it is complete.
        config: What to draw; the same configuration gives the same bytes with any number of workers.
        on_progress: Called with the images written so far and their total.
        num_workers: Processes that draw. Above 1 the caller's main module must be importable (``spawn``).

    Raises:
        ManifestError: ``root`` exists and holds something else.
    """
    existing = _existing_report(root, config)
    if existing is not None:
        return existing
    patients = draw_population(config)
    with _sibling_folder(root) as folder:
        _write_images(folder / "images", patients, config, on_progress=on_progress, num_workers=num_workers)
        _write_tables(folder, patients, config)
        report = _report(patients, oracle_auroc(config))
        document = {"version": VERSION, "config": config.model_dump(mode="json"), "report": asdict(report)}
        (folder / REPORT_NAME).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        _move_into_place(folder, root)
    _log.info("wrote %d phantom radiographs of %d patients to %s", report.num_images, report.num_patients, root)
    return report


def _existing_report(root: Path, config: PhantomConfig) -> PhantomReport | None:
    """The report of the same dataset at ``root``, None where there is nothing yet."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return None
    remedy = "choose another folder, or set data.phantom to null to use this one as it is"
    if not root.is_dir():
        raise ManifestError(root, [f"is a file, expected a folder to write the phantom dataset to: {remedy}"])
    try:
        document = json.loads((root / REPORT_NAME).read_text(encoding="utf-8"))
        found_version, found_config = document["version"], document["config"]
        report = PhantomReport(**document["report"])
    except FileNotFoundError:
        raise ManifestError(
            root, [f"is not empty and holds no {REPORT_NAME}, so it is kept as it is: {remedy}"]
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ManifestError(root / REPORT_NAME, [f"cannot be read as a phantom's description: {remedy}"]) from error
    faults = []
    if found_version != VERSION:
        faults.append(f"was drawn by phantom version {found_version}, this is version {VERSION}: {remedy}")
    for key, value in config.model_dump(mode="json").items():
        if found_config.get(key) != value:
            faults.append(f"was made with {key} {found_config.get(key)!r}, asked for is {value!r}: {remedy}")
    if faults:
        raise ManifestError(root, faults)
    return report


@contextmanager
def _sibling_folder(root: Path) -> Iterator[Path]:
    """A temporary folder on the same disk as ``root``, removed on the way out if it is still there."""
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    except OSError as error:
        raise ManifestError(root, [f"cannot be made ({error.strerror}): choose a folder you may write to"]) from error
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_into_place(folder: Path, root: Path) -> None:
    try:
        os.replace(folder, root)  # replaces an empty folder, refuses any other
    except OSError as error:
        raise ManifestError(
            root, [f"could not be put in place ({error.strerror}): is another process writing it?"]
        ) from error


def _write_images(
    folder: Path,
    patients: tuple[Patient, ...],
    config: PhantomConfig,
    *,
    on_progress: OnProgress | None,
    num_workers: int,
) -> None:
    folder.mkdir()
    total = sum(len(patient.exposures) for patient in patients)
    work = partial(_write_patient, folder=folder, config=config)
    if num_workers == 1:
        _follow(map(work, patients), total, on_progress)
        return
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        _follow(pool.map(work, patients, chunksize=8), total, on_progress)


def _follow(counts: Iterable[int], total: int, on_progress: OnProgress | None) -> None:
    done = 0
    for count in counts:
        done += count
        if on_progress is not None:
            on_progress(done, total)


def _write_patient(patient: Patient, *, folder: Path, config: PhantomConfig) -> int:
    """Draws and stores one patient's images; gives their number."""
    pictures = render_patient(patient, config)
    for index, picture in enumerate(pictures):
        path = folder / image_name(patient.number, index)
        Image.fromarray(picture).save(path, compress_level=PNG_COMPRESSION)
    return len(pictures)


def image_name(number: int, index: int) -> str:
    """The official name of a patient's image."""
    return f"{number:08d}_{index:03d}.png"


def _write_tables(folder: Path, patients: tuple[Patient, ...], config: PhantomConfig) -> None:
    side = config.image_size_px
    spacing = f"{DETECTOR_WIDTH_MM / side:.4g}"
    lines = [OFFICIAL_HEADER]
    lists: dict[str, list[str]] = {"train_val": [], "test": []}
    for patient in patients:
        for exposure in patient.exposures:
            name = image_name(patient.number, exposure.index)
            findings = "|".join(exposure.findings) or NO_FINDING
            row = (name, findings, exposure.follow_up, patient.number, exposure.age_years, patient.sex, exposure.view)
            lines.append(",".join(str(value) for value in (*row, side, side, spacing, spacing)))
            lists[patient.split].append(name)
    (folder / TABLE_NAME).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for split, names in lists.items():  # without a newline at the end, as the official lists are
        (folder / f"{split}_list.txt").write_text("\n".join(names), encoding="utf-8")
    with (folder / "patients.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["Patient ID", "Hospital"])
        table.writerows([patient.number, f"hospital-{patient.hospital + 1}"] for patient in patients)


def _report(patients: tuple[Patient, ...], oracle: dict[str, float]) -> PhantomReport:
    exposures = [exposure for patient in patients for exposure in patient.exposures]
    test = [patient for patient in patients if patient.split == "test"]
    share = {name: sum(name in e.findings for e in exposures) / len(exposures) for name in FINDINGS}
    share[NO_FINDING] = sum(not e.findings for e in exposures) / len(exposures)
    return PhantomReport(
        num_images=len(exposures),
        num_patients=len(patients),
        num_test_images=sum(len(patient.exposures) for patient in test),
        num_test_patients=len(test),
        prevalence={name: round(value, 6) for name, value in share.items()},
        oracle_auroc={name: round(value, 6) for name, value in oracle.items()},
    )
