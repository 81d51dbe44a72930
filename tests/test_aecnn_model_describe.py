"""A model's description agrees with the published figures and with counting on the real model."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from aecnn.config import Backbone, ModelConfig
from aecnn.errors import ModelError
from aecnn.model.describe import describe_model
from aecnn.model.joint import build_model
from aecnn.model.weights import weights_of


def test_densenet121_at_896_pixels_has_the_published_figures() -> None:
    description = describe_model(ModelConfig(backbone="densenet121"), input_size_px=896)
    assert description.num_parameters == {
        "encoder": 865,
        "decoder": 160,
        "classifier": 6_968_206,
        "total": 6_969_231,
    }
    assert description.macs["encoder"] / 1e6 == pytest.approx(41.7, abs=0.05)
    assert description.macs["decoder"] / 1e6 == pytest.approx(7.2, abs=0.05)
    assert description.macs["classifier"] / 1e6 == pytest.approx(2833, abs=0.5)
    assert description.latent_shape == (1, 224, 224)


@pytest.mark.parametrize(
    ("backbone", "megabytes"),
    [
        ("densenet121", 28.2),
        ("densenet169", 50.7),
        ("densenet201", 73.4),
        ("densenet161", 106.9),
        ("inception_v3", 97.7),
        ("resnet18", 44.8),
        ("resnet34", 85.2),
        ("resnet50", 94.4),
    ],
)
def test_the_megabytes_on_the_wire_are_the_published_ones(backbone: Backbone, megabytes: float) -> None:
    assert describe_model(ModelConfig(backbone=backbone), input_size_px=128).megabytes == pytest.approx(
        megabytes, abs=0.05
    )


def test_the_megabytes_are_the_bytes_of_the_weights() -> None:
    weights = weights_of(build_model(ModelConfig(backbone="resnet18"), seed=0, input_size_px=64))
    description = describe_model(ModelConfig(backbone="resnet18"), input_size_px=64)
    assert description.megabytes * 1e6 == sum(array.nbytes for array in weights.values())


@pytest.mark.parametrize("backbone", ["resnet18", "densenet121", pytest.param("inception_v3", marks=pytest.mark.slow)])
def test_multiply_accumulates_are_half_of_what_pytorch_counts_as_flops(backbone: Backbone) -> None:
    config = ModelConfig(backbone=backbone)
    model = build_model(config, seed=0, input_size_px=128).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, 128, 128))
    assert describe_model(config, input_size_px=128).macs["total"] == counter.get_total_flops() / 2


@pytest.mark.parametrize("backbone", ["resnet18", "densenet121", "inception_v3"])
def test_the_layers_add_up_to_the_whole_in_the_order_they_run(backbone: Backbone) -> None:
    description = describe_model(ModelConfig(backbone=backbone), input_size_px=128)
    assert sum(layer.num_parameters for layer in description.layers) == description.num_parameters["total"]
    assert sum(layer.macs for layer in description.layers) == description.macs["total"]
    assert description.layers[0].name == "encoder.0"
    assert description.layers[0].output_shape == (32, 32, 32)
    assert description.layers[-1].output_shape == (14,)
    assert [layer.name for layer in description.layers if layer.output_shape is None] == (
        ["classifier.AuxLogits"] if backbone == "inception_v3" else []
    )


def test_it_is_plain_data_for_json() -> None:
    description = describe_model(ModelConfig(), input_size_px=128)
    assert json.loads(json.dumps(description.to_dict()))["num_parameters"]["total"] == 6_969_231


def test_an_input_too_small_is_refused() -> None:
    with pytest.raises(ModelError, match="64 px is too small for densenet121"):
        describe_model(ModelConfig(), input_size_px=64)
