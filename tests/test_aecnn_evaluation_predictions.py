"""Tables of predictions: what is scored, and what is refused."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from aecnn.errors import PredictionsError
from aecnn.evaluation.metrics import score
from aecnn.evaluation.predictions import (
    read_predictions,
    read_targets,
    scores_of,
    write_predictions,
    write_targets,
)
from aecnn.findings import FINDINGS, NUM_FINDINGS


@pytest.fixture
def table():
    random = np.random.default_rng(0)
    targets = (random.random((60, NUM_FINDINGS)) < 0.3).astype(np.float32)
    probabilities = np.clip(0.3 + 0.3 * targets + 0.2 * random.normal(size=targets.shape), 0, 1)
    images = [f"{i // 2:08d}_{i % 2:03d}.png" for i in range(60)]
    return images, [str(i // 2) for i in range(60)], targets, probabilities


def test_a_written_table_is_read_and_scored_as_it_was(table, tmp_path):
    images, patients, targets, probabilities = table
    targets[5, 2] = np.nan
    write_predictions(tmp_path / "p.csv", images, probabilities)
    write_targets(tmp_path / "t.csv", images, patients, targets)
    read_images, read_patients, read = read_targets(tmp_path / "t.csv")
    assert (read_images, read_patients) == (images, patients)
    np.testing.assert_array_equal(read, targets)
    metrics = score(scores_of(tmp_path / "p.csv", images), read, patients)
    assert (metrics.num_images, metrics.num_patients) == (60, 30)
    for index, name in enumerate(FINDINGS):
        known = ~np.isnan(targets[:, index])
        expected = roc_auc_score(targets[known, index], probabilities[known, index])
        assert metrics.findings[name].auroc == pytest.approx(expected, abs=1e-6)


def test_rows_and_columns_come_in_any_order_and_some_findings_may_be_absent(table, tmp_path):
    images, patients, targets, probabilities = table
    shuffled = np.random.default_rng(1).permutation(60)
    lines = ["pleural thickening,Image Index,hernia"]
    lines += [f"{probabilities[i, 12]},{images[i]},{probabilities[i, 13]}" for i in shuffled]
    (tmp_path / "p.csv").write_text("\n".join(lines))
    metrics = score(scores_of(tmp_path / "p.csv", images), targets, patients)
    assert metrics.findings["Hernia"].auroc == pytest.approx(roc_auc_score(targets[:, 13], probabilities[:, 13]))
    assert set(metrics.undefined_findings) == set(FINDINGS) - {"Pleural_Thickening", "Hernia"}
    document = metrics.to_json()
    assert document["findings"]["Mass"]["auroc"] is None
    assert document["findings"]["Mass"]["num_positive"] == int(targets[:, 4].sum())


def test_logits_score_as_their_probabilities_do(table, tmp_path):
    images, patients, targets, probabilities = table
    inside = np.clip(probabilities, 0.01, 0.99)
    write_predictions(tmp_path / "p.csv", images, inside)
    write_predictions(tmp_path / "l.csv", images, np.log(inside / (1 - inside)))
    one = score(scores_of(tmp_path / "p.csv", images), targets, patients)
    two = score(scores_of(tmp_path / "l.csv", images), targets, patients)
    assert one.macro_auroc == pytest.approx(two.macro_auroc, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "cannot be read"),
        ("image,Mass\na.png,0.5", "no column 'Image Index'"),
        ("Image Index,Mas\na.png,0.5", "did you mean 'Mass'"),
        ("Image Index,Mass,mass\na.png,0.5,0.4", "same finding"),
        ("Image Index,Mass\na.png,0.5\na.png,0.4", "more than once, such as 'a.png'"),
        ("Image Index,Mass\na.png,high", "row 2 holds 'high'"),
        ("Image Index,Mass\na.png,0.5\nb.png,", "1 empty or infinite cell(s), the first in row 3"),
        ("Image Index,Mass\na.png,inf", "empty or infinite"),
        ("Image Index,Patient ID\na.png,1", "no column of a finding"),
    ],
)
def test_a_faulty_table_is_refused_with_the_place(text, told, tmp_path):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(PredictionsError, match=r"p\.csv") as refused:
        read_predictions(tmp_path / "p.csv")
    assert told in str(refused.value)


def test_all_faults_of_a_table_are_told_at_once(tmp_path):
    (tmp_path / "p.csv").write_text("Image Index,Mas,Hernia,Edema\na.png,0.5,x,y")
    with pytest.raises(PredictionsError) as refused:
        read_predictions(tmp_path / "p.csv")
    assert len(refused.value.faults) == 3


def test_targets_other_than_one_zero_and_empty_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("Image Index,Patient ID,Mass\na.png,1,2\nb.png,,0")
    with pytest.raises(PredictionsError) as refused:
        read_targets(tmp_path / "t.csv")
    assert "row 2 holds 2" in str(refused.value)
    assert "no 'Patient ID'" in str(refused.value)


def test_an_image_without_a_prediction_is_named(table, tmp_path):
    images, _, _, probabilities = table
    write_predictions(tmp_path / "p.csv", images[1:], probabilities[1:])
    with pytest.raises(PredictionsError, match=images[0]):
        scores_of(tmp_path / "p.csv", images)
