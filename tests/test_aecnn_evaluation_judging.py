"""Intervals, calibration, subgroups and the view-position baseline, as `aecnn evaluate` tells them."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from aecnn.data.manifest import read_split
from aecnn.evaluation.auroc import auroc
from aecnn.evaluation.bootstrap import percentile_interval, resample
from aecnn.evaluation.judging import Judging, Scored, judge
from aecnn.evaluation.metrics import score
from aecnn.evaluation.predictions import labels_of, read_labels, read_targets, write_predictions, write_targets
from aecnn.evaluation.subgroups import groups_of, view_scores
from aecnn.findings import FINDINGS
from patients_of_tests import scores_of_patients
from typed_commands import aecnn_typed


def _table(drawn, seed=0):
    """What is known of each image's patient; the view of the image."""
    random = np.random.default_rng(seed)
    names, owner = np.unique(drawn.patients, return_inverse=True)
    of_patients = pd.DataFrame(
        {
            "sex": random.choice(["F", "M"], size=len(names)),
            "age_years": random.choice([0.5, 30.0, 45.0, np.nan], size=len(names)),
            "hospital": random.choice(["north", "south"], size=len(names)),
        }
    )
    of_patients.loc[:3, "hospital"] = "tiny"
    table = of_patients.iloc[owner].reset_index(drop=True)
    ill = drawn.targets.any(axis=1)
    return table.assign(view=np.where(random.random(len(owner)) < 0.3 + 0.4 * ill, "AP", "PA"))


def _judged(drawn, table, targets=None, how=None):
    targets = drawn.targets if targets is None else targets
    scored = Scored(drawn.logits, expit(drawn.logits), targets, drawn.patients)
    how = Judging(num_resamples=40) if how is None else how
    return judge(score(drawn.logits, targets, drawn.patients), scored, groups_of(table), how)


def test_figures_of_a_group_are_those_of_its_images_alone():
    drawn = scores_of_patients(0)
    table = _table(drawn)
    judged = _judged(drawn, table)
    assert [(s.attribute, s.group) for s in judged.subgroups] == [
        *(("sex", group) for group in "FM"),
        *(("age", group) for group in ("0-17", "18-39", "40-59")),
        *(("view", group) for group in ("AP", "PA")),
        *(("hospital", group) for group in ("north", "south", "tiny")),
    ]
    women = (table["sex"] == "F").to_numpy()
    of_women = judged.subgroups[0].metrics
    patients = np.array(drawn.patients)[women].tolist()
    again = resample(drawn.logits[women], drawn.targets[women], patients, num_resamples=40, seed=0)
    assert (of_women.num_images, of_women.num_patients) == (women.sum(), len(set(patients)))
    assert of_women.macro_auroc_ci == percentile_interval(again.macro)
    for f, name in enumerate(FINDINGS):
        expected = roc_auc_score(drawn.targets[women, f], drawn.logits[women, f])
        assert of_women.findings[name].auroc == pytest.approx(expected)


def test_of_a_group_of_too_few_patients_nothing_but_its_name_is_told():
    drawn = scores_of_patients(1)
    judged = _judged(drawn, _table(drawn))
    tiny = judged.subgroups[-1].to_json()
    assert {name for name, value in tiny.items() if value is not None} == {"attribute", "group", "is_suppressed"}
    assert (tiny["group"], tiny["is_suppressed"]) == ("tiny", True)
    shown = _judged(drawn, _table(drawn), how=Judging(num_resamples=0, min_patients=4)).subgroups[-1]
    assert shown.metrics.num_patients == 4


def test_the_view_baseline_is_the_better_of_the_two_orders_of_the_views():
    drawn = scores_of_patients(2)
    table = _table(drawn)
    judged = _judged(drawn, table)
    for f, name in enumerate(FINDINGS):
        area = roc_auc_score(drawn.targets[:, f], table["view"] == "AP")
        assert judged.view_baseline.findings[name] == pytest.approx(max(area, 1 - area))
    low, high = judged.view_baseline.macro_auroc_ci
    assert low < judged.view_baseline.macro_auroc < high
    assert view_scores(np.array(["PA"] * len(table), dtype=object), drawn.targets) is None
    assert "view_position" not in _judged(drawn, table.drop(columns="view")).to_json()["baselines"]


def test_images_of_unknown_view_are_not_in_the_baseline():
    drawn = scores_of_patients(3)
    table = _table(drawn)
    table.loc[:20, "view"] = None
    areas = _judged(drawn, table).view_baseline.findings
    known = table["view"].notna().to_numpy()
    area = roc_auc_score(drawn.targets[known, 0], table["view"][known] == "AP")
    assert areas["Atelectasis"] == pytest.approx(max(area, 1 - area))


def test_three_patients_and_findings_without_a_class_leave_no_nan_and_say_why():
    drawn = scores_of_patients(4, num_patients=3, prevalence=0.9)
    targets = drawn.targets.copy()
    targets[:, 0], targets[:, 1], targets[:, 2] = 0.0, 1.0, np.nan
    logits = drawn.logits.copy()
    logits[:, 3] = np.nan
    scored = Scored(logits, expit(logits), targets, drawn.patients)
    judged = judge(score(logits, targets, drawn.patients), scored, groups_of(_table(drawn)), Judging(num_resamples=50))
    document = json.loads(json.dumps(judged.to_json(), allow_nan=False))
    assert {name: document["why_undefined"][name] for name in FINDINGS[:4]} == {
        "Atelectasis": "no positive image",
        "Cardiomegaly": "no negative image",
        "Effusion": "not labelled in any image",
        "Infiltration": "not predicted",
    }
    defined = [one["auroc"] for one in document["findings"].values() if one["auroc"] is not None]
    assert document["macro_auroc"] == pytest.approx(np.mean(defined))
    assert (
        document["findings"]["Cardiomegaly"]["calibration"] is not None
    )  # what is predicted too low shows without a 0
    assert document["findings"]["Infiltration"]["ece"] is None
    assert all(subgroup["is_suppressed"] for subgroup in document["subgroups"])
    assert all(0 < count < 50 for count in document["interval"]["undefined_resamples"].values())


def test_one_patient_of_a_class_or_pairs_that_are_all_in_order_make_no_interval():
    drawn = scores_of_patients(11, num_patients=60)
    targets, logits = drawn.targets.copy(), drawn.logits.copy()
    targets[:, 2] = np.array(drawn.patients) == drawn.patients[0]
    logits[:, 5] = targets[:, 5] * 9.0 + np.tanh(logits[:, 5])
    scored = Scored(logits, 1.0 / (1.0 + np.exp(-logits)), targets, drawn.patients)
    judged = judge(score(logits, targets, drawn.patients), scored, {}, Judging(num_resamples=100))
    figures = list(judged.findings.values())
    assert figures[5].auroc == 1.0
    assert [index for index, one in enumerate(figures) if one.auroc_ci is None] == [2, 5]
    assert judged.macro_auroc_ci is not None


def test_a_finding_that_no_prediction_has_is_not_in_the_view_baseline_either():
    drawn = scores_of_patients(5)
    logits = np.full_like(drawn.logits, np.nan)
    logits[:, 4] = drawn.logits[:, 4]
    scored = Scored(logits, expit(logits), drawn.targets, drawn.patients)
    metrics = score(logits, drawn.targets, drawn.patients)
    judged = judge(metrics, scored, groups_of(_table(drawn)), Judging(num_resamples=30))
    known = [name for name, area in judged.view_baseline.to_json()["findings"].items() if area is not None]
    assert known == ["Mass"]
    assert judged.macro_auroc_ci == judged.findings["Mass"].auroc_ci


def test_plain_scoring_has_the_same_keys_without_the_figures_that_take_longer():
    drawn = scores_of_patients(6)
    plain, judged = (
        score(drawn.logits, drawn.targets, drawn.patients).to_json(),
        _judged(drawn, _table(drawn)).to_json(),
    )
    assert plain.keys() == judged.keys()
    assert (plain["macro_auroc_ci"], plain["interval"], plain["ece"], plain["subgroups"]) == (None, None, None, [])
    assert plain["macro_auroc"] == judged["macro_auroc"]
    assert judged["ece"] == pytest.approx(np.mean([one["ece"] for one in judged["findings"].values()]))
    assert judged["interval"] == {
        "method": "patient bootstrap",
        "num_resamples": 40,
        "level": 0.95,
        "seed": 0,
        "undefined_resamples": {},
    }


def test_a_targets_table_says_as_much_of_its_patients_as_the_manifest_it_was_written_from(phantom_64px, tmp_path):
    manifest = read_split(phantom_64px, "test")
    labels = labels_of(manifest)
    write_targets(tmp_path / "t.csv", labels.images, labels.patients, labels.targets, described=manifest.table)
    read = read_labels(tmp_path / "t.csv")
    assert read.warnings == ()
    assert {name: groups.tolist() for name, groups in read.groups.items()} == {
        name: groups.tolist() for name, groups in labels.groups.items()
    }
    np.testing.assert_array_equal(read_targets(tmp_path / "t.csv")[2], labels.targets)


def test_groups_come_from_the_columns_that_are_there_and_odd_cells_are_told(tmp_path):
    lines = ["Image Index,Patient ID,Mass,Patient Gender,Patient Age,Hospital", "a.png,1,1,female,057Y,north"]
    (tmp_path / "t.csv").write_text("\n".join([*lines, "b.png,2,0,x,411Y,", "c.png,3,0,M,,south"]))
    labels = read_labels(tmp_path / "t.csv")
    assert {name: groups.tolist() for name, groups in labels.groups.items()} == {
        "sex": ["F", None, "M"],
        "age": ["40-59", None, None],
        "hospital": ["north", None, "south"],
    }
    assert [warning.split(" ", 2)[1] for warning in labels.warnings] == ["1", "1"]


@pytest.fixture
def tables(tmp_path):
    drawn = scores_of_patients(7)
    images, table = [f"{row}.png" for row in range(len(drawn.logits))], _table(drawn)
    write_predictions(tmp_path / "p.csv", images, drawn.logits)
    write_targets(tmp_path / "t.csv", images, drawn.patients, drawn.targets, described=table)
    text = (tmp_path / "t.csv").read_text().splitlines()
    rows = [f"{line},{name}" for line, name in zip(text, ["Hospital", *table["hospital"]], strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    return tmp_path


def test_evaluate_gives_intervals_by_patient_that_the_seed_decides(tables):
    command = ("evaluate", "--predictions", tables / "p.csv", "--targets", tables / "t.csv", "--bootstrap", 300)
    document = json.loads(aecnn_typed(*command, "--json").stdout)
    drawn = scores_of_patients(7)
    found = resample(drawn.logits, drawn.targets, drawn.patients, num_resamples=300, seed=0)
    assert document["macro_auroc_ci"] == pytest.approx(percentile_interval(found.macro), abs=1e-5)
    assert document["findings"]["Mass"]["auroc_ci"] == pytest.approx(percentile_interval(found.auroc[:, 4]), abs=1e-5)
    again, other = (json.loads(aecnn_typed(*command, "--seed", seed, "--json").stdout) for seed in (0, 1))
    assert again == document
    assert other["macro_auroc_ci"] != document["macro_auroc_ci"]
    none = json.loads(aecnn_typed(*command[:-1], 0, "--json").stdout)
    assert none["macro_auroc_ci"] is None
    assert none["macro_auroc"] == document["macro_auroc"]


def test_evaluate_shows_groups_where_asked_and_names_the_suppressed(tables):
    command = ("evaluate", "--predictions", tables / "p.csv", "--targets", tables / "t.csv", "--bootstrap", 20)
    assert "hospital" not in aecnn_typed(*command).stdout
    told = aecnn_typed(*command, "--subgroups").stdout
    assert "under 10 patients" in told
    assert "View position alone" in told
    assert "under" not in aecnn_typed(*command, "--subgroups", "--min-patients", 2).stdout


@pytest.mark.slow
def test_the_view_position_alone_scores_what_is_published_for_the_official_test_list(real_data):
    manifest = read_split(real_data / "nih_metadata", "test", require_images=False)
    labels = labels_of(manifest)
    scores, targets = view_scores(labels.groups["view"], labels.targets)
    assert len(scores) == 25_596
    assert auroc(scores, targets).mean() == pytest.approx(0.588, abs=5e-4)
    assert set(labels.groups) == {"sex", "age", "view"}
