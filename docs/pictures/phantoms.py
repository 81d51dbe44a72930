"""Renders phantoms.png: what phantom radiographs look like, by finding and by hospital.

Run from the repository root: ``.venv/bin/python docs/pictures/phantoms.py``.
"""

import io
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from aecnn.config import PhantomConfig
from aecnn.data.phantom import draw_patient, render_patient
from aecnn.data.phantom.population import Exposure, Patient, draw_lesion_template
from aecnn.findings import FINDINGS

SIDE_PX = 224
BACKGROUND, INK = "#0e1116", "#e6e9ee"
NUM_FOLLOW_UPS = 6
MAX_CAPTION = 21  # letters that fit beside the visit's number
COLOURS = 64  # enough for grey pictures, and a third of the bytes
FIRST_PATIENT = 21
CONFIG = PhantomConfig(preset="demo", image_size_px=SIDE_PX, seed=11)


def picture(finding: str | None, *, number: int, hospital: int) -> NDArray[np.uint8]:
    """One radiograph [S, S] of a patient with one finding of typical severity, or none."""
    patient = draw_patient(CONFIG, number, hospital=hospital)
    lesions = () if finding is None else (draw_lesion_template(finding, np.random.default_rng(number)),)
    exposure = replace(patient.exposures[0], lesions=lesions)
    pictures = render_patient(replace(patient, exposures=(exposure,)), CONFIG)
    return np.squeeze(pictures, axis=0)


def caption(exposure: Exposure) -> str:
    """The findings of an image in words."""
    return " + ".join(exposure.findings).replace("_", " ") or "No Finding"


def followed_patient() -> Patient:
    """A patient with a row of images, few enough findings for the captions, and little that only mimics one."""
    patients = (draw_patient(CONFIG, number, hospital=0) for number in range(1, 12_000))
    rows = [replace(p, exposures=p.exposures[:NUM_FOLLOW_UPS]) for p in patients if len(p.exposures) >= NUM_FOLLOW_UPS]
    counts = {row.number: [len(exposure.findings) for exposure in row.exposures] for row in rows}
    captioned = [
        row
        for row in rows
        if sum(counts[row.number]) >= 4 and all(len(caption(e)) <= MAX_CAPTION for e in row.exposures)
    ]
    return min(captioned, key=_strongest_variant)


def _strongest_variant(patient: Patient) -> float:
    """Severity of the patient's worst variant of normal: a lesion drawn for a finding the image does not have."""
    pairs = [(exposure, lesion) for exposure in patient.exposures for lesion in exposure.lesions]
    return max((lesion.severity for exposure, lesion in pairs if lesion.finding not in exposure.findings), default=0.0)


def show(axes: Axes, pixels: NDArray[np.uint8], title: str) -> None:
    """One picture with its caption above."""
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="lanczos")
    axes.set_title(title, fontsize=7.5, color=INK, pad=4, loc="left")
    axes.set_axis_off()


def sheet() -> Figure:
    """Fourteen findings and a healthy chest, then one body in three hospitals and one patient's follow-ups."""
    plt.rcParams["font.family"] = ["DejaVu Sans"]
    figure, grid = plt.subplots(4, 6, figsize=(10.2, 7.5), facecolor=BACKGROUND)
    names: list[str | None] = [None, *FINDINGS]
    for index, finding in enumerate(names):
        pixels = picture(finding, number=FIRST_PATIENT + index, hospital=index % 3)
        show(grid.flat[index], pixels, (finding or "No Finding").replace("_", " "))
    for hospital in range(3):
        show(
            grid.flat[15 + hospital], picture(None, number=3, hospital=hospital), f"Same body, hospital {hospital + 1}"
        )
    patient = followed_patient()
    for index, (exposure, pixels) in enumerate(zip(patient.exposures, render_patient(patient, CONFIG), strict=True)):
        show(grid.flat[18 + index], pixels, f"Visit {index + 1}: {caption(exposure)}")
    figure.subplots_adjust(left=0.012, right=0.988, top=0.965, bottom=0.01, wspace=0.05, hspace=0.13)
    return figure


if __name__ == "__main__":
    stream = io.BytesIO()
    sheet().savefig(stream, dpi=110, facecolor=BACKGROUND)
    with Image.open(stream) as image:
        few = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        few.save(Path(__file__).with_suffix(".png"), optimize=True)
