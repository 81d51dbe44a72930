"""What the picture files of a dataset are, look like, and repeat; with small pictures of the suspects."""

import io
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from aecnn.config import FilesConfig
from aecnn.data.check.duplicates import identical, near_groups
from aecnn.data.check.files import FileFacts, examine_files
from aecnn.data.check.outcome import MAX_PICTURES, Outcome, Status, Suspect, outcome_of_faults
from aecnn.data.check.radiographs import Kind, inspect
from aecnn.data.manifest import Manifest
from aecnn.progress import OnProgress

PICTURE_SIDE_PX = 192
SMALLEST_SIDE_PX = 224  # of the files: below it, the model sees mostly interpolation
MAX_NAMED = 5  # images or patients of one group named in a sentence
DARK_BITS = 2  # upper bits left empty: the brightest pixel is below a quarter of the scale
MANY_SUSPECTS = 0.05  # above this share of a dataset it is no chance: the export is wrong
_BATCH = 128  # thumbnails inspected at once

_TITLES: dict[Kind, str] = {
    "inverted": "Inverted grey scale",
    "turned": "Turned, transposed or upside down",
    "mirrored": "Mirrored",
    "blank": "Blank or saturated",
    "not_frontal": "Not frontal",
    "borders": "Burned-in borders",
}


@dataclass
class _Examined:
    """What is kept of all files: a kilobyte each, and the pictures of the suspects."""

    faults: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)  # of the readable images
    storage: Counter[str] = field(default_factory=Counter)
    sides: Counter[tuple[int, int]] = field(default_factory=Counter)
    dark: Counter[tuple[str, int]] = field(default_factory=Counter)  # storage and bits used, where too few
    sha256: list[str] = field(default_factory=list)
    phashes: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    suspects: dict[Kind, list[Suspect]] = field(default_factory=lambda: {kind: [] for kind in _TITLES})


def check_pictures(
    manifest: Manifest,
    *,
    files: FilesConfig,
    num_workers: int,
    on_progress: OnProgress | None,
) -> list[Outcome]:
    """Opens every image of a manifest.

    Args:
        manifest: Rows whose `path` is known; others are passed over.
        files: What is accepted.
        num_workers: Processes that decode.
        on_progress: Called with the images done and their number.
    """
    paths = manifest.table["path"]
    known = manifest.select((paths.notna() & ~paths.duplicated()).to_numpy(dtype=bool))  # a row twice is no copy
    examined = _examine(known.table, files=files, num_workers=num_workers, on_progress=on_progress)
    table = known.table.iloc[examined.rows].reset_index(drop=True)
    return [
        outcome_of_faults(
            "readable", "Readable images", examined.faults, if_none=f"{len(table):,} images, each decodes"
        ),
        _check_storage(examined, len(table)),
        _check_bits(examined, files),
        _check_identical(table, examined.sha256),
        _check_near(table, examined),
        *(_check_kind(kind, examined.suspects[kind], len(table)) for kind in _TITLES),
    ]


def _examine(table: pd.DataFrame, *, files: FilesConfig, num_workers: int, on_progress: OnProgress | None) -> _Examined:
    examined = _Examined()
    waiting: list[tuple[int, FileFacts]] = []
    paths = [Path(path) for path in table["path"]]
    row = 0
    with closing(examine_files(paths, files=files, num_workers=num_workers)) as chunks:
        for chunk in chunks:
            for facts in chunk:
                if facts.fault:
                    examined.faults.append(facts.fault)
                else:
                    _keep(examined, row, facts, files)
                    waiting.append((row, facts))
                row += 1
            if len(waiting) >= _BATCH:
                _inspect(examined, waiting, table)
                waiting = []
            if on_progress is not None:
                on_progress(row, len(paths))
    _inspect(examined, waiting, table)
    return examined


def _keep(examined: _Examined, row: int, facts: FileFacts, files: FilesConfig) -> None:
    examined.rows.append(row)
    examined.storage[facts.storage] += 1
    examined.sides[facts.width_px, facts.height_px] += 1
    if _is_dark(facts, files):
        examined.dark[facts.storage, facts.bits_used] += 1
    examined.sha256.append(facts.sha256)
    if facts.phash is not None:
        examined.phashes.append(facts.phash)


def _is_dark(facts: FileFacts, files: FilesConfig) -> bool:
    """Whether a picture of more than 8 bits leaves its upper ones empty; a DICOM's window may make up for it."""
    is_png = facts.storage.startswith("PNG")
    declared = files.bits_stored if is_png else facts.bits
    if facts.bits <= 8 or facts.bits_used > declared - DARK_BITS:
        return False
    return is_png or (facts.thumbnail is not None and int(facts.thumbnail.max()) < 256 >> DARK_BITS)


def _inspect(examined: _Examined, waiting: list[tuple[int, FileFacts]], table: pd.DataFrame) -> None:
    """Asks the checks of what a radiograph looks like about one batch."""
    if not waiting:
        return
    thumbnails = np.stack([facts.thumbnail for _, facts in waiting if facts.thumbnail is not None])
    ratios = np.array([facts.width_px / facts.height_px for _, facts in waiting])
    for suspicion in inspect(thumbnails, ratios):
        found = examined.suspects[suspicion.kind]
        cells = table.iloc[waiting[suspicion.row][0]]
        found.append(
            Suspect(
                image=cells["image"],
                patient=cells["patient"],
                sentence=suspicion.sentence,
                sureness=round(suspicion.sureness, 4),
                picture=_png(thumbnails[suspicion.row]),
            )
        )
        if len(found) % (2 * MAX_PICTURES) == 0:
            examined.suspects[suspicion.kind] = _ranked(found)


def _ranked(suspects: list[Suspect]) -> list[Suspect]:
    """The surest first, and pictures of these alone."""
    ranked = sorted(suspects, key=lambda suspect: -(suspect.sureness or 0.0))
    return [
        *ranked[:MAX_PICTURES],
        *(suspect.model_copy(update={"picture": None}) for suspect in ranked[MAX_PICTURES:]),
    ]


def _png(thumbnail: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    side = (PICTURE_SIDE_PX, PICTURE_SIDE_PX)
    Image.fromarray(thumbnail).resize(side, Image.Resampling.BOX).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _check_storage(examined: _Examined, num_images: int) -> Outcome:
    kinds = [f"{count:,} {kind}" for kind, count in examined.storage.most_common()]
    sides = [f"{count:,} of {width} × {height} px" for (width, height), count in examined.sides.most_common()]
    small = sum(count for side, count in examined.sides.items() if min(side) < SMALLEST_SIDE_PX)
    oblong = sum(count for (width, height), count in examined.sides.items() if width != height)
    details = [*kinds, *sides[:20], *([f"… and {len(sides) - 20} other sizes"] if len(sides) > 20 else [])]
    if oblong:
        details.append(f"{oblong:,} are not square: they get black borders, so that proportions stay")
    told = f"{', '.join(kinds[:3])}; {sides[0] if len(sides) == 1 else f'{len(sides)} sizes'}" if kinds else "no image"
    return Outcome(
        check="storage",
        title="Formats and sizes",
        status="warn" if small else "pass",
        summary=f"{small:,} of {num_images:,} images have a side below {SMALLEST_SIDE_PX} px: the model was made for "
        "larger ones"
        if small
        else told,
        details=tuple(details),
    )


def _check_bits(examined: _Examined, files: FilesConfig) -> Outcome:
    """Looks for pictures whose values leave the upper bits empty: they come out dark."""
    num_images = sum(examined.storage.values())
    num_dark = sum(examined.dark.values())
    details = [
        f"{count:,} images ({storage}) use {used} bits: "
        + (
            f"set data.files.bits_stored to {used}, where it is {files.bits_stored}"
            if storage.startswith("PNG") and 8 <= used < files.bits_stored
            else "export them again with their window (VOI LUT) applied"
        )
        for (storage, used), count in sorted(examined.dark.items())
    ]
    return Outcome(
        check="bit-depth",
        title="Bit depth",
        status="fail" if num_dark > MANY_SUSPECTS * num_images else "warn" if num_dark else "pass",
        summary=f"{num_dark:,} of {num_images:,} images leave their upper bits empty and come out dark"
        if num_dark
        else "values use the bits they are stored in",
        details=tuple(details),
    )


def _check_identical(table: pd.DataFrame, hashes: list[str]) -> Outcome:
    groups = identical(hashes)
    across = [_num_patients(table, rows) > 1 for rows in groups]
    ordered = sorted(zip(across, groups, strict=True), key=lambda pair: not pair[0])  # across patients first
    details = [f"{_some(table['image'].iloc[rows])}: the same file, of {_whose(table, rows)}" for _, rows in ordered]
    count = "1 group" if len(groups) == 1 else f"{len(groups):,} groups"
    told = f"{count} of identical files, {sum(across):,} across patients"
    return Outcome(
        check="identical-files",
        title="Identical files",
        status="fail" if any(across) else "warn" if groups else "pass",
        summary=f"{told}: find out whose they are, and keep one of each" if groups else "no file is there twice",
        details=tuple(details),
    )


def _check_near(table: pd.DataFrame, examined: _Examined) -> Outcome:
    """Groups what looks the same; copies to the byte and blank pictures have checks of their own."""
    blank = {suspect.image for suspect in examined.suspects["blank"]}
    first = {sha256: row for row, sha256 in reversed(list(enumerate(examined.sha256)))}
    rows = sorted(row for row in first.values() if table["image"].iloc[row] not in blank)
    bits = np.stack([examined.phashes[row] for row in rows]) if rows else np.zeros((0, 8), dtype=np.bool_)
    groups = [[rows[place] for place in group] for group in near_groups(bits)]
    details = [f"{_some(table['image'].iloc[group])} look the same, of {_whose(table, group)}" for group in groups]
    across = sum(_num_patients(table, group) > 1 for group in groups)
    count = "1 group of images looks" if len(groups) == 1 else f"{len(groups):,} groups of images look"
    return Outcome(
        check="near-duplicates",
        title="Near-duplicates",
        status="warn" if groups else "pass",
        summary=f"{count} the same, {across:,} across patients: look whether they are copies"
        if groups
        else "no two images look the same",
        details=tuple(details),
    )


def _num_patients(table: pd.DataFrame, rows: list[int]) -> int:
    return int(table["patient"].iloc[rows].nunique())


def _some(names: Sequence[str] | pd.Series) -> str:
    """The first names of a group."""
    told = ", ".join(names[:MAX_NAMED])
    return told if len(names) <= MAX_NAMED else f"{told} and {len(names) - MAX_NAMED:,} more"


def _whose(table: pd.DataFrame, rows: list[int]) -> str:
    patients = list(dict.fromkeys(table["patient"].iloc[rows]))
    splits = list(dict.fromkeys(table["split"].iloc[rows].dropna()))
    told = f"patient {patients[0]}" if len(patients) == 1 else f"patients {_some(patients)}"
    return told + (f" (splits {', '.join(splits)})" if len(splits) > 1 else "")


def _check_kind(kind: Kind, suspects: list[Suspect], num_images: int) -> Outcome:
    share = len(suspects) / num_images if num_images else 0.0
    status: Status = "fail" if share > MANY_SUSPECTS else "warn" if suspects else "pass"
    return Outcome(
        check=kind.replace("_", "-"),
        title=_TITLES[kind],
        status=status,
        summary=f"{len(suspects):,} of {num_images:,} images ({share:.1%}): look at them" if suspects else "no suspect",
        suspects=tuple(_ranked(suspects)),
    )
