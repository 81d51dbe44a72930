"""Every backbone has the published size, a stated smallest input, and pretrained weights or a clear error."""

import hashlib
import urllib.error
import urllib.request
from pathlib import Path
from typing import NoReturn, get_args

import pytest
import torch
import torchvision
from torch import nn

from aecnn.config import Backbone, ModelConfig, Normalisation
from aecnn.errors import ModelError
from aecnn.model.backbone import MIN_INPUT_SIZE_PX, min_batch_size
from aecnn.model.joint import JointAECNN, build_architecture, build_model

# Published counts of the joint model with fourteen outputs; the two largest ResNets from torchvision's documentation:
# parameters with 1,000 outputs, less 986 outputs of 2,048 weights and a bias, plus the autoencoder.
NUM_PARAMETERS: dict[Backbone, int] = {
    "densenet121": 6_969_231,
    "densenet161": 26_503_951,
    "densenet169": 12_508_815,
    "densenet201": 18_120_847,
    "inception_v3": 24_383_741,
    "resnet18": 11_184_719,
    "resnet34": 21_292_879,
    "resnet50": 23_537_743,
    "resnet101": 44_549_160 - 986 * 2049 + 1025,
    "resnet152": 60_192_808 - 986 * 2049 + 1025,
}
NUM_BATCH_NORMS: dict[Backbone, int] = {
    "densenet121": 121,
    "densenet161": 161,
    "densenet169": 169,
    "densenet201": 201,
    "inception_v3": 96,
}


def _on_meta(config: ModelConfig, *, input_size_px: int = 256) -> JointAECNN:
    with torch.device("meta"):
        return build_architecture(config, input_size_px=input_size_px)


def _count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


@pytest.mark.parametrize("backbone", get_args(Backbone))
def test_it_has_the_published_number_of_parameters(backbone: Backbone) -> None:
    model = _on_meta(ModelConfig(backbone=backbone))
    assert sum(p.numel() for p in model.parameters()) == NUM_PARAMETERS[backbone]


@pytest.mark.parametrize("backbone", get_args(Backbone))
@pytest.mark.parametrize("normalisation", ["group", "frozen"])
def test_other_normalisations_replace_every_batch_normalisation_and_add_no_parameter(
    backbone: Backbone, normalisation: Normalisation
) -> None:
    before = _count(_on_meta(ModelConfig(backbone=backbone)), nn.BatchNorm2d)
    assert before == NUM_BATCH_NORMS.get(backbone, before)
    model = _on_meta(ModelConfig(backbone=backbone, normalisation=normalisation, weights="imagenet"))
    assert _count(model, nn.modules.batchnorm._BatchNorm) == 0
    assert sum(p.numel() for p in model.parameters()) == NUM_PARAMETERS[backbone]


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "densenet121", "densenet161", "inception_v3"])
def test_the_smallest_input_works_and_the_next_smaller_is_refused_with_both_sizes(backbone: Backbone) -> None:
    smallest = MIN_INPUT_SIZE_PX[backbone]
    config = ModelConfig(backbone=backbone)
    output = _on_meta(config, input_size_px=smallest).eval()(torch.empty(1, 1, smallest, smallest, device="meta"))
    assert output.logits.shape == (1, 14)
    with pytest.raises(ModelError, match=rf"{smallest - 4} px is too small for {backbone}.*at least {smallest} px"):
        build_model(config, seed=0, input_size_px=smallest - 4)


def test_a_side_not_divisible_by_four_is_refused() -> None:
    with pytest.raises(ModelError, match="130 px is not divisible by 4"):
        build_model(ModelConfig(), seed=0, input_size_px=130)


@pytest.mark.parametrize(
    ("backbone", "size_px"), [("densenet121", 128), pytest.param("inception_v3", 64, marks=pytest.mark.slow)]
)
def test_one_image_is_too_few_for_batch_normalisation_and_enough_for_group(backbone: Backbone, size_px: int) -> None:
    image = torch.rand(1, 1, size_px, size_px)
    assert min_batch_size("batch") == 2
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        build_model(ModelConfig(backbone=backbone), seed=0, input_size_px=size_px).train()(image)
    assert min_batch_size("group") == 1
    config = ModelConfig(backbone=backbone, normalisation="group")
    assert build_model(config, seed=0, input_size_px=size_px).train()(image).logits.isfinite().all()


def _refuse(*_: object, **__: object) -> NoReturn:
    raise urllib.error.URLError("no network in this test")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of torch hub's, and no network."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", _refuse)
    monkeypatch.setattr(torch.hub, "urlopen", _refuse)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.mark.parametrize(
    ("backbone", "file"),
    [
        ("resnet18", "resnet18-f37072fd.pth"),
        ("densenet121", "densenet121-a639ec97.pth"),
        ("inception_v3", "inception_v3_google-0cc3c7bd.pth"),
    ],
)
def test_without_network_the_error_names_the_file_and_where_to_place_it(
    hub: Path, backbone: Backbone, file: str
) -> None:
    with pytest.raises(ModelError) as error:
        build_model(ModelConfig(backbone=backbone, weights="imagenet"), seed=0, input_size_px=128)
    assert f"place it at {hub / file}" in str(error.value)
    assert f"https://download.pytorch.org/models/{file}" in str(error.value)


@pytest.mark.parametrize("normalisation", ["batch", "group", "frozen"])
def test_a_placed_imagenet_file_with_old_names_is_loaded_and_its_head_replaced(
    hub: Path, monkeypatch: pytest.MonkeyPatch, normalisation: Normalisation
) -> None:
    source = torchvision.models.densenet121(weights=None)
    for index, tensor in enumerate(source.state_dict().values()):
        tensor.fill_(index % 7 + 1)
    old = {name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): t for name, t in source.state_dict().items()}
    file = hub / "made-here.pth"
    torch.save({name: t for name, t in old.items() if "num_batches" not in name}, file)
    placed = f"densenet121-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth"
    file.rename(hub / placed)
    url = property(lambda _: f"https://download.pytorch.org/models/{placed}")
    monkeypatch.setattr(torchvision.models.DenseNet121_Weights, "url", url)
    config = ModelConfig(weights="imagenet", normalisation=normalisation)
    model = build_model(config, seed=0, input_size_px=128)
    expected = dict(source.named_parameters())
    for name, parameter in model.classifier.named_parameters():
        if not name.startswith("classifier."):
            assert torch.equal(parameter, expected[name]), name
    assert model.state_dict()["classifier.classifier.weight"].shape == (14, 1024)


def test_a_damaged_imagenet_file_is_refused_before_it_is_opened(hub: Path) -> None:
    (hub / "resnet18-f37072fd.pth").write_bytes(b"half a download")
    with pytest.raises(
        ModelError, match=r"damaged: their SHA-256 starts with \w{8}, expected f37072fd; delete the file"
    ):
        build_model(ModelConfig(backbone="resnet18", weights="imagenet"), seed=0, input_size_px=64)
