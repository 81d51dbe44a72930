"""Intervals by patient of the pooled AUROC, from a few sums a finding that each hospital computes at home.

Images of one patient are no independent draws, and only a hospital knows which belong together. So the centre hands
the pooled histogram back, and each hospital answers with sums over its patients of A and B: A of a patient is the sum
over their positive images of placement minus pooled AUROC, B the same over the negative ones. Sums of hospitals add,
and give Obuchowski's variance (Biometrics 1997, eq. 2 to 5) with m positive and n negative images, and I₁, I₀ and I
patients with a positive one, a negative one, and either:

    Var = I₁/(I₁ − 1)·Σ A²/m² + I₀/(I₀ − 1)·Σ B²/n² + 2·I/(I − 1)·Σ A·B/(m·n)

Of the macro mean it is I/(I − 1)·Σ Ψ², where Ψ is a patient's mean of A/m + B/n over the findings that have an AUROC.

Shapes: N images, F findings, B bins, P patients; counts are [F, 2, B] with class 0 = negative, 1 = positive.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aecnn.contract import PlacementReport
from aecnn.evaluation.auroc import Float64s, Floats
from aecnn.evaluation.floored import mean_over_ranges, ranges_of, spread_evenly
from aecnn.evaluation.histogram import NUM_BINS, Bins, ScoreHistogram
from aecnn.evaluation.pooled import PooledScores, placements
from aecnn.findings import NUM_FINDINGS

Z_95 = 1.959963984540054  # of a normal distribution's middle 95 %
_ROUNDING = 1e-6  # images: what sums of fractions may be off by
DIGITS = 2  # of a sum that leaves: all of them would tell which images are of one patient


@dataclass(frozen=True)
class PlacementSums:
    """Sums over one hospital's patients; `+` adds another hospital's, whose patients are others."""

    squares: Float64s  # [F, 3]: Σ A², Σ B², Σ A·B
    patients: NDArray[np.int64]  # [F, 3]: with a positive image, a negative one, either
    macro_square: float  # Σ Ψ²
    num_patients: int  # with an image of a told finding

    def __add__(self, other: "PlacementSums") -> "PlacementSums":
        return PlacementSums(
            self.squares + other.squares,
            self.patients + other.patients,
            self.macro_square + other.macro_square,
            self.num_patients + other.num_patients,
        )

    @classmethod
    def empty(cls) -> "PlacementSums":
        """Gives the sums over no patient, the zero of `+`."""
        return cls(np.zeros((NUM_FINDINGS, 3)), np.zeros((NUM_FINDINGS, 3), dtype=np.int64), 0.0, 0)

    @classmethod
    def of_report(cls, report: PlacementReport) -> "PlacementSums":
        """Gives the sums that a hospital's answer holds."""
        squares = [report.positive_squares, report.negative_squares, report.products]
        patients = [report.positive_patients, report.negative_patients, report.patients]
        return cls(np.array(squares).T, np.array(patients).T, report.macro_square, report.num_patients)

    def told(self, *, min_patients: int) -> "PlacementSums":
        """Gives what may leave of them: two digits, and nothing of a few patients.

        Of exact sums a listener who has the histogram could take off the squares image by image, and try which images'
        products give the rest. Where some, but fewer than `min_patients`, have images of both classes, they are told as
        patients of their own for each class: their products are left out.
        """
        both = self.patients[:, 0] + self.patients[:, 1] - self.patients[:, 2]
        is_hidden = (both > 0) & (both < min_patients)
        either = np.minimum(self.patients[:, 0] + self.patients[:, 1], self.num_patients)
        squares = _rounded(self.squares)
        products = np.where(is_hidden, 0.0, squares[:, 2])
        most = np.sqrt(squares[:, 0] * squares[:, 1])
        return PlacementSums(
            np.stack([squares[:, 0], squares[:, 1], np.clip(products, -most, most)], axis=1),
            np.stack([*self.patients[:, :2].T, np.where(is_hidden, either, self.patients[:, 2])], axis=1),
            float(_rounded(np.array(self.macro_square))),
            self.num_patients,
        )

    def to_report(self) -> PlacementReport:
        """Gives the sums as an answer holds them."""
        positive_squares, negative_squares, products = self.squares.T.tolist()
        positive_patients, negative_patients, patients = self.patients.T.tolist()
        return PlacementReport(
            positive_squares=positive_squares,
            negative_squares=negative_squares,
            products=products,
            positive_patients=positive_patients,
            negative_patients=negative_patients,
            patients=patients,
            macro_square=self.macro_square,
            num_patients=self.num_patients,
        )

    def standard_errors(self, pooled: PooledScores) -> Float64s:
        """Gives the standard error of each finding's pooled AUROC by patient, [F].

        NaN where a class is of fewer than two patients.
        """
        m, n = pooled.num_positive.astype(np.float64), pooled.num_negative.astype(np.float64)
        factors = _small_sample(self.patients)
        with np.errstate(divide="ignore", invalid="ignore"):
            weights = np.stack([1.0 / m**2, 1.0 / n**2, 2.0 / (m * n)], axis=1)
            variance = (factors * weights * self.squares).sum(axis=1)
        return np.asarray(np.sqrt(np.maximum(variance, 0.0)), dtype=np.float64)

    def macro_standard_error(self) -> float:
        """Gives the standard error of the mean pooled AUROC by patient; NaN of fewer than two patients."""
        return float(np.sqrt(_small_sample(np.array(self.num_patients)) * self.macro_square))


def placement_sums(
    bins: Bins, targets: Floats, patients: Sequence[str], *, own: ScoreHistogram, pooled_images: Float64s
) -> PlacementSums:
    """Gives one hospital's sums.

    Where its histogram is floored, an image has the mean placement of its range, and what is hidden within ranges is
    added as if it were the same for all images of a patient: the sums then tell of ranges only.

    Args:
        bins: [N, F], of its images.
        targets: [N, F] in {0, 1, NaN}.
        patients: [N], whose image each is.
        own: The histogram that it told; findings that it withheld have sums of 0.
        pooled_images: Where all hospitals' images are taken to lie, [F, 2, B]; see `covers`.
    """
    told, (names, whose) = own.told, np.unique(np.asarray(patients, dtype=object), return_inverse=True)
    values, spread = _values(own, pooled_images)
    totals = pooled_images.sum(axis=-1)  # [F, 2]
    is_defined = (totals > 0).all(axis=1)
    sums, hidden = np.zeros((2, NUM_FINDINGS, 2, len(names)))
    has = np.zeros((NUM_FINDINGS, 2, len(names)), dtype=bool)
    for finding, true_class in np.ndindex(NUM_FINDINGS, 2):
        rows = np.flatnonzero(targets[:, finding] == true_class) if told[finding] else np.zeros(0, dtype=np.intp)
        has[finding, true_class, whose[rows]] = True
        if is_defined[finding]:
            for of_patients, of_bins in ((sums, values), (hidden, spread)):
                of_rows = of_bins[finding, true_class, bins[rows, finding]]
                of_patients[finding, true_class] = np.bincount(whose[rows], weights=of_rows, minlength=len(names))
    squares = np.square(sums).sum(axis=-1) + np.square(hidden).sum(axis=-1)  # [F, 2]
    return PlacementSums(
        np.stack([squares[:, 1], squares[:, 0], (sums[:, 1] * sums[:, 0]).sum(axis=-1)], axis=1),
        np.stack([has[:, 1].sum(axis=1), has[:, 0].sum(axis=1), has.any(axis=1).sum(axis=1)], axis=1).astype(np.int64),
        _macro_square(sums[is_defined], hidden[is_defined], totals[is_defined]),
        int(has.any(axis=(0, 1)).sum()),
    )


def unseen_squares(histograms: Iterable[ScoreHistogram], pooled_images: Float64s) -> Float64s:
    """Gives what the placements inside the ranges of floored histograms add to sums of squares by image, [F, 2]."""
    unseen, placed = np.zeros(pooled_images.shape[:2]), placements(pooled_images)
    for histogram in histograms:
        if histogram.is_floored:
            unseen += (histogram.counts * _hidden(histogram, placed) ** 2).sum(axis=-1)
    return unseen


def covers(pooled_images: Float64s, own: ScoreHistogram) -> bool:
    """Whether pooled images can have this hospital's among them, each in the bin it has here or in one beside it.

    A histogram made up to ask about the scores would not. One bin of play, because a score that is computed again, in
    smaller batches or with another algorithm of a GPU, can differ in its last digits and lie across an edge. Images can
    be matched so where no row of neighbouring bins has more of them than those bins and the two beside them have room.
    """
    if not np.isfinite(pooled_images).all():
        return False
    images, room = (
        _sums_before(spread_evenly(own.counts) if own.is_floored else own.counts),
        _sums_before(pooled_images),
    )
    bins = np.arange(NUM_BINS)
    most_before = np.maximum.accumulate(room[..., np.maximum(bins - 1, 0)] - images[..., :-1], axis=-1)
    lacking = images[..., 1:] - room[..., np.minimum(bins + 2, NUM_BINS)] + most_before
    return bool(lacking.max() <= _ROUNDING)


def interval(figure: float, standard_error: float) -> tuple[float, float] | None:
    """Gives the 95 % interval of an AUROC, kept within 0 and 1.

    None where there is no standard error, or one of 0: that all of a few images are in order is no certainty.
    """
    if not np.isfinite(figure) or not standard_error > 0.0:  # NaN too
        return None
    return max(0.0, figure - Z_95 * standard_error), min(1.0, figure + Z_95 * standard_error)


def added(sums: Iterable[PlacementSums]) -> PlacementSums:
    """Adds the sums of hospitals."""
    total = PlacementSums.empty()
    for of_one in sums:
        total = total + of_one
    return total


def _values(own: ScoreHistogram, pooled_images: Float64s) -> tuple[Float64s, Float64s]:
    """What an image of each bin adds to its patient's A or B, and what ranges hide of it; NaN without an AUROC."""
    placed = placements(pooled_images)
    with np.errstate(divide="ignore", invalid="ignore"):
        area = (placed[:, 1] * pooled_images[:, 1]).sum(axis=-1) / pooled_images[:, 1].sum(axis=-1)
    centred = placed - area[:, None, None]
    if own.is_floored:
        return mean_over_ranges(centred, own.counts), _hidden(own, placed)
    return centred, np.zeros_like(centred)


def _hidden(floored: ScoreHistogram, placed: Float64s) -> Float64s:
    """The standard deviation of placements within the range of each bin, [F, 2, B].

    They are taken to be uniform between those at the range's ends.
    """
    hidden = np.zeros_like(placed)
    for finding, true_class, ends, starts in ranges_of(floored.counts):
        lengths = np.abs(placed[finding, true_class, ends] - placed[finding, true_class, starts])
        hidden[finding, true_class] = np.repeat(lengths / np.sqrt(12.0), ends + 1 - starts)
    return np.nan_to_num(hidden)  # where the other class has nobody


def _macro_square(sums: Float64s, hidden: Float64s, totals: Float64s) -> float:
    """Σ Ψ², with what ranges hide taken to be independent from finding to finding.

    Args:
        sums: A and B of the findings with an AUROC, [F', 2, P].
        hidden: What ranges hide of them, alike.
        totals: Pooled images, [F', 2].
    """
    if not sums.size:
        return 0.0
    influence = (sums / totals[..., None]).sum(axis=1).mean(axis=0)
    return float(np.square(influence).sum() + np.square(hidden / totals[..., None]).sum() / len(sums) ** 2)


def _rounded(sums: Float64s) -> Float64s:
    """To `DIGITS` significant digits."""
    with np.errstate(divide="ignore"):
        exponents = np.where(sums == 0.0, 0.0, np.floor(np.log10(np.abs(sums))))
    steps = 10.0 ** (exponents - DIGITS + 1)
    return np.asarray(np.round(sums / steps) * steps, dtype=np.float64)


def _sums_before(images: NDArray[np.number]) -> Float64s:
    """Images in all bins before each, and in all, [..., B + 1]."""
    before = np.zeros((*images.shape[:-1], images.shape[-1] + 1))
    np.cumsum(images, axis=-1, out=before[..., 1:])
    return before


def _small_sample(count: NDArray[np.integer]) -> Float64s:
    """I/(I − 1), NaN where that has no meaning."""
    number = np.asarray(count, dtype=np.float64)
    factors = np.divide(number, number - 1.0, out=np.full(number.shape, np.nan), where=number > 1)
    return np.asarray(factors, dtype=np.float64)
