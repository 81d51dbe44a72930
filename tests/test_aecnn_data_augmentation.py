"""Batch augmentation against torchvision's per-image transforms."""

import pytest
import torch
from torchvision.transforms import InterpolationMode, TenCrop
from torchvision.transforms.functional import hflip, rotate

from aecnn.config import ImagesConfig
from aecnn.data.augmentation import CENTRE_CROP, augment, crop_rotated, ten_crops, to_input


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(6, 1, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=64, mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().to(torch.uint8)


def test_without_augmentation_the_input_is_the_centre_crop_in_zero_to_one(images):
    config = ImagesConfig(size_px=64, crop_size_px=48)
    torch.testing.assert_close(to_input(images, config), images[:, :, 8:56, 8:56].float() / 255)


@pytest.mark.parametrize(("size", "crop"), [(64, 64), (64, 48), (64, 44), (63, 60), (61, 56)])
def test_ten_crops_are_torchvisions(images, size, crop):
    images = images[..., :size, :size]
    config = ImagesConfig(size_px=size, crop_size_px=crop, test_crops="ten")
    expected = torch.stack(TenCrop(crop)(images.float() / 255))
    crops = ten_crops(images, config)
    torch.testing.assert_close(crops, expected, rtol=0, atol=0)
    torch.testing.assert_close(crops[CENTRE_CROP], to_input(images, config), rtol=0, atol=0)


def test_crop_and_mirror_are_exact_pixels_of_the_image_and_differ_between_images(images):
    config = ImagesConfig(size_px=64, crop_size_px=48, horizontal_flip=True)
    same = images[:1].expand(40, -1, -1, -1)
    crops = augment(same, config, torch.Generator().manual_seed(1))
    windows = images[0, 0].float().div(255).unfold(0, 48, 1).unfold(1, 48, 1).reshape(-1, 48, 48)
    candidates = torch.cat([windows, windows.flip(-1)])
    found = [int((candidates == crop).all(dim=(1, 2)).nonzero()[0]) for crop in crops[:, 0]]
    assert len(set(found)) > 30
    assert {position >= len(windows) for position in found} == {False, True}


def test_a_rotated_crop_equals_torchvisions_rotation_about_the_crops_centre(images):
    top, left, crop, angle = 6, 10, 48, 4.0
    for mirror in (False, True):
        ours = crop_rotated(
            images[:1].float().div(255),
            torch.tensor([[top, left]]),
            torch.tensor([angle]),
            torch.tensor([mirror]),
            crop,
        )[0]
        centre = [left + crop / 2, top + crop / 2]
        turned = rotate(images[0].float().div(255), angle, InterpolationMode.BILINEAR, center=centre)
        expected = turned[:, top : top + crop, left : left + crop]
        expected = hflip(expected) if mirror else expected
        inner = (slice(None), slice(6, -6), slice(6, -6))  # torchvision fills from outside the image with black
        torch.testing.assert_close(ours[inner], expected[inner], atol=2e-3, rtol=0)


def test_rotation_by_zero_degrees_is_the_exact_crop(images):
    corner = torch.tensor([[3, 5]]).expand(6, -1)
    turned = crop_rotated(images.float(), corner, torch.zeros(6), torch.zeros(6, dtype=torch.bool), 48)
    torch.testing.assert_close(turned, images[:, :, 3:51, 5:53].float(), atol=1e-2, rtol=0)


def test_the_same_generator_state_gives_the_same_augmentation(images):
    config = ImagesConfig(size_px=64, crop_size_px=56, rotation_deg=5)
    one, two = (augment(images, config, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, augment(images, config, torch.Generator().manual_seed(4)))
    assert one.shape == (6, 1, 56, 56)
    assert one.min() >= 0
    assert one.max() <= 1
