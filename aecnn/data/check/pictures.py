"""What the picture files of a dataset are, look like, and repeat; with small pictures of the suspects."""

import io
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from aecnn.config import FilesConfig
from aecnn.data.check.duplicates import identical, near_pairs
from aecnn.data.check.files import FileFacts, examine_files
from aecnn.data.check.outcome import Outcome, Status, Suspect, outcome_of_faults
from aecnn.data.check.radiographs import Kind, inspect
from aecnn.data.manifest import Manifest
from aecnn.progress import OnProgress

MAX_PICTURES = 24  # suspects of one check shown in the report; all are listed
PICTURE_SIDE_PX = 192
SMALLEST_SIDE_PX = 224  # of the files: below it, the model sees mostly interpolation
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
    bits_used: dict[str, int] = field(default_factory=dict)  # the most that any file of a storage kind uses
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
    known = manifest.select(manifest.table["path"].notna().to_numpy(dtype=bool))
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
                    _keep(examined, row, facts)
                    waiting.append((row, facts))
                row += 1
            if len(waiting) >= _BATCH:
                _inspect(examined, waiting, table)
                waiting = []
            if on_progress is not None:
                on_progress(row, len(paths))
    _inspect(examined, waiting, table)
    return examined


def _keep(examined: _Examined, row: int, facts: FileFacts) -> None:
    examined.rows.append(row)
    examined.storage[facts.storage] += 1
    examined.sides[facts.width_px, facts.height_px] += 1
    examined.bits_used[facts.storage] = max(facts.bits_used, examined.bits_used.get(facts.storage, 0))
    examined.sha256.append(facts.sha256)
    if facts.phash is not None:
        examined.phashes.append(facts.phash)


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
                picture=_png(thumbnails[suspicion.row]) if len(found) < MAX_PICTURES else None,
            )
        )


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
    """Looks for 16-bit pictures whose values stay in the lower bits: they would come out dark."""
    dark = {
        kind: used
        for kind, used in examined.bits_used.items()
        if kind.startswith("PNG") and kind.endswith("16 bit") and used < files.bits_stored
    }
    details = tuple(
        f"{examined.storage[kind]:,} images ({kind}) use {used} bits, and {files.bits_stored} are expected: set "
        f"data.files.bits_stored to {max(used, 8)}"
        for kind, used in dark.items()
    )
    return Outcome(
        check="bit-depth",
        title="Bit depth",
        status="fail" if details else "pass",
        summary="16-bit images leave their upper bits empty and would come out dark"
        if details
        else "values use the bits they are stored in",
        details=details,
    )


def _check_identical(table: pd.DataFrame, hashes: list[str]) -> Outcome:
    groups = identical(hashes)
    across = [rows for rows in groups if table["patient"].iloc[rows].nunique() > 1]
    details = tuple(
        f"{', '.join(table['image'].iloc[rows])}: the same file, of {_whose(table, rows)}"
        for rows in [*across, *(rows for rows in groups if rows not in across)]
    )
    count = "1 group" if len(groups) == 1 else f"{len(groups):,} groups"
    told = f"{count} of identical files, {len(across):,} across patients"
    return Outcome(
        check="identical-files",
        title="Identical files",
        status="fail" if across else "warn" if groups else "pass",
        summary=f"{told}: keep one of each" if groups else "no file is there twice",
        details=details,
    )


def _check_near(table: pd.DataFrame, examined: _Examined) -> Outcome:
    bits = np.stack(examined.phashes) if examined.phashes else np.zeros((0, 1), dtype=np.bool_)
    pairs = [
        (first, second, distance)
        for first, second, distance in near_pairs(bits)
        if examined.sha256[first] != examined.sha256[second]
    ]
    details = tuple(
        f"{table['image'].iloc[first]} and {table['image'].iloc[second]} look the same ({distance} of {bits.shape[1]} "
        f"bits differ), of {_whose(table, [first, second])}"
        for first, second, distance in sorted(pairs, key=lambda pair: pair[2])
    )
    across = sum(table["patient"].iloc[[first, second]].nunique() > 1 for first, second, _ in pairs)
    count = "1 pair looks" if len(pairs) == 1 else f"{len(pairs):,} pairs look"
    told = f"{count} the same, {across:,} across patients: look whether one is a copy"
    return Outcome(
        check="near-duplicates",
        title="Near-duplicates",
        status="warn" if pairs else "pass",
        summary=told if pairs else "no two images look the same",
        details=details,
    )


def _whose(table: pd.DataFrame, rows: list[int]) -> str:
    patients = list(dict.fromkeys(table["patient"].iloc[rows]))
    splits = list(dict.fromkeys(table["split"].iloc[rows].dropna()))
    told = f"patient {patients[0]}" if len(patients) == 1 else f"patients {', '.join(patients)}"
    return told + (f" (splits {', '.join(splits)})" if len(splits) > 1 else "")


def _check_kind(kind: Kind, suspects: list[Suspect], num_images: int) -> Outcome:
    share = len(suspects) / num_images if num_images else 0.0
    status: Status = "fail" if share > MANY_SUSPECTS else "warn" if suspects else "pass"
    ranked = sorted(suspects, key=lambda suspect: -(suspect.sureness or 0.0))
    return Outcome(
        check=kind.replace("_", "-"),
        title=_TITLES[kind],
        status=status,
        summary=f"{len(suspects):,} of {num_images:,} images ({share:.1%}): look at them" if suspects else "no suspect",
        suspects=tuple(ranked),
    )
