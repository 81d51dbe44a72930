"""The compressed domain as measured: sizes of real files, codecs at the same size, and what 8 bits change."""

import json
import sys
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import aecnn.cli
from aecnn.compression.codec import compress_files
from aecnn.config import DatasetConfig, ImagesConfig, ModelConfig
from aecnn.data.manifest import read_manifest
from aecnn.data.source import load_images
from aecnn.evaluation.codecs import at_quality, at_size, known_codecs, scaled
from aecnn.evaluation.reconstruction import judge_compression
from aecnn.model.checkpoint import CheckpointMetadata, load_checkpoint, save_checkpoint
from aecnn.model.joint import build_model
from aecnn.model.weights import weights_of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    config, images = ModelConfig(backbone="resnet18"), ImagesConfig(size_px=64)
    weights = weights_of(build_model(config, seed=0, input_size_px=64))
    save_checkpoint(path, weights, CheckpointMetadata(model=config, images=images))
    return load_checkpoint(path)


@pytest.fixture(scope="module")
def data(phantom_64px):
    return load_images(read_manifest(phantom_64px), DatasetConfig(root=phantom_64px), size_px=64).select(np.arange(12))


@pytest.fixture(scope="module")
def found(checkpoint, data):
    return judge_compression(
        checkpoint.build(),
        checkpoint.metadata,
        data,
        device=torch.device("cpu"),
        batch_size=5,
        num_compared=4,
        with_curves=False,
    )


@pytest.fixture(scope="module")
def radiograph(phantom_64px):
    with Image.open(next((phantom_64px / "images").glob("*.png"))) as picture:
        return np.array(picture.convert("L").resize((192, 192), Image.Resampling.BICUBIC))


def test_the_size_told_is_that_of_the_file_that_compressing_writes(checkpoint, data, found, tmp_path):
    paths = []
    for row, square in enumerate(data.images.read(np.arange(12)).numpy()[:, 0]):
        paths.append(tmp_path / f"{row}.png")  # the names that the evaluation gives, so that the bytes can be equal
        Image.fromarray(square).save(paths[-1])
    compress_files(paths, tmp_path / "all.aec", checkpoint)
    assert found.num_bytes == (tmp_path / "all.aec").stat().st_size
    assert found.bits_per_pixel == 8 * found.num_bytes / (12 * 64 * 64)


def test_what_8_bits_change_equals_a_plain_calculation_and_is_bounded_by_half_a_step(checkpoint, data, found):
    model = checkpoint.build()
    with torch.inference_mode():
        latent = model.encode(data.images.read(np.arange(12)).float() / 255)
        coarse = (latent * 255).round() / 255
        change = (model.classify(coarse)[0] - model.classify(latent)[0]).abs()
    assert found.classification.max_latent_change == pytest.approx(float((coarse - latent).abs().max()), abs=1e-6)
    assert found.classification.max_latent_change <= 1 / 510 + 1e-7
    assert found.classification.max_logit_change == pytest.approx(float(change.max()), abs=1e-5)
    assert 0 < found.classification.mean_logit_change == pytest.approx(float(change.mean()), abs=1e-5)


def test_quality_equals_that_of_scikit_image_for_the_rebuilt_picture(checkpoint, data):
    one = judge_compression(
        checkpoint.build(),
        checkpoint.metadata,
        data.select([3]),
        device=torch.device("cpu"),
        batch_size=1,
        num_compared=1,
        with_curves=False,
    )
    image = data.images.read(np.array([3])).float() / 255
    model = checkpoint.build()
    with torch.inference_mode():
        rebuilt = (model.decode((model.encode(image) * 255).round() / 255) * 255).round().byte()[0, 0].numpy()
    original = data.images.read(np.array([3]))[0, 0].numpy()
    ours = one.methods[0]
    assert ours.name == "AE-CNN"
    assert ours.psnr_db == pytest.approx(peak_signal_noise_ratio(original, rebuilt, data_range=255), abs=1e-3)
    reference = structural_similarity(
        original, rebuilt, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )[1]
    assert ours.ssim == pytest.approx(reference[5:-5, 5:-5].mean(), abs=1e-3)
    assert ours.ms_ssim is None  # 64 px is too small for five scales
    assert one.classification.max_auroc_change is None  # one image has no AUROC


@pytest.mark.parametrize("codec", known_codecs(), ids=lambda codec: codec.name)
def test_no_quality_comes_nearer_to_the_wanted_size_than_the_one_found(codec, radiograph):
    wanted = 1_500
    nearest = at_size(codec, radiograph, wanted)
    qualities = range(0, codec.num_steps + 1, max(1, codec.num_steps // 100))
    others = [at_quality(codec, radiograph, quality).num_bytes for quality in qualities]
    assert abs(nearest.num_bytes - wanted) <= min(abs(size - wanted) for size in others)
    assert nearest.grey.shape == radiograph.shape


def test_scaling_down_and_up_keeps_a_flat_picture_and_halves_a_checkerboard():
    flat = np.full((16, 16), 77, dtype=np.uint8)
    checkers = (np.indices((16, 16)).sum(0) % 2 * 200).astype(np.uint8)
    np.testing.assert_array_equal(scaled(flat, Image.Resampling.BICUBIC).grey, flat)
    np.testing.assert_array_equal(scaled(checkers, Image.Resampling.NEAREST).grey, np.full((16, 16), 100))


def test_ms_ssim_is_told_where_images_are_large_enough(tmp_path, phantom_64px):
    config, images = ModelConfig(backbone="resnet18"), ImagesConfig(size_px=192)
    metadata = CheckpointMetadata(model=config, images=images)
    loaded = load_images(read_manifest(phantom_64px), DatasetConfig(root=phantom_64px), size_px=192).select([0, 1])
    found = judge_compression(
        build_model(config, seed=0, input_size_px=192).eval(),
        metadata,
        loaded,
        device=torch.device("cpu"),
        batch_size=2,
        num_compared=1,
        with_curves=True,
    )
    assert all(method.ms_ssim is not None and 0.5 < method.ms_ssim <= 1 for method in found.methods)
    for points in found.curves.values():
        sizes, heights = [point.bytes_per_image for point in points], [point.psnr_db for point in points]
        assert sizes == sorted(sizes)
        assert heights == sorted(heights)


def _evaluate(*arguments):
    with patch.object(sys, "argv", ["aecnn", "evaluate", *map(str, arguments)]), pytest.raises(SystemExit) as end:
        aecnn.cli.main()
    return end.value.code or 0


def test_evaluate_tells_the_comparison_and_draws_it(checkpoint, phantom_64px, tmp_path, capsys):
    command = ("--checkpoint", checkpoint.path, "--data", phantom_64px, "--reconstruction", "--compared-images", 1)
    assert _evaluate(*command, "--plot", tmp_path / "plot.png", "--json") == 0
    document = json.loads(capsys.readouterr().out)["compression"]
    assert [method["name"] for method in document["methods"]][:2] == ["AE-CNN", "JPEG"]
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width > 1000
    assert _evaluate(*command) == 0
    told = capsys.readouterr().out
    assert "half a step of 8 bits is 0.00196" in told
    assert "MS-SSIM needs images of over 160 px" in told


def test_a_place_where_no_plot_can_be_is_refused_before_the_work(checkpoint, phantom_64px, tmp_path, capsys):
    command = ("--checkpoint", checkpoint.path, "--data", phantom_64px)
    assert _evaluate(*command, "--plot", tmp_path / "no" / "plot.gif") == 2
    told = capsys.readouterr().err
    for part in ("--plot goes with --reconstruction", "'.gif'", "is no folder"):
        assert part in told
