"""What an AUROC stands on: of which model it is, and on how many images, patients and hospitals."""

from collections.abc import Iterable
from dataclasses import dataclass

from aecnn.evaluation.report.events import Validation
from aecnn.evaluation.report.history import History
from aecnn.evaluation.report.scores import LEVEL, Judged, ModelScores
from aecnn.evaluation.report.words import interval, percent

SMALL_NUM_IMAGES = 100  # with fewer, an AUROC moves by tenths with the choice of the images


@dataclass(frozen=True)
class Basis:
    """The images behind a figure; None where the run does not tell how many."""

    split: str
    num_images: int | None
    num_patients: int | None = None
    num_hospitals: int | None = None  # None for a test split: it is the centre's own
    is_noised: bool = False  # counted with the noise of differential privacy

    @property
    def is_small(self) -> bool:
        """Whether a reader should be warned of the number of images."""
        return self.num_images is not None and self.num_images < SMALL_NUM_IMAGES

    def __str__(self) -> str:
        nouns = {"image": self.num_images, "patient": self.num_patients, "hospital": self.num_hospitals}
        counted = [
            f"{number:,} {noun}{'' if number == 1 else 's'}" for noun, number in nouns.items() if number is not None
        ]
        noise = ["with noise of differential privacy"] * self.is_noised
        return ", ".join([self.split, *counted, *noise])


@dataclass(frozen=True)
class Headline:
    """The one figure on top of the page: of which model, and measured on what."""

    auroc: float | None
    model: str
    basis: Basis | None  # None: not measured
    interval: str | None = None  # in words


def headline(history: History, metrics: ModelScores | None) -> Headline:
    """Gives the released model's macro AUROC, the test split's before validation's; before a release, the newest."""
    released = history.released_round
    model = "released model" if released is None else f"released model, round {released}"
    if metrics is not None:
        return Headline(metrics.macro_auroc, model, split_basis(metrics), interval_of_split(metrics))
    validation, judged = validation_of(history, round_number=released), judged_of(history)
    if released is None:
        model = f"round {validation.round}, no model released" if validation else "no model released"
    if validation is None:
        return Headline(None, model, None)
    basis = validation_basis(history, validation)
    if judged is None:
        return Headline(validation.macro_auroc, model, basis)
    return Headline(judged.macro_auroc, model, basis, interval_of_judged(judged))


def interval_of_split(metrics: ModelScores) -> str | None:
    """Gives the interval of a split's macro AUROC, in words; None where there is none."""
    if metrics.macro_auroc_ci is None:
        return None
    made = metrics.interval
    level = LEVEL if made is None or made.level is None else made.level
    how = f", {made.method}" if made and made.method else ""
    return f"{percent(level)} interval {interval(metrics.macro_auroc_ci)}{how}"


def interval_of_judged(judged: Judged) -> str | None:
    """Gives the interval of the pooled macro AUROC, in words; None where there is none."""
    if judged.macro_auroc_ci is None:
        return None
    how = f", {judged.interval}" if judged.interval else ""
    return f"{percent(LEVEL)} interval {interval(judged.macro_auroc_ci)}{how}"


def judged_of(history: History) -> Judged | None:
    """Gives the released model's judgement on all validation images; None where it is of another round's model."""
    judged, released = history.judged, history.released_round
    return judged if judged is not None and judged.round == released else None


def split_basis(metrics: ModelScores) -> Basis:
    """Gives what the figures of a split stand on."""
    return Basis(metrics.split, metrics.num_images, metrics.num_patients)


def validation_of(history: History, *, round_number: int | None) -> Validation | None:
    """Gives the validation of one round's model; the newest where ``round_number`` is None."""
    judged = [event for event in history.validations if round_number in (None, event.round)]
    return judged[-1] if judged else None


def validation_basis(history: History, event: Validation) -> Basis:
    """Gives what a pooled validation AUROC stands on: the hospitals that told scores in it, and their images."""
    if not event.hospitals:
        return Basis("validation", event.num_images, is_noised=event.is_noised)
    pooled = {name: scores for name, scores in event.hospitals.items() if scores.is_pooled}
    counts = {name: history.counts(name) for name in pooled}
    images = [
        counts[name].num_validation_images if scores.num_images is None else scores.num_images
        for name, scores in pooled.items()
    ]
    patients = [counts[name].num_validation_patients for name in pooled]
    return Basis("validation", _total(images), _total(patients), len(pooled), is_noised=event.is_noised)


def _total(numbers: Iterable[int | None]) -> int | None:
    """Gives the sum; None where one is unknown."""
    known = list(numbers)
    return None if None in known else sum(number for number in known if number is not None)
