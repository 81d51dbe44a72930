"""A checkpoint comes back as it was saved, and anything else is refused in a sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from aecnn.config import ImagesConfig, ModelConfig
from aecnn.errors import CheckpointError
from aecnn.findings import FINDINGS
from aecnn.model.checkpoint import CheckpointMetadata, load_checkpoint, save_checkpoint
from aecnn.model.joint import JointAECNN, build_architecture, build_model
from aecnn.model.weights import Weights, weights_of

METADATA = CheckpointMetadata(
    model=ModelConfig(backbone="densenet121"),
    images=ImagesConfig(size_px=128),
    round=3,
    run="demo",
    fingerprint="abc",
    figures={"macro_auroc": 0.81, "hernia": None},
)


@pytest.fixture(scope="module")
def model() -> JointAECNN:
    model = build_model(METADATA.model, seed=5, input_size_px=128).train()
    model(torch.rand(2, 1, 128, 128, generator=torch.Generator().manual_seed(0)))  # moves statistics and counters
    return model


@pytest.fixture
def saved(tmp_path: Path, model: JointAECNN) -> Path:
    path = tmp_path / "runs" / "global.safetensors"
    save_checkpoint(path, weights_of(model), METADATA)
    return path


def _fault(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)
    return str(error.value)


def test_weights_and_metadata_come_back_bit_for_bit_in_order(saved: Path, model: JointAECNN) -> None:
    checkpoint = load_checkpoint(saved)
    expected = weights_of(model)
    assert checkpoint.metadata == METADATA
    assert list(checkpoint.weights) == list(expected)
    for name, array in expected.items():
        assert checkpoint.weights[name].dtype == array.dtype
        assert np.array_equal(checkpoint.weights[name], array)


def test_the_built_model_answers_as_the_saved_one_in_evaluation_mode(saved: Path, model: JointAECNN) -> None:
    images = torch.rand(2, 1, 128, 128, generator=torch.Generator().manual_seed(1))
    built = load_checkpoint(saved).build()
    assert not built.training
    with torch.no_grad():
        expected = model.eval()(images)
        assert torch.equal(built(images).logits, expected.logits)
    model.train()


def test_the_json_beside_says_what_the_file_is_and_the_file_alone_still_loads(saved: Path) -> None:
    document = json.loads(saved.with_suffix(".json").read_text())
    assert document["model"]["backbone"] == "densenet121"
    assert document["findings"] == list(FINDINGS)
    assert document["figures"] == {"macro_auroc": 0.81, "hernia": None}
    saved.with_suffix(".json").unlink()
    assert load_checkpoint(saved).metadata == METADATA


def test_the_same_weights_give_the_same_bytes_and_leave_nothing_else_behind(saved: Path, model: JointAECNN) -> None:
    first = saved.read_bytes()
    save_checkpoint(saved, weights_of(model), METADATA)
    assert saved.read_bytes() == first
    assert sorted(path.name for path in saved.parent.iterdir()) == ["global.json", "global.safetensors"]


def test_a_save_that_fails_leaves_the_old_checkpoint_whole(
    saved: Path, model: JointAECNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(saved, {n: a + 1 for n, a in weights_of(model).items()}, METADATA)
    assert saved.read_bytes() == before
    assert sorted(path.name for path in saved.parent.iterdir()) == ["global.json", "global.safetensors"]


def test_metadata_from_the_json_is_used_where_the_header_has_none_and_asked_for_where_both_miss(saved: Path) -> None:
    save_file(load_file(saved), saved)  # as another tool would write it
    assert load_checkpoint(saved).metadata == METADATA
    saved.with_suffix(".json").unlink()
    assert "no metadata in its header, and global.json is missing" in _fault(saved)


def test_old_names_are_translated(saved: Path, model: JointAECNN) -> None:
    def old_name(name: str) -> str:
        name = name.replace("norm1.", "norm.1.").replace("norm2.", "norm.2.")
        name = name.replace("conv1.", "conv.1.").replace("conv2.", "conv.2.")
        name = name.replace("classifier.classifier.", "classifier.classifier.0.")
        return "module." + name.replace("classifier.", "classifier.densenet121.", 1)

    weights = weights_of(model)
    save_file({old_name(n): a for n, a in weights.items() if "num_batches" not in n}, saved)
    loaded = load_checkpoint(saved).weights
    assert list(loaded) == list(weights)
    for name, array in weights.items():
        assert np.array_equal(loaded[name], 0 if "num_batches" in name else array)


def test_a_name_under_its_old_and_present_form_is_refused(saved: Path) -> None:
    arrays: Weights = load_file(saved)
    arrays["module.encoder.0.weight"] = arrays["encoder.0.weight"]
    save_file(arrays, saved)
    assert "keep one" in _fault(saved)


@pytest.mark.parametrize("keep", [0, 5, 1000, 200_000, -1])
def test_a_truncated_file_is_refused(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    assert "truncated" in _fault(saved)


def test_weights_that_are_not_finite_are_refused_by_name(saved: Path, model: JointAECNN) -> None:
    weights = weights_of(model)
    weights["encoder.0.weight"] = np.full_like(weights["encoder.0.weight"], np.nan)
    save_checkpoint(saved, weights, METADATA)
    assert "'encoder.0.weight' holds NaN or infinity" in _fault(saved)


def test_metadata_that_lies_about_the_backbone_is_refused_with_names(saved: Path, model: JointAECNN) -> None:
    lie = METADATA.model_copy(update={"model": ModelConfig(backbone="densenet169")})
    save_checkpoint(saved, weights_of(model), lie)
    text = _fault(saved)
    assert "its weights are of another backbone" in text
    assert "'classifier.classifier.weight' has shape (14, 1024), the model needs (14, 1664)" in text or "more" in text
    assert "is missing" in text


def test_another_order_of_findings_is_refused(saved: Path, model: JointAECNN) -> None:
    swapped = METADATA.model_copy(update={"findings": tuple(reversed(FINDINGS))})
    save_checkpoint(saved, weights_of(model), swapped)
    assert "its findings are Hernia, " in _fault(saved)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d: {**d, "format_version": 2}, "format_version in global.json is 2, this code reads 1"),
        (lambda d: {**d, "colour": "red"}, "colour in global.json"),
        (lambda d: {**d, "model": {"backbone": "vgg16"}}, "model.backbone in global.json"),
        (lambda _: [], "format_version in global.json is None"),
        (lambda d: {**d, "images": {"size_px": 64}}, "64 px is too small for densenet121"),
    ],
)
def test_faulty_metadata_is_refused_with_key_and_value(
    saved: Path, change: Callable[[dict[str, object]], object], expected: str
) -> None:
    save_file(load_file(saved), saved)
    beside = saved.with_suffix(".json")
    beside.write_text(json.dumps(change(json.loads(beside.read_text()))))
    assert expected in _fault(saved)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".ckpt"])
def test_a_pickle_is_refused_by_its_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    torch.save({}, path)
    assert "only .safetensors files are read" in _fault(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_refused_by_its_first_bytes_whatever_its_name(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.safetensors"
    torch.save({"encoder.0.weight": torch.zeros(3)}, path, _use_new_zipfile_serialization=zipped)
    assert "is a pickle or a zip archive" in _fault(path)


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory)" in _fault(tmp_path / "absent.safetensors")


def test_another_ending_is_refused_on_saving(tmp_path: Path, model: JointAECNN) -> None:
    with pytest.raises(CheckpointError, match=r"ends in '.pth'"):
        save_checkpoint(tmp_path / "model.pth", weights_of(model), METADATA)


def test_a_frozen_model_loads_without_its_imagenet_weights(tmp_path: Path) -> None:
    config = ModelConfig(backbone="resnet18", weights="imagenet", normalisation="frozen")
    model = build_architecture(config, input_size_px=64)
    metadata = CheckpointMetadata(model=config, images=ImagesConfig(size_px=64))
    save_checkpoint(tmp_path / "frozen.safetensors", weights_of(model), metadata)
    built = load_checkpoint(tmp_path / "frozen.safetensors").build()
    assert torch.equal(built.state_dict()["encoder.0.weight"], model.state_dict()["encoder.0.weight"])
