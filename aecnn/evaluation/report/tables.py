"""The rows of the report's tables, from what the run folder says."""

from collections.abc import Collection
from dataclasses import dataclass

from aecnn.evaluation.report.basis import Basis, judged_of, validation_basis
from aecnn.evaluation.report.events import Round, Validation
from aecnn.evaluation.report.history import History
from aecnn.evaluation.report.load import Run
from aecnn.evaluation.report.scores import LEVEL, FindingScores, Subgroup
from aecnn.evaluation.report.words import count, interval, percent, score, spaced
from aecnn.findings import FINDINGS

VIEW_POSITION = "view_position"  # the baseline that sees nothing else
ALL, BY_IMAGE = "All together", "by image"
_ATTRIBUTES = {"sex": "Sex", "age": "Age", "view": "View position", "hospital": "Hospital"}


@dataclass(frozen=True)
class FindingRow:
    """One line of the table of findings: the test split's scores, and validation's beside them."""

    name: str
    test: FindingScores | None
    validation: FindingScores | None
    alone_auroc: float | None = None
    view_auroc: float | None = None  # from the view position alone
    why_not_pooled: str | None = None  # why there is none of validation, as the end of a sentence

    @property
    def scores(self) -> FindingScores:
        """Those of the test split where there is one."""
        return self.test or self.validation or FindingScores()

    @property
    def why_undefined(self) -> str | None:
        """Why `scores` have no AUROC, as the end of a sentence; None where there is one."""
        return self.why_not_pooled if self.test is None else self.test.why_undefined


@dataclass(frozen=True)
class HospitalCell:
    """One AUROC of the matrix of hospitals and findings."""

    auroc: float | None
    is_of_few: bool  # one class is known to have few images: chance moves it by tenths
    remark: str | None  # its interval and numbers of images, in words


@dataclass(frozen=True)
class HospitalRow:
    """One line of the matrix of hospitals and findings."""

    name: str
    macro_auroc: float | None
    cells: tuple[HospitalCell, ...]  # in the order of the matrix's findings
    is_pooled: bool = False

    @property
    def num_findings(self) -> int:
        """Findings that have an AUROC, over which the mean is."""
        return sum(cell.auroc is not None for cell in self.cells)


@dataclass(frozen=True)
class Attribute:
    """One kind of group, and its groups."""

    title: str
    groups: tuple[Subgroup, ...]


@dataclass(frozen=True)
class RoundRow:
    """One line of the table of rounds."""

    round: int
    training: Round | None  # None for the initial model
    macro_auroc: float | None
    basis: Basis | None  # of the validation AUROC
    test_auroc: float | None
    is_released: bool
    is_resumed: bool  # its time is counted from the resumption

    @property
    def lowest_alive_fraction(self) -> float | None:
        """Share of live latent pixels at the hospital where it is lowest."""
        hospitals = self.training.hospitals.values() if self.training else ()
        return min((h.latent_alive_fraction for h in hospitals if h.latent_alive_fraction is not None), default=None)


def finding_rows(run: Run, validation: Validation | None) -> list[FindingRow]:
    """Gives each finding's scores on the test split and on the hospitals' validation images."""
    pooled, judged = pooled_scores(run.history, validation), judged_of(run.history)
    is_judged, is_noised = judged is not None and bool(judged.findings), validation is not None and validation.is_noised
    tested = run.metrics.findings if run.metrics else {}
    baseline = run.metrics.baselines.get(VIEW_POSITION) if run.metrics else None
    return [
        FindingRow(
            name=name,
            test=tested.get(name, FindingScores()) if run.metrics else None,
            validation=pooled.get(name),
            alone_auroc=run.alone.mean_auroc(name) if run.alone else None,
            view_auroc=baseline.findings.get(name) if baseline else None,
            why_not_pooled=pooled[name].why_not_pooled(is_judged=is_judged, is_noised=is_noised)
            if name in pooled
            else None,
        )
        for name in _in_order(tested or pooled)
    ]


def pooled_scores(history: History, validation: Validation | None) -> dict[str, FindingScores]:
    """Gives each finding's scores on all validation images: as judged at the end, or else as the round's event says."""
    judged = judged_of(history)
    if judged is not None and judged.findings:
        return judged.findings
    return {name: FindingScores(auroc=auroc) for name, auroc in (validation.findings if validation else {}).items()}


def hospital_rows(history: History) -> tuple[list[str], list[HospitalRow]]:
    """Gives the matrix's findings and its rows, one a hospital and last all of them; no row where nothing is known."""
    judged = judged_of(history)
    if judged is None or not judged.by_hospital:
        return [], []
    told = {name for scores in judged.by_hospital.values() for name in scores.findings}
    findings = _in_order(told | set(judged.findings))
    rows = [
        HospitalRow(
            name, scores.macro_auroc, tuple(_cell(name, finding, scores.of(finding), BY_IMAGE) for finding in findings)
        )
        for name, scores in judged.by_hospital.items()
    ]
    cells = tuple(
        _cell(ALL, finding, judged.findings.get(finding, FindingScores()), judged.interval) for finding in findings
    )
    return findings, [*rows, HospitalRow(ALL, judged.macro_auroc, cells, is_pooled=True)]


def _cell(hospital: str, finding: str, scores: FindingScores, how: str | None) -> HospitalCell:
    """Gives a cell of the matrix, with a remark where more is known than its AUROC."""
    told = []
    if scores.auroc is not None and scores.auroc_ci is not None:
        told.append(f"{percent(LEVEL)} interval {interval(scores.auroc_ci)}{f' {how}' if how else ''}")
    if scores.num_positive is not None and scores.num_negative is not None:
        told.append(f"{count(scores.num_positive)} images with it, {count(scores.num_negative)} without it")
    remark = f"{spaced(finding)}, {hospital}: AUROC {score(scores.auroc)}; {'; '.join(told)}" if told else None
    return HospitalCell(scores.auroc, scores.auroc is not None and scores.is_of_few, remark)


def attributes(run: Run) -> list[Attribute]:
    """Gives the groups of the test split's patients, by attribute."""
    subgroups = (run.metrics.subgroups if run.metrics else None) or ()
    names = dict.fromkeys(group.attribute for group in subgroups)
    return [
        Attribute(_ATTRIBUTES.get(name, name.capitalize()), tuple(g for g in subgroups if g.attribute == name))
        for name in names
    ]


def round_rows(history: History) -> list[RoundRow]:
    """Gives every round that was trained or judged, in order; round 0 is the initial model."""
    trainings = {event.round: event for event in history.rounds}
    validations = {event.round: event for event in history.validations}
    tests = {event.round: event.macro_auroc for event in history.tests}
    return [
        RoundRow(
            round=number,
            training=trainings.get(number),
            macro_auroc=validations[number].macro_auroc if number in validations else None,
            basis=validation_basis(history, validations[number]) if number in validations else None,
            test_auroc=tests.get(number),
            is_released=number == history.released_round,
            is_resumed=number - 1 in history.resumed_after,
        )
        for number in sorted(trainings | validations)
    ]


def _in_order(names: Collection[str]) -> list[str]:
    """The fourteen findings first, in their order; then others by name."""
    return [*(name for name in FINDINGS if name in names), *sorted(name for name in names if name not in FINDINGS)]
