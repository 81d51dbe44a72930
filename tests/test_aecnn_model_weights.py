"""Weights leave and enter a model whole, or not at all."""

import numpy as np
import pytest
import torch

from aecnn.config import ModelConfig
from aecnn.errors import CheckpointError
from aecnn.model.joint import JointAECNN, build_model
from aecnn.model.weights import load_weights, rename_old, weights_of


@pytest.fixture(scope="module")
def model() -> JointAECNN:
    return build_model(ModelConfig(backbone="resnet18"), seed=0, input_size_px=64)


def test_they_survive_the_way_out_and_in_with_order_and_dtypes(model: JointAECNN) -> None:
    weights = weights_of(model)
    assert list(weights) == list(model.state_dict())
    assert weights["classifier.bn1.num_batches_tracked"].dtype == np.int64
    assert weights["classifier.bn1.num_batches_tracked"].shape == ()
    other = build_model(ModelConfig(backbone="resnet18"), seed=1, input_size_px=64)
    load_weights(other, dict(reversed(weights.items())))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_arrays_and_model_share_no_memory(model: JointAECNN) -> None:
    weights = weights_of(model)
    before = float(weights["encoder.0.weight"].flat[0])
    weights["encoder.0.weight"][...] = 99.0
    assert model.state_dict()["encoder.0.weight"].flatten()[0].item() == before
    other = build_model(ModelConfig(backbone="resnet18"), seed=1, input_size_px=64)
    load_weights(other, weights)
    weights["encoder.0.weight"][...] = 5.0
    assert other.state_dict()["encoder.0.weight"].flatten()[0].item() == 99.0


def test_read_only_and_channels_last_arrays_are_taken(model: JointAECNN) -> None:
    last = build_model(ModelConfig(backbone="resnet18"), seed=0, input_size_px=64).to(memory_format=torch.channels_last)
    weights = weights_of(last)
    assert all(array.flags.c_contiguous for array in weights.values())
    for array in weights.values():
        array.flags.writeable = False
    load_weights(model, weights)
    assert np.array_equal(weights_of(model)["classifier.conv1.weight"], weights["classifier.conv1.weight"])


def test_all_faults_are_told_at_once_with_the_nearest_name_and_nothing_is_loaded(model: JointAECNN) -> None:
    before = weights_of(model)
    weights = {name: array + 1 for name, array in before.items()}
    weights["encoder.0.wieght"] = weights.pop("encoder.0.weight")
    weights["encoder.2.bias"] = np.zeros((2,), dtype=np.float32)
    weights["decoder.0.bias"] = weights["decoder.0.bias"].astype(np.float64)
    weights["classifier.bn1.num_batches_tracked"] = np.array(1.0, dtype=np.float32)
    with pytest.raises(CheckpointError) as error:
        load_weights(model, weights, subject="reply of a hospital")
    text = str(error.value)
    assert text.startswith("reply of a hospital: 5 faults")
    assert "'encoder.0.wieght' is not in the model; did you mean 'encoder.0.weight'?" in text
    assert "'encoder.0.weight' is missing" in text
    assert "'encoder.2.bias' has shape (2,), the model needs (1,)" in text
    assert "'decoder.0.bias' is float64, the model needs float32" in text
    assert "'classifier.bn1.num_batches_tracked' is float32, the model needs int64" in text
    assert all(np.array_equal(array, before[name]) for name, array in weights_of(model).items())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("module.encoder.0.weight", "encoder.0.weight"),
        (
            "module.classifier.densenet121.features.denseblock1.denselayer2.norm.1.running_mean",
            "classifier.features.denseblock1.denselayer2.norm1.running_mean",
        ),
        (
            "classifier.features.denseblock4.denselayer16.conv.2.weight",
            "classifier.features.denseblock4.denselayer16.conv2.weight",
        ),
        ("classifier.densenet201.classifier.0.weight", "classifier.classifier.weight"),
        ("classifier.fc.0.bias", "classifier.fc.bias"),
        ("classifier.inception_v3.AuxLogits.fc.0.weight", "classifier.AuxLogits.fc.weight"),
        ("classifier.layer1.0.conv1.weight", "classifier.layer1.0.conv1.weight"),
        ("decoder.0.weight", "decoder.0.weight"),
    ],
)
def test_old_names_are_translated_and_present_ones_left_alone(old: str, new: str) -> None:
    assert rename_old(old) == new
    assert rename_old(new) == new
