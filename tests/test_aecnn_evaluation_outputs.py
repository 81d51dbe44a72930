"""One pass over a set, against the same done image by image with other libraries."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchvision.transforms import TenCrop

from aecnn.config import DatasetConfig, ImagesConfig, ModelConfig
from aecnn.data.manifest import read_manifest, read_split
from aecnn.data.source import load_images
from aecnn.errors import ManifestError
from aecnn.evaluation.evaluate import evaluate_split
from aecnn.evaluation.metrics import mean_psnr_db, psnr_db
from aecnn.evaluation.outputs import logit_of_mean, run_model
from aecnn.model.joint import build_model

CPU = torch.device("cpu")
IMAGES = ImagesConfig(size_px=64)


@pytest.fixture(scope="module")
def data(phantom_64px):
    return load_images(read_manifest(phantom_64px), DatasetConfig(root=phantom_64px), size_px=64)


@pytest.fixture(scope="module")
def model():
    return build_model(ModelConfig(backbone="resnet18"), seed=0, input_size_px=64)


def test_batches_do_not_change_the_results_and_the_mode_is_put_back(data, model):
    rows = np.arange(11)
    model.train()
    one = run_model(model, data, rows, IMAGES, batch_size=11, device=CPU)
    two = run_model(model, data, rows, IMAGES, batch_size=3, device=CPU)
    assert model.training
    np.testing.assert_allclose(one.logits, two.logits, atol=1e-5)
    np.testing.assert_allclose(one.mse, two.mse, rtol=1e-5)


def test_ten_crops_are_scored_by_the_mean_of_their_probabilities(data, model):
    config, rows = ImagesConfig(size_px=64, crop_size_px=56, test_crops="ten"), np.arange(4)
    ten = run_model(model, data, rows, config, batch_size=3, device=CPU, crops="ten")
    crops = torch.stack(TenCrop(56)(data.images.read(rows).float() / 255))
    with torch.inference_mode():
        mean = torch.stack([model.eval()(crop).logits.double().sigmoid() for crop in crops]).mean(0)
    np.testing.assert_allclose(1 / (1 + np.exp(-ten.logits.astype(np.float64))), mean.numpy(), atol=1e-6)
    centre = run_model(model, data, rows, config, batch_size=3, device=CPU)
    np.testing.assert_array_equal(ten.mse, centre.mse)
    assert not np.allclose(ten.logits, centre.logits)


def test_the_logit_of_a_mean_probability_stays_exact_where_the_probability_rounds_to_one():
    same = torch.tensor([[-80.0, 0.0, 3.0, 90.0]]).expand(10, -1)
    torch.testing.assert_close(logit_of_mean(same), same[0], rtol=1e-6, atol=1e-6)


def test_psnr_and_ssim_equal_scikit_images(data, model):
    rows = np.arange(5)
    outputs = run_model(model, data, rows, IMAGES, batch_size=2, device=CPU, with_ssim=True)
    images = data.images.read(rows).float() / 255
    with torch.inference_mode():
        rebuilt = model.eval()(images).reconstruction
    for row in rows:
        original, copy = images[row, 0].double().numpy(), rebuilt[row, 0].double().numpy()
        assert psnr_db(outputs.mse)[row] == pytest.approx(
            peak_signal_noise_ratio(original, copy, data_range=1.0), abs=1e-3
        )
        similar, at_pixels = structural_similarity(
            original, copy, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
        )
        whole_windows = at_pixels[5:-5, 5:-5].mean()  # pytorch-msssim averages where the 11 px window fits
        assert outputs.ssim[row] == pytest.approx(whole_windows, abs=2e-4)
        assert similar == pytest.approx(whole_windows, abs=0.05)


def test_perfect_copies_are_left_out_of_the_mean_psnr():
    assert mean_psnr_db(np.array([0.01, 0.001, 0.0])) == pytest.approx(25.0)
    assert np.isnan(mean_psnr_db(np.zeros(2)))


def test_bce_equals_scikit_learns_mean_log_loss(data, model):
    from sklearn.metrics import log_loss

    outputs = run_model(model, data, np.arange(4), IMAGES, batch_size=4, device=CPU)
    for row in range(4):
        probabilities = 1 / (1 + np.exp(-outputs.logits[row].astype(np.float64)))
        expected = log_loss(data.manifest.targets[row], probabilities, labels=[0, 1])
        assert outputs.bce[row] == pytest.approx(expected, rel=1e-5)


def test_no_image_gives_empty_results(data, model):
    outputs = run_model(model, data, np.arange(0), IMAGES, batch_size=4, device=CPU)
    assert outputs.logits.shape == (0, 14)
    assert outputs.bce.sum() == 0


def test_a_split_is_the_official_list_and_an_absent_one_is_refused(phantom_64px, tmp_path, model):
    manifest = read_split(phantom_64px, "test")
    listed = (phantom_64px / "test_list.txt").read_text().split()
    assert sorted(manifest.table["image"]) == sorted(listed)
    assert len(read_split(phantom_64px, "all")) > len(manifest)
    evaluation = evaluate_split(model, IMAGES, manifest, dataset=DatasetConfig(root=phantom_64px), device=CPU)
    assert evaluation.metrics.num_images == len(listed)
    assert evaluation.metrics.reconstruction is not None
    table = phantom_64px / "Data_Entry_2017_v2020.csv"
    (tmp_path / table.name).write_text(table.read_text())
    with pytest.raises(ManifestError, match="no image in the split 'test'"):
        read_split(tmp_path, "test", require_images=False)
