"""Two models on the same patients: differences, intervals, p-values, and the command that tells them."""

import json

import numpy as np
import pytest

from aecnn.evaluation.auroc import auroc
from aecnn.evaluation.bootstrap import resample
from aecnn.evaluation.comparison import compare, holm
from aecnn.evaluation.predictions import write_predictions, write_targets
from aecnn.findings import FINDINGS
from patients_of_tests import scores_of_patients
from typed_commands import aecnn_typed


def _two_models(seed, *, gain=0.3, num_patients=120):
    drawn = scores_of_patients(seed, num_patients=num_patients)
    noise = np.random.default_rng(seed + 1).normal(size=drawn.logits.shape)
    return drawn, drawn.logits + gain * drawn.targets + 0.3 * noise


def test_holms_correction_is_the_one_of_the_text_books():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, np.nan, 0.6]), [1.0, np.nan, 1.0])
    assert holm([]).size == 0


def test_differences_are_b_less_a_on_the_same_resamples():
    a, b = _two_models(0)
    found = compare(a.logits, b, a.targets, a.patients, num_resamples=60, seed=5)
    areas = [auroc(logits, a.targets) for logits in (a.logits, b)]
    moved = [resample(logits, a.targets, a.patients, num_resamples=60, seed=5).auroc for logits in (a.logits, b)]
    assert found.macro.difference == pytest.approx(areas[1].mean() - areas[0].mean())
    for f, name in enumerate(FINDINGS):
        one = found.findings[name]
        assert one.difference == pytest.approx(areas[1][f] - areas[0][f])
        assert one.difference_ci == pytest.approx(np.quantile(moved[1][:, f] - moved[0][:, f], [0.025, 0.975]))


def test_pairing_sees_a_small_gain_that_two_separate_intervals_would_not():
    a, b = _two_models(2)
    found = compare(a.logits, b, a.targets, a.patients, num_resamples=500, seed=0)
    low, high = found.macro.difference_ci
    assert 0.0 < low < found.macro.difference < high
    assert high - low == pytest.approx(2 * 1.96 * found.macro.standard_error, rel=0.15)
    assert found.macro.p_value < 1e-4
    alone = resample(a.logits, a.targets, a.patients, num_resamples=200, seed=0).macro.std()
    assert found.macro.standard_error < 0.6 * alone


def test_a_mean_over_a_finding_of_one_patient_is_not_taken_for_certain():
    a, b = _two_models(4)
    targets = a.targets.copy()
    targets[:, 3] = np.array(a.patients) == a.patients[0]  # the patient's images all have it, and nobody else's
    found = compare(a.logits, b, targets, a.patients, num_resamples=20, seed=0)
    assert np.isnan(found.findings[FINDINGS[3]].p_value)
    assert np.isnan(found.macro.p_value)
    assert found.to_json()["macro"]["p_value"] is None


def test_equal_models_differ_as_seldom_as_the_p_values_say():
    p_values = []
    for seed in range(30):
        a, b = _two_models(50 + seed, gain=0.0)
        other = a.logits + 0.3 * np.random.default_rng(900 + seed).normal(size=b.shape)
        found = compare(other, b, a.targets, a.patients, num_resamples=0, seed=0)
        p_values += [one.p_value for one in found.findings.values()]
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.08
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.05)


def test_a_model_does_not_differ_from_itself():
    a, _ = _two_models(3)
    found = compare(a.logits, a.logits, a.targets, a.patients, num_resamples=20, seed=0)
    assert (found.macro.difference, found.macro.p_value, found.macro.difference_ci) == (0.0, 1.0, (0.0, 0.0))
    assert set(found.p_values_holm.values()) == {1.0}


def test_only_findings_that_both_models_predict_are_compared_and_the_others_say_why():
    a, b = _two_models(4)
    one, targets = a.logits.copy(), a.targets.copy()
    one[:, 3] = np.nan
    targets[:, 5] = 0.0
    found = compare(one, b, targets, a.patients, num_resamples=20, seed=0)
    assert found.why_left_out == {"Infiltration": "not predicted by both", "Nodule": "no positive image"}
    assert len(found.findings) == 12
    kept = [f for f in range(14) if f not in (3, 5)]
    assert found.macro.auroc_b == pytest.approx(auroc(b[:, kept], targets[:, kept]).mean())
    json.dumps(found.to_json(), allow_nan=False)


@pytest.fixture
def tables(tmp_path):
    a, b = _two_models(6)
    images = [f"{row}.png" for row in range(len(b))]
    write_predictions(tmp_path / "a.csv", images, a.logits)
    write_predictions(tmp_path / "b.csv", images[::-1], b[::-1])
    write_targets(tmp_path / "t.csv", images, a.patients, a.targets)
    return tmp_path


def test_the_command_tells_the_same_in_json_and_in_a_table(tables):
    command = ("compare", tables / "a.csv", tables / "b.csv", "--targets", tables / "t.csv", "--bootstrap", 200)
    document = json.loads(aecnn_typed(*command, "--json").stdout)
    a, b = _two_models(6)
    expected = compare(a.logits, b, a.targets, a.patients, num_resamples=200, seed=0)
    assert document["macro"]["difference"] == pytest.approx(expected.macro.difference, abs=1e-5)
    assert document["findings"]["Hernia"]["p_value_holm"] == pytest.approx(expected.p_values_holm["Hernia"], rel=0.02)
    assert document["macro"]["difference_ci"] == pytest.approx(expected.macro.difference_ci, abs=1e-5)
    told = aecnn_typed(*command).stdout
    assert f"{expected.macro.difference:+.4f}" in told
    assert "Holm's correction is for 14 findings" in told
    other = json.loads(aecnn_typed(*command, "--seed", 1, "--json").stdout)
    assert other["macro"]["difference_ci"] != document["macro"]["difference_ci"]


def test_the_faults_of_both_tables_are_told_at_once(tables):
    text = (tables / "a.csv").read_text().splitlines()
    (tables / "short.csv").write_text("\n".join(text[:-1]))
    (tables / "odd.csv").write_text("\n".join([*text[:-1], text[-1].replace(text[-1].split(",")[1], "high")]))
    command = ("compare", tables / "short.csv", tables / "odd.csv", "--targets", tables / "t.csv")
    told = aecnn_typed(*command, code=2).stderr
    assert "short.csv: has no prediction for 1 of" in told
    assert "odd.csv: column 'Atelectasis'" in told
    assert "either --data or --targets" in aecnn_typed("compare", "a.csv", "b.csv", code=2).stderr


def test_models_without_a_finding_in_common_are_refused(tables):
    images = [line.split(",")[0] for line in (tables / "a.csv").read_text().splitlines()[1:]]
    for name, finding in (("mass.csv", "Mass"), ("edema.csv", "Edema")):
        (tables / name).write_text("\n".join([f"Image Index,{finding}", *(f"{image},0.5" for image in images)]))
    command = ("compare", tables / "mass.csv", tables / "edema.csv", "--targets", tables / "t.csv")
    assert "no finding can be compared" in aecnn_typed(*command, code=2).stderr
