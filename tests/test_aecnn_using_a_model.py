"""A model in use: its predictions as a table, its heatmaps on a radiograph, itself as an ONNX file."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from aecnn.config import ImagesConfig, ModelConfig
from aecnn.data.manifest import read_manifest
from aecnn.errors import PredictionsError
from aecnn.evaluation.calibration import fit_temperature
from aecnn.evaluation.explain import explain_images
from aecnn.evaluation.pointing_game import Box, Target, hit_rate, point, read_boxes
from aecnn.evaluation.predictions import read_predictions, write_targets
from aecnn.findings import FINDINGS
from aecnn.model.checkpoint import CheckpointMetadata, load_checkpoint, save_checkpoint
from aecnn.model.joint import build_model
from aecnn.model.weights import weights_of
from typed_commands import aecnn_typed

SIZE_PX = 64


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    config, images = ModelConfig(backbone="resnet18"), ImagesConfig(size_px=SIZE_PX)
    weights = weights_of(build_model(config, seed=0, input_size_px=SIZE_PX))
    save_checkpoint(path, weights, CheckpointMetadata(model=config, images=images, round=1, run="test"))
    return path


@pytest.fixture(scope="module")
def radiograph(phantom_64px):
    return sorted((phantom_64px / "images").glob("*.png"))[0]


def test_predictions_of_a_dataset_are_scored_as_the_model_itself(checkpoint, phantom_64px, tmp_path):
    table = tmp_path / "predictions.csv"
    aecnn_typed("predict", "--checkpoint", checkpoint, "--data", phantom_64px, "--split", "test", "-o", table)
    judged = json.loads(aecnn_typed("evaluate", "--checkpoint", checkpoint, "--data", phantom_64px, "--json").stdout)
    scored = json.loads(aecnn_typed("evaluate", "--predictions", table, "--data", phantom_64px, "--json").stdout)
    assert scored["macro_auroc"] == pytest.approx(judged["macro_auroc"], abs=1e-6)


def test_a_temperature_divides_the_logits_and_is_found_on_validation_images(checkpoint, phantom_64px, tmp_path):
    plain, milder, fitted = (tmp_path / f"{name}.csv" for name in ("plain", "milder", "fitted"))
    about = ("--checkpoint", checkpoint, "--data", phantom_64px)
    aecnn_typed("predict", *about, "-o", plain)
    aecnn_typed("predict", *about, "-o", milder, "--temperature", "2")
    (names, scores), (_, mild) = read_predictions(plain), read_predictions(milder)
    logits = np.log(scores / (1 - scores))
    assert np.abs(np.log(mild / (1 - mild)) - logits / 2).max() < 1e-4
    manifest = read_manifest(phantom_64px)
    patients = manifest.table["patient"].tolist()
    targets = manifest.targets[[manifest.table["image"].tolist().index(name) for name in names]]
    write_targets(tmp_path / "targets.csv", names, patients, targets)
    told = json.loads(
        aecnn_typed(
            *("predict", *about, "-o", fitted, "--json"),
            *("--calibrate-on", plain, "--calibrate-targets", tmp_path / "targets.csv"),
        ).stdout
    )
    grid = np.geomspace(0.05, 20.0, 4001)
    z, y = logits[~np.isnan(targets)], targets[~np.isnan(targets)]
    losses = [np.mean(np.logaddexp(0.0, z / t) - y * z / t) for t in grid]
    best = grid[int(np.argmin(losses))]
    assert told["temperature"] == pytest.approx(fit_temperature(logits, targets), rel=1e-3)
    assert told["temperature"] == pytest.approx(best, rel=5e-3) or best in (grid[0], grid[-1])


def test_a_picture_of_the_size_of_the_radiograph_shows_each_finding_asked_for(checkpoint, radiograph, tmp_path):
    picture = tmp_path / "explained.png"
    done = aecnn_typed(
        *("explain", radiograph, "--checkpoint", checkpoint, "-o", picture, "--json"),
        *("--finding", "Mass", "--finding", "pleural thickening"),
    )
    assert "Mass" in done.stdout
    assert "Pleural_Thickening" in done.stdout
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert np.ptp(pixels, axis=-1).max() > 50  # colour over grey


def test_heatmaps_are_relative_to_each_images_strongest_point_and_leave_the_model_alone(checkpoint):
    model = load_checkpoint(checkpoint).build().train()
    before = weights_of(model)
    images = torch.rand(3, 1, SIZE_PX, SIZE_PX, generator=torch.Generator().manual_seed(1))
    maps = explain_images(model, images, ["Mass", "Edema", "Mass"])
    assert maps.shape == (3, SIZE_PX, SIZE_PX)
    assert float(maps.min()) >= 0.0
    assert all(float(of_one.max()) in (0.0, pytest.approx(1.0, abs=1e-5)) for of_one in maps)
    assert model.training
    assert all(np.array_equal(before[name], tensor) for name, tensor in weights_of(model).items())
    alone = explain_images(model, images[1:2], ["Edema"])
    assert torch.allclose(maps[1], alone[0], atol=1e-4)


def test_a_hit_is_a_strongest_point_inside_a_box_and_chance_is_the_boxes_share_of_the_picture():
    target = Target("a.png", "Mass", (Box(0.5, 0.5, 0.75, 1.0),))
    images = ImagesConfig(size_px=SIZE_PX)
    tries = []
    for y, x in ((40, 40), (8, 8)):
        heatmap = np.zeros((SIZE_PX, SIZE_PX))
        heatmap[y, x] = 1.0
        tries.append(point(heatmap, target, images))
    assert [one.is_hit for one in tries] == [True, False]
    assert tries[0].chance == pytest.approx(0.125, abs=0.01)
    rate = hit_rate(tries)
    assert (rate.num_images, rate.num_hits, rate.hit_rate) == (2, 1, 0.5)
    assert rate.interval == pytest.approx((0.0945, 0.9055), abs=1e-3)  # Wilson's for 1 of 2


def test_boxes_are_read_as_the_public_list_has_them(tmp_path):
    table = tmp_path / "boxes.csv"
    table.write_text("Image Index,Finding Label,Bbox [x,y,w,h],,,\na.png,Infiltrate,512,256,128,64,,,\n")
    (target,) = read_boxes(table)
    assert (target.image, target.finding) == ("a.png", "Infiltration")
    assert target.boxes[0].holds(0.55, 0.27)
    assert not target.boxes[0].holds(0.45, 0.27)
    table.write_text("Image Index,Finding Label,Bbox [x,y,w,h],,,\na.png,Broken bone,1,2,3,4,,,\n")
    with pytest.raises(PredictionsError, match="row 2"):
        read_boxes(table)


@pytest.mark.slow
def test_onnx_runtime_gives_what_the_model_gives_for_any_number_of_images(checkpoint, tmp_path):
    from onnxruntime import InferenceSession

    path = tmp_path / "model.onnx"
    told = json.loads(aecnn_typed("export", "--checkpoint", checkpoint, "--onnx", path, "--json").stdout)
    assert max(told["max_difference"].values()) <= 1e-4
    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    model = load_checkpoint(checkpoint).build().eval()
    for num_images in (1, 5):
        images = torch.rand(num_images, 1, SIZE_PX, SIZE_PX, generator=torch.Generator().manual_seed(num_images))
        logits, probabilities = session.run(["logits", "probabilities"], {"image": images.numpy()})
        with torch.inference_mode():
            expected = model(images).logits.numpy()
        assert np.abs(logits - expected).max() <= 1e-4
        assert np.abs(probabilities - 1 / (1 + np.exp(-expected))).max() <= 1e-4
    about = session.get_modelmeta().custom_metadata_map
    assert about["findings"].split(",") == list(FINDINGS)
    assert "not for clinical use" in about["intended_use"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "-o", "p.csv"], ["--checkpoint is missing", "either IMAGES or --data"]),
        (["explain", "-o", "p.png"], ["--checkpoint"]),
        (["export", "--onnx", "model.pt"], ["--checkpoint is missing", "ending in .onnx"]),
    ],
)
def test_all_faults_of_a_command_are_told_at_once(arguments, words):
    said = aecnn_typed(*arguments, code=2).stderr
    assert all(word in said for word in words), said
