"""How the released model is judged: pooled figures with intervals by patient, and what was withheld and why."""

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from aecnn import contract
from aecnn.contract import HospitalCounts, Origin
from aecnn.evaluation.auroc import auroc, macro_mean
from aecnn.evaluation.delong import patient_sums
from aecnn.evaluation.floored import findings_told, floored_histogram, patients_needed
from aecnn.evaluation.histogram import BIN_LOGITS, ScoreHistogram, bins_of
from aecnn.evaluation.placements import PlacementSums, placement_sums
from aecnn.evaluation.report import write_report
from aecnn.findings import FINDINGS
from federation_in_process import small_config
from scripted_hospitals import NAMES, Hospitals, NamedGrid, enrolled, settings
from server.admission import fault_of_placements
from server.app import run_and_release
from server.history import validation_event
from server.judgement import Judgement, judged_event
from server.progress import plain_lines
from server.run_folder import RunFolder
from server.store import RoundStore
from server.wire import Answer
from simulations.runner import prepare_run, run_prepared

HERNIA = FINDINGS.index("Hernia")


class Killed(BaseException):
    """Stands for a process that ends in the middle of a call."""


class Scores:
    """One hospital's logits, which a scripted hospital tells of as a real one does, with its floor and mode."""

    def __init__(self, seed, *, num_patients=30, floor=1, is_floored=False):
        random = np.random.default_rng(seed)
        whose = np.repeat(np.arange(num_patients), random.integers(1, 4, num_patients))
        self.targets = (random.random((whose.size, 14)) < 0.3).astype(np.float64)
        self.targets[:, HERNIA] = 0.0  # nobody has it anywhere
        self.logits = random.normal(size=self.targets.shape) + self.targets - 1.0
        self.patients = [f"{seed}-{patient}" for patient in whose]
        self.floor, self.is_floored = floor, is_floored
        needed = patients_needed(floor, is_floored=is_floored)
        told = findings_told(self.targets, self.patients, min_patients=needed)
        self.told_targets = np.where(told, self.targets, np.nan)

    def histogram(self):
        """Gives what it tells of its scores."""
        if self.is_floored:
            bins = bins_of(self.logits)
            return floored_histogram(bins, self.told_targets, self.patients, min_patients=self.floor)
        return ScoreHistogram.of(self.logits, self.told_targets)

    def report(self, images):
        """Gives its sums by patient, with all hospitals' images where they are taken to lie."""
        bins, own = bins_of(self.logits), self.histogram()
        sums = placement_sums(bins, self.told_targets, self.patients, own=own, pooled_images=images)
        return sums.to_report()


class Judging(Hospitals):
    """Scripted hospitals that tell histograms, and sums by patient where the test does not say otherwise."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores
        self.reports = {}
        self.app.query("placements")(self._place)
        for name in NAMES:
            for kind in (contract.TRAIN, contract.EVALUATE):
                self.changes[name, kind] = self._add_histogram
            self.changes[name, contract.JOIN] = self._count

    def _count(self, reply):
        own = self.scores.get(reply.content[contract.ORIGIN]["hospital"])
        if own is not None:
            counts = dict(reply.content[contract.COUNTS])
            counts |= {"num-validation-images": len(own.logits), "num-validation-patients": len(set(own.patients))}
            reply.content[contract.COUNTS] = ConfigRecord(counts)

    def _add_histogram(self, reply):
        own = self.scores.get(reply.content[contract.ORIGIN]["hospital"])
        if own is not None:
            name = contract.FLOORED_COUNTS if own.is_floored else contract.SCORE_COUNTS
            array = Array(own.histogram().counts.astype(np.int32))
            reply.content[contract.HISTOGRAMS] = ArrayRecord({name: array})
            sums = contract.ValidationReport(num_images=len(own.logits), bce_sum=2.0, mse_sum=0.1)
            reply.content[contract.VALIDATION] = MetricRecord(sums.to_wire())

    def _place(self, message, context: Context):
        name = NAMES[int(context.node_config["partition-id"])]
        request = contract.Request.from_wire(dict(message.content[contract.REQUEST]))
        self.asked[name, contract.PLACE, request.round] += 1
        if self.codes[name, contract.PLACE]:
            return Message(Error(self.codes[name, contract.PLACE].pop(0), "as the test says"), reply_to=message)
        images = message.content[contract.POOLED][contract.POOLED_IMAGES].numpy()
        origin = contract.Origin(hospital=name, round=request.round, fingerprint=contract.code_fingerprint())
        report = self.reports.get(name, self.scores[name].report(images))
        content = {contract.ORIGIN: ConfigRecord(origin.to_wire())}
        content[contract.PLACEMENTS] = MetricRecord(report.to_wire())
        return Message(RecordDict(content), reply_to=message)


def _run(hospitals, path, **federation):
    folder = RunFolder.create(path) if not path.exists() else RunFolder(path)
    grid = NamedGrid(hospitals.app)
    run_and_release(grid, settings(num_rounds=1, **federation), folder, expected_nodes=3, hospitals=enrolled_widely)
    return _judged(path), path


def enrolled_widely():
    """The roster, whose hospitals declared more than any of these tests makes up."""
    return {name: type(one)(10**4, 10**4, one.fingerprint) for name, one in enrolled()().items()}


def _judged(path):
    (event,) = [event for event in _events(path) if event["event"] == "judged"]
    return event


def _events(path):
    return [json.loads(line) for line in (path / "history.jsonl").read_text().splitlines()]


def _all_scores(**changes):
    return {name: Scores(number, **changes.get(name, {})) for number, name in enumerate(NAMES)}


def _together(scores):
    logits, targets = (
        np.concatenate([getattr(one, part) for one in scores.values()]) for part in ("logits", "targets")
    )
    return logits, targets, [patient for one in scores.values() for patient in one.patients]


@pytest.fixture(scope="module")
def fine_run(tmp_path_factory):
    scores = _all_scores()
    return scores, *_run(Judging(scores), tmp_path_factory.mktemp("fine") / "run")


def test_the_figures_are_those_of_all_scores_together_with_intervals_by_patient(fine_run):
    scores, judged, _ = fine_run
    logits, targets, patients = _together(scores)
    areas, sums = auroc(logits, targets), patient_sums(BIN_LOGITS[bins_of(logits)], targets, patients)
    assert (judged["round"], judged["mode"], judged["interval"]) == (1, "fine", "by patient")
    assert judged["hospitals"] == list(NAMES)
    assert judged["withheld"] == {}
    assert abs(judged["macro_auroc"] - macro_mean(areas)) <= judged["macro_auroc_error_bound"]
    half = 1.96 * sums.macro_standard_error()
    np.testing.assert_allclose(judged["macro_auroc_ci"], judged["macro_auroc"] + np.array([-half, half]), atol=1e-5)
    mass = judged["findings"]["Mass"]
    index = FINDINGS.index("Mass")
    assert abs(mass["auroc"] - areas[index]) <= mass["error_bound"] + 1e-12
    assert mass["standard_error"] == pytest.approx(sums.standard_errors()[index])
    assert mass["num_positive"] == (targets[:, index] == 1).sum()
    assert mass["auroc_ci"][0] < mass["auroc"] < mass["auroc_ci"][1]
    assert mass["roc"][0] == [0.0, 0.0]
    assert sum(point["num_images"] for point in mass["calibration"]) == len(logits)
    for name, own in scores.items():
        expected = auroc(BIN_LOGITS[bins_of(own.logits)], own.targets)
        assert judged["by_hospital"][name]["findings"]["Mass"] == pytest.approx(expected[index])


def test_a_finding_nobody_has_is_null_and_in_no_mean(fine_run):
    _, judged, path = fine_run
    hernia = judged["findings"]["Hernia"]
    assert (hernia["num_positive"], hernia["auroc"], hernia["auroc_ci"], hernia["calibration"]) == (0, None, None, None)
    assert "NaN" not in (path / "history.jsonl").read_text()
    assert judged["by_hospital"][NAMES[0]]["findings"]["Hernia"] is None


def test_the_event_comes_once_before_the_end_and_the_card_has_its_interval(fine_run):
    _, judged, path = fine_run
    kinds = [event["event"] for event in _events(path)]
    assert kinds.index("judged") < kinds.index("end")
    card = json.loads((path / "model_card.json").read_text())
    assert card["figures"]["validation"]["macro_auroc_ci"] == judged["macro_auroc_ci"]
    assert card["figures"]["validation"]["interval"] == "by patient"
    assert card["figures"]["validation"]["findings"]["Mass"] == judged["findings"]["Mass"]["auroc"]
    assert card["figures"]["validation"]["auroc_ci"]["Mass"] == judged["findings"]["Mass"]["auroc_ci"]
    assert card["figures"]["validation"]["withheld"] == {}
    words = (path / "model_card.md").read_text()
    low, high = judged["macro_auroc_ci"]
    assert f"95 % interval {low:.3f} to {high:.3f}, by patient" in words
    low, high = judged["findings"]["Mass"]["auroc_ci"]
    assert f"| {low:.3f} to {high:.3f} |" in words
    assert "Withheld" not in words


@pytest.mark.slow
def test_what_is_withheld_is_named_with_its_reason_and_three_patients_count_in_no_mean(tmp_path):
    """One hospital has three patients, below its floor of five; one floors its counts; one withholds what is rare."""
    scores = _all_scores(**{NAMES[1]: {"floor": 4, "is_floored": True}, NAMES[2]: {"num_patients": 3, "floor": 5}})
    judged, _ = _run(Judging(scores), tmp_path / "run")
    assert judged["mode"] == "mixed"
    assert judged["interval"] == "by patient"
    assert judged["macro_auroc_ci"] is not None
    assert judged["by_hospital"][NAMES[2]]["macro_auroc"] is None
    assert (judged["by_hospital"][NAMES[2]]["num_findings"], judged["by_hospital"][NAMES[2]]["counts"]["Mass"]) == (
        0,
        None,
    )
    assert judged["hospitals"] == list(NAMES[:2])
    _stands_on(tmp_path / "run", {name: scores[name] for name in NAMES[:2]})
    (reason,) = judged["withheld"][NAMES[2]]
    assert reason.startswith("Atelectasis, Cardiomegaly, ")
    assert "fewer patients with it, or without it, than the hospital's floor" in reason
    (reason,) = judged["withheld"][NAMES[1]]
    assert reason.startswith("Hernia: ")
    assert "than twice the hospital's floor" in reason
    known = {name: one for name, one in scores.items() if name != NAMES[2]}
    logits, targets, _ = _together(known)
    assert abs(judged["macro_auroc"] - macro_mean(auroc(logits, targets))) <= judged["macro_auroc_error_bound"]


def _stands_on(path, scores):
    """Whether card and report count the images, patients and hospitals of these scores alone."""
    images = sum(len(one.logits) for one in scores.values())
    patients = sum(len(set(one.patients)) for one in scores.values())
    figures = json.loads((path / "model_card.json").read_text())["figures"]["validation"]
    assert [figures[f"num_{noun}"] for noun in ("images", "patients", "hospitals")] == [images, patients, len(scores)]
    basis = f"validation, {images} images, {patients} patients, {len(scores)} hospitals"
    assert basis in (path / "model_card.md").read_text().lower()
    assert basis in write_report(path).read_text()


@pytest.mark.slow
def test_where_one_hospital_gives_no_sums_intervals_are_by_image_and_the_history_says_so(tmp_path):
    hospitals = Judging(_all_scores())
    hospitals.codes[NAMES[1], contract.PLACE] = [contract.CODE_AGAINST_POLICY]
    judged, _ = _run(hospitals, tmp_path / "run")
    assert judged["interval"] == "by image"
    assert judged["macro_auroc_ci"] is None
    assert judged["findings"]["Mass"]["auroc_ci"] is not None
    (reason,) = judged["withheld"][NAMES[1]]
    assert "no sums for intervals by patient: code 103" in reason
    words = (tmp_path / "run" / "model_card.md").read_text()
    assert "without an interval (not every hospital gave its sums by patient)" in words
    assert f"Withheld from validation:\n\n- {NAMES[1]}: gave no sums" in words


@pytest.mark.slow
def test_sums_that_no_patients_give_are_not_taken(tmp_path):
    hospitals = Judging(_all_scores())
    images = sum(one.histogram().counts for one in hospitals.scores.values()).astype(np.float64)
    report = hospitals.scores[NAMES[1]].report(images)
    hospitals.reports[NAMES[1]] = report.model_copy(update={"positive_squares": [1e9] * 14})
    judged, _ = _run(hospitals, tmp_path / "run")
    assert judged["interval"] == "by image"
    assert "larger than any placements give" in judged["withheld"][NAMES[1]][0]


@pytest.mark.slow
def test_hospitals_that_keep_their_histograms_are_asked_for_no_sums(tmp_path):
    hospitals = Judging({})
    judged, _ = _run(hospitals, tmp_path / "run")
    assert judged["macro_auroc"] is judged["interval"] is None
    assert "its site file keeps it" in judged["withheld"][NAMES[0]][0]
    assert not any(kind == contract.PLACE for _, kind, _ in hospitals.asked)
    assert "no finding of which hospitals told both positives and negatives" in plain_lines(judged, 3)[0]
    card = (tmp_path / "run" / "model_card.md").read_text()
    assert "- Validation: every hospital kept its figures to itself; see below\n" in card


@pytest.mark.slow
def test_a_run_that_dies_after_it_was_judged_asks_again_and_tells_the_same(tmp_path, monkeypatch, fine_run):
    """With the best round released, its judgement is of an earlier round and must have been kept."""
    hospitals, path, commit = Judging(_all_scores()), tmp_path / "run", RoundStore.commit

    def dying(store, progress, **arrays):
        if progress.phase == "delivering":
            raise Killed
        commit(store, progress, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(RoundStore, "commit", dying)
        with pytest.raises(Killed):
            _run(hospitals, path, released_round="best")
    judged, _ = _run(hospitals, path, released_round="best")
    assert hospitals.asked[NAMES[0], contract.PLACE, 2] == 2
    assert judged == fine_run[1]


@pytest.mark.slow
def test_the_judgement_of_the_released_round_is_kept_while_later_rounds_are_worse(tmp_path):
    hospitals = Judging(_all_scores())
    worse = {name: Scores(number) for number, name in enumerate(NAMES)}
    for one in worse.values():
        one.logits = -one.logits
    good = dict(hospitals.scores)
    usual = hospitals._add_histogram

    def by_round(reply):
        hospitals.scores = worse if reply.content[contract.ORIGIN]["round"] == 3 else good
        usual(reply)

    for name in NAMES:
        hospitals.changes[name, contract.TRAIN] = hospitals.changes[name, contract.EVALUATE] = by_round
    hospitals.changes[NAMES[0], contract.DELIVER] = lambda reply: None
    folder = RunFolder.create(tmp_path / "run")

    def place_with_good(message, context):
        hospitals.scores = good
        return Judging._place(hospitals, message, context)

    hospitals._place = place_with_good
    grid = NamedGrid(hospitals.app)
    run_and_release(
        grid, settings(num_rounds=2, released_round="best"), folder, expected_nodes=3, hospitals=enrolled_widely
    )
    judged = _judged(tmp_path / "run")
    assert judged["round"] == 1
    logits, targets, _ = _together(good)
    assert abs(judged["macro_auroc"] - macro_mean(auroc(logits, targets))) <= judged["macro_auroc_error_bound"]


@pytest.mark.slow
def test_real_hospitals_fine_and_floored_find_their_own_images_in_the_pooled_ones_when_they_are_asked(
    phantom_64px, tmp_path
):
    """They run the released model anew for it: what they told in training must come out again."""
    config = small_config(
        phantom_64px,
        partition={"num_hospitals": 2},
        federation={"released_round": "best", "validation_fraction": 0.5},
    )
    prepared = prepare_run(config, tmp_path / "run")
    site = prepared.folder.hospitals_folder / "hospital-1" / "site.yaml"
    text = site.read_text()
    site.write_text(text.replace("min_patients: 1", "min_patients: 2").replace("mode: fine", "mode: floored"))
    run_prepared(prepared, "inprocess")
    judged = _judged(tmp_path / "run")
    (validation,) = [
        event
        for event in _events(tmp_path / "run")
        if event["event"] == "validation" and event["round"] == judged["round"]
    ]
    assert (judged["mode"], judged["interval"]) == ("mixed", "by patient")
    assert judged["macro_auroc"] == validation["macro_auroc"]
    sure = [figures for figures in judged["findings"].values() if figures["auroc_ci"] is not None]
    assert len(sure) > 5
    assert all(low < figures["auroc"] < high for figures in sure for low, high in [figures["auroc_ci"]])
    assert judged["by_hospital"]["hospital-1"]["macro_auroc"] is not None
    assert set(judged["withheld"]) == {"hospital-1"}
    assert "sums" not in "".join(judged["withheld"]["hospital-1"])


# Without a run


def _answer(report=None, *, round_number=2):
    origin = Origin(hospital="a", round=round_number, fingerprint=contract.code_fingerprint())
    return Answer(2, origin, None, None, None, None, None, None, placements=report)


def test_only_sums_over_the_patients_of_the_told_histogram_are_admitted():
    own = Scores(5)
    histogram = own.histogram()
    report = own.report(histogram.counts.astype(np.float64))
    counts = HospitalCounts(
        num_train_images=9,
        num_train_patients=9,
        num_validation_images=len(own.logits),
        num_validation_patients=30,
        num_skipped_images=0,
    )

    def fault(answer, **changes):
        accepted = {contract.code_fingerprint()}
        return fault_of_placements(
            answer, round_number=2, accepted=accepted, **{"counts": counts, "histogram": histogram} | changes
        )

    assert fault(_answer(report)) is None
    few = counts.model_copy(update={"num_validation_patients": 29})
    withheld = ScoreHistogram(histogram.counts * (np.arange(14) != 3)[:, None, None])
    for faulty, told in (
        (fault(_answer(report, round_number=1)), "answers round 1"),
        (fault(_answer()), "holds no sums"),
        (fault(_answer(report), counts=few), "over 30 validation patients, and declared 29"),
        (fault(_answer(report), histogram=withheld), "numbers of patients"),
        (fault(_answer(report.model_copy(update={"macro_square": 1e9}))), "larger than any"),
    ):
        assert told in faulty.reason


def test_a_mean_over_a_finding_that_one_patient_has_is_given_no_interval():
    own = Scores(6)
    own.told_targets[:, 2] = 0.0
    own.told_targets[0, 2] = 1.0
    judgement = Judgement(1, {"a": own.histogram()})
    sums = {"a": PlacementSums.of_report(own.report(judgement.pooled.placed))}
    judged = judged_event(judgement, sums, members=["a"], unplaced={})
    findings = judged["findings"]
    assert (judged["interval"], judged["macro_auroc_ci"], findings[FINDINGS[2]]["auroc_ci"]) == (
        "by patient",
        None,
        None,
    )
    assert findings["Mass"]["auroc_ci"] is not None
    assert judged["macro_auroc"] is not None


def test_a_finding_below_every_hospitals_floor_has_no_counts_for_nobody_told_any():
    hospitals = {name: Scores(seed, num_patients=60, floor=10) for seed, name in enumerate("ab")}
    for one in hospitals.values():
        _, first = np.unique(one.patients, return_index=True)
        one.targets[first[:9], HERNIA] = 1.0
        told = findings_told(one.targets, one.patients, min_patients=10)
        assert list(np.flatnonzero(~told)) == [HERNIA]
        one.told_targets = np.where(told, one.targets, np.nan)
    judgement = Judgement(1, {name: one.histogram() for name, one in hospitals.items()})
    judged = judged_event(judgement, {}, members="ab", unplaced={})
    hernia, mass = judged["findings"]["Hernia"], judged["findings"]["Mass"]
    assert (hernia["auroc"], hernia["num_positive"], hernia["num_negative"]) == (None, None, None)
    assert mass["num_positive"] == sum(
        (one.targets[:, FINDINGS.index("Mass")] == 1).sum() for one in hospitals.values()
    )
    assert judged["by_hospital"]["a"]["counts"]["Hernia"] is None
    assert judged["by_hospital"]["a"]["num_findings"] == 13


def test_a_hospital_whose_histogram_tells_nothing_has_no_part_in_the_pooled_figure():
    def answer(name, scores):
        origin = Origin(hospital=name, round=1, fingerprint=contract.code_fingerprint())
        sums = contract.ValidationReport(num_images=len(scores.logits), bce_sum=2.0, mse_sum=0.1)
        return Answer(2, origin, None, None, sums, scores.histogram(), None, None)

    told, silent = Scores(1), Scores(2, num_patients=14, floor=15)
    only_negative = Scores(3)  # told, though it orders no pair
    only_negative.told_targets = np.where(only_negative.targets == 0.0, 0.0, np.nan)
    event = validation_event(1, [answer("a", told), answer("b", silent), answer("c", only_negative)])
    assert {name: "macro_auroc" in shown for name, shown in event["hospitals"].items()} == {
        "a": True,
        "b": False,
        "c": True,
    }
    assert event["hospitals"]["b"]["num_images"] == len(silent.logits)
    judgement = Judgement.of(1, [answer("a", told), answer("b", silent)])
    assert judged_event(judgement, {}, members="ab", unplaced={})["hospitals"] == ["a"]


@pytest.mark.parametrize("is_floored", [False, True])
def test_a_hospitals_own_figures_have_delongs_interval_by_image_and_their_counts(is_floored):
    own = Scores(4, num_patients=400, floor=4 if is_floored else 1, is_floored=is_floored)
    judgement = Judgement(1, {"a": own.histogram()})
    of_one = judged_event(judgement, {}, members="a", unplaced={})["by_hospital"]["a"]
    alone = patient_sums(BIN_LOGITS[bins_of(own.logits)], own.told_targets, list(range(len(own.logits))))
    for index, name in enumerate(FINDINGS[:HERNIA]):
        targets = own.targets[:, index]
        assert of_one["counts"][name] == [(targets == 1).sum(), (targets == 0).sum()]
        low, high = of_one["auroc_ci"][name]
        # ranges of a floored histogram hide where in them an image lies
        assert (high - low) / (2 * 1.96 * alone.standard_errors()[index]) == pytest.approx(
            1.0, abs=0.1 if is_floored else 1e-4
        )
        assert low < of_one["findings"][name] < high
    assert of_one["auroc_ci"]["Hernia"] is None
    assert of_one["num_findings"] == 13


def test_a_judgement_is_the_same_after_it_was_kept():
    histograms = {"a": Scores(1).histogram(), "b": Scores(2, floor=3, is_floored=True).histogram(), "c": None}
    judgement = Judgement(4, histograms)
    kept = Judgement.unpacked(judgement.packed())
    assert kept.round_number == 4
    assert kept.mode == "mixed"
    assert [name for name, histogram in kept.histograms.items() if histogram is None] == ["c"]
    events = [judged_event(one, {}, members=["a", "b", "c", "d"], unplaced={}) for one in (judgement, kept)]
    assert events[0] == events[1]
    assert events[0]["withheld"]["d"] == ["did not judge the released model"]
    assert len(judgement.packed()) < 200_000
