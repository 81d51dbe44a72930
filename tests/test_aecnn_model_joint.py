"""The joint model gives the same weights for the same seed, and the same answers on every path through PyTorch."""

import pytest
import torch
import torch.nn.functional as F

from aecnn.config import Backbone, ModelConfig
from aecnn.errors import ModelError
from aecnn.model.joint import build_architecture, build_model
from aecnn.model.loss import joint_loss

SLOW = pytest.mark.slow
GROUP_RESNET = ModelConfig(backbone="resnet18", normalisation="group")


def _images(num_images: int = 2, size_px: int = 64) -> torch.Tensor:
    return torch.rand(num_images, 1, size_px, size_px, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize(
    ("backbone", "head"),
    [
        ("densenet121", "classifier.classifier.weight"),
        ("resnet18", "classifier.fc.weight"),
        ("inception_v3", "classifier.fc.weight"),
    ],
)
def test_weights_have_the_original_names(backbone: Backbone, head: str) -> None:
    with torch.device("meta"):
        names = list(build_architecture(ModelConfig(backbone=backbone), input_size_px=128).state_dict())
    autoencoder = ["encoder.0.weight", "encoder.0.bias", "encoder.2.weight", "encoder.2.bias"]
    assert names[:6] == [*autoencoder, "decoder.0.weight", "decoder.0.bias"]
    assert head in names
    assert all(name.startswith("classifier.") for name in names[6:])


@pytest.mark.parametrize("backbone", ["densenet121", "resnet18", pytest.param("inception_v3", marks=SLOW)])
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(backbone: Backbone) -> None:
    config = ModelConfig(backbone=backbone)
    first, again, other = (build_model(config, seed=s, input_size_px=128).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("encoder.0.weight", "encoder.2.weight", next(n for n in first if n.startswith("classifier."))):
        assert not torch.equal(first[name], other[name])


def test_building_neither_reads_nor_moves_the_global_random_state() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        expected = torch.rand(3)
        torch.manual_seed(1)
        first = build_model(GROUP_RESNET, seed=0, input_size_px=64).state_dict()
        assert torch.equal(torch.rand(3), expected)
        second = build_model(GROUP_RESNET, seed=0, input_size_px=64).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_output_holds_logits_reconstruction_and_latent_in_their_ranges() -> None:
    output = build_model(GROUP_RESNET, seed=0, input_size_px=64)(3 * _images() - 1)  # brighter and darker than allowed
    assert output.logits.shape == (2, 14)
    assert output.aux_logits is None
    assert output.reconstruction.shape == (2, 1, 64, 64)
    assert output.latent.shape == (2, 1, 16, 16)
    for picture in (output.reconstruction, output.latent):
        assert picture.min() >= 0
        assert picture.max() <= 1


def test_the_parts_give_what_the_whole_gives() -> None:
    model = build_model(GROUP_RESNET, seed=0, input_size_px=64)
    output = model(_images())
    latent = model.encode(_images())
    assert torch.equal(latent, output.latent)
    assert torch.equal(model.decode(latent), output.reconstruction)
    assert torch.equal(model.classify(latent)[0], output.logits)


def test_the_classifier_sees_the_latent_three_times_with_imagenets_scaling() -> None:
    model = build_model(GROUP_RESNET, seed=0, input_size_px=64)
    latent = model.encode(_images())
    channels = [(latent - mean) / std for mean, std in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]
    torch.testing.assert_close(model.classify(latent)[0], model.classifier(torch.cat(channels, dim=1)))


@SLOW
def test_inception_sees_299_pixels_scaled_to_plus_minus_one_and_has_an_auxiliary_head_in_training_only() -> None:
    model = build_model(ModelConfig(backbone="inception_v3"), seed=0, input_size_px=64)
    seen = []
    hook = model.classifier.get_submodule("Conv2d_1a_3x3").register_forward_pre_hook(lambda _, a: seen.append(a[0]))
    training = model.train()(_images())
    assert training.aux_logits is not None
    assert training.aux_logits.shape == (2, 14)
    assert model.eval()(_images()).aux_logits is None
    hook.remove()
    latent = F.interpolate(training.latent, size=(299, 299), mode="bilinear", align_corners=False)
    for channel in range(3):  # ImageNet's scaling undone, then (x − 0.5) / 0.5
        torch.testing.assert_close(seen[0][:, channel], 2 * latent[:, 0] - 1, atol=1e-5, rtol=0)


def test_every_weight_gets_a_gradient_from_the_joint_loss() -> None:
    model = build_model(GROUP_RESNET, seed=0, input_size_px=128).train()
    images = _images(2, 128)
    joint_loss(model(images), images, torch.ones(2, 14), bce_weight=0.9).total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_channels_last_and_bf16_give_nearly_the_same_and_train() -> None:
    model = build_model(GROUP_RESNET, seed=0, input_size_px=64).eval()
    images = _images()
    plain = model(images)
    model = model.to(memory_format=torch.channels_last)
    last = model(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last.logits, plain.logits, atol=1e-3, rtol=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(images)
        loss = joint_loss(half, images, torch.zeros(2, 14), bce_weight=0.9)
    loss.total.backward()
    torch.testing.assert_close(half.latent.float(), plain.latent, atol=0.02, rtol=0)
    torch.testing.assert_close(half.logits.float(), plain.logits, atol=0.1, rtol=0.1)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@SLOW
@pytest.mark.parametrize("backbone", ["densenet121", "inception_v3"])
@torch.no_grad()
def test_the_other_families_run_in_bf16_too(backbone: Backbone) -> None:
    config = ModelConfig(backbone=backbone, normalisation="group")
    model = build_model(config, seed=0, input_size_px=128).eval()
    plain = model(_images(1, 128)).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(_images(1, 128)).logits.float()
    assert (half - plain).abs().max() < 0.15 * plain.abs().max() + 0.1


def test_batch_normalisation_in_training_mode_uses_the_batch_and_counts_it() -> None:
    model = build_model(ModelConfig(backbone="resnet18"), seed=0, input_size_px=64).train()
    before = model.state_dict()["classifier.bn1.running_mean"].clone()
    model(_images())
    after = model.state_dict()
    assert not torch.equal(after["classifier.bn1.running_mean"], before)
    assert int(after["classifier.bn1.num_batches_tracked"]) == 1
    assert after["classifier.bn1.num_batches_tracked"].dtype == torch.int64


def test_frozen_normalisation_without_pretrained_weights_is_refused_even_past_the_config() -> None:
    config = ModelConfig.model_construct(backbone="resnet18", weights="none", normalisation="frozen")
    with pytest.raises(ModelError, match=r"frozen.*set weights: imagenet"):
        build_model(config, seed=0, input_size_px=64)


def test_an_architecture_waiting_for_its_weights_needs_no_download() -> None:
    config = ModelConfig(backbone="resnet18", weights="imagenet", normalisation="frozen")
    assert build_architecture(config, input_size_px=64)(_images()).logits.shape == (2, 14)
