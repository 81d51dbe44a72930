"""A model in use: its predictions as a table, its heatmaps on a radiograph, itself as an ONNX file."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import typer
from PIL import Image

import aecnn.cli
from aecnn.config import ImagesConfig, ModelConfig
from aecnn.data.manifest import read_manifest
from aecnn.errors import ModelError, PredictionsError
from aecnn.evaluation.calibration import fit_temperature
from aecnn.evaluation.explain import explain_images
from aecnn.evaluation.pointing_game import Box, Target, hit_rate, point, read_boxes
from aecnn.evaluation.predictions import read_predictions, write_targets
from aecnn.findings import FINDINGS
from aecnn.model.checkpoint import CheckpointMetadata, load_checkpoint, save_checkpoint
from aecnn.model.joint import build_model
from aecnn.model.weights import weights_of
from conftest import PROJECT
from typed_commands import aecnn_typed

SIZE_PX = 64
PAGE = (PROJECT / "docs" / "using-a-model.md").read_text(encoding="utf-8")


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


def test_a_picture_is_written_over_an_older_one_and_over_no_other_file(checkpoint, radiograph, tmp_path):
    picture, other, cut = (tmp_path / f"{name}.png" for name in ("explained", "other", "cut"))
    about = ("explain", radiograph, "--checkpoint", checkpoint, "-o")
    aecnn_typed(*about, picture, "--finding", "Mass")
    first = picture.read_bytes()
    aecnn_typed(*about, picture, "--finding", "Edema")
    assert picture.read_bytes() != first
    with Image.open(picture) as image:
        assert image.text["Software"] == "aecnn explain"
        Image.fromarray(np.asarray(image)).save(other)  # the same picture, from another program
    cut.write_bytes(b"")
    for path in (other, cut):
        before = path.read_bytes()
        assert "is no picture of this command: give another name" in _said(*about, path)
        assert path.read_bytes() == before
    assert "is the radiograph itself" in _said("explain", picture, "--checkpoint", checkpoint, "-o", picture)


@pytest.mark.parametrize(("command", "suffix"), [("explain", "png"), ("predict", "csv")])
def test_a_folder_where_the_output_belongs_is_told(command, suffix, checkpoint, radiograph, tmp_path):
    (tmp_path / f"folder.{suffix}").mkdir()
    said = _said(command, radiograph, "--checkpoint", checkpoint, "-o", tmp_path / f"folder.{suffix}")
    assert "is a folder" in said
    assert "give another name" in said


@pytest.mark.parametrize("output", ["there.png", "new.png"])
def test_a_radiograph_that_is_not_there_is_told_and_nothing_is_written(output, checkpoint, tmp_path):
    (tmp_path / "there.png").write_bytes(b"of somebody")
    said = _said("explain", tmp_path / "nope.png", "--checkpoint", checkpoint, "-o", tmp_path / output)
    assert "nope.png is no file: give a radiograph" in said
    assert ("there.png is there already" in said) == (output == "there.png")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"of somebody"]


def _said(*arguments):
    """Types a command that is refused; gives what it said, in one line."""
    return " ".join(aecnn_typed(*arguments, code=2).stderr.split())


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


def _patchwork(num_images, *, size_px):
    """Images [N, 1, S, S] of 8 × 8 squares under noise; noise alone is nearly the same latent for all."""
    generator = torch.Generator().manual_seed(2)
    squares = F.interpolate(torch.rand(num_images, 1, 8, 8, generator=generator), size=(size_px, size_px))
    return 0.7 * squares + 0.3 * torch.rand(num_images, 1, size_px, size_px, generator=generator)


def _settled_model(backbone, *, size_px):
    """An untrained model with logits of ordinary size, and its configuration.

    With the statistics that batch normalisation starts with the logits of Inception-v3 reach 10¹⁰.
    """
    config = ModelConfig(backbone=backbone, normalisation="group" if backbone == "inception_v3" else "batch")
    model = build_model(config, seed=0, input_size_px=size_px)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0  # one batch decides on the statistics
    if backbone != "inception_v3":
        with torch.no_grad():
            model.train()(_patchwork(8, size_px=size_px))
    return model, config


def _steps(classifier, stage):
    """A torchvision network as one function up to a stage's maps, and one from there to the logits, without hooks."""
    is_densenet = hasattr(classifier, "features")
    children = dict((classifier.features if is_densenet else classifier).named_children())
    children.pop("AuxLogits", None)
    head = classifier.classifier if is_densenet else children.pop("fc")
    names, layers = list(children), list(children.values())
    at = names.index(stage.split(".")[0])
    before, after = layers[:at], layers[at + 1 :]
    if stage == "transition1.relu":
        before, after = [*before, layers[at].norm, torch.relu], [layers[at].conv, layers[at].pool, *after, torch.relu]
    else:
        before = [*before, layers[at]]

    def run(steps, maps):
        for step in steps:
            maps = step(maps)
        return maps

    return lambda pictures: run(before, pictures), lambda maps: head(run(after, maps).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("backbone", "size_px", "stage"),
    [
        ("resnet18", 64, "layer1"),
        ("densenet121", 128, "transition1.relu"),
        pytest.param("inception_v3", 64, "Mixed_7c", marks=pytest.mark.slow),
    ],
)
def test_a_heatmap_is_grad_cam_as_the_paper_has_it(backbone, size_px, stage):
    model = _settled_model(backbone, size_px=size_px)[0].eval()
    images, findings = _patchwork(4, size_px=size_px), ("Effusion", "Nodule", "Effusion", "Hernia")
    found = explain_images(model, images, findings)
    unaveraged = explain_images(model, images, findings, method="hires-cam")
    assert float(found.amax(dim=(1, 2)).sum()) >= 2  # at least two of the four are not empty
    for image, finding, heatmap, sharper in zip(images, findings, found, unaveraged, strict=True):
        latent = model.encode(image[None]).detach()
        if model.latent_size_px is not None:
            latent = F.interpolate(latent, size=(299, 299), mode="bilinear", align_corners=False)
        pictures = (latent.expand(-1, 3, -1, -1) - model.imagenet_mean) / model.imagenet_std
        if backbone == "inception_v3":
            pictures = model.classifier._transform_input(pictures)
        to_maps, to_logits = _steps(model.classifier, stage)
        maps = to_maps(pictures).detach().requires_grad_()
        logit = to_logits(maps)[0, FINDINGS.index(finding)]
        with torch.no_grad():
            whole = model(image[None]).logits[0, FINDINGS.index(finding)]
        assert float(logit.detach()) == pytest.approx(float(whole), abs=1e-4)
        (gradient,) = torch.autograd.grad(logit, maps)
        cells = sum(gradient[0, k].mean() * maps[0, k] for k in range(maps.shape[1]))  # equations 1 and 2
        assert torch.allclose(heatmap, _smoothed(cells.detach(), size_px), atol=1e-3)
        assert torch.allclose(sharper, _smoothed((gradient * maps)[0].sum(dim=0).detach(), size_px), atol=1e-3)
        if stage == "Mixed_7c":  # the last, with a mean and a linear layer behind it: both are one
            assert torch.allclose(heatmap, sharper, atol=1e-3)


def _smoothed(cells, size_px):
    smooth = F.interpolate(cells.clamp(min=0)[None, None], size=(size_px, size_px), mode="bilinear")[0, 0]
    return smooth / smooth.max().clamp(min=1e-30)


def test_a_network_whose_stages_are_not_known_is_refused_by_name():
    model = build_model(ModelConfig(backbone="resnet18"), seed=0, input_size_px=SIZE_PX)
    model.classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, len(FINDINGS)))
    with pytest.raises(ModelError, match=r"Sequential has none of the layers .*: use a ResNet"):
        explain_images(model, torch.rand(1, 1, SIZE_PX, SIZE_PX), ["Mass"])


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


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Exports a backbone's model once: gives the model, its checkpoint and its ONNX file, alone in its folder."""
    done = {}

    def export(backbone, *, size_px):
        if backbone not in done:
            model, config = _settled_model(backbone, size_px=size_px)
            folder = tmp_path_factory.mktemp(backbone)
            metadata = CheckpointMetadata(model=config, images=ImagesConfig(size_px=size_px), round=1, run="test")
            save_checkpoint(folder / "model.safetensors", weights_of(model), metadata)
            (folder / "onnx").mkdir()
            files = folder / "model.safetensors", folder / "onnx" / "model.onnx"
            told = json.loads(aecnn_typed("export", "--checkpoint", files[0], "--onnx", files[1], "--json").stdout)
            assert max(told["max_difference"].values()) <= 1e-4
            done[backbone] = (model.eval(), *files)
        return done[backbone]

    return export


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "size_px"), [("resnet18", 64), ("densenet121", 128), ("inception_v3", 64)])
def test_onnx_runtime_gives_what_the_model_gives_for_any_number_of_images(backbone, size_px, exported):
    from onnxruntime import InferenceSession

    model, _, path = exported(backbone, size_px=size_px)
    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    images = _patchwork(5, size_px=size_px)
    with torch.inference_mode():
        output = model(images)
    assert 0.01 < float(output.logits.std()) < 10  # neither dead nor saturated
    names = ["logits", "probabilities", "latent", "reconstruction"]
    expected = (output.logits, torch.sigmoid(output.logits), output.latent, output.reconstruction)
    for num_images in (1, 5):
        given = session.run(names, {"image": images[:num_images].numpy()})
        for ours, one in zip(given, expected, strict=True):
            assert np.abs(ours - one[:num_images].numpy()).max() <= 1e-4
    about = session.get_modelmeta().custom_metadata_map
    assert about["findings"].split(",") == list(FINDINGS)
    assert about["input_size_px"] == str(size_px)
    assert "not for clinical use" in about["intended_use"]
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_the_script_of_the_page_needs_no_pytorch_and_gives_what_predict_gives(exported, radiograph, tmp_path):
    (script,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert not re.search(r"import (torch|aecnn)", script)
    (tmp_path / "read_radiograph.py").write_text(script, encoding="utf-8")
    _, checkpoint, onnx = exported("resnet18", size_px=SIZE_PX)
    with Image.open(radiograph) as picture:
        for name, size in (("same", (64, 64)), ("twice", (128, 128)), ("wide", (200, 150)), ("small", (40, 50))):
            picture.resize(size).save(tmp_path / f"{name}.png")
    pictures = sorted(tmp_path.glob("*.png"))
    aecnn_typed("predict", *pictures, "--checkpoint", checkpoint, "-o", tmp_path / "predictions.csv")
    names, expected = read_predictions(tmp_path / "predictions.csv")
    for name, row in zip(names, expected, strict=True):
        asked = [sys.executable, tmp_path / "read_radiograph.py", onnx, tmp_path / name]
        said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        told = dict(line.split() for line in said.splitlines())
        assert [float(told[finding]) for finding in FINDINGS] == pytest.approx(list(row), abs=1e-4)


def test_every_command_and_file_of_the_page_exists():
    commands = [line.split("#")[0].split() for line in re.findall(r"^aecnn (.+)$", PAGE, flags=re.MULTILINE)]
    assert {name for name, *_ in commands} == {"predict", "evaluate", "explain", "export", "compress", "decompress"}
    known = typer.main.get_command(aecnn.cli.app).commands
    for name, *words in commands:
        options = {option for parameter in known[name].params for option in parameter.opts}
        assert [word for word in words if word.startswith("-") and word not in options] == [], name
    links = [link for link in re.findall(r"\]\(([^)]+)\)", PAGE) if "://" not in link]
    assert [link for link in links if not (PROJECT / "docs" / link).exists()] == []


@pytest.mark.parametrize("module", ["onnx", "onnxscript", "onnxruntime"])
def test_export_without_its_extra_names_the_remedy_and_leaves_nothing(module, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # as Python itself notes a module that must not be imported
    said = aecnn_typed("export", "--checkpoint", checkpoint, "--onnx", tmp_path / "model.onnx", code=2).stderr
    assert "pip install 'aecnn-federated[onnx]'" in " ".join(said.split())
    assert module in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_onnx_runtime_reports_nothing_to_its_maker(exported, tmp_path):
    """From 1.29 on it notes a number for the machine, and its use until it can send it, under the home folder."""
    _, _, onnx = exported("resnet18", size_px=64)
    loads = "import aecnn.model.onnx_export, onnxruntime, sys; onnxruntime.InferenceSession(sys.argv[1])"
    home = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    home.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-c", loads, onnx], env=home, check=True)
    assert [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name] == []


@pytest.mark.slow
def test_explain_where_captum_is_not_installed_names_the_remedy(checkpoint, radiograph, tmp_path):
    without_captum = (
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "class Without(PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        "        return None if name.split('.')[0] == 'captum' else super().find_spec(name, path, target)\n"
        "sys.meta_path[sys.meta_path.index(PathFinder)] = Without\n"
        "from aecnn.cli import main\n"
        "main()\n"
    )
    asked = ("explain", radiograph, "--checkpoint", checkpoint, "-o", tmp_path / "picture.png")
    done = subprocess.run(
        [sys.executable, "-c", without_captum, *map(str, asked)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "pip install 'aecnn-federated[explain]'" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "picture.png").exists()


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
