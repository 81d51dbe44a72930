"""Patient floors of score histograms: which findings are told, and counts of ranges that hide a patient among others.

A finding is told where both its classes have as many patients as the floor, twice as many where counts are floored. Its
*fine* histogram then has the bins as they are, many of which count one image. In its *floored* one neighbouring bins of
a class are merged until every range of bins has images of as many different patients as the floor. Ranges of one class
lie side by side and cover the grid: each begins after the one before, and its count stands in its last bin, the last
one's in the grid's last bin. So ranges need no list of their own. Where a range ends tells that an image of one
patient, nobody knows whose, lies in that bin.

Shapes: N images, F findings, B bins; counts are [F, 2, B] with class 0 = negative, 1 = positive.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from aecnn.evaluation.auroc import Float64s, Floats
from aecnn.evaluation.histogram import NUM_BINS, Bins, Counts, ScoreHistogram
from aecnn.findings import NUM_FINDINGS

Range = tuple[int, int, NDArray[np.intp], NDArray[np.intp]]

NO_FLOOR = 1  # with it nothing is withheld, not even that a class has nobody
_FEWEST_RANGES = 2  # of a class: one range is the whole grid, and says nothing of where the scores lie


def patients_by_class(targets: Floats, patients: Sequence[str]) -> NDArray[np.int64]:
    """Gives how many different patients have an image without, and with, each finding, [F, 2]."""
    numbers = _numbered(patients)
    counts = [[np.unique(numbers[column == true_class]).size for true_class in (0, 1)] for column in targets.T]
    return np.array(counts, dtype=np.int64).reshape(-1, 2)


def patients_needed(min_patients: int, *, is_floored: bool) -> int:
    """Gives how many patients each class of a finding needs to be told, fine or floored."""
    return min_patients * _FEWEST_RANGES if is_floored and min_patients > NO_FLOOR else min_patients


def findings_told(targets: Floats, patients: Sequence[str], *, min_patients: int) -> NDArray[np.bool_]:
    """Gives which findings may be told, [F]: those of whose classes each has as many patients as the floor.

    A class of nobody would tell of everyone that they do not belong to it, so it withholds its finding as well.

    Args:
        targets: [N, F] in {0, 1, NaN}.
        patients: [N], whose image each is.
        min_patients: The floor.
    """
    if min_patients <= NO_FLOOR:
        return np.ones(NUM_FINDINGS, dtype=bool)
    return np.asarray((patients_by_class(targets, patients) >= min_patients).all(axis=1))


def floored_histogram(bins: Bins, targets: Floats, patients: Sequence[str], *, min_patients: int) -> ScoreHistogram:
    """Counts images in ranges of bins that have images of `min_patients` different patients or more each.

    Args:
        bins: [N, F].
        targets: [N, F] in {0, 1, NaN}; of findings that may be told, see `findings_told`.
        patients: [N], whose image each is.
        min_patients: The floor.
    """
    counts = np.zeros((NUM_FINDINGS, 2, NUM_BINS), dtype=np.int64)
    numbers = _numbered(patients)
    for finding in range(NUM_FINDINGS):
        for true_class in (0, 1):
            rows = targets[:, finding] == true_class
            counts[finding, true_class] = _merged(bins[rows, finding], numbers[rows], min_patients)
    return ScoreHistogram(counts, is_floored=True)


def _merged(bins: NDArray[np.int64], patients: NDArray[np.int64], min_patients: int) -> NDArray[np.int64]:
    """The counts of one class by range, [B]; a rest of fewer patients joins the range before it."""
    order = np.argsort(bins, kind="stable")
    ordered, whose = bins[order].tolist(), patients[order].tolist()
    sizes: list[int] = []
    ends: list[int] = []
    found: set[int] = set()
    begin = 0
    for index, patient in enumerate(whose):
        found.add(patient)
        ends_bin = index + 1 == len(ordered) or ordered[index + 1] != ordered[index]
        if ends_bin and len(found) >= min_patients:
            sizes.append(index + 1 - begin)
            ends.append(ordered[index])
            found, begin = set(), index + 1
    if begin < len(ordered):  # the rest
        sizes = [*sizes[:-1], sum(sizes[-1:]) + len(ordered) - begin]
        ends = ends or [NUM_BINS - 1]
    if ends:
        ends[-1] = NUM_BINS - 1
    merged = np.zeros(NUM_BINS, dtype=np.int64)
    merged[ends] = sizes
    return merged


def covers_grid(counts: Counts) -> bool:
    """Whether counts can be those of ranges that cover the grid: where a class has any, its last bin has some."""
    return bool((counts.any(axis=-1) == (counts[..., -1] > 0)).all())


def first_bins(counts: Counts) -> Counts:
    """Gives the counts of a floored histogram in the first bins of their ranges, where it has them in the last."""
    begun = np.zeros_like(counts)
    for finding, true_class, ends, starts in ranges_of(counts):
        begun[finding, true_class, starts] = counts[finding, true_class, ends]
    return begun


def spread_evenly(counts: Counts) -> Float64s:
    """Gives where the images of a floored histogram are taken to lie, float64 [F, 2, B]: evenly over their range.

    The outer ranges have no outer end, and are taken to be as wide as their neighbours; where those are outer ones too,
    to lie at their inner end. A range alone is the whole grid.
    """
    placed = np.zeros(counts.shape, dtype=np.float64)
    for finding, true_class, ends, starts in ranges_of(counts):
        sizes = counts[finding, true_class, ends]
        begins, stops = _taken_to_lie(starts, ends)
        steps = np.zeros(NUM_BINS + 1)
        np.add.at(steps, begins, sizes / (stops - begins))
        np.add.at(steps, stops, -sizes / (stops - begins))
        # The sum of many fractions comes to 0 between ranges only about.
        inside = np.zeros(NUM_BINS + 1)
        np.add.at(inside, begins, 1.0)
        np.add.at(inside, stops, -1.0)
        placed[finding, true_class] = np.where(np.cumsum(inside)[:-1] > 0, np.cumsum(steps)[:-1], 0.0)
    return placed


def mean_over_ranges(values: Float64s, counts: Counts) -> Float64s:
    """Gives each bin the mean of a value over where the images of its range are taken to lie, [F, 2, B].

    Args:
        values: Of every bin, [F, 2, B].
        counts: Of a floored histogram.
    """
    means = np.zeros(values.shape, dtype=np.float64)
    for finding, true_class, ends, starts in ranges_of(counts):
        begins, stops = _taken_to_lie(starts, ends)
        sums = np.concatenate([[0.0], np.cumsum(values[finding, true_class])])
        of_range = (sums[stops] - sums[begins]) / (stops - begins)
        means[finding, true_class] = np.repeat(of_range, ends + 1 - starts)
    return means


def ranges_of(counts: Counts) -> list[Range]:
    """Gives every class with images of a floored histogram: finding, class, last and first bins of its ranges."""
    found: list[Range] = []
    for finding, true_class in np.ndindex(counts.shape[:2]):
        ends = np.flatnonzero(counts[finding, true_class])
        if ends.size:
            found.append((finding, true_class, ends, np.concatenate([[0], ends[:-1] + 1])))
    return found


def _taken_to_lie(starts: NDArray[np.intp], ends: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The bins that ranges are spread over: the first, and the one after the last."""
    begins, stops = starts.copy(), ends + 1
    if ends.size > 1:
        widths = stops - begins
        first, last = (widths[1], widths[-2]) if ends.size > 2 else (1, 1)  # two ranges have no inner one beside them
        begins[0], stops[-1] = max(stops[0] - first, 0), min(begins[-1] + last, NUM_BINS)
    return begins, stops


def _numbered(patients: Sequence[str]) -> NDArray[np.int64]:
    return np.unique(np.asarray(patients, dtype=object), return_inverse=True)[1].astype(np.int64).reshape(-1)
