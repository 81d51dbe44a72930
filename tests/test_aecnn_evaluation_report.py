"""The report of a run: what it says, and what it survives."""

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from aecnn.errors import FaultyInputError
from aecnn.evaluation.report import report_without_images, write_report
from aecnn.evaluation.report.load import Predictions, load_run
from aecnn.evaluation.report.panels import curves_of, roc_panels
from aecnn.evaluation.report.words import resumptions
from aecnn.findings import FINDINGS
from run_folders_of_tests import (
    NUM_ROUNDS,
    Page,
    events,
    page_of,
    sections_of,
    write_history,
    write_json,
)


def test_the_page_is_well_formed_and_tells_the_headline(complete_run: Path) -> None:
    page = Page((complete_run / "report.html").read_text(encoding="utf-8"))
    assert page.faults == []
    assert page.open == []
    metrics = json.loads((complete_run / "metrics.json").read_text())
    for words in (
        f"{metrics['macro_auroc']:.3f} macro AUROC · released model, round 5 test, 600 images, 300 patients",
        "Completed",
        "23 November 2025, 10:40 UTC",
        "Test images 600",
        "Test patients 300",
        "released: 5",
        "densenet121",
        "Not for clinical use",
        "Round 3: hospital-3 was refused: weights are not finite.",
        "Round 4: no answer from hospital-2.",
        "33.8 dB",
    ):
        assert words in page.text


def test_the_page_needs_nothing_but_itself(complete_run: Path) -> None:
    text = (complete_run / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "http://" not in text
    assert "https://" not in text
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    sources = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 16  # four triptychs, each with where the model looked
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    references = [attributes["href"] or "" for tag, attributes in page.tags if "href" in attributes and tag != "link"]
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert all(reference.removeprefix("#") in targets for reference in references)


def test_ids_are_unique_in_the_page(complete_run: Path) -> None:
    page = Page((complete_run / "report.html").read_text(encoding="utf-8"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_same_folder_gives_the_same_bytes_and_leaves_no_other_file(complete_run: Path) -> None:
    files, page = sorted(complete_run.iterdir()), (complete_run / "report.html").read_bytes()
    assert write_report(complete_run).read_bytes() == page
    assert sorted(complete_run.iterdir()) == files


def test_an_undefined_finding_is_named_with_its_reason_and_has_no_figure(complete_run: Path) -> None:
    text = (complete_run / "report.html").read_text(encoding="utf-8")
    row = re.search(r"<tr>\s*<td[^>]*>Hernia</td>.*?</tr>", text, re.DOTALL)
    assert row is not None
    cells = [" ".join(Page(cell).text.split()) for cell in re.findall(r"<td.*?</td>", row.group(), re.DOTALL)]
    assert cells == ["Hernia", "no positive image", *["–"] * 6, "0", "0.0 %"]
    assert "Not in the mean: Hernia (no positive image)." in Page(text).text


def test_nan_and_null_scores_are_dashes_everywhere(changed_run: Path) -> None:
    nothing = {
        finding: {"auroc": float("nan"), "auprc": None, "num_positive": 0, "num_negative": 9} for finding in FINDINGS
    }
    scores = {"macro_auroc": float("nan"), "macro_auprc": None, "findings": nothing, "num_images": 9, "num_patients": 4}
    write_json(changed_run / "metrics.json", scores)
    write_json(
        changed_run / "alone.json", {"hospitals": {"hospital-1": scores}, "mean_macro_auroc": None, "num_steps": 1}
    )
    lines = events(np.random.default_rng(1))
    for line in lines:
        if line["event"] == "validation":
            line["macro_auroc"] = line["bce"] = None
            line["hospitals"] = {name: {"macro_auroc": None} for name in line["hospitals"]}
    write_history(changed_run / "history.jsonl", lines)
    page = page_of(changed_run)
    assert page.faults == []
    assert "– macro AUROC" in page.text
    assert not re.search(r"\b(nan|None|null)\b", page.text.replace(": null", "").replace("weights: none", ""))


@pytest.mark.parametrize(
    ("absent", "sections", "sentence"),
    [
        ("metrics.json", {"alone", "subgroups"}, "No test figures: these come from a test set"),
        ("targets.csv", set(), "No curves of the test split: these come from a test set"),
        ("examples.npz", {"examples"}, "No example images: these come from a test set"),
        ("config.yaml", {"configuration"}, "No readable config.yaml."),
        (
            "history.jsonl",
            {"by-hospital", "learning", "hospitals", "rounds", "withheld", "incidents"},
            "No start event in history.jsonl",
        ),
    ],
)
def test_a_section_without_content_is_left_out_and_the_page_says_why(
    changed_run: Path, absent: str, sections: set[str], sentence: str
) -> None:
    before = sections_of(Page((changed_run / "report.html").read_text(encoding="utf-8")))
    (changed_run / absent).unlink()
    page = page_of(changed_run)
    assert before - sections_of(page) == sections
    assert sentence in page.text
    assert page.faults == []


def test_without_yardstick_there_is_no_comparison(changed_run: Path) -> None:
    (changed_run / "alone.json").unlink()
    assert "Together or alone" not in page_of(changed_run).text


def test_a_line_cut_short_by_a_crash_is_left_out_and_said(changed_run: Path) -> None:
    text = (changed_run / "history.jsonl").read_text()
    (changed_run / "history.jsonl").write_text(text[: text.rindex('"finished_at"')])
    page = page_of(changed_run)
    assert "history.jsonl ends in the middle of line 16" in page.text
    assert "Not finished" in page.text
    assert len(load_run(changed_run).history.rounds) == NUM_ROUNDS


@pytest.mark.parametrize(
    "name",
    [
        "metrics.json",
        "alone.json",
        "history.jsonl",
        "config.yaml",
        "examples.npz",
        "examples.json",
        "predictions.csv",
        "targets.csv",
    ],
)
@pytest.mark.parametrize("content", [b"", b"[1, 2", b'{"findings": 3}\n', b"\xff\xfe\x00\n: : ["])
def test_a_damaged_file_never_stops_the_report(complete_run: Path, tmp_path: Path, name: str, content: bytes) -> None:
    for path in complete_run.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / name).unlink()
    (tmp_path / name).write_bytes(content)
    run = load_run(tmp_path)
    assert run.notes or content in (b"", b'{"findings": 3}\n')


def test_text_from_files_is_never_markup(changed_run: Path) -> None:
    evil = "<script>alert(1)</script> $x_1$ & \"quoted\" 'name'"
    lines = events(np.random.default_rng(1), hospitals=(evil, "hospital-2", "hospital-3"))
    lines[0]["run"] = lines[-1]["reason"] = evil
    lines[-1]["status"] = "failed"
    write_history(changed_run / "history.jsonl", lines)
    alone = json.loads((changed_run / "alone.json").read_text())
    alone["hospitals"][evil] = alone["hospitals"].pop("hospital-1")
    write_json(changed_run / "alone.json", alone)
    write_json(changed_run / "examples.json", [{"image": evil, "findings": [evil], "probabilities": {evil: 0.5}}] * 4)
    (changed_run / "config.yaml").write_text(f"name: {json.dumps(evil)}\nmodel: {{backbone: '</pre><script>'}}\n")
    text = write_report(changed_run).read_text(encoding="utf-8")
    assert not [tag for tag, _ in Page(text).tags if tag == "script"]
    assert Page(text).faults == []
    assert Page(text).text.count(evil) >= 5
    assert html.escape("<script>alert(1)</scr…", quote=False) in text  # beside a drawing


def test_roc_areas_are_those_of_scikit_learn_and_the_macro_curve_is_their_mean() -> None:
    rng = np.random.default_rng(5)
    targets = (rng.random((400, len(FINDINGS))) < 0.2).astype(np.float64)
    targets[rng.random(targets.shape) < 0.1] = np.nan  # not labelled
    targets[:, 3] = 0.0
    scores = np.round(rng.normal(np.nan_to_num(targets), 1.0), 1)  # many ties
    scores[:, 5] = np.nan  # not predicted
    macro, *panels = roc_panels(curves_of(Predictions(scores, targets)), {})
    expected = {}
    for index in set(range(len(FINDINGS))) - {3, 5}:
        known = ~np.isnan(targets[:, index])
        expected[FINDINGS[index]] = roc_auc_score(targets[known, index], scores[known, index])
    assert {panel.title: panel.figure for panel in panels if panel.figure is not None} == pytest.approx(expected)
    assert macro.figure == pytest.approx(np.mean(list(expected.values())))
    assert [panel.title for panel in panels if panel.drawing is None] == [FINDINGS[3], FINDINGS[5]]


def test_a_large_test_split_still_gives_a_small_page() -> None:
    rng = np.random.default_rng(5)
    targets = (rng.random((25_596, len(FINDINGS))) < 0.1).astype(np.float64)
    panels = roc_panels(curves_of(Predictions(rng.normal(targets, 1.0), targets)), {})
    assert sum(len(panel.drawing or "") for panel in panels) < 500_000


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("a run")])
def test_what_is_no_run_folder_is_refused(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "nothing")
    with pytest.raises(FaultyInputError, match="run folder"):
        write_report(tmp_path / "nothing")


def test_a_federation_without_a_test_set_says_so_and_tells_what_did_not_go_by_itself(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    counts = {
        "num_train_images": 70,
        "num_train_patients": 30,
        "num_validation_images": 8,
        "num_validation_patients": 3,
    }
    trained = {"num_images": 70, "num_steps": 2, "images_seen": 16, "bce": None, "mse": None, "seconds": 1.0}
    hospitals = {"a": trained, "b": trained}
    write_history(
        folder / "history.jsonl",
        [
            {
                "event": "start",
                "run": "lungs",
                "started_at": "2026-01-05T10:00:00+00:00",
                "hospitals": {"a": counts | {"positives": None}, "b": counts | {"positives": None}},
                "refused": {"x": "runs other code"},
            },
            {"event": "attempt", "round": 1, "attempt": 1, "reason": "1 hospital(s) gave one\n  - b: code 102"},
            {"event": "end", "status": "failed", "reason": "the quorum failed"},
            {"event": "resume", "round": 0, "hospitals": ["a", "b"]},
            {"event": "joined", "hospital": "late", "round": 2, "counts": counts},
            {
                "event": "round",
                "round": 1,
                "attempt": 2,
                "seconds": 3.0,
                "hospitals": hospitals,
                "admitted": ["a", "b"],
                "bytes": {"a": 28_000_000, "b": 28_000_000},
                "refused": {"late": "its update's norm 9 is 20.0 times the round's median, and 10 are allowed"},
                "missing": [],
            },
            {"event": "test", "round": 1, "macro_auroc": 0.6123},
            {"event": "left", "hospital": "b", "round": 2, "reason": "the hospital has withdrawn from the run"},
            {"event": "end", "status": "completed", "released_round": 1, "seconds": 9.0},
            {"event": "delivered", "hospitals": ["a"]},
        ],
    )
    page = html.unescape(write_report(folder).read_text())
    for told in (
        "Completed",
        "No test figures, no curves of the test split, no example images",
        "x was not let in: runs other code.",
        "Round 1, attempt 1: 1 hospital(s) gave one; b: code 102.",
        "late came late and took part from round 2.",
        "The run was interrupted, resumed after round 0.",
        "Round 1: late was refused: its update's norm 9 is 20.0 times",
        "b left in round 2: the hospital has withdrawn from the run.",
        "The released model was delivered to a.",
        "56.0 MB",
        "0.612",
    ):
        assert told in page
    assert "left out" not in page  # every line was understood


def without_test_set(folder: Path, *, released_round: int | None = 2, bound: float | None = 0.034) -> Path:
    """Writes the run of a centre without a test set: 39 images in all, and c keeps its histogram to itself."""
    folder.mkdir(parents=True)
    counts = {
        name: {"num_validation_images": images, "num_validation_patients": patients}
        for name, images, patients in (("a", 18, 5), ("b", 18, 4), ("c", 3, 2))
    }
    judged = [
        {
            "event": "validation",
            "round": number,
            "macro_auroc": auroc,
            "macro_auroc_error_bound": bound,
            "findings": {"Mass": auroc - 0.1, "Edema": auroc + 0.1, "Hernia": None},
            "num_images": 21,
            "hospitals": {
                "a": {"macro_auroc": 0.5, "num_images": 18},
                "b": {"macro_auroc": None},  # undefined there, and it keeps its sums to itself
                "c": {"num_images": 3},
            },
        }
        for number, auroc in ((1, 0.454), (2, 0.571), (3, 0.537))
    ]
    end = [{"event": "end", "status": "completed", "released_round": released_round, "seconds": 492.0}]
    resumed = {"event": "resume", "round": 2, "at": "2026-11-24T23:01:19+00:00"}
    rounds = [{"event": "round", "round": number, "seconds": 200.0} for number in (1, 2)]
    last = {"event": "round", "round": 3, "seconds": 32.3}
    start = {"event": "start", "run": "trial", "hospitals": counts}
    write_history(
        folder / "history.jsonl", [start, *rounds, resumed, last, *judged, *(end if released_round is not None else [])]
    )
    return folder


def test_without_a_test_set_the_figures_are_the_released_rounds_validation_and_say_on_what_they_stand(
    tmp_path: Path,
) -> None:
    page = page_of(without_test_set(tmp_path / "run"))
    assert page.faults == []
    stands_on = "released model, round 2 validation, 36 images, 9 patients, 2 hospitals"
    assert f"0.571 macro AUROC · {stands_on} Fewer than 100 images: a small number." in page.text
    assert (
        "Mass 0.471 Edema 0.671 Hernia no hospital told images both with it and without it – Mean ± 0.034 0.571"
        in page.text
    )
    assert "Not in the mean: Hernia (no hospital told images both with it and without it)." in page.text
    assert sections_of(page) == {"findings", "learning", "hospitals", "rounds", "incidents", "files"}
    links = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert links == {f"#{section}" for section in sections_of(page)}


def test_before_a_release_the_headline_is_the_newest_round_and_says_so(tmp_path: Path) -> None:
    page = page_of(without_test_set(tmp_path / "run", released_round=None, bound=None))
    assert "0.537 macro AUROC · round 3, no model released validation, 36 images" in page.text
    assert "±" not in page.text


def test_a_released_round_that_was_never_validated_has_no_headline(tmp_path: Path) -> None:
    page = page_of(without_test_set(tmp_path / "run", released_round=9))
    assert "– macro AUROC · released model, round 9 not measured" in page.text


def test_a_resumed_run_says_where_its_time_has_a_gap(tmp_path: Path) -> None:
    page = page_of(without_test_set(tmp_path / "run"))
    assert "8 min 12 s interrupted, resumed after round 2" in page.text
    assert "3 resumed 32.3 s" in page.text
    assert "The run was interrupted, resumed after round 2 on 24 November 2026, 23:01 UTC." in page.text
    assert resumptions([0, 2, 5]) == "interrupted, resumed after rounds 0, 2 and 5"


def test_a_test_split_of_many_images_brings_no_warning_and_one_of_few_does(changed_run: Path) -> None:
    lines = [json.loads(line) for line in (changed_run / "history.jsonl").read_text().splitlines()]
    write_history(changed_run / "history.jsonl", [line for line in lines if line["event"] != "validation"])
    assert "a small number" not in page_of(changed_run).text
    metrics = json.loads((changed_run / "metrics.json").read_text())
    write_json(changed_run / "metrics.json", metrics | {"num_images": 99, "num_patients": 1})
    text = page_of(changed_run).text
    interval = "95 % interval 0.781–0.842, patient bootstrap"
    assert f"test, 99 images, 1 patient {interval} Fewer than 100 images: a small number." in text


def test_a_run_without_incidents_has_no_such_section(changed_run: Path) -> None:
    lines = [json.loads(line) for line in (changed_run / "history.jsonl").read_text().splitlines()]
    write_history(changed_run / "history.jsonl", [line | {"refused": {}, "missing": []} for line in lines])
    assert "incidents" not in sections_of(page_of(changed_run))


def test_the_report_that_is_handed_on_shows_no_radiograph_and_names_none(changed_run: Path) -> None:
    names = [example["image"] for example in json.loads((changed_run / "examples.json").read_text())]
    own = write_report(changed_run).read_text(encoding="utf-8")
    handed_on = report_without_images(changed_run).decode("utf-8")
    assert any(name in own for name in names)
    assert not any(name in handed_on for name in names)
    assert 'id="examples"' in own
    assert 'id="examples"' not in handed_on
    assert "data:image/png" not in handed_on
    assert "predictions.csv" in own
    assert "predictions.csv" not in handed_on  # lies at the centre
