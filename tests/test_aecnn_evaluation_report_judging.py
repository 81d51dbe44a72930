"""How the report shows what a model is worth: intervals, curves, calibration, groups, hospitals, and what was kept."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve

from aecnn.errors import FaultyInputError
from aecnn.evaluation.report import report_without_images, write_report
from aecnn.evaluation.report.images import overlaid
from aecnn.evaluation.report.load import Predictions
from aecnn.evaluation.report.panels import calibration_panels, curves_of
from aecnn.evaluation.report.scores import CalibrationBin, FindingScores
from aecnn.evaluation.report.squares import visible_points
from aecnn.findings import FINDINGS
from run_folders_of_tests import Page, judged_event, page_of, sections_of, write_history, write_json

TEST_FILES = ("metrics.json", "alone.json", "predictions.csv", "targets.csv", "examples.npz", "examples.json")


@pytest.fixture
def untested(changed_run: Path) -> Path:
    """The run of a centre without a test set."""
    for name in TEST_FILES:
        (changed_run / name).unlink()
    return changed_run


def judge_anew(folder: Path, **changes: object) -> None:
    """Changes what the history says of the hospitals' judgement."""
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    write_history(folder / "history.jsonl", [line | (changes if line["event"] == "judged" else {}) for line in lines])


def rows_of(folder: Path, section: str) -> list[list[str]]:
    """Gives the cells of a section's tables, row by row."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    found = re.search(rf'<section id="{section}">.*?</section>', text, re.DOTALL)
    assert found is not None
    rows = re.findall(r"<tr.*?</tr>", found.group(), re.DOTALL)
    return [[Page(cell).text for cell in re.findall(r"<t[dh].*?</t[dh]>", row, re.DOTALL)] for row in rows]


def test_test_and_validation_stand_side_by_side_each_with_its_interval(complete_run: Path) -> None:
    page = Page((complete_run / "report.html").read_text(encoding="utf-8"))
    mass = json.loads((complete_run / "metrics.json").read_text())["findings"]["Mass"]
    low, high = mass["auroc_ci"]
    row = next(row for row in rows_of(complete_run, "findings") if row[0] == "Mass")
    figures = [f"{mass['auroc']:.3f}", f"{low:.3f}–{high:.3f}", "0.760"]  # Mass is the fifth finding
    assert row[2:5] == figures
    assert row[7] == "0.417"  # sensitivity
    assert "95 % interval 0.781–0.842, patient bootstrap" in page.text
    assert "patient bootstrap, 1,000 resamples; a patient's images stay together" in page.text
    assert "Intervals of validation: by patient, from sums that the hospitals computed at home." in page.text
    assert "can have moved the mean of validation by up to 0.002" in page.text


def test_a_whisker_lies_where_its_interval_does_and_ends_with_the_scale(changed_run: Path) -> None:
    metrics = json.loads((changed_run / "metrics.json").read_text())
    metrics["findings"]["Mass"] |= {"auroc": 0.7, "auroc_ci": [0.1, 0.85]}
    write_json(changed_run / "metrics.json", metrics)
    text = write_report(changed_run).read_text(encoding="utf-8")
    # the scale goes from 0.4 to 1: 0.85 is at three quarters, 0.7 in the middle, 0.1 before its start
    assert 'class="whisker first" style="left:0.00%;right:calc(100% - 75.00%)"' in text
    assert 'class="dot first" style="left:50.00%"' in text


def test_without_a_test_set_validation_fills_every_section(untested: Path) -> None:
    page = page_of(untested)
    assert page.faults == []
    told = {"findings", "roc", "pr", "calibration", "by-hospital", "withheld"}
    assert sections_of(page) >= told
    assert not sections_of(page) & {"subgroups", "examples", "alone"}
    assert "0.779 macro AUROC · released model, round 5 validation" in page.text
    assert "95 % interval 0.741–0.817, by patient" in page.text
    assert "Not in the mean: Hernia (withheld by every hospital, or labelled at none)." in page.text
    assert "no image is labelled" not in page.text
    mass = next(row for row in rows_of(untested, "findings") if row[0] == "Mass")
    assert mass[2:] == ["0.760", "0.700–0.820", "0.250", "0.500", "31", "15.5 %"]


def test_a_judgement_of_another_rounds_model_is_not_shown(untested: Path) -> None:
    lines = [json.loads(line) for line in (untested / "history.jsonl").read_text().splitlines()]
    write_history(
        untested / "history.jsonl", [line | ({"round": 2} if line["event"] == "judged" else {}) for line in lines]
    )
    page = page_of(untested)
    assert "0.779" not in page.text
    assert not sections_of(page) & {"by-hospital", "withheld", "roc"}


def test_intervals_by_image_are_said_to_be_too_short(untested: Path) -> None:
    lines = [json.loads(line) for line in (untested / "history.jsonl").read_text().splitlines()]
    by_image = {"interval": "by image", "macro_auroc_ci": None}
    write_history(
        untested / "history.jsonl", [line | (by_image if line["event"] == "judged" else {}) for line in lines]
    )
    page = page_of(untested)
    assert "these intervals are too short. The mean has none: not every hospital gave its sums" in page.text
    assert "95 % interval 0" not in page.text


def test_hospitals_stand_beside_findings_and_what_they_kept_is_said(complete_run: Path) -> None:
    head, first, *_, pooled = rows_of(complete_run, "by-hospital")
    assert head == ["Hospital", "Mean", "of findings", *[name.replace("_", " ") for name in FINDINGS]]
    cells = dict(zip(head, first, strict=True))
    assert (cells["Hospital"], cells["Mean"], cells["of findings"]) == ("hospital-1", "0.64", "12")
    assert cells["Atelectasis"] == "0.45"
    assert (cells["Edema"], cells["Hernia"]) == ("–", "–")
    assert pooled[:4] == ["All together", "0.78", "13", "0.72"]
    kept = rows_of(complete_run, "withheld")[1]
    assert kept == ["hospital-1", "Edema: fewer patients with it, or without it, than the hospital's floor"]


def test_a_cell_says_what_it_stands_on_and_one_of_few_images_is_grey(untested: Path) -> None:
    event = judged_event(5)
    one = event["by_hospital"]["hospital-2"]
    one["counts"] = one["counts"] | {"Mass": [9, 60], "Nodule": [60, 9], "Effusion": [10, 10]}
    judge_anew(untested, by_hospital=event["by_hospital"] | {"old": {"macro_auroc": 0.6, "findings": {"Mass": 0.6}}})
    page = page_of(untested)
    told = {str(cell["title"]): str(cell["class"]) for tag, cell in page.tags if tag == "td" and "title" in cell}
    auroc = one["findings"]["Mass"]
    ends = f"95 % interval {auroc - 0.1:.3f}–{auroc + 0.1:.3f} by image"
    assert f"Mass, hospital-2: AUROC {auroc:.3f}; {ends}; 9 images with it, 60 without it" in told
    assert sum("All together" in remark for remark in told) == 13
    ends = "95 % interval 0.700–0.820 by patient"
    assert f"Mass, All together: AUROC 0.760; {ends}; 31 images with it, 169 without it" in told
    assert not any("Edema, hospital" in remark or "old" in remark for remark in told)
    grey = {remark.split(":")[0] for remark, look in told.items() if "faint" in look.split()}
    assert grey == {"Mass, hospital-2", "Nodule, hospital-2"}
    assert "Grey: fewer than 10 images with the finding, or without it." in page.text


def test_without_a_cell_of_few_images_nothing_is_said_of_grey(complete_run: Path) -> None:
    assert "Grey:" not in Page((complete_run / "report.html").read_text(encoding="utf-8")).text


def test_beside_a_test_set_the_reasons_of_validation_are_its_own(changed_run: Path) -> None:
    findings = judged_event(5)["findings"]
    findings["Edema"] = {"auroc": None, "num_positive": 0, "num_negative": 20}
    judge_anew(changed_run, findings=findings)
    kept = "Edema (no positive image told), Hernia (withheld by every hospital, or labelled at none)"
    text = page_of(changed_run).text
    assert "Not in the mean: Hernia (no positive image)." in text
    assert f"Not in the mean of validation: {kept}." in text


def test_a_finding_that_many_resamples_lack_is_named(changed_run: Path) -> None:
    metrics = json.loads((changed_run / "metrics.json").read_text())
    metrics["interval"]["undefined_resamples"] = {"Fibrosis": 123, "Pleural_Thickening": 11, "Mass": 10}
    write_json(changed_run / "metrics.json", metrics)
    text = page_of(changed_run).text
    assert "resamples often lack one side: Fibrosis (12.3 % of them), Pleural Thickening (1.1 % of them). Read" in text


def test_groups_have_their_figures_and_a_small_one_its_name_alone(complete_run: Path) -> None:
    rows = rows_of(complete_run, "subgroups")
    assert ["F", "97", "211", "", "0.812", "0.700–0.850", "0.044"] in rows
    assert ["0-19", "too few patients: withheld"] in rows
    assert [row for row in rows if len(row) == 1] == [["Sex"], ["Age"], ["View position"]]
    effusion = next(row for row in rows if row[0] == "Effusion")
    assert effusion[2] == "0.617"  # from the view position alone
    page = Page((complete_run / "report.html").read_text(encoding="utf-8"))
    assert "0.534 macro AUROC of a guess from PA or AP alone, without the radiograph (0.510–0.550)" in page.text


def test_precision_and_recall_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(5)
    targets = (rng.random((300, len(FINDINGS))) < 0.2).astype(np.float64)
    targets[:, 3] = 0.0
    targets[rng.random(targets.shape) < 0.1] = np.nan  # not labelled
    scores = np.round(rng.normal(np.nan_to_num(targets), 1.0), 1)  # many ties
    curves = curves_of(Predictions(scores, targets))
    assert set(FINDINGS) - set(curves.pr) == {FINDINGS[3]}
    for index, finding in enumerate(FINDINGS):
        if finding not in curves.pr:
            continue
        known = ~np.isnan(targets[:, index])
        precision, recall, _ = precision_recall_curve(targets[known, index], scores[known, index])
        reference = set(zip(recall[:-1].round(9), precision[:-1].round(9), strict=True))
        assert set(map(tuple, curves.pr[finding][1:].round(9))) >= reference
        expected = average_precision_score(targets[known, index], scores[known, index])
        assert curves.auprc[finding] == pytest.approx(expected)


def test_a_drawn_curve_keeps_its_corners_and_loses_what_no_eye_sees() -> None:
    straight = [(x / 1000, x / 1000) for x in range(1001)]
    assert visible_points(straight) == [(0.0, 0.0), (1.0, 1.0)]
    stairs = [(0.0, 0.0), (0.0, 0.5), (0.25, 0.5), (0.25, 1.0), (1.0, 1.0)]
    assert visible_points(stairs) == stairs
    assert visible_points([]) == []
    assert visible_points([(0.5, 0.5)] * 9) == [(0.5, 0.5)]


def test_calibration_of_rare_findings_fills_its_square() -> None:
    bins = (CalibrationBin(0.01, 0.02, 50), CalibrationBin(0.08, 0.04, 50), CalibrationBin(None, None, 0))
    panels = calibration_panels({"Mass": FindingScores(calibration=bins, ece=0.0123)}, {})
    mass = next(panel for panel in panels if panel.title == "Mass")
    assert mass.figure == 0.0123
    assert ">0.1<" in str(mass.drawing)  # where the axes end
    assert str(mass.drawing).count("<circle") == 2
    assert [panel.drawing for panel in panels if panel.title != "Mass"] == [None] * 13


def test_no_heat_leaves_a_radiograph_as_it_is_and_the_hottest_place_is_coloured() -> None:
    original = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    heat = np.zeros((4, 4), dtype=np.uint8)
    heat[1, 2] = 255
    shown = overlaid(original, heat)
    is_grey = (shown == original[..., None]).all(axis=-1)
    assert not is_grey[1, 2]
    assert is_grey.sum() == 15


def test_where_the_model_looked_is_named_and_is_not_handed_on(complete_run: Path) -> None:
    examples = json.loads((complete_run / "examples.json").read_text())
    page = Page((complete_run / "report.html").read_text(encoding="utf-8"))
    for example in examples:
        assert f"Grad-CAM, {example['explained'].replace('_', ' ')}" in page.text
    assert "Grad-CAM" not in report_without_images(complete_run).decode("utf-8")


def test_examples_without_heatmaps_are_shown_as_they_are(changed_run: Path) -> None:
    with np.load(changed_run / "examples.npz", allow_pickle=False) as archive:
        stacks = {name: archive[name] for name in archive if name != "heatmap"}
    np.savez(changed_run / "examples.npz", allow_pickle=False, **stacks)
    page = page_of(changed_run)
    assert "Grad-CAM" not in page.text
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 12


@pytest.mark.parametrize(
    "damage",
    [
        {"findings": {"Mass": {"auroc": "high"}}},
        {"findings": {"Mass": {"roc": [[0.1]]}}},
        {"by_hospital": 3},
        {"withheld": {"hospital-1": "a sentence, and no list"}},
        {"macro_auroc_ci": [0.1, 0.2, 0.3]},
    ],
)
def test_a_damaged_judgement_is_left_out_and_said(untested: Path, damage: dict[str, object]) -> None:
    judge_anew(untested, **damage)
    page = page_of(untested)
    assert "history.jsonl, line 15, is left out" in page.text
    assert "by-hospital" not in sections_of(page)
    assert page.faults == []


def test_figures_out_of_bounds_and_hostile_names_stay_in_their_place(untested: Path) -> None:
    evil = '<script>alert(1)</script>"'
    event = judged_event(5, hospitals=(evil,))
    event["mode"] = event["interval"] = evil
    event["findings"]["Mass"] |= {"auroc_ci": [None, 0.9], "roc": [[-5.0, 9.0], [float("nan"), 0.5], [1.0, 1.0]]}
    event["findings"][evil] = {"auroc": 7.0, "auroc_ci": [-3.0, 9.0]}
    event["by_hospital"][evil]["findings"][evil] = -2.0
    lines = [json.loads(line) for line in (untested / "history.jsonl").read_text().splitlines()]
    write_history(untested / "history.jsonl", [event if line["event"] == "judged" else line for line in lines])
    text = write_report(untested).read_text(encoding="utf-8")
    page = Page(text)
    assert page.faults == []
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert page.text.count(evil) >= 4
    lefts = [float(value) for value in re.findall(r"left:(-?[\d.]+)%", text)]
    assert min(lefts) >= 0.0
    assert max(lefts) <= 100.0
    assert "nan" not in "".join(re.findall(r'd="([^"]*)"', text))


def test_a_folder_without_any_file_of_a_run_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(FaultyInputError, match="run folder"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
